//! What a session waits for in its sandbox: `cargo bench --bench sandbox`.
//!
//! All of it in one run on one machine, since these times follow it: a command through the exec server
//! beside the same one through `docker exec`, and a container that waits for a session beside one that
//! is made for it, and a download through the proxy beside a direct one, as fast as this machine is and
//! from a server that sends 10 Gbit/s. Medians; a sandbox's start ends when it answers. Without an engine
//! only the kinds that need none are measured.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::runtime::Builder;
use uuid::Uuid;

use lucid::builtin;
use lucid_sandbox::docker::{self, Transport};
use lucid_sandbox::proxy::{ConnectionRecorder, ForwardProxy, ProxiedConnection, ProxyRules};
use lucid_sandbox::workspace::{Workspace, folder_of};
use lucid_sandbox::{
    BackendChoice, ExecRequest, Network, PROCESSES, Sandbox, SandboxSettings, SandboxSpec,
    Sandboxes, UserIdChoice,
};
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// Whose sessions they all are.
fn user() -> UserId {
    "user".into()
}

/// How much is done.
struct Plan {
    commands: usize,
    starts: usize,
    downloads: usize,
    /// The size of a download.
    megabytes: usize,
}

fn main() {
    let measured = std::env::args().any(|argument| argument == "--bench");
    let plan = if measured {
        Plan {
            commands: 200,
            starts: 20,
            downloads: 5,
            megabytes: 1024,
        }
    } else {
        // `cargo test --benches` only asks whether it works.
        Plan {
            commands: 2,
            starts: 1,
            downloads: 1,
            megabytes: 1,
        }
    };
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut direct = Vec::new();
        for rate in [Rate::Unlimited, Rate::TenGigabits] {
            let time = direct_download(&plan, rate).await;
            show(
                &format!("a download of 1 GiB, outside, {}", rate.text()),
                time,
            );
            direct.push((rate, time));
        }
        for (choice, kind) in [
            (BackendChoice::Bubblewrap, "bubblewrap"),
            (BackendChoice::Landlock, "Landlock"),
        ] {
            let host = Hosted::new(choice, None, Network::None).await;
            let time = starts(&plan, &host).await;
            show(&format!("a session's {kind} sandbox"), time);
            let (_workspace, sandbox) = host.start(SessionId::new()).await;
            let time = timed(plan.commands, async || run_true(&sandbox).await).await;
            show(&format!("`true` in it ({kind})"), time);
            sandbox.close().await;
            for (rate, direct) in &direct {
                for way in [Way::Proxy, Way::OwnSockets] {
                    let time = download_within(&plan, choice, (way, *rate)).await;
                    let what = format!("the same {} ({kind}), {}", way.text(), rate.text());
                    show(&what, time);
                    ratio("the direct one is faster by", time, *direct);
                }
            }
        }
        let Some(engine) = lucid_tests::docker::engine().await else {
            return;
        };
        let image = engine.image().await;
        let prefix = format!("lucid-bench-{}-", Uuid::new_v4().simple());
        let _sweep = engine.sweep_named(&prefix);
        let docker = |transport, pool| {
            let settings = docker::DockerSettings {
                host: std::env::var("DOCKER_HOST").ok(),
                image: image.clone(),
                prefix: prefix.clone(),
                transport: Some(transport),
                pool,
                ..docker::DockerSettings::default()
            };
            Hosted::new(BackendChoice::Docker, Some(settings), Network::None)
        };
        let socket = docker(Transport::Socket, 0).await;
        let exec = docker(Transport::Exec, 0).await;
        commands(&plan, &prefix, &socket, &exec).await;
        let made = starts(&plan, &socket).await;
        show("a session's container, made for it", made);
        let pooled = docker(Transport::Socket, 2).await;
        let waited = warm(&plan, &pooled).await;
        show("a session's container, one that waited", waited);
        ratio("waiting makes it faster by", made, waited);
        for host in [socket, exec, pooled] {
            host.sandboxes.shut_down().await;
        }
    });
}

/// What a host has of containers, and its data.
struct Hosted {
    sandboxes: Sandboxes,
    data: tempfile::TempDir,
}

impl Hosted {
    async fn new(
        choice: BackendChoice,
        docker: Option<docker::DockerSettings>,
        network: Network,
    ) -> Self {
        let data = tempfile::Builder::new()
            .permissions(PermissionsExt::from_mode(0o711))
            .tempdir()
            .unwrap();
        let settings = SandboxSettings {
            run_dir: data.path().join("run"),
            memory_bytes: 256 << 20,
            cpus: 2.0,
            processes: PROCESSES,
            users: UserIdChoice::Auto,
            network,
            direct: network == Network::Proxy,
            several_users: false,
            workspace_mount: "/workspace".to_owned(),
            docker,
        };
        let detected = Sandboxes::detect(choice, settings, builtin::EXEC);
        let sandboxes = Box::pin(detected).await.unwrap();
        sandboxes.adopt(|_| false).await.unwrap();
        Self { sandboxes, data }
    }

    fn place(&self, session: SessionId) -> PathBuf {
        folder_of(&self.storage(), &user(), session)
    }

    fn storage(&self) -> PathBuf {
        self.data.path().join("storage")
    }

    /// Opens a session's workspace and starts its container.
    async fn start(&self, session: SessionId) -> (Workspace, Sandbox) {
        let workspace = Workspace::create(&self.storage(), &user(), session).unwrap();
        let spec = SandboxSpec {
            session,
            workspace: workspace.host_path(),
            repository: None,
        };
        let sandbox = Box::pin(self.sandboxes.start(spec)).await.unwrap();
        (workspace, sandbox)
    }
}

async fn run_true(sandbox: &Sandbox) {
    let ran = sandbox.exec(ExecRequest::argv(["true"]), |_| {}).await;
    assert_eq!(ran.unwrap().exit_code, 0);
}

/// How fast a server sends.
#[derive(Clone, Copy)]
enum Rate {
    Unlimited,
    TenGigabits,
}

impl Rate {
    fn text(self) -> &'static str {
        match self {
            Rate::Unlimited => "unlimited",
            Rate::TenGigabits => "10 Gbit/s",
        }
    }

    /// How long after its beginning an answer may have this many bytes.
    fn due(self, bytes: usize) -> Duration {
        match self {
            Rate::Unlimited => Duration::ZERO,
            Rate::TenGigabits => Duration::from_secs_f64(bytes as f64 * 8.0 / 10e9),
        }
    }
}

/// A server on this machine whose answer has as many megabytes as its path says.
fn file_server(address: IpAddr, rate: Rate) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let piece = vec![0; 1 << 20];
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap();
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let path = head.split(' ').nth(1).unwrap().trim_start_matches('/');
            let pieces: usize = path.parse().unwrap();
            let length = pieces << 20;
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            )
            .unwrap();
            let begun = Instant::now();
            for number in 0..pieces {
                let early = rate.due(number << 20).saturating_sub(begun.elapsed());
                std::thread::sleep(early);
                stream.write_all(&piece).unwrap();
            }
        }
    });
    address
}

/// How a program reaches a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Through whatever proxy its environment names.
    Proxy,
    /// By sockets of its own.
    OwnSockets,
}

impl Way {
    fn text(self) -> &'static str {
        match self {
            Way::Proxy => "through its proxy",
            Way::OwnSockets => "past its proxy",
        }
    }
}

/// A command that downloads.
fn download_from(server: SocketAddr, plan: &Plan, way: Way) -> [String; 6] {
    let url = format!("http://{server}/{}", plan.megabytes);
    let not_proxied = match way {
        Way::Proxy => "",
        Way::OwnSockets => "*",
    };
    ["curl", "-sSfo", "/dev/null", "--noproxy", not_proxied, &url].map(str::to_owned)
}

/// An address of this machine that a sandbox has none like: of a network, if it is in one.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // Sends nothing.
    match socket.connect("192.0.2.1:9") {
        Ok(()) => socket.local_addr().unwrap().ip(),
        Err(_) => Ipv4Addr::LOCALHOST.into(),
    }
}

/// How long a download takes outside of any sandbox.
async fn direct_download(plan: &Plan, rate: Rate) -> Duration {
    let server = file_server(own_address(), rate);
    let [program, arguments @ ..] = download_from(server, plan, Way::OwnSockets);
    timed(plan.downloads, async || {
        let ran = Command::new(&program).args(&arguments).status().await;
        assert!(ran.unwrap().success());
    })
    .await
}

/// How long it takes in a sandbox.
async fn download_within(plan: &Plan, choice: BackendChoice, (way, rate): (Way, Rate)) -> Duration {
    let server = file_server(own_address(), rate);
    let host = Hosted::new(choice, None, Network::Proxy).await;
    let (_workspace, sandbox) = host.start(SessionId::new()).await;
    let listener = sandbox.take_proxy_listener().unwrap();
    let rules = ProxyRules::new(server.to_string().parse().unwrap(), 64)
        .with_direct("tcp".parse().unwrap());
    let proxy = ForwardProxy::start(listener, &user(), rules, Arc::new(Unrecorded));
    let interface = sandbox.take_interface().unwrap();
    let _proxy = proxy.with_direct(interface);
    let time = timed(plan.downloads, async || {
        let request = ExecRequest::argv(download_from(server, plan, way));
        let ran = sandbox.exec(request, |_| {}).await.unwrap();
        assert_eq!(ran.exit_code, 0, "{}", ran.output);
    })
    .await;
    sandbox.close().await;
    time
}

/// Keeps nothing of what was connected to.
struct Unrecorded;

impl ConnectionRecorder for Unrecorded {
    fn record(&self, _: ProxiedConnection) {}
}

async fn commands(plan: &Plan, prefix: &str, socket: &Hosted, exec: &Hosted) {
    let session = SessionId::new();
    let (_workspace, sandbox) = socket.start(session).await;
    let ours = timed(plan.commands, async || run_true(&sandbox).await).await;
    let container = format!("{prefix}{session}");
    let theirs = timed(plan.commands.div_ceil(5), async || {
        let mut docker = Command::new("docker");
        let ran = docker.args(["exec", &container, "true"]).status().await;
        assert!(ran.unwrap().success());
    })
    .await;
    sandbox.close().await;
    let (_workspace, sandbox) = exec.start(SessionId::new()).await;
    let fallback = timed(plan.commands.div_ceil(5), async || {
        run_true(&sandbox).await;
    })
    .await;
    sandbox.close().await;
    show("`true` through the exec server", ours);
    show(
        "`true` through an exec server behind `docker exec`",
        fallback,
    );
    show("`docker exec CONTAINER true`", theirs);
    ratio("the exec server is faster by", theirs, ours);
}

/// How long a sandbox that is made for its session takes.
async fn starts(plan: &Plan, host: &Hosted) -> Duration {
    let mut times = Vec::new();
    for _ in 0..plan.starts {
        let begun = Instant::now();
        let (_workspace, sandbox) = host.start(SessionId::new()).await;
        times.push(begun.elapsed());
        sandbox.close().await;
    }
    median(times)
}

/// How long a session takes to get a container that waited.
async fn warm(plan: &Plan, host: &Hosted) -> Duration {
    let mut times = Vec::new();
    for _ in 0..plan.starts {
        let session = SessionId::new();
        let place = host.place(session);
        // Only a container that is ready is measured; how soon the pool is full again is not.
        let begun = loop {
            let begun = Instant::now();
            if host.sandboxes.claim_warm(session, &place) {
                break begun;
            }
            // The pool tells nobody when it is full.
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let (_workspace, sandbox) = host.start(session).await;
        times.push(begun.elapsed());
        sandbox.close().await;
    }
    median(times)
}

async fn timed(times: usize, mut work: impl AsyncFnMut()) -> Duration {
    let mut all = Vec::with_capacity(times);
    for _ in 0..times {
        let begun = Instant::now();
        work().await;
        all.push(begun.elapsed());
    }
    median(all)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// One line of the table.
fn show(what: &str, time: Duration) {
    println!("{what:60}{:>10.2} ms", time.as_secs_f64() * 1e3);
}

fn ratio(what: &str, slow: Duration, fast: Duration) {
    let times = slow.as_secs_f64() / fast.as_secs_f64();
    println!("{what:60}{times:>10.1} times");
}
