//! The host's end of a sandbox's interface, with a socket in place of the interface: what comes of any
//! packets, and what a sandbox that only makes trouble can do to others.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use lucid_mutations::mutated;
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpProtocol, IpRepr, Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
    UdpRepr,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use super::*;
use crate::proxy::{ConnectionRecorder, ForwardProxy, ProxiedConnection, ProxyRules};

const CONTROLS: [TcpControl; 5] = [
    TcpControl::None,
    TcpControl::Psh,
    TcpControl::Syn,
    TcpControl::Fin,
    TcpControl::Rst,
];

/// How many connections had each outcome.
#[derive(Default)]
struct Counted(Mutex<HashMap<&'static str, usize>>);

impl ConnectionRecorder for Counted {
    fn record(&self, connection: ProxiedConnection) {
        let outcome = match connection.outcome {
            ConnectionOutcome::Connected => "connected",
            ConnectionOutcome::Refused => "refused",
            ConnectionOutcome::Failed => "failed",
        };
        *self.0.lock().entry(outcome).or_default() += 1;
    }
}

impl Counted {
    fn count(&self, outcome: &str) -> usize {
        self.0.lock().get(outcome).copied().unwrap_or(0)
    }
}

fn program(port: u16) -> SocketAddr {
    SocketAddr::from((SANDBOX_ADDRESSES.0, port))
}

/// A packet with this control and payload, from the program's port to the server.
fn segment(port: u16, server: SocketAddr, control: TcpControl, payload: &[u8]) -> Vec<u8> {
    let acknowledged = (control != TcpControl::Syn).then_some(7);
    numbered(port, server, control, (1000, acknowledged), payload)
}

/// The same with these numbers of what is sent and acknowledged.
pub(super) fn numbered(
    port: u16,
    server: SocketAddr,
    control: TcpControl,
    (sent, acknowledged): (i32, Option<i32>),
    payload: &[u8],
) -> Vec<u8> {
    let segment = TcpRepr {
        src_port: port,
        dst_port: server.port(),
        control,
        seq_number: TcpSeqNumber(sent),
        ack_number: acknowledged.map(TcpSeqNumber),
        window_len: 60_000,
        window_scale: None,
        max_seg_size: (control == TcpControl::Syn).then_some(1400),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let (from, to) = (program(port).ip().into(), server.ip().into());
    let header = IpRepr::new(from, to, IpProtocol::Tcp, segment.buffer_len(), 64);
    let mut bytes = vec![0; header.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    header.emit(&mut bytes, &checksums);
    let mut packet = TcpPacket::new_unchecked(&mut bytes[header.header_len()..]);
    segment.emit(&mut packet, &from, &to, &checksums);
    bytes
}

fn datagram(port: u16, server: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let datagram = UdpRepr {
        src_port: port,
        dst_port: server.port(),
    };
    let (from, to) = (program(port).ip().into(), server.ip().into());
    let length = datagram.header_len() + payload.len();
    let header = IpRepr::new(from, to, IpProtocol::Udp, length, 64);
    let mut bytes = vec![0; header.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    header.emit(&mut bytes, &checksums);
    let mut packet = UdpPacket::new_unchecked(&mut bytes[header.header_len()..]);
    let fill = |into: &mut [u8]| into.copy_from_slice(payload);
    datagram.emit(&mut packet, &from, &to, payload.len(), fill, &checksums);
    bytes
}

/// The sandbox's side of an interface that is served.
struct InterfaceFixture {
    sandbox: tokio::net::UnixDatagram,
    recorded: Arc<Counted>,
    _proxy: ForwardProxy,
}

impl InterfaceFixture {
    async fn new(rules: &ProxyRules, user: &str) -> Self {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let interface = SandboxInterface::registered(theirs.into()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let recorded = Arc::new(Counted::default());
        let proxy = ForwardProxy::start(listener, &user.into(), rules.clone(), recorded.clone());
        Self {
            sandbox: tokio::net::UnixDatagram::from_std(ours).unwrap(),
            recorded,
            _proxy: proxy.with_direct(interface),
        }
    }

    async fn send(&self, packet: &[u8]) {
        // None is as long as nothing.
        if !packet.is_empty() {
            self.sandbox.send(packet).await.unwrap();
        }
    }

    /// The number of what the program acknowledges of the connection that is taken.
    async fn taken(&self) -> i32 {
        let mut bytes = vec![0; 65_536];
        let length = self.sandbox.recv(&mut bytes).await.unwrap();
        let packet = Ipv4Packet::new_checked(&bytes[..length]).unwrap();
        let segment = TcpPacket::new_checked(packet.payload()).unwrap();
        assert!(segment.syn() && segment.ack());
        (segment.seq_number() + 1).0
    }

    /// The next answer: from whom to which port, and whether it takes the connection.
    async fn answer(&self) -> (SocketAddr, u16, bool) {
        let mut bytes = vec![0; 65_536];
        loop {
            let received = self.sandbox.recv(&mut bytes);
            let length = tokio::time::timeout(Duration::from_secs(20), received)
                .await
                .expect("a packet is answered")
                .unwrap();
            let Some((flow, content)) = packet::parse(&bytes[..length]) else {
                continue;
            };
            let takes = match content {
                // What takes a connection is a segment like others.
                Content::Segment => true,
                Content::Reset => false,
                Content::Open | Content::Datagram(_) => continue,
            };
            return (flow.program, flow.server.port(), takes);
        }
    }

    /// Whether a connection to a server is taken.
    async fn connects(&self, port: u16, server: SocketAddr) -> bool {
        self.send(&segment(port, server, TcpControl::Syn, &[]))
            .await;
        loop {
            let (from, to, takes) = self.answer().await;
            if (from, to) == (server, port) {
                return takes;
            }
        }
    }
}

/// A server that keeps every connection.
async fn keeping_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    address
}

fn rules() -> ProxyRules {
    ProxyRules::new("127.0.0.1".parse().unwrap(), 1000).with_direct("tcp,udp".parse().unwrap())
}

#[tokio::test]
async fn a_flood_of_connections_and_flows_takes_its_users_share_and_leaves_others_theirs() {
    const SHARE: usize = 250;
    let (rules, server) = (rules(), keeping_server().await);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let hostile = InterfaceFixture::new(&rules, "mallory").await;
    let other = InterfaceFixture::new(&rules, "alice").await;
    let mut taken = 0;
    for port in 1..=2 * SHARE {
        let port = u16::try_from(port).unwrap();
        taken += usize::from(hostile.connects(port, server).await);
        hostile.send(&datagram(port, silent, b"x")).await;
    }
    assert!(taken <= SHARE, "{taken}");
    assert!(hostile.recorded.count("failed") >= 2 * SHARE - taken);
    let left = rules.connections.available_permits();
    assert_eq!(left, 1000 - SHARE, "the flood has its share, and no more");
    assert!(other.connects(1, server).await);
    drop((hostile, other));
    rules.ended().await;
    assert_eq!(rules.connections.available_permits(), 1000, "all came back");
}

#[tokio::test]
async fn a_segment_of_no_connection_is_reset_and_a_connection_is_told_when_its_server_is_gone() {
    let fixture = InterfaceFixture::new(&rules(), "alice").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    fixture
        .send(&segment(9, server, TcpControl::None, b"late"))
        .await;
    assert_eq!(fixture.answer().await, (server, 9, false));
    assert!(fixture.connects(10, server).await);
    drop(listener);
    assert!(!fixture.connects(11, server).await);
}

/// Waits for what comes about soon.
async fn until(mut is_so: impl FnMut() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waited).await;
    waited.expect("it comes about");
}

#[tokio::test]
async fn packets_that_lead_nowhere_are_refused_and_recorded_up_to_a_rate() {
    let rules = ProxyRules::new("".parse().unwrap(), 1000).with_direct("tcp".parse().unwrap());
    let fixture = InterfaceFixture::new(&rules, "alice").await;
    let closed: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let begun = Instant::now();
    for _ in 0..5 * STRAY_BURST {
        fixture.send(&datagram(5, closed, b"x")).await;
    }
    until(|| fixture.recorded.count("refused") >= STRAY_BURST as usize).await;
    let passed = begun.elapsed().as_secs() + 1;
    let most = u64::from(STRAY_BURST) + passed * u64::from(STRAY_RATE);
    let refused = fixture.recorded.count("refused") as u64;
    assert!(refused <= most, "{refused} in {passed} s");
}

#[tokio::test]
async fn a_question_is_given_up_with_the_connection_that_it_came_over() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rules = rules().with_name_servers(vec![silent.local_addr().unwrap()]);
    let fixture = InterfaceFixture::new(&rules, "alice").await;
    let names = SocketAddr::from((HOST_ADDRESS, names::PORT));
    let question = b"\x07\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    let message = [&length[..], question].concat();

    fixture.send(&segment(5, names, TcpControl::Syn, &[])).await;
    let next = Some(fixture.taken().await);
    for (control, payload) in [(TcpControl::None, &[][..]), (TcpControl::Psh, &message)] {
        let part = numbered(5, names, control, (1001, next), payload);
        fixture.send(&part).await;
    }
    let (mut asked, _) = silent.accept().await.unwrap();
    let mut received = vec![0; message.len()];
    asked.read_exact(&mut received).await.unwrap();
    let sent = 1001 + i32::try_from(message.len()).unwrap();
    let reset = numbered(5, names, TcpControl::Rst, (sent, next), &[]);
    fixture.send(&reset).await;
    let gone = asked.read(&mut received);
    let gone = tokio::time::timeout(Duration::from_secs(2), gone).await;
    assert_eq!(gone.expect("long before its time is over").unwrap(), 0);
    until(|| rules.connections.available_permits() == 1000).await;
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn valid() -> [Vec<u8>; 5] {
    let server: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let names = SocketAddr::from((HOST_ADDRESS, names::PORT));
    let question = b"\x07\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
    [
        segment(5, server, TcpControl::Syn, &[]),
        segment(5, server, TcpControl::Psh, b"payload"),
        segment(5, server, TcpControl::Fin, &[]),
        datagram(5, server, b"payload"),
        datagram(5, names, question),
    ]
}

proptest! {
    #[test]
    fn whatever_a_packet_says_it_is_read_and_answered_without_a_panic(bytes in mutated(valid())) {
        let Some((flow, content)) = packet::parse(&bytes) else {
            return Ok(());
        };
        if let Some(answer) = packet::reset(&bytes) {
            let (back, content) = packet::parse(&answer).expect("an answer is a packet");
            prop_assert_eq!((back.program, back.server), (flow.server, flow.program));
            prop_assert_eq!(content, Content::Reset);
        }
        packet::unreachable(flow, Unreachable::Port);
        if let Content::Datagram(payload) = content {
            let answer = packet::datagram(flow, payload).expect("as long as what came");
            let (back, content) = packet::parse(&answer).expect("an answer is a packet");
            prop_assert_eq!((back.program, back.server), (flow.server, flow.program));
            prop_assert_eq!(content, Content::Datagram(payload));
        }
        names::is_question(&bytes);
    }

    #[test]
    fn after_any_packets_a_sandbox_is_served_as_before(
        packets in prop::collection::vec((mutated(valid()), any::<(u8, i32, Option<i32>)>()), 1..20),
    ) {
        block_on(async {
            let server = keeping_server().await;
            // What the packets say leads nowhere else.
            let rules = ProxyRules::new("127.0.0.1".parse().unwrap(), 1000)
                .with_direct(format!("tcp:{}", server.port()).parse().unwrap())
                .with_name_servers(Vec::new());
            let fixture = InterfaceFixture::new(&rules, "alice").await;
            assert!(fixture.connects(20, server).await);
            for (bytes, (control, sent, acknowledged)) in packets {
                // As part of the connection as well.
                let control = CONTROLS[usize::from(control) % CONTROLS.len()];
                let payload = &bytes[..bytes.len().min(1400)];
                let part = numbered(20, server, control, (sent, acknowledged), payload);
                for packet in [bytes, part] {
                    // No sandbox's kernel sends a longer one.
                    fixture.send(&packet[..packet.len().min(usize::from(INTERFACE_MTU))]).await;
                }
            }
            assert!(fixture.connects(21, server).await);
        });
    }
}
