//! Programs in a sandbox that speak for themselves and not with the proxy: what is opened to them, and
//! what is not.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use parking_lot::Mutex;

use super::walls::Kind;
use super::*;
use crate::proxy::{
    ConnectionOutcome, ConnectionRecorder, ForwardProxy, ProxiedConnection, ProxyRules,
};
use lucid_types::user::UserId;

/// The kinds that have a network namespace.
const KINDS: [Kind; 2] = [Kind::Bubblewrap, Kind::Landlock];
/// What a name server of these tests answers to every question.
const ANSWER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// How long being refused may take.
const AT_ONCE: f64 = 2.0;

#[derive(Default)]
pub(crate) struct DirectRecorder(Mutex<Vec<ProxiedConnection>>);

impl ConnectionRecorder for DirectRecorder {
    fn record(&self, connection: ProxiedConnection) {
        self.0.lock().push(connection);
    }
}

impl DirectRecorder {
    /// The connections to a port, once there are as many.
    async fn to(&self, port: u16, count: usize) -> Vec<ProxiedConnection> {
        let recorded = || {
            let all = self.0.lock();
            let these = all.iter().filter(|it| it.destination.port == port);
            these.cloned().collect::<Vec<_>>()
        };
        let begun = Instant::now();
        while recorded().len() < count {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "waited in vain for {count} connections to {port}: {:?}",
                self.0.lock()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        recorded()
    }
}

/// The servers that these tests connect to, on an address of this machine that is not of its loopback
/// interface, which each sandbox has one of.
pub(crate) struct Servers {
    address: IpAddr,
    echo: u16,
    datagrams: u16,
    closed: u16,
    names: SocketAddr,
}

impl Servers {
    /// `None` on a machine without any network.
    pub(crate) fn start() -> Option<Self> {
        // Sends nothing, and shows what address the machine would send from.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("192.0.2.1:9").ok()?;
        let address = socket.local_addr().unwrap().ip();
        Some(Self {
            address,
            echo: echo(address),
            datagrams: echo_datagrams(address),
            closed: TcpListener::bind((address, 0))
                .unwrap()
                .local_addr()
                .unwrap()
                .port(),
            names: name_server(),
        })
    }

    /// What is opened: these servers, though they are on this machine.
    pub(crate) fn rules(&self) -> ProxyRules {
        let Self {
            address,
            echo,
            datagrams,
            closed,
            names,
        } = self;
        let private = [echo, datagrams, closed].map(|port| format!("{address}:{port}"));
        let direct = format!("tcp:{echo},tcp:{closed},tcp:80,udp:{datagrams}");
        ProxyRules::new(private.join(",").parse().unwrap(), 64)
            .with_direct(direct.parse().unwrap())
            .with_name_servers(vec![*names])
    }
}

/// Sends back what each client sent, once it has sent all.
fn echo(address: IpAddr) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut seen = Vec::new();
                let _ = stream.read_to_end(&mut seen);
                let _ = stream.write_all(&seen);
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
    });
    port
}

fn echo_datagrams(address: IpAddr) -> u16 {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 65_535];
        while let Ok((size, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..size], from);
        }
    });
    port
}

/// A name server that knows one address, over UDP and TCP.
fn name_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 1500];
        while let Ok((size, from)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(&answer_to(&question[..size]), from);
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            let answer = answer_to(&question);
            let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length[..], &answer].concat()).unwrap();
        }
    });
    address
}

fn answer_to(question: &[u8]) -> Vec<u8> {
    let name = question[12..].iter().position(|byte| *byte == 0).unwrap();
    let end = 12 + name + 5;
    let is_address = question[end - 4..end - 2] == [0, 1];
    let mut answer = question[..end].to_vec();
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
    if is_address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ANSWER.octets());
    }
    answer
}

/// A sandbox with an interface, and what serves it.
pub(crate) struct DirectSandbox {
    pub(crate) sandbox: Sandbox,
    recorder: Arc<DirectRecorder>,
    _proxy: ForwardProxy,
}

impl DirectSandbox {
    pub(crate) fn new(sandbox: Sandbox, rules: ProxyRules, user: &str) -> Self {
        let recorder = Arc::new(DirectRecorder::default());
        let listener = sandbox.take_proxy_listener().expect("a listener");
        let interface = sandbox.take_interface().expect("an interface");
        let user = UserId::from(user);
        let proxy = ForwardProxy::start(listener, &user, rules, recorder.clone());
        Self {
            sandbox,
            recorder,
            _proxy: proxy.with_direct(interface),
        }
    }

    async fn python(&self, program: &str) -> String {
        let program = format!("import socket, struct, sys, time\n{program}");
        let request = ExecRequest::argv(["python3", "-c", &program]);
        self.sandbox.exec(request, |_| {}).await.unwrap().output
    }
}

impl Kind {
    /// Sandboxes that have an interface. `None` where this machine keeps the device from this user.
    async fn direct_fixture(self) -> Option<SandboxFixture> {
        let room = PROCESS_TABLE_LOCK.read().await;
        let fixture = SandboxFixture::with_direct(self.choice()).await;
        let fixture = SandboxFixture {
            _room: Some(room),
            ..fixture
        };
        if let Some(remark) = fixture.sandboxes.remark()
            && remark.contains("SANDBOX_DIRECT")
        {
            assert!(remark.contains("/dev/net/tun"), "{self:?}: {remark}");
            assert!(!rustix::process::geteuid().is_root(), "{self:?}: {remark}");
            return None;
        }
        Some(fixture)
    }
}

/// What programs in a sandbox can do. The same for all kinds.
pub(crate) async fn reaches_what_is_opened(direct: &DirectSandbox, servers: &Servers) {
    let Servers {
        address,
        echo,
        datagrams,
        ..
    } = servers;
    // More than all buffers hold, and the program says that it is done before it reads.
    let program = format!(
        "import threading
data = bytes(range(256)) * (64 << 10)
s = socket.create_connection(('{address}', {echo}), 20)
def send():
  s.sendall(data); s.shutdown(socket.SHUT_WR)
t = threading.Thread(target=send); t.start()
back = b''.join(iter(lambda: s.recv(1 << 20), b''))
t.join()
print(back == data, len(back))"
    );
    assert_eq!(direct.python(&program).await, "True 16777216\n");
    let recorded = direct.recorder.to(*echo, 1).await;
    assert_eq!(recorded.len(), 1, "{recorded:?}");
    assert_eq!(recorded[0].destination.host, address.to_string());
    assert_eq!(recorded[0].outcome, ConnectionOutcome::Connected);
    assert_eq!(
        (recorded[0].sent, recorded[0].received),
        (16 << 20, 16 << 20)
    );

    let program = format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)
s.connect(('{address}', {datagrams}))
for size in (1, 1400, 9000, 60000):
  s.send(b'x' * size); print(s.recv(70000) == b'x' * size)"
    );
    assert_eq!(direct.python(&program).await, "True\n".repeat(4));
}

pub(crate) async fn resolves_names(direct: &DirectSandbox) {
    let answer = direct
        .python("print(socket.gethostbyname('database.example'))")
        .await;
    assert_eq!(answer, format!("{ANSWER}\n"));
    // Over a connection, and what is no question for a name is answered by nobody.
    let ask = |kind: u16| {
        format!(
            "q = struct.pack('>HHHHHH', 7, 256, 1, 0, 0, 0) + b'\\x01a\\x00' + struct.pack('>HH', {kind}, 1)
s = socket.create_connection(('192.0.0.1', 53), 20); s.settimeout(20)
s.sendall(struct.pack('>H', len(q)) + q)
print(socket.inet_ntoa(s.recv(100)[-4:]) if {kind} == 1 else len(s.recv(100)))"
        )
    };
    assert_eq!(direct.python(&ask(1)).await, format!("{ANSWER}\n"));
    assert_eq!(
        direct.python(&ask(252)).await,
        "0\n",
        "a transfer of a zone"
    );
    assert_eq!(direct.recorder.to(53, 3).await.len(), 3);
}

pub(crate) async fn is_refused_at_once(direct: &DirectSandbox, servers: &Servers) {
    let Servers {
        address,
        echo,
        datagrams,
        closed,
        ..
    } = servers;
    // A port that is not opened; the host's end; addresses of others; nobody at an opened port.
    let tcp = [
        format!("'{address}', {datagrams}"),
        format!("'{address}', 80"),
        "'192.0.0.1', 80".to_owned(),
        "'192.0.0.2', 80".to_owned(),
        "'10.0.0.1', 80".to_owned(),
        "'172.17.0.1', 80".to_owned(),
        "'169.254.169.254', 80".to_owned(),
        "'fd00:ec2::254', 80".to_owned(),
        "'203.0.113.9', 5432".to_owned(),
        format!("'{address}', {closed}"),
    ];
    for server in tcp {
        let program = format!(
            "begun = time.monotonic()
try: socket.create_connection(({server}), 20); print('connected')
except OSError as e: print(type(e).__name__, time.monotonic() - begun < {AT_ONCE})"
        );
        let said = direct.python(&program).await;
        // Without IPv6 there is no way to try.
        let is_refused = said == "ConnectionRefusedError True\n" || server.contains("::");
        assert!(
            is_refused && !said.contains("connected"),
            "{server}: {said}"
        );
    }
    let udp = [
        format!("'{address}', {echo}"),
        "'192.0.0.1', 123".to_owned(),
        format!("'169.254.169.254', {datagrams}"),
        format!("'10.0.0.1', {datagrams}"),
    ];
    for server in udp {
        let program = format!(
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)
begun = time.monotonic()
s.connect(({server}))
try: s.send(b'x'); s.recv(1); print('answered')
except OSError as e: print(time.monotonic() - begun < {AT_ONCE})"
        );
        assert_eq!(direct.python(&program).await, "True\n", "{server}");
    }
    let recorded = direct.recorder.to(80, 5).await;
    let refused = |it: &ProxiedConnection| it.outcome == ConnectionOutcome::Refused;
    assert!(recorded.iter().all(refused), "{recorded:?}");
    let nobody = direct.recorder.to(*closed, 1).await;
    assert_eq!(nobody[0].outcome, ConnectionOutcome::Failed);
}

pub(crate) async fn has_no_rights_over_its_network(direct: &DirectSandbox) {
    let rights = "grep ^Cap /proc/self/status | cut -f2 | sort -u";
    let rights = shell(&direct.sandbox, rights).await.output;
    assert_eq!(rights, "0000000000000000\n");
    let program = "import fcntl, os
def attempt(what):
  try: what(); print('done')
  except OSError: print('kept out')
def tunnel(name):
  device = os.open('/dev/net/tun', os.O_RDWR)
  fcntl.ioctl(device, 0x400454ca, struct.pack('16sH22x', name, 0x1001))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
attempt(lambda: tunnel(b'another'))
attempt(lambda: tunnel(b'lucid0'))
attempt(lambda: fcntl.ioctl(s, 0x8914, struct.pack('16sh22x', b'lucid0', 0)))
n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
n.send(struct.pack('=IHHIIBBHiII', 32, 16, 5, 0, 0, 0, 0, 0, 2, 0, 1))
print('kept out' if struct.unpack('=i', n.recv(100)[16:20])[0] < 0 else 'done')";
    assert_eq!(direct.python(program).await, "kept out\n".repeat(4));
}

#[tokio::test]
async fn a_program_that_knows_no_proxy_reaches_what_is_opened_and_everything_arrives_both_ways() {
    let Some(servers) = Servers::start() else {
        return;
    };
    for kind in KINDS {
        let Some(fixture) = kind.direct_fixture().await else {
            continue;
        };
        let sandbox = fixture.start("one", None).await;
        let direct = DirectSandbox::new(sandbox, servers.rules(), "alice");
        reaches_what_is_opened(&direct, &servers).await;
        resolves_names(&direct).await;
        // The proxy is there as ever.
        let variable = shell(&direct.sandbox, "echo $HTTPS_PROXY").await.output;
        assert_eq!(variable, "http://127.0.0.1:3128\n", "{kind:?}");
        direct.sandbox.close().await;
    }
}

#[tokio::test]
async fn what_is_not_opened_is_refused_at_once_and_no_command_can_change_that() {
    let Some(servers) = Servers::start() else {
        return;
    };
    for kind in KINDS {
        let Some(fixture) = kind.direct_fixture().await else {
            continue;
        };
        let sandbox = fixture.start("one", None).await;
        let direct = DirectSandbox::new(sandbox, servers.rules(), "alice");
        is_refused_at_once(&direct, &servers).await;
        has_no_rights_over_its_network(&direct).await;
        direct.sandbox.close().await;
    }
}

#[tokio::test]
async fn the_servers_of_one_sandbox_are_not_reached_from_another_by_any_address() {
    for kind in KINDS {
        let Some(fixture) = kind.direct_fixture().await else {
            continue;
        };
        let rules = || ProxyRules::new("".parse().unwrap(), 64).with_direct("tcp".parse().unwrap());
        let one = fixture.start("one", None).await;
        let two = fixture.start("two", None).await;
        let one = DirectSandbox::new(one, rules(), "alice");
        let two = DirectSandbox::new(two, rules(), "bob");
        let serve = "python3 -c 'import socket
s = socket.socket(socket.AF_INET6); s.bind((\"::\", 0)); s.listen(); print(s.getsockname()[1], flush=True)
while True: s.accept()' > port 2>&1 & while ! test -s port; do sleep 0.01; done; cat port";
        let port = shell(&one.sandbox, serve).await.output;
        let port: u16 = port.trim().parse().unwrap();
        for address in ["192.0.0.2", "192.0.0.1", "127.0.0.1", "fd6c:7563:6964::2"] {
            let program = format!(
                "try: socket.create_connection(('{address}', {port}), 20); print('connected')
except OSError: print('kept out')"
            );
            let own = one.python(&program).await;
            assert_eq!(
                own == "connected\n",
                address != "192.0.0.1",
                "{kind:?} {address}: {own}"
            );
            assert_eq!(
                two.python(&program).await,
                "kept out\n",
                "{kind:?} {address}"
            );
        }
        one.sandbox.close().await;
        two.sandbox.close().await;
    }
}

#[tokio::test]
async fn connections_end_with_their_sandbox_and_are_in_the_record() {
    let Some(servers) = Servers::start() else {
        return;
    };
    for kind in KINDS {
        let Some(fixture) = kind.direct_fixture().await else {
            continue;
        };
        let listener = TcpListener::bind((servers.address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let private = format!("{}:{port}", servers.address);
        let rules =
            ProxyRules::new(private.parse().unwrap(), 64).with_direct("tcp".parse().unwrap());
        let sandbox = fixture.start("one", None).await;
        let direct = DirectSandbox::new(sandbox, rules.clone(), "alice");
        let connect = format!(
            "python3 -c \"import socket, time; s = socket.create_connection(('{}', {port})); s.sendall(b'held'); time.sleep(600)\" > /dev/null 2>&1 &",
            servers.address
        );
        shell(&direct.sandbox, &connect).await;
        let accepted = tokio::task::spawn_blocking(move || {
            let (mut held, _) = listener.accept().unwrap();
            held.read_exact(&mut [0; 4]).unwrap();
            held
        });
        let mut held = accepted.await.unwrap();
        direct.sandbox.close().await;
        let recorder = Arc::clone(&direct.recorder);
        drop(direct);
        let ended = tokio::task::spawn_blocking(move || held.read(&mut [0; 4]));
        assert!(matches!(ended.await.unwrap(), Ok(0) | Err(_)), "{kind:?}");
        rules.ended().await;
        let recorded = recorder.to(port, 1).await;
        assert_eq!((recorded[0].sent, recorded[0].received), (4, 0), "{kind:?}");
    }
}

#[tokio::test]
async fn a_kind_that_cannot_have_sockets_of_its_own_starts_without_and_says_what_to_do() {
    let _room = PROCESS_TABLE_LOCK.read().await;
    let found = SandboxFixture::with_direct(BackendChoice::Landlock).await;
    Kind::LandlockWithoutNamespaces.set(&found.sandboxes);
    let sandbox = found.start("one", None).await;
    assert!(sandbox.take_interface().is_none());
    assert_eq!(shell(&sandbox, "echo works").await.output, "works\n");
    sandbox.close().await;
}
