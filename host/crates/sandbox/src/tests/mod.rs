//! Tests with real sandboxes of every backend, and attacks by hostile code in them. Bubblewrap and
//! Landlock must be available: a test that cannot run fails and says why.

pub(crate) mod commands;
pub(crate) mod direct;
pub(crate) mod everyday;
mod limits;
mod table;
mod walls;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::backend::pick;
use super::*;
use lucid_tests::EXEC;
use lucid_types::digest::sha256_hex;
use lucid_types::ids::SessionId;

/// Held exclusively by the test that fills the process table of a user that all Landlock sandboxes
/// share.
static PROCESS_TABLE_LOCK: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

/// The id of the session that a test calls so: the same for the same name.
pub(crate) fn session_id(name: &str) -> SessionId {
    sha256_hex(name)[..32].parse().unwrap()
}

/// A machine with sandboxes of one backend and two sessions' workspaces.
pub(crate) struct SandboxFixture {
    _room: Option<tokio::sync::RwLockReadGuard<'static, ()>>,
    pub(crate) dir: tempfile::TempDir,
    pub sandboxes: Sandboxes,
}

impl SandboxFixture {
    pub(crate) async fn new(choice: BackendChoice) -> Self {
        Self::with_network(choice, Network::None).await
    }

    async fn with_network(choice: BackendChoice, network: Network) -> Self {
        let room = PROCESS_TABLE_LOCK.read().await;
        Self {
            _room: Some(room),
            ..Self::alone(choice, network).await
        }
    }

    /// With one user id for all sandboxes.
    async fn with_shared_user(choice: BackendChoice, network: Network) -> Self {
        let room = PROCESS_TABLE_LOCK.read().await;
        Self {
            _room: Some(room),
            ..Self::with_settings(choice, network, 512 << 20, UserIdChoice::Shared).await
        }
    }

    /// With the memory and the network that everyday programs need.
    pub(crate) async fn roomy(choice: BackendChoice) -> Self {
        let room = PROCESS_TABLE_LOCK.read().await;
        Self {
            _room: Some(room),
            ..Self::with_settings(choice, Network::None, 4 << 30, UserIdChoice::Auto).await
        }
    }

    async fn alone(choice: BackendChoice, network: Network) -> Self {
        Self::with_settings(choice, network, 512 << 20, UserIdChoice::Auto).await
    }

    /// With sockets of their own beside the proxy.
    async fn with_direct(choice: BackendChoice) -> Self {
        Self::found(choice, UserIdChoice::Auto, |settings| {
            settings.network = Network::Proxy;
            settings.direct = true;
        })
        .await
    }

    async fn with_settings(
        choice: BackendChoice,
        network: Network,
        memory_bytes: u64,
        users: UserIdChoice,
    ) -> Self {
        Self::found(choice, users, |settings| {
            settings.network = network;
            settings.memory_bytes = memory_bytes;
        })
        .await
    }

    async fn found(
        choice: BackendChoice,
        users: UserIdChoice,
        change: impl FnOnce(&mut SandboxSettings),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let mut settings = SandboxSettings {
            run_dir: dir.path().join("run"),
            memory_bytes: 512 << 20,
            cpus: 2.0,
            processes: PROCESSES,
            users,
            network: Network::None,
            direct: false,
            several_users: false,
            workspace_mount: "/workspace".to_owned(),
            docker: None,
        };
        change(&mut settings);
        let sandboxes = Sandboxes::detect(choice, settings, EXEC).await.unwrap_or_else(|error| {
            panic!("this test needs bubblewrap (`apt-get install bubblewrap`) and a kernel with Landlock: {error}")
        });
        Self {
            _room: None,
            dir,
            sandboxes,
        }
    }

    pub(crate) fn workspace(&self, session: &str) -> super::workspace::Workspace {
        let storage = self.dir.path().join("storage");
        super::workspace::Workspace::create(&storage, &"user".into(), session_id(session)).unwrap()
    }

    pub(crate) async fn start(&self, session: &str, repository: Option<&str>) -> Sandbox {
        let workspace = self.workspace(session);
        let spec = SandboxSpec {
            session: session_id(session),
            workspace: workspace.host_path(),
            repository,
        };
        self.sandboxes.start(spec).await.unwrap()
    }
}

async fn shell(sandbox: &Sandbox, command: &str) -> ExecResult {
    sandbox
        .exec(ExecRequest::shell(command), |_| {})
        .await
        .unwrap()
}

const BOTH: [BackendChoice; 2] = [BackendChoice::Bubblewrap, BackendChoice::Landlock];

/// Waits until no process on this machine has `mark` in its command line.
async fn all_gone(mark: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while running(mark) > 0 {
        assert!(
            Instant::now() < deadline,
            "{} processes with {mark} live on",
            running(mark)
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn some_run(mark: &str, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while running(mark) < count {
        assert!(
            Instant::now() < deadline,
            "fewer than {count} processes with {mark} came up"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn running(mark: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
                let mut arguments = line.split(|byte| *byte == 0);
                arguments
                    .next()
                    .is_some_and(|name| name.ends_with(b"sleep"))
                    && arguments.next() == Some(mark.as_bytes())
            })
        })
        .count()
}

/// A number of seconds to sleep that no other test uses, to find the process by.
fn mark() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}.{number}", 100_000 + std::process::id())
}

#[tokio::test]
async fn a_command_runs_in_the_workspace_with_output_in_order() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let mut live = Vec::new();
        let command = "echo out; echo err >&2; pwd; echo hello > made; exit 3";
        let result = sandbox
            .exec(ExecRequest::shell(command), |bytes| {
                live.extend_from_slice(bytes)
            })
            .await
            .unwrap();
        assert_eq!(result.exit_code, 3);
        assert_eq!(
            result.output,
            format!("out\nerr\n{}\n", sandbox.workspace_path())
        );
        assert_eq!(live, result.output.as_bytes());
        let workspace = fixture.workspace("one");
        assert_eq!(
            workspace
                .read(&workspace.path("made").unwrap(), 100)
                .unwrap(),
            b"hello\n"
        );
        // The sandbox may change what the host writes.
        workspace
            .write(&workspace.path("sub/given").unwrap(), b"1")
            .unwrap();
        assert_eq!(
            shell(
                &sandbox,
                "echo 2 >> sub/given && rm made && python -c 'print(40 + 2)'"
            )
            .await
            .output,
            "42\n"
        );
        sandbox.close().await;
    }
}

#[tokio::test]
async fn nothing_of_the_host_or_of_other_sessions_can_be_read_or_written() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let other = fixture.workspace("other");
        other
            .write(&other.path("secret").unwrap(), b"another's")
            .unwrap();
        let other_box = fixture.start("other", None).await;
        std::fs::write(other_box.runtime_dir().join("git.key"), "key").unwrap();
        let outside = fixture.dir.path().join("outside");
        std::fs::write(&outside, "the host's").unwrap();
        std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o666)).unwrap();
        let sandbox = fixture.start("one", None).await;
        let there = |path: &Path| path.display().to_string();
        for path in [
            "/root/.bashrc".to_owned(),
            "/etc/shadow".to_owned(),
            "/proc/1/environ".to_owned(),
            format!("/proc/{}/root/etc/hostname", std::process::id()),
            there(&outside),
            there(&other.host_path().join("secret")),
            there(&other_box.runtime_dir().join("git.key")),
            "/etc/machine-id".to_owned(),
        ] {
            let result = shell(&sandbox, &format!("cat {path}")).await;
            // In a process namespace, process 1 is the sandbox's own, and its environment is no
            // secret.
            let own = choice == BackendChoice::Bubblewrap && path == "/proc/1/environ";
            assert!(
                own || result.exit_code != 0,
                "{choice:?} {path}: {}",
                result.output
            );
        }
        for path in [
            there(&outside),
            "/usr/planted".to_owned(),
            "/etc/planted".to_owned(),
            "/planted".to_owned(),
        ] {
            let result = shell(&sandbox, &format!("echo x >> {path}")).await;
            assert_ne!(result.exit_code, 0, "{choice:?} wrote {path}");
        }
        let result = shell(
            &sandbox,
            &format!("ls {}", other.host_path().parent().unwrap().display()),
        )
        .await;
        assert_ne!(result.exit_code, 0, "{choice:?}: {}", result.output);
        let result = shell(&sandbox, "id -u; id -G; env").await;
        assert!(
            !result.output.contains("CARGO"),
            "the host's environment leaked: {}",
            result.output
        );
        assert!(!result.output.starts_with("0\n"), "{choice:?} runs as root");
        other_box.close().await;
        sandbox.close().await;
    }
}

#[tokio::test]
async fn the_host_and_its_processes_cannot_be_signalled() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let mut victim = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let result = shell(&sandbox, &format!("kill -9 {}", victim.id())).await;
        assert_ne!(result.exit_code, 0, "{choice:?}");
        assert!(victim.try_wait().unwrap().is_none());
        victim.kill().unwrap();
        victim.wait().unwrap();
        sandbox.close().await;
    }
}

#[tokio::test]
async fn with_the_network_off_no_address_can_be_reached() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tcp = format!(
        "import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('reached')"
    );
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    datagram.set_nonblocking(true).unwrap();
    let udp = format!(
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {}))",
        datagram.local_addr().unwrap().port()
    );
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let result = shell(&sandbox, &format!("python3 -c \"{tcp}\"")).await;
        assert!(
            result.exit_code != 0 && !result.output.contains("reached"),
            "{choice:?}: {}",
            result.output
        );
        shell(&sandbox, &format!("python3 -c \"{udp}\"")).await;
        assert!(
            datagram.recv(&mut [0; 8]).is_err(),
            "{choice:?}: a datagram came through"
        );
        sandbox.close().await;
        drop(fixture);
        let fixture = SandboxFixture::with_network(choice, Network::Host).await;
        let sandbox = fixture.start("one", None).await;
        let result = shell(&sandbox, &format!("python3 -c \"{tcp}\"")).await;
        assert_eq!(
            result.output, "reached\n",
            "{choice:?} with the host's network"
        );
        sandbox.close().await;
    }
}

#[tokio::test]
async fn a_time_out_kills_the_whole_process_group() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let mark = mark();
        let command = format!("trap '' TERM; sleep {mark} & echo begun; sleep {mark}");
        let request = ExecRequest::shell(command).timeout(Duration::from_secs(2));
        let result = sandbox.exec(request, |_| {}).await.unwrap();
        assert!(result.timed_out, "{choice:?}: {result:?}");
        assert_eq!(result.output, "begun\n");
        assert!(result.duration < Duration::from_secs(20));
        all_gone(&mark).await;
        assert_eq!(shell(&sandbox, "echo well").await.output, "well\n");
        sandbox.close().await;
    }
}

#[tokio::test]
async fn dropping_the_future_kills_the_command() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let mark = mark();
        let request = ExecRequest::shell(format!("sleep {mark}; true"));
        tokio::select! {
            _ = sandbox.exec(request, |_| {}) => panic!("the command ended by itself"),
            () = some_run(&mark, 1) => {}
        }
        all_gone(&mark).await;
        sandbox.close().await;
    }
}

#[tokio::test]
async fn a_background_process_survives_its_command_and_dies_with_the_box() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let mark = mark();
        let begun = Instant::now();
        // One holds the pipe open, one left the group and the session, and both go on writing.
        let command =
            format!("sleep {mark} & setsid sh -c 'echo more; exec sleep {mark}' & echo done");
        let result = shell(&sandbox, &command).await;
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "the command waited for what it left behind"
        );
        assert!(result.output.contains("done"));
        assert_eq!(result.exit_code, 0);
        shell(&sandbox, "true").await;
        some_run(&mark, 2).await;
        // Its output goes nowhere, which must not end it.
        shell(
            &sandbox,
            "mkfifo begin; (read x < begin; echo late; echo late; touch proof) & true",
        )
        .await;
        let proof = "echo > begin; until test -e proof; do sleep 0.01; done";
        let request = ExecRequest::shell(proof).timeout(Duration::from_secs(10));
        assert!(
            !sandbox.exec(request, |_| {}).await.unwrap().timed_out,
            "{choice:?}: it died when it wrote"
        );
        sandbox.close().await;
        all_gone(&mark).await;
    }
}

#[tokio::test]
async fn a_box_whose_last_handle_is_dropped_takes_everything_along() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let mark = mark();
        shell(&sandbox, &format!("setsid sleep {mark} & true")).await;
        some_run(&mark, 1).await;
        let folder = sandbox.runtime_dir().to_owned();
        drop(sandbox);
        all_gone(&mark).await;
        let deadline = Instant::now() + Duration::from_secs(10);
        while folder.exists() {
            assert!(
                Instant::now() < deadline,
                "{choice:?} leaves {}",
                folder.display()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_hundred_megabytes_of_output_are_capped_and_counted() {
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let sandbox = fixture.start("one", None).await;
    let mut live = 0;
    let command = "echo first; head -c 104857600 /dev/zero | tr '\\0' x; echo; echo last";
    let request = ExecRequest::shell(command).keep_output(1000, 1000);
    let result = sandbox
        .exec(request, |bytes| live += bytes.len())
        .await
        .unwrap();
    assert_eq!(live, 1000);
    assert_eq!(result.omitted, 104_857_600 + 6 + 1 + 5 - 2000);
    assert!(result.output.starts_with("first\nxxx") && result.output.ends_with("x\nlast\n"));
    assert!(
        result.output.contains("[… 104855612 bytes left out …]"),
        "{}",
        result.output
    );
    assert!(result.output.len() < 3000);
    sandbox.close().await;
}

#[tokio::test]
async fn a_fork_bomb_stays_within_its_box_and_ends_with_it() {
    let _room = PROCESS_TABLE_LOCK.write().await;
    for choice in BOTH {
        let fixture = SandboxFixture::alone(choice, Network::None).await;
        let sandbox = fixture.start("one", None).await;
        let other = fixture.start("two", None).await;
        let mark = mark();
        let bomb = format!(
            "import os\nwhile True:\n  try:\n    if os.fork() == 0: os.execvp('sleep', ['sleep', '{mark}'])\n  except OSError: pass"
        );
        std::fs::write(fixture.workspace("one").host_path().join("bomb.py"), bomb).unwrap();
        let request = ExecRequest::shell("python3 bomb.py").timeout(Duration::from_secs(2));
        let result = sandbox.exec(request, |_| {}).await.unwrap();
        assert!(result.timed_out);
        let count = running(&mark);
        assert!(count < 1200, "{choice:?}: {count} processes");
        sandbox.close().await;
        all_gone(&mark).await;
        assert_eq!(
            shell(&other, "echo well").await.output,
            "well\n",
            "{choice:?}: the other session suffered"
        );
        other.close().await;
    }
}

#[tokio::test]
async fn a_box_that_kills_or_stops_its_own_server_is_gone_and_leaves_nothing() {
    let choice = BackendChoice::Landlock;
    let fixture = SandboxFixture::new(choice).await;
    let sandbox = fixture.start("one", None).await;
    let mark = mark();
    shell(&sandbox, &format!("setsid sleep {mark} & true")).await;
    some_run(&mark, 1).await;
    for command in ["kill -9 $PPID; sleep 5", "true"] {
        let ran = sandbox.exec(ExecRequest::shell(command), |_| {}).await;
        let error = ran.unwrap_err();
        assert!(matches!(error, SandboxError::Gone(_)), "{error}");
    }
    assert!(!sandbox.is_alive());
    sandbox.close().await;
    all_gone(&mark).await;

    let sandbox = fixture.start("two", None).await;
    let stop = format!("setsid sleep {mark} & kill -STOP $PPID; wait");
    tokio::select! {
        _ = sandbox.exec(ExecRequest::shell(stop), |_| {}) => panic!("a stopped server answers"),
        () = some_run(&mark, 1) => {}
    }
    let begun = Instant::now();
    sandbox.close().await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "a stopped server delays the end"
    );
    all_gone(&mark).await;
}

#[tokio::test]
async fn a_server_that_is_its_namespaces_first_process_cannot_be_signalled_from_inside() {
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let sandbox = fixture.start("one", None).await;
    let tried = "test $PPID = 1 && for signal in KILL STOP TERM SEGV; do kill -$signal 1; done";
    shell(&sandbox, tried).await;
    assert_eq!(shell(&sandbox, "echo well").await.output, "well\n");
    sandbox.close().await;
}

#[tokio::test]
async fn no_zombie_stays_of_orphans_or_of_failed_starts() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        for _ in 0..20 {
            shell(&sandbox, "(sleep 0.01 &) ; true").await;
            let error = sandbox
                .exec(ExecRequest::argv(["no-such-program"]), |_| {})
                .await
                .unwrap_err();
            assert_eq!(
                error.to_string(),
                "There is no program no-such-program in the sandbox."
            );
        }
        let count = "sleep 0.1; cat /proc/[0-9]*/stat 2>/dev/null | grep -c \") Z $PPID \"";
        assert_eq!(shell(&sandbox, count).await.output, "0\n", "{choice:?}");
        let error = sandbox
            .exec(ExecRequest::shell("true").cwd("/nowhere"), |_| {})
            .await
            .unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
        sandbox.close().await;
    }
}

#[tokio::test]
async fn many_commands_run_at_once_and_each_gets_its_own_output() {
    let fixture = SandboxFixture::new(BackendChoice::Landlock).await;
    let sandbox = fixture.start("one", None).await;
    let run = |number: usize| {
        let sandbox = sandbox.clone();
        async move {
            (
                number,
                shell(
                    &sandbox,
                    &format!("sleep 0.05; echo {number}; exit {number}"),
                )
                .await,
            )
        }
    };
    for (number, result) in futures::future::join_all((0..40).map(run)).await {
        assert_eq!(
            (result.output, result.exit_code as usize),
            (format!("{number}\n"), number)
        );
    }
    sandbox.close().await;
    sandbox.close().await;
}

#[tokio::test]
async fn memory_beyond_the_limit_is_refused() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let result = shell(&sandbox, "python3 -c 'x = bytearray(1 << 30)'").await;
        assert!(
            result.output.contains("MemoryError"),
            "{choice:?}: {}",
            result.output
        );
        sandbox.close().await;
    }
}

#[tokio::test]
async fn a_folder_that_a_command_closed_goes_with_its_box() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let command = "for at in $TMPDIR .; do mkdir -p $at/a/b; touch $at/a/b/c; chmod 500 $at/a/b; chmod 0 $at/a; done; chmod 0 .";
        assert_eq!(shell(&sandbox, command).await.exit_code, 0, "{choice:?}");
        let folder = sandbox.runtime_dir().to_owned();
        sandbox.close().await;
        assert!(!folder.exists(), "{choice:?} leaves {}", folder.display());
        fixture.workspace("one").remove().unwrap();
        assert!(!fixture.dir.path().join("storage/user").exists());
    }
}

#[test]
fn for_several_users_only_a_kind_that_keeps_them_apart_is_taken_by_itself() {
    let found = |kind, problem: Option<&str>| BackendStatus {
        kind,
        problem: problem.map(str::to_owned),
        remark: None,
    };
    let missing = found(BackendKind::Bubblewrap, Some("bwrap is not installed."));
    let (bubblewrap, landlock) = (
        found(BackendKind::Bubblewrap, None),
        found(BackendKind::Landlock, None),
    );
    let only_landlock = [missing.clone(), landlock.clone()];
    assert_eq!(
        pick(BackendChoice::Auto, &only_landlock).unwrap(),
        (BackendKind::Landlock, None),
        "one user has nobody to be kept from"
    );
    let (kind, refusal) = pick(BackendChoice::AutoForMany, &only_landlock).unwrap();
    let refusal = refusal.unwrap();
    assert_eq!(kind, BackendKind::None);
    for part in [
        "bwrap is not installed",
        "apt-get install bubblewrap",
        "SANDBOX_BACKEND=landlock",
    ] {
        assert!(refusal.contains(part), "{refusal}");
    }
    for choice in [BackendChoice::Auto, BackendChoice::AutoForMany] {
        assert_eq!(
            pick(choice, &[bubblewrap.clone(), landlock.clone()]).unwrap(),
            (BackendKind::Bubblewrap, None)
        );
    }
    assert_eq!(
        pick(BackendChoice::Landlock, std::slice::from_ref(&landlock)).unwrap(),
        (BackendKind::Landlock, None),
        "who asks for it gets it"
    );
    let (_, refusal) = pick(BackendChoice::AutoForMany, std::slice::from_ref(&missing)).unwrap();
    assert_eq!(refusal.unwrap(), "bubblewrap: bwrap is not installed.");
    assert!(pick(BackendChoice::Bubblewrap, &[missing]).is_err());
}

/// Tests what [`BackendKind::isolates_users`] says, as commands see it.
#[tokio::test]
async fn only_kinds_that_keep_users_apart_hide_the_command_lines_of_other_boxes() {
    for (choice, kind) in [
        (BackendChoice::Bubblewrap, BackendKind::Bubblewrap),
        (BackendChoice::Landlock, BackendKind::Landlock),
    ] {
        let fixture = SandboxFixture::new(choice).await;
        let (one, two) = (
            fixture.start("one", None).await,
            fixture.start("two", None).await,
        );
        let mark = mark();
        shell(&one, &format!("WORD=secret sleep {mark} & true")).await;
        some_run(&mark, 1).await;
        // The brackets keep a search from finding its own command line.
        let seen = |file: &str, what: &str| {
            let search =
                format!("cat /proc/[0-9]*/{file} 2>/dev/null | tr '\\0' ' ' | grep -c '{what}'");
            let two = two.clone();
            async move { shell(&two, &search).await.output != "0\n" }
        };
        assert_eq!(
            seen("cmdline", &format!("[s]leep {mark}")).await,
            !kind.isolates_users(),
            "{choice:?}"
        );
        assert!(!seen("environ", "WORD=[s]ecret").await, "{choice:?}");
        one.close().await;
        two.close().await;
    }
}

#[tokio::test]
async fn auto_prefers_bubblewrap_and_tells_what_it_found() {
    let fixture = SandboxFixture::new(BackendChoice::Auto).await;
    assert_eq!(fixture.sandboxes.kind(), BackendKind::Bubblewrap);
    assert_eq!(fixture.sandboxes.refusal(), None);
    let found = fixture.sandboxes.findings();
    let found: Vec<_> = found
        .iter()
        .map(|found| (found.kind, found.problem.clone()))
        .collect();
    assert_eq!(
        found,
        [
            (BackendKind::Bubblewrap, None),
            (BackendKind::Landlock, None)
        ]
    );
}

#[tokio::test]
async fn a_folder_that_boxes_cannot_reach_is_named() {
    if super::workspace::sandbox_user().is_none() {
        return; // Without root, sandboxes run as the host's own user, who reaches what the host does.
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let settings = SandboxSettings {
        run_dir: dir.path().join("run"),
        memory_bytes: 1 << 30,
        cpus: 2.0,
        processes: PROCESSES,
        users: UserIdChoice::Auto,
        network: Network::None,
        direct: false,
        several_users: false,
        workspace_mount: "/workspace".to_owned(),
        docker: None,
    };
    let error = Sandboxes::detect(BackendChoice::Auto, settings, EXEC)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains(&dir.path().display().to_string()) && error.contains("chmod o+x"),
        "{error}"
    );
}

#[tokio::test]
async fn without_a_kind_of_box_nothing_is_run() {
    let fixture = SandboxFixture::new(BackendChoice::None).await;
    let workspace = fixture.workspace("one");
    let refused = fixture
        .sandboxes
        .start(SandboxSpec {
            session: session_id("one"),
            workspace: workspace.host_path(),
            repository: None,
        })
        .await;
    assert!(
        matches!(&refused, Err(SandboxError::Unavailable(_))),
        "a sandbox was started although the operator chose none: {refused:?}"
    );
}

#[tokio::test]
async fn with_nothing_around_them_commands_see_the_machine_and_still_end_with_their_box() {
    let fixture = SandboxFixture::new(BackendChoice::Local).await;
    assert_eq!(fixture.sandboxes.kind(), BackendKind::Local);
    let outside = fixture.dir.path().join("outside");
    std::fs::write(&outside, "the machine's").unwrap();
    std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o666)).unwrap();
    let sandbox = fixture.start("one", None).await;
    let mark = mark();
    let command = format!("cat {}; sleep {mark} & pwd", outside.display());
    let result = shell(&sandbox, &command).await;
    let workspace = sandbox.workspace_path();
    assert_eq!(result.output, format!("the machine's{workspace}\n"));
    some_run(&mark, 1).await;
    sandbox.close().await;
    all_gone(&mark).await;
}

#[test]
fn commands_go_without_a_sandbox_only_where_that_is_allowed_and_nothing_else_works() {
    let found = |kind, works: bool| BackendStatus {
        kind,
        problem: (!works).then(|| format!("No {kind} here.")),
        remark: None,
    };
    let kinds = [
        BackendKind::Docker,
        BackendKind::Bubblewrap,
        BackendKind::Landlock,
    ];
    let none = kinds.map(|kind| found(kind, false));
    for choice in [BackendChoice::Auto, BackendChoice::AutoForMany] {
        let (kind, refusal) = pick(choice, &none).unwrap();
        assert_eq!(kind, BackendKind::None);
        let refusal = refusal.unwrap();
        for kind in kinds {
            assert!(refusal.contains(&format!("No {kind} here.")), "{refusal}");
        }
    }
    let mut allowed = none.to_vec();
    allowed.push(found(BackendKind::Local, true));
    assert_eq!(
        pick(BackendChoice::AutoOrLocal, &allowed).unwrap(),
        (BackendKind::Local, None)
    );
    allowed[1] = found(BackendKind::Bubblewrap, true);
    assert_eq!(
        pick(BackendChoice::AutoOrLocal, &allowed).unwrap(),
        (BackendKind::Bubblewrap, None)
    );
}
