//! Sockets of a sandbox's own: what programs send past the proxy, to the ports that the operator opened.
//!
//! A sandbox's exec server makes a network interface and hands it over, so that the host gets every packet
//! that leaves the sandbox. The host is the machine at the other end of each connection, and connects to
//! the server itself, under the proxy's rules.
//!
//! # Layout
//! - `ports` is what is opened, `interface` where packets come from, `packet` reads and makes packets.
//! - `tcp` and `udp` serve a connection and a flow, whose packets wait in a `queue`. `names` answers
//!   questions for names. A `token_bucket` bounds how many packets of no flow are looked at.
//!
//! # Invariants
//! - A connection or a flow that is not opened, or may not be reached, is refused at once and recorded.
//! - Packets of no flow are answered up to a rate, and dropped beyond it. Flows are bounded with the
//!   proxy's connections, and all that is done for one ends with its task.
//! - A sandbox whose packets make no sense has only itself to blame: they are dropped. So are fragments,
//!   packets to many machines, and those with extension headers of IPv6.

mod interface;
mod names;
mod packet;
mod ports;
mod queue;
mod tcp;
#[cfg(test)]
mod tests;
mod token_bucket;
mod udp;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use self::interface::PacketWriter;
pub use self::interface::SandboxInterface;
pub(crate) use self::names::NameServers;
use self::packet::{Content, Flow, Unreachable};
use self::ports::IpTransport;
pub use self::ports::{DirectPorts, DirectPortsError};
use self::queue::PacketQueue;
use self::tcp::Upstream;
use self::token_bucket::TokenBucket;
use super::destination::Destination;
use super::{ConnectionOutcome, Recorded, Shared};
use lucid_exec::protocol::{HOST_ADDRESS, INTERFACE_MTU, SANDBOX_ADDRESSES};

/// How many packets are looked at before others get their turn.
const AT_A_TIME: usize = 64;
/// How many packets of no flow a sandbox may send each second, and at once: what begins a flow, and what
/// is refused.
const STRAY_RATE: u32 = 1000;
const STRAY_BURST: u32 = 2000;

/// The flows that have a task.
type Flows = Arc<Mutex<HashMap<Flow, Arc<PacketQueue>>>>;

/// Serves the packets of a sandbox until its interface is gone.
pub(super) async fn serve(interface: SandboxInterface, shared: Arc<Shared>) {
    let mut sorter = PacketSorter {
        writer: interface.writer(),
        shared,
        flows: Flows::default(),
        strays: TokenBucket::new(STRAY_RATE, STRAY_BURST),
        tasks: JoinSet::new(),
    };
    let mut buffer = Box::new([0; INTERFACE_MTU as usize]);
    loop {
        let read = interface.read(&mut buffer, AT_A_TIME, |packet| sorter.sort(packet));
        if let Err(error) = read.await {
            if !is_gone(&error) {
                tracing::warn!(%error, "a sandbox's programs have only the proxy from now on: its network interface cannot be read");
            }
            return;
        }
        while sorter.tasks.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
}

/// Whether there is no interface any more, as after the end of its sandbox.
fn is_gone(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(errno, Some(Errno::BADFD | Errno::FAULT))
}

/// Gives packets to their flows, and begins new ones.
struct PacketSorter {
    writer: PacketWriter,
    shared: Arc<Shared>,
    flows: Flows,
    /// The packets of no flow that may still come.
    strays: TokenBucket,
    /// Dropping them ends the flows.
    tasks: JoinSet<()>,
}

/// Where a flow leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// To the host itself, which answers questions for names.
    Names,
    /// To a server, if the proxy would connect to it.
    Server,
}

impl PacketSorter {
    fn sort(&mut self, bytes: &[u8]) {
        let Some((flow, content)) = packet::parse(bytes) else {
            return;
        };
        let (old, new) = SANDBOX_ADDRESSES;
        let is_own = [IpAddr::from(old), new.into()].contains(&flow.program.ip());
        if !is_own || flow.program.port() == 0 || !tcp::is_servable(flow.server.ip()) {
            return;
        }
        let known = self.flows.lock().get(&flow).cloned();
        match (known, content) {
            (Some(queue), Content::Datagram(payload)) => queue.push(payload),
            (Some(queue), _) => queue.push(bytes),
            (None, Content::Reset) => {}
            (None, _) if !self.strays.take(Instant::now()) => {}
            (None, Content::Open | Content::Datagram(_)) => self.begin(flow, content, bytes),
            (None, Content::Segment) => self.answer(packet::reset(bytes)),
        }
    }

    fn begin(&mut self, flow: Flow, content: Content<'_>, bytes: &[u8]) {
        let Some(target) = self.target(flow) else {
            return self.refuse(flow, bytes, ConnectionOutcome::Refused);
        };
        let Some(shares) = self.shared.try_shares() else {
            return self.refuse(flow, bytes, ConnectionOutcome::Failed);
        };
        let served = ServedFlow {
            flow,
            target,
            request: match flow.transport {
                IpTransport::Tcp => bytes.to_vec(),
                IpTransport::Udp => Vec::new(),
            },
            shared: Arc::clone(&self.shared),
            writer: self.writer.clone(),
            queue: Arc::default(),
            _shares: shares,
        };
        // A question is answered once, and its flow is over.
        let entered = match content {
            Content::Datagram(payload) if target == Target::Names => {
                served.queue.push(payload);
                None
            }
            Content::Datagram(payload) => {
                served.queue.push(payload);
                Some(served.enter(&self.flows))
            }
            _ => Some(served.enter(&self.flows)),
        };
        let open = self.shared.rules.open.clone();
        self.tasks.spawn(open.track_future(async move {
            let _entered = entered;
            served.serve().await;
        }));
    }

    /// `None` if nothing leads there.
    fn target(&self, flow: Flow) -> Option<Target> {
        if flow.server == SocketAddr::from((HOST_ADDRESS, names::PORT)) {
            return Some(Target::Names);
        }
        let direct = &self.shared.rules.direct;
        let is_open = direct.permit(flow.transport, flow.server.port());
        (is_open && flow.server.ip() != IpAddr::from(HOST_ADDRESS)).then_some(Target::Server)
    }

    fn refuse(&self, flow: Flow, bytes: &[u8], outcome: ConnectionOutcome) {
        drop(self.shared.record(destination(flow.server), outcome));
        self.answer(refusal(flow, bytes, Unreachable::Prohibited));
    }

    fn answer(&self, packet: Option<Vec<u8>>) {
        if let Some(packet) = packet {
            self.writer.write(&packet);
        }
    }
}

/// The answer to the first packet of a flow that leads nowhere.
fn refusal(flow: Flow, bytes: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    match flow.transport {
        IpTransport::Tcp => packet::reset(bytes),
        IpTransport::Udp => packet::unreachable(flow, why),
    }
}

fn destination(server: SocketAddr) -> Destination {
    Destination {
        host: server.ip().to_string(),
        port: server.port(),
    }
}

/// A flow that is in the table until this is dropped.
struct EnteredFlow {
    flow: Flow,
    flows: Flows,
}

impl Drop for EnteredFlow {
    fn drop(&mut self) {
        self.flows.lock().remove(&self.flow);
    }
}

/// A flow, and what its task needs.
struct ServedFlow {
    flow: Flow,
    target: Target,
    /// The packet that asks for a connection.
    request: Vec<u8>,
    shared: Arc<Shared>,
    writer: PacketWriter,
    queue: Arc<PacketQueue>,
    _shares: [OwnedSemaphorePermit; 3],
}

impl ServedFlow {
    fn enter(&self, flows: &Flows) -> EnteredFlow {
        let before = flows.lock().insert(self.flow, Arc::clone(&self.queue));
        debug_assert!(before.is_none(), "a flow has one task");
        EnteredFlow {
            flow: self.flow,
            flows: Arc::clone(flows),
        }
    }

    async fn serve(self) {
        // Recorded when this is dropped, however that comes about.
        let destination = destination(self.flow.server);
        let mut recorded = self.shared.record(destination, ConnectionOutcome::Failed);
        match (self.flow.transport, self.target) {
            (IpTransport::Tcp, _) => self.serve_connection(&mut recorded).await,
            (IpTransport::Udp, Target::Names) => self.answer_questions(&mut recorded).await,
            (IpTransport::Udp, Target::Server) => self.serve_datagrams(&mut recorded).await,
        }
    }

    async fn serve_connection(&self, recorded: &mut Recorded<'_>) {
        if self.target == Target::Names {
            return self.serve_names(recorded).await;
        }
        match self.shared.connect(&recorded.destination).await {
            Ok(server) => self.relay(Upstream::Server(server), recorded).await,
            Err(error) => {
                recorded.outcome = error.outcome();
                self.refuse(Unreachable::Prohibited);
            }
        }
    }

    async fn relay(&self, server: Upstream, recorded: &mut Recorded<'_>) {
        recorded.outcome = ConnectionOutcome::Connected;
        let (request, writer) = (self.request.clone(), self.writer.clone());
        let traffic = &recorded.traffic;
        tcp::serve(self.flow, request, server, &self.queue, writer, traffic).await;
    }

    /// Answers the questions that come over the connection, until it is over.
    async fn serve_names(&self, recorded: &mut Recorded<'_>) {
        let Ok((program, host)) = UnixStream::pair() else {
            return self.refuse(Unreachable::Prohibited);
        };
        let answers = async {
            self.shared.rules.names.serve(host, &self.shared).await;
            // What was answered is still to be passed on.
            std::future::pending().await
        };
        tokio::select! {
            () = self.relay(Upstream::Local(program), recorded) => {}
            () = answers => {}
        }
    }

    async fn answer_questions(&self, recorded: &mut Recorded<'_>) {
        for question in self.queue.take() {
            recorded.traffic.add_sent(question.len());
            let answered = self.shared.rules.names.answer(&question, &self.shared);
            let Some(answer) = answered.await else {
                continue;
            };
            recorded.outcome = ConnectionOutcome::Connected;
            recorded.traffic.add_received(answer.len());
            if let Some(packet) = packet::datagram(self.flow, &answer) {
                self.writer.write(&packet);
            }
        }
    }

    async fn serve_datagrams(&self, recorded: &mut Recorded<'_>) {
        let allowed = self.shared.resolve(&recorded.destination).await;
        if let Err(error) = allowed {
            recorded.outcome = error.outcome();
            return self.refuse(Unreachable::Prohibited);
        }
        let Ok(socket) = udp::connect(self.flow.server).await else {
            return self.refuse(Unreachable::Port);
        };
        recorded.outcome = ConnectionOutcome::Connected;
        let traffic = &recorded.traffic;
        let served = udp::serve(self.flow, &socket, &self.queue, &self.writer, traffic);
        if served.await.is_err() {
            if traffic.totals().1 == 0 {
                recorded.outcome = ConnectionOutcome::Failed;
            }
            self.refuse(Unreachable::Port);
        }
    }

    fn refuse(&self, why: Unreachable) {
        if let Some(packet) = refusal(self.flow, &self.request, why) {
            self.writer.write(&packet);
        }
    }
}
