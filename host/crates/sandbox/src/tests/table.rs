//! What each kind of sandbox keeps out, as the table in the guide says it. Every try is made in every kind of
//! sandbox; where nothing is around a command (`local`) it gets through, which shows that it is one. So all
//! sandboxes have the user that other sessions and the host's process have: a user id of their own would
//! keep out by itself what the kind of sandbox is to keep out.

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::walls::{Kind, serve, web_server};
use super::*;
use crate::docker::tests::wall_sandboxes;
use crate::workspace::{Workspace, sandbox_user};

/// The guide that has the table, between the two lines below.
const GUIDE: &str = include_str!("../../../../docs/security.md");
const GUIDE_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/security.md");
const BEGIN: &str = "<!-- The table is made by a test, `tests::table` of lucid-sandbox: LUCID_TABLE=write makes it anew. -->\n";
const END: &str = "<!-- The end of the table. -->";
/// With the value `write`, the table is written and not compared.
const WRITE: &str = "LUCID_TABLE";

/// What a command prints when it was not kept out.
const THROUGH: &str = "got through";
/// The same where it is the host that sees whether it was.
const SIGNALLED: &str = "signalled";
const KEPT_OUT: &str = "kept out";
const GETS_THROUGH: &str = "**gets through**";

/// A column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Docker,
    Walls(Kind),
    Local,
}

const COLUMNS: [(Column, &str); 5] = [
    (Column::Docker, "Docker"),
    (Column::Walls(Kind::Bubblewrap), "bubblewrap"),
    (Column::Walls(Kind::Landlock), "Landlock"),
    (
        Column::Walls(Kind::LandlockWithoutNamespaces),
        "Landlock without namespaces",
    ),
    (Column::Local, "`local`"),
];

/// What the tries aim at.
struct Targets {
    /// A file of the host that everybody may read and write.
    outside: PathBuf,
    /// The workspace of another session, and its folder for the host's own files.
    other_workspace: PathBuf,
    other_runtime: PathBuf,
    /// A process of the host, by a word in its environment.
    victim: Victim,
    /// A word in the command line of a process in another sandbox.
    other_mark: String,
    /// A web server at every address of the host, and one for datagrams at its loopback.
    web: u16,
    datagrams: u16,
    /// A server in another sandbox, where one can be.
    other_server: Option<u16>,
    /// The name of an abstract socket of the host.
    abstract_name: String,
}

/// A process of the host.
struct Victim {
    process: Child,
    secret: String,
}

impl Victim {
    fn new() -> Self {
        let secret = format!("secret-{}", mark());
        let mut process = Command::new("sleep");
        process.arg("1000").env("VICTIM", &secret);
        // What one's own user runs is the easiest to get at.
        if let Some(user) = sandbox_user() {
            process.uid(user).gid(user);
        }
        let process = process.spawn().unwrap();
        Self { process, secret }
    }

    /// Whether a signal that was sent ended it, which takes a moment.
    async fn has_ended(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One thing that a hostile command tries.
struct Try {
    /// A row of the table.
    what: &'static str,
    /// What it takes to keep it out, beside the kind of sandbox.
    needs: &'static str,
    /// Whether it gets through without a sandbox depends on the machine, as these words say.
    local: Option<&'static str>,
    /// The shell's commands, which print [`THROUGH`] when they got through.
    script: fn(&Targets) -> String,
}

/// A try in Python, which gets through unless it raises an error.
fn python(attempt: &str) -> String {
    format!(
        "python3 - 2>&1 <<'END'\nimport ctypes, os, resource, socket\n{attempt}\nprint('{THROUGH}')\nEND"
    )
}

/// System calls that get through unless the kernel seems not to have any of them.
fn system_calls(numbers: &[u32]) -> String {
    python(&format!(
        "calls = ctypes.CDLL(None, use_errno=True)
def known(number): return calls.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 38
assert any([known(number) for number in {numbers:?}])"
    ))
}

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const KEYS: [u32; 3] = [248, 249, 250];
    pub(super) const INTERFACES: [u32; 4] = [321, 298, 425, 323];
    pub(super) const NAMESPACES: [u32; 3] = [165, 272, 308];
    pub(super) const DESCRIPTOR: [u32; 1] = [438];
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const KEYS: [u32; 3] = [217, 218, 219];
    pub(super) const INTERFACES: [u32; 4] = [280, 241, 425, 282];
    pub(super) const NAMESPACES: [u32; 3] = [40, 97, 268];
    pub(super) const DESCRIPTOR: [u32; 1] = [438];
}

const OF_THE_KERNEL: Option<&str> = Some("as the kernel allows");
const OF_THE_USER: Option<&str> = Some("as the server's user may");
const ANY: &str = "";
const SCOPES: &str = "Landlock: Linux 6.12";

/// What a user id of the session's own keeps out as well.
const OTHER_WORKSPACE: &str = "reading the workspace of another session";
const ENDING: &str = "ending a process of the host";
const ENVIRONMENT: &str = "reading the environment of a process of the host";

const TRIES: [Try; 18] = [
    Try {
        what: "reading a file of the host",
        needs: ANY,
        local: None,
        script: |of| format!("cat {} && echo {THROUGH}", of.outside.display()),
    },
    Try {
        what: "writing a file of the host that everybody may write",
        needs: ANY,
        local: None,
        script: |of| format!("echo x >> {} && echo {THROUGH}", of.outside.display()),
    },
    Try {
        what: OTHER_WORKSPACE,
        needs: ANY,
        local: None,
        script: |of| {
            format!(
                "cat {}/secret && echo {THROUGH}",
                of.other_workspace.display()
            )
        },
    },
    Try {
        what: "reading the host's own files of another session, such as the key of its git gateway",
        needs: ANY,
        local: None,
        script: |of| {
            format!(
                "cat {}/git.key && echo {THROUGH}",
                of.other_runtime.display()
            )
        },
    },
    Try {
        what: "being root",
        needs: ANY,
        local: OF_THE_USER,
        script: |_| format!("test $(id -u) = 0 && echo {THROUGH}"),
    },
    Try {
        what: "gaining rights by a set-user-id program",
        needs: ANY,
        local: None,
        script: |_| format!("grep -q 'NoNewPrivs:.*0' /proc/self/status && echo {THROUGH}"),
    },
    Try {
        what: ENDING,
        needs: SCOPES,
        local: None,
        // In a namespace the number may be another process's, so it is looked at from outside as well.
        script: |of| format!("kill -9 {} && echo {SIGNALLED}", of.victim.process.id()),
    },
    Try {
        what: ENVIRONMENT,
        needs: ANY,
        local: None,
        script: |of| {
            format!(
                "grep -aq {} /proc/[0-9]*/environ && echo {THROUGH}",
                of.victim.secret
            )
        },
    },
    Try {
        what: "reading the command lines of other sessions",
        needs: ANY,
        local: None,
        // The brackets keep the search from finding itself.
        script: |of| {
            let (first, rest) = of.other_mark.split_at(1);
            format!("grep -aq '[{first}]{rest}' /proc/[0-9]*/cmdline && echo {THROUGH}")
        },
    },
    Try {
        what: "setting the limits of another process",
        needs: ANY,
        local: None,
        // The shell is the other process.
        script: |_| {
            python("resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (100, 100))") + "\ntrue"
        },
    },
    Try {
        what: "connecting to a server on the host's loopback",
        needs: ANY,
        local: None,
        script: |of| {
            python(&format!(
                "socket.create_connection(('127.0.0.1', {}), 2)",
                of.web
            ))
        },
    },
    Try {
        what: "reaching a private address or one of this machine through the proxy",
        needs: ANY,
        local: None,
        script: |of| {
            format!(
                "python3 -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{}/', timeout=5).read())\" 2>&1 | grep -q reached && echo {THROUGH}",
                of.web
            )
        },
    },
    Try {
        what: "connecting to a server in another sandbox",
        needs: ANY,
        local: None,
        script: |of| match of.other_server {
            Some(port) => python(&format!(
                "socket.create_connection(('127.0.0.1', {port}), 2)"
            )),
            // None can be.
            None => "true".to_owned(),
        },
    },
    Try {
        what: "connecting to an abstract socket of the host",
        needs: "Landlock without namespaces: Linux 6.12",
        local: None,
        script: |of| {
            python(&format!(
                "socket.socket(socket.AF_UNIX).connect('\\0{}')",
                of.abstract_name
            ))
        },
    },
    Try {
        what: "sending a datagram to the host",
        needs: ANY,
        local: None,
        script: |of| {
            python(&format!(
                "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
s.connect(('127.0.0.1', {})); s.send(b'x'); s.recv(1)",
                of.datagrams
            ))
        },
    },
    Try {
        what: "the kernel's keyrings",
        needs: ANY,
        local: OF_THE_KERNEL,
        script: |_| system_calls(&number::KEYS),
    },
    Try {
        what: "BPF, performance counters, io_uring and user faults",
        needs: ANY,
        local: OF_THE_KERNEL,
        script: |_| system_calls(&number::INTERFACES),
    },
    Try {
        what: "mounts, new namespaces, and descriptors of other processes",
        needs: ANY,
        local: OF_THE_KERNEL,
        script: |_| system_calls(&[&number::NAMESPACES[..], &number::DESCRIPTOR].concat()),
    },
];

/// One kind of sandbox, and where its workspaces are.
struct TriedBackend {
    sandboxes: Sandboxes,
    storage: PathBuf,
}

impl TriedBackend {
    async fn start(&self, session: &str) -> (Workspace, Sandbox) {
        let workspace =
            Workspace::create(&self.storage, &"user".into(), session_id(session)).unwrap();
        let spec = SandboxSpec {
            session: session_id(session),
            workspace: workspace.host_path(),
            repository: None,
        };
        let sandbox = Box::pin(self.sandboxes.start(spec)).await.unwrap();
        (workspace, sandbox)
    }

    /// Makes all tries, and returns which got through.
    async fn make_tries(&self, outside: PathBuf) -> Vec<bool> {
        let abstract_name = format!("lucid-table-{}", mark());
        let _abstract = listen_abstract(&abstract_name);
        let (other_workspace, other) = self.start("other").await;
        let (_, sandbox) = self.start("one").await;
        let _proxies = [&other, &sandbox].map(|sandbox| {
            let has_proxy = sandbox.take_proxy_listener();
            has_proxy.map(|listener| serve(listener, ""))
        });
        let secret = other_workspace.path("secret").unwrap();
        other_workspace.write(&secret, b"another's").unwrap();
        std::fs::write(other.runtime_dir().join("git.key"), "key").unwrap();
        let other_mark = mark();
        shell(&other, &format!("sleep {other_mark} & true")).await;
        // What the tries are made of works here.
        let works = "python3 -c 'import ctypes, socket; print(40 + 2)' && grep -aq PATH /proc/self/environ && echo seen";
        assert_eq!(shell(&sandbox, works).await.output, "42\nseen\n");
        let mut targets = Targets {
            outside,
            other_workspace: other_workspace.host_path().to_owned(),
            other_runtime: other.runtime_dir().to_owned(),
            victim: Victim::new(),
            other_mark,
            web: web_server(),
            datagrams: echo_datagrams(),
            other_server: serve_within(&other).await,
            abstract_name,
        };
        let mut through = Vec::new();
        for attempt in &TRIES {
            let ran = shell(&sandbox, &(attempt.script)(&targets)).await;
            let ended = ran.output.contains(SIGNALLED) && targets.victim.has_ended().await;
            if ended {
                targets.victim = Victim::new();
            }
            through.push(ended || ran.output.contains(THROUGH));
        }
        other.close().await;
        sandbox.close().await;
        through
    }
}

fn listen_abstract(name: &str) -> std::os::unix::net::UnixListener {
    use std::os::linux::net::SocketAddrExt as _;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    std::os::unix::net::UnixListener::bind_addr(&address).unwrap()
}

/// A server that sends every datagram back.
fn echo_datagrams() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut bytes = [0; 8];
        while let Ok((size, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..size], from);
        }
    });
    port
}

/// Starts a server in a sandbox. `None` where nothing may listen.
async fn serve_within(sandbox: &Sandbox) -> Option<u16> {
    let serve = "python3 -c 'import socket
s = socket.socket(); s.bind((\"0.0.0.0\", 0)); s.listen(); print(s.getsockname()[1], flush=True)
while True: s.accept()' > port 2>&1 & while ! test -s port; do sleep 0.01; done; cat port";
    shell(sandbox, serve).await.output.trim().parse().ok()
}

/// What got through in a kind of sandbox. `None` if this machine cannot have it.
async fn results_of(column: Column) -> Option<Vec<bool>> {
    let fixture = match column {
        Column::Docker => {
            let (keep, sandboxes, storage) = wall_sandboxes().await?;
            let outside = outside_of(storage.parent().unwrap());
            let results = TriedBackend { sandboxes, storage }
                .make_tries(outside)
                .await;
            drop(keep);
            return Some(results);
        }
        Column::Walls(kind) => {
            let fixture = SandboxFixture::with_shared_user(kind.choice(), Network::Proxy).await;
            kind.set(&fixture.sandboxes);
            fixture
        }
        Column::Local => {
            SandboxFixture::with_shared_user(BackendChoice::Local, Network::Host).await
        }
    };
    Some(results_in(&fixture).await)
}

async fn results_in(fixture: &SandboxFixture) -> Vec<bool> {
    let tried = TriedBackend {
        sandboxes: fixture.sandboxes.clone(),
        storage: fixture.dir.path().join("storage"),
    };
    tried.make_tries(outside_of(fixture.dir.path())).await
}

/// A file of the host that everybody may read and write.
fn outside_of(dir: &Path) -> PathBuf {
    let outside = dir.join("outside");
    std::fs::write(&outside, "the host's").unwrap();
    std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o666)).unwrap();
    outside
}

/// The cells of a table, without its head.
fn cells(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

fn rendered(rows: &[Vec<String>]) -> String {
    let mut table = "| a command tries |".to_owned();
    for (_, name) in COLUMNS {
        let _ = write!(table, " {name} |");
    }
    table.push_str(" needs |\n|");
    table.push_str(&" --- |".repeat(COLUMNS.len() + 2));
    table.push('\n');
    for row in rows {
        let _ = writeln!(table, "| {} |", row.join(" | "));
    }
    table
}

#[tokio::test]
async fn sandboxes_keep_out_what_the_guide_says() {
    let (before, rest) = GUIDE.split_once(BEGIN).expect("the guide has a table");
    let (written, after) = rest.split_once(END).expect("the table has an end");
    let old = cells(written);
    let mut rows: Vec<Vec<String>> = TRIES.iter().map(|row| vec![row.what.to_owned()]).collect();
    for (number, (column, _)) in COLUMNS.into_iter().enumerate() {
        let results = results_of(column).await;
        for (at, attempt) in TRIES.iter().enumerate() {
            let varies = attempt.local.filter(|_| column == Column::Local);
            let cell = match (varies, &results) {
                (Some(varies), _) => varies,
                (None, Some(results)) if results[at] => GETS_THROUGH,
                (None, Some(_)) => KEPT_OUT,
                // What cannot be tried here stays as it was.
                (None, None) => old
                    .get(at)
                    .and_then(|row| row.get(number + 1))
                    .copied()
                    .unwrap_or_default(),
            };
            rows[at].push(cell.to_owned());
        }
    }
    for (row, attempt) in rows.iter_mut().zip(&TRIES) {
        row.push(attempt.needs.to_owned());
    }
    let table = rendered(&rows);
    if std::env::var(WRITE).is_ok_and(|value| value == "write") {
        std::fs::write(GUIDE_FILE, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(
        written, table,
        "the table in host/docs/security.md is not what this machine shows; if that is right, \
         `{WRITE}=write cargo test -p lucid-sandbox --lib -- tests::table` writes it anew"
    );
}

#[tokio::test]
async fn a_user_id_of_its_own_keeps_a_session_from_what_others_have_without_any_walls() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let fixture = SandboxFixture::with_network(BackendChoice::Local, Network::Host).await;
    let results = results_in(&fixture).await;
    for (attempt, through) in TRIES.iter().zip(results) {
        let by_user = [OTHER_WORKSPACE, ENDING, ENVIRONMENT].contains(&attempt.what);
        assert!(!(by_user && through), "{}", attempt.what);
    }
}

#[test]
fn every_try_gets_through_without_a_sandbox_unless_the_machine_decides() {
    let table = GUIDE
        .split_once(BEGIN)
        .unwrap()
        .1
        .split_once(END)
        .unwrap()
        .0;
    let local = COLUMNS.len();
    for (row, attempt) in cells(table).iter().zip(&TRIES) {
        let expected = attempt.local.unwrap_or(GETS_THROUGH);
        assert_eq!(row[local], expected, "{}", attempt.what);
    }
}
