//! Attacks on the walls between a sandbox and everything else, by programs in it: the network, the
//! kernel's calls, keys. Each in every kind of sandbox that this machine has without an engine.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::landlock::Isolation;
use crate::proxy::{
    ConnectionOutcome, ConnectionRecorder, ForwardProxy, ProxiedConnection, ProxyRules,
};

/// A kind of sandbox, in the words of the guide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bubblewrap,
    Landlock,
    LandlockWithoutNamespaces,
}

pub(super) const KINDS: [Kind; 3] = [
    Kind::Bubblewrap,
    Kind::Landlock,
    Kind::LandlockWithoutNamespaces,
];

impl Kind {
    pub(super) async fn fixture(self, network: Network) -> SandboxFixture {
        let fixture = SandboxFixture::with_network(self.choice(), network).await;
        self.set(&fixture.sandboxes);
        fixture
    }

    pub(super) fn choice(self) -> BackendChoice {
        match self {
            Self::Bubblewrap => BackendChoice::Bubblewrap,
            Self::Landlock | Self::LandlockWithoutNamespaces => BackendChoice::Landlock,
        }
    }

    /// Has new sandboxes be of this kind.
    pub(super) fn set(self, sandboxes: &Sandboxes) {
        if self == Self::LandlockWithoutNamespaces {
            let mut found = crate::detect::DetectedBackends::clone(&sandboxes.0.detected());
            found.landlock = Some(Isolation::HostRoot);
            sandboxes.0.set_detected(found);
        }
    }
}

#[derive(Default)]
pub(super) struct Recorder(Mutex<Vec<ProxiedConnection>>);

impl ConnectionRecorder for Recorder {
    fn record(&self, connection: ProxiedConnection) {
        self.0.lock().push(connection);
    }
}

/// Serves a sandbox's programs as an environment does.
fn proxy(sandbox: &Sandbox, private_hosts: &str) -> (ForwardProxy, Arc<Recorder>) {
    let listener = sandbox
        .take_proxy_listener()
        .expect("the sandbox has a listener");
    serve(listener, private_hosts)
}

/// The same at a listener.
pub(super) fn serve(
    listener: tokio::net::TcpListener,
    private_hosts: &str,
) -> (ForwardProxy, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let rules = ProxyRules::new(private_hosts.parse().unwrap(), 64);
    let proxy = ForwardProxy::start(listener, &"alice".into(), rules, recorder.clone());
    (proxy, recorder)
}

/// A server on every address of this machine that answers every request with one word.
pub(super) fn web_server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            use std::io::{Read, Write};
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nreached",
            );
        }
    });
    port
}

/// Tries to connect past the proxy.
fn connect(host: &str, port: u16) -> String {
    format!(
        "python3 -c \"import socket; socket.create_connection(('{host}', {port}), 2); print('reached')\""
    )
}

#[tokio::test]
async fn what_programs_keep_in_the_kernel_is_gone_with_their_sandbox() {
    for kind in KINDS {
        // There, sandboxes have the host's user and its namespaces.
        if kind == Kind::LandlockWithoutNamespaces && !rustix::process::geteuid().is_root() {
            continue;
        }
        let fixture = kind.fixture(Network::None).await;
        let key = std::process::id();
        let get = |call: &str| {
            format!("python3 -c 'import ctypes; print(ctypes.CDLL(None).{call} >= 0)'")
        };
        let open = [format!("shmget({key}, 4096"), format!("msgget({key}")];
        for (flags, seen) in [("0o1666", "True\n"), ("0", "False\n")] {
            let sandbox = fixture.start("one", None).await;
            for call in &open {
                let got = shell(&sandbox, &get(&format!("{call}, {flags})"))).await;
                assert_eq!(got.output, seen, "{kind:?} {call}");
            }
            sandbox.close().await;
        }
    }
}

#[tokio::test]
async fn past_the_proxy_nothing_is_reached_and_through_it_only_what_is_allowed() {
    let port = web_server();
    let allowed = web_server();
    for kind in KINDS {
        let fixture = kind.fixture(Network::Proxy).await;
        let sandbox = fixture.start("one", None).await;
        let (_proxy, recorder) = proxy(&sandbox, &format!("127.0.0.1:{allowed}"));
        for host in ["127.0.0.1", "169.254.169.254", "172.17.0.1", "10.0.0.1"] {
            let past = shell(&sandbox, &connect(host, port)).await;
            assert!(
                !past.output.contains("reached"),
                "{kind:?} {host}: {past:?}"
            );
            let through = format!("curl -sS -m 10 --noproxy '' http://{host}:{port}/");
            let through = shell(&sandbox, &through).await.output;
            assert!(
                through.contains("SANDBOX_PRIVATE_HOSTS"),
                "{kind:?} {host}: {through}"
            );
        }
        let reached = format!("curl -sS -m 10 --noproxy '' http://127.0.0.1:{allowed}/");
        let reached = shell(&sandbox, &reached).await.output;
        assert_eq!(reached, "reached", "{kind:?}");
        let by_socks = format!(
            "curl -sS -m 10 --noproxy '' --proxy $(echo $ALL_PROXY | sed s/http/socks5h/) http://127.0.0.1:{allowed}/"
        );
        assert_eq!(
            shell(&sandbox, &by_socks).await.output,
            "reached",
            "{kind:?}"
        );
        sandbox.close().await;
        let recorded = recorder.0.lock();
        let count = |outcome| recorded.iter().filter(|it| it.outcome == outcome).count();
        assert_eq!(
            count(ConnectionOutcome::Refused),
            4,
            "{kind:?}: {recorded:?}"
        );
        assert_eq!(
            count(ConnectionOutcome::Connected),
            2,
            "{kind:?}: {recorded:?}"
        );
        assert!(
            recorded.iter().any(|it| it.received > 7),
            "{kind:?}: {recorded:?}"
        );
    }
}

#[tokio::test]
async fn the_servers_of_one_sandbox_are_not_reached_from_another() {
    for kind in KINDS {
        let fixture = kind.fixture(Network::Proxy).await;
        let (one, two) = (
            fixture.start("one", None).await,
            fixture.start("two", None).await,
        );
        let (_first, _) = proxy(&one, "");
        let (_second, _) = proxy(&two, "");
        let serve = "python3 -c 'import socket
s = socket.socket(); s.bind((\"0.0.0.0\", 0)); s.listen(); print(s.getsockname()[1], flush=True)
while True: s.accept()[0].sendall(b\"reached\")' > port 2>&1 & while ! test -s port; do sleep 0.01; done; cat port";
        let said = shell(&one, serve).await.output;
        let Ok(port) = said.trim().parse() else {
            // Without a network namespace nothing may listen.
            assert_eq!(kind, Kind::LandlockWithoutNamespaces, "{said}");
            assert!(said.contains("PermissionError"), "{said}");
            continue;
        };
        assert_eq!(
            shell(&one, &connect("127.0.0.1", port)).await.output,
            "reached\n",
            "{kind:?}"
        );
        let other = shell(&two, &connect("127.0.0.1", port)).await;
        assert!(!other.output.contains("reached"), "{kind:?}: {other:?}");
        one.close().await;
        two.close().await;
    }
}

#[tokio::test]
async fn rules_for_ports_are_not_passed_by_calls_that_name_none() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let fixture = Kind::LandlockWithoutNamespaces
        .fixture(Network::Proxy)
        .await;
    let sandbox = fixture.start("one", None).await;
    for attempt in [
        // Connects and sends at once.
        format!("s.sendto(b'x', 0x20000000, ('127.0.0.1', {port}))"),
        // Listens at any port of every address.
        "s.listen()".to_owned(),
    ] {
        let program = format!(
            "import socket\ns = socket.socket()\ntry:\n  {attempt}\n  print('passed')\nexcept OSError: print('kept out')"
        );
        let request = ExecRequest::argv(["python3", "-c", &program]);
        let ran = sandbox.exec(request, |_| {}).await.unwrap();
        assert_eq!(ran.output, "kept out\n", "{attempt}");
    }
    assert!(server.accept().is_err(), "nobody came");
    sandbox.close().await;
}

#[tokio::test]
async fn limits_of_other_processes_are_not_a_sandboxs_to_set() {
    for kind in KINDS {
        let fixture = kind.fixture(Network::None).await;
        let sandbox = fixture.start("one", None).await;
        let program = "import os, resource
print(resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)[0] > 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
try:
  resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (100, 100))
  print('set')
except OSError: print('kept out')";
        // The shell is the other process: the exec server itself cannot be asked for.
        let command = format!("python3 -c \"{program}\"; true");
        let ran = shell(&sandbox, &command).await;
        assert_eq!(ran.output, "True\nkept out\n", "{kind:?}");
        sandbox.close().await;
    }
}

/// Tries to have a thread with descriptors of its own, which no look at the process's would see.
const SPLITS_DESCRIPTORS: &str = "import ctypes, platform, threading
c = ctypes.CDLL(None)
thread, memory, signals = 0x10000, 0x100, 0x800
clone = {'x86_64': 56, 'aarch64': 220}[platform.machine()]
print('split' if c.syscall(436, 3, 3, 2) == 0 else 'kept out')
print('split' if c.syscall(clone, thread | memory | signals, 0, 0, 0, 0) != -1 else 'kept out')
print('closed' if c.syscall(436, 1000, 1001, 0) == 0 else 'not closed')
t = threading.Thread(target=lambda: print('a thread'))
t.start()
t.join()";

#[tokio::test]
async fn threads_have_the_descriptors_of_their_process() {
    for kind in KINDS {
        let fixture = kind.fixture(Network::None).await;
        let sandbox = fixture.start("one", None).await;
        let request = ExecRequest::argv(["python3", "-c", SPLITS_DESCRIPTORS]);
        let ran = sandbox.exec(request, |_| {}).await.unwrap();
        let expected = "kept out\nkept out\nclosed\na thread\n";
        assert_eq!(ran.output, expected, "{kind:?}");
        sandbox.close().await;
    }
}

#[tokio::test]
async fn abstract_sockets_of_the_host_and_packets_that_are_not_tcp_do_not_pass() {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("lucid-wall-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let port = datagrams.local_addr().unwrap().port();
    for kind in KINDS {
        let fixture = kind.fixture(Network::Proxy).await;
        let sandbox = fixture.start("one", None).await;
        let tries = [
            format!("s = socket.socket(socket.AF_UNIX); s.connect('\\0{name}')"),
            format!(
                "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', {port})); raise OSError"
            ),
            "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)".to_owned(),
            "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)".to_owned(),
            "socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)".to_owned(),
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)".to_owned(),
        ];
        for attempt in tries {
            let program = format!(
                "import socket\ntry:\n  {attempt}\n  print('reached')\nexcept OSError: print('kept out')"
            );
            let request = ExecRequest::argv(["python3", "-c", &program]);
            let ran = sandbox.exec(request, |_| {}).await.unwrap();
            assert_eq!(ran.output, "kept out\n", "{kind:?} {attempt}");
        }
        assert!(
            datagrams.recv(&mut [0; 8]).is_err(),
            "{kind:?}: a datagram came through"
        );
        sandbox.close().await;
    }
}

/// Number of a call on this machine, where a program in the sandbox makes it by number.
#[cfg(target_arch = "x86_64")]
const REFUSED_CALLS: [(&str, u32); 14] = [
    ("keyctl", 250),
    ("add_key", 248),
    ("request_key", 249),
    ("bpf", 321),
    ("perf_event_open", 298),
    ("io_uring_setup", 425),
    ("userfaultfd", 323),
    ("kexec_load", 246),
    ("init_module", 175),
    ("mount", 165),
    ("unshare", 272),
    ("setns", 308),
    ("pidfd_getfd", 438),
    // keyctl in the calling convention x32.
    ("keyctl of x32", 0x4000_0000 + 250),
];

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn calls_that_no_program_in_a_sandbox_needs_are_as_if_the_kernel_had_none() {
    for kind in KINDS {
        let fixture = kind.fixture(Network::Proxy).await;
        let sandbox = fixture.start("one", None).await;
        for (name, number) in REFUSED_CALLS {
            let program = format!(
                "import ctypes, errno, os\nc = ctypes.CDLL(None, use_errno=True)\nprint(c.syscall({number}, 0, 0, 0, 0, 0), errno.errorcode[ctypes.get_errno()])"
            );
            let request = ExecRequest::argv(["python3", "-c", &program]);
            let ran = sandbox.exec(request, |_| {}).await.unwrap();
            assert_eq!(ran.output, "-1 ENOSYS\n", "{kind:?} {name}");
        }
        let namespaces = shell(&sandbox, "unshare -Ur true; unshare -n true").await;
        assert_ne!(namespaces.exit_code, 0, "{kind:?}: {namespaces:?}");
        sandbox.close().await;
    }
}

#[tokio::test]
async fn the_first_process_of_a_namespace_is_the_exec_server_and_shows_nothing_of_itself() {
    let fixture = Kind::Bubblewrap.fixture(Network::None).await;
    let sandbox = fixture.start("one", None).await;
    let look = "test $PPID = 1 && echo first; ls -l /proc/1/fd/ && echo seen; cat /proc/1/environ && echo seen";
    let seen = shell(&sandbox, look).await.output;
    assert!(
        seen.starts_with("first\n") && !seen.contains("seen"),
        "{seen}"
    );
    sandbox.close().await;
}
