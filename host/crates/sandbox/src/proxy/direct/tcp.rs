//! One connection of TCP: the host's end of it, and the server.
//!
//! # Invariants
//! - The program is connected only when the server is. A server that refuses, or does not answer in the
//!   proxy's time, is a reset.
//! - What each side sends is taken as fast as the other takes it, and the end of each is passed on alone.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use super::interface::PacketWriter;
use super::packet::Flow;
use super::queue::PacketQueue;
use crate::proxy::tunnel::Traffic;
use lucid_exec::protocol::INTERFACE_MTU;

/// How much may be on its way in each direction, in bytes. The memory is used as far as it is needed.
const BUFFER: usize = 128 << 10;
/// How long the program may take to answer that it is connected.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the program's machine may be silent while it has something to acknowledge.
const UNANSWERED: Duration = Duration::from_secs(60);
/// How long both sides may be silent, as with the proxy.
const IDLE: Duration = Duration::from_secs(600);

/// What a program is connected to.
pub(super) enum Upstream {
    Server(TcpStream),
    /// A task of the host's own.
    Local(UnixStream),
}

impl Upstream {
    async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Server(stream) => stream.ready(interest).await.map(drop),
            Self::Local(stream) => stream.ready(interest).await.map(drop),
        }
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Server(stream) => stream.try_read(into),
            Self::Local(stream) => stream.try_read(into),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Server(stream) => stream.try_write(bytes),
            Self::Local(stream) => stream.try_write(bytes),
        }
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Server(stream) => stream.shutdown().await,
            Self::Local(stream) => stream.shutdown().await,
        }
    }
}

/// Serves a connection until it is over. `first` is the packet that asked for it.
pub(super) async fn serve(
    flow: Flow,
    first: Vec<u8>,
    mut server: Upstream,
    queue: &PacketQueue,
    writer: PacketWriter,
    traffic: &Traffic,
) {
    let mut end = HostEnd::new(flow.server, writer);
    end.device.arrived.push_back(first);
    if !end.serve(&mut server, queue, traffic).await {
        // Tells the program, unless it knows.
        end.socket().abort();
        end.poll();
    }
}

/// The host's end of a connection: a machine that has the server's address, and one socket.
struct HostEnd {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    device: PacketDevice,
    begun: Instant,
    /// When something was last passed on.
    last_moved: Instant,
    /// When a packet last came, or the program's machine had nothing to acknowledge.
    last_heard: Instant,
    /// Whether the server has sent all that it will.
    server_ended: bool,
    /// Whether the server knows that the program has.
    told_server: bool,
}

impl HostEnd {
    fn new(address: SocketAddr, writer: PacketWriter) -> Self {
        let mut device = PacketDevice {
            arrived: VecDeque::new(),
            writer,
            buffer: Vec::new(),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = uuid::Uuid::new_v4().as_u64_pair().1;
        let now = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(config, &mut device, now);
        interface.update_ip_addrs(|addresses| {
            // Everybody is a neighbor, the program too.
            let _ = addresses.push(IpCidr::new(address.ip().into(), 0));
        });
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        // The sandbox's kernel is next to it, and has little to send until it hears.
        socket.set_ack_delay(None);
        let endpoint = IpListenEndpoint {
            addr: Some(address.ip().into()),
            port: address.port(),
        };
        // Fails for port 0, and then the socket answers nothing.
        let _ = socket.listen(endpoint);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let begun = Instant::now();
        Self {
            interface,
            sockets,
            handle,
            device,
            begun,
            last_moved: begun,
            last_heard: begun,
            server_ended: false,
            told_server: false,
        }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn now(&self) -> smoltcp::time::Instant {
        let micros = self.begun.elapsed().as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Takes the packets that arrived, and sends those that are due.
    fn poll(&mut self) {
        let now = self.now();
        self.interface
            .poll(now, &mut self.device, &mut self.sockets);
    }

    /// When there is something to send again, unless something happens before.
    fn next_poll(&mut self) -> Option<Instant> {
        let now = self.now();
        let delay = self.interface.poll_delay(now, &self.sockets)?;
        Some(Instant::now() + delay.into())
    }

    /// Returns whether both sides ended it themselves.
    async fn serve(
        &mut self,
        server: &mut Upstream,
        queue: &PacketQueue,
        traffic: &Traffic,
    ) -> bool {
        loop {
            self.take(queue.take());
            match self.exchange(server, traffic) {
                Ok(true) => {
                    self.last_moved = Instant::now();
                    self.poll();
                }
                Ok(false) => {}
                Err(_) => return false,
            }
            if self.program_ended() && !self.told_server {
                self.told_server = true;
                if server.shutdown().await.is_err() {
                    return false;
                }
            }
            let state = self.socket().state();
            let is_over = matches!(state, State::Closed | State::TimeWait);
            if is_over && !self.socket().can_recv() {
                return true;
            }
            let deadline = self.deadline();
            if Instant::now() >= deadline {
                return false;
            }
            let wake = self.next_poll().map_or(deadline, |due| due.min(deadline));
            let interest = self.interest();
            // Nobody else waits for this task.
            tokio::task::coop::consume_budget().await;
            tokio::select! {
                () = queue.arrived() => {}
                () = tokio::time::sleep_until(wake) => {}
                ready = ready(server, interest) => {
                    if ready.is_err() {
                        return false;
                    }
                }
            }
        }
    }

    /// Takes the packets that arrived since the last time.
    fn take(&mut self, packets: VecDeque<Vec<u8>>) {
        if !packets.is_empty() || !self.is_unanswered() {
            self.last_heard = Instant::now();
        }
        self.device.arrived.extend(packets);
        self.poll();
    }

    /// Whether the program's machine has something to acknowledge: bytes, or that they ended.
    fn is_unanswered(&mut self) -> bool {
        let socket = self.socket();
        let ended = matches!(
            socket.state(),
            State::FinWait1 | State::Closing | State::LastAck
        );
        ended || socket.send_queue() > 0
    }

    /// When the connection is given up, unless something happens before. The socket's own timeout
    /// counts while there is nothing to acknowledge, too.
    fn deadline(&mut self) -> Instant {
        if matches!(self.socket().state(), State::Listen | State::SynReceived) {
            return self.begun + HANDSHAKE;
        }
        let idle = self.last_moved + IDLE;
        if self.is_unanswered() {
            idle.min(self.last_heard + UNANSWERED)
        } else {
            idle
        }
    }

    /// Whether the program has sent all that it will, and all of it was passed on.
    fn program_ended(&mut self) -> bool {
        let socket = self.socket();
        let ended = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
        );
        ended && !socket.can_recv()
    }

    /// What is waited for of the server.
    fn interest(&mut self) -> Option<Interest> {
        let ended = self.server_ended;
        let socket = self.socket();
        let reads = (!ended && socket.can_send()).then_some(Interest::READABLE);
        let writes = socket.can_recv().then_some(Interest::WRITABLE);
        match (reads, writes) {
            (Some(reads), Some(writes)) => Some(reads | writes),
            (reads, writes) => reads.or(writes),
        }
    }

    /// Copies what can be copied at once. Returns whether that was anything.
    fn exchange(&mut self, server: &Upstream, traffic: &Traffic) -> io::Result<bool> {
        let mut moved = false;
        while self.socket().can_recv() {
            let passed = self.socket().recv(|bytes| pass(server.try_write(bytes)));
            match passed.map_err(io::Error::other)?? {
                0 => break,
                count => traffic.add_sent(count),
            }
            moved = true;
        }
        while !self.server_ended && self.socket().can_send() {
            let mut ended = false;
            let passed = self.socket().send(|buffer| {
                let read = server.try_read(buffer);
                ended = matches!(read, Ok(0));
                pass(read)
            });
            match passed.map_err(io::Error::other)?? {
                0 if ended => {
                    self.server_ended = true;
                    self.socket().close();
                }
                0 => break,
                count => traffic.add_received(count),
            }
            moved = true;
        }
        Ok(moved)
    }
}

/// How many bytes were passed, none where that has to wait, for the buffer and for the caller.
fn pass(done: io::Result<usize>) -> (usize, io::Result<usize>) {
    match done {
        Ok(count) => (count, Ok(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, Ok(0)),
        Err(error) => (0, Err(error)),
    }
}

async fn ready(server: &Upstream, interest: Option<Interest>) -> io::Result<()> {
    match interest {
        Some(interest) => server.ready(interest).await,
        None => std::future::pending().await,
    }
}

/// Takes the packets of one connection from a queue, and writes its own to the interface.
struct PacketDevice {
    arrived: VecDeque<Vec<u8>>,
    writer: PacketWriter,
    buffer: Vec<u8>,
}

struct Arrived(Vec<u8>);

struct Sending<'a> {
    writer: &'a PacketWriter,
    buffer: &'a mut Vec<u8>,
}

impl Device for PacketDevice {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sending<'a>;

    fn receive(
        &mut self,
        _timestamp: smoltcp::time::Instant,
    ) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), self.sending()))
    }

    fn transmit(&mut self, _timestamp: smoltcp::time::Instant) -> Option<Self::TxToken<'_>> {
        Some(self.sending())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(INTERFACE_MTU);
        capabilities
    }
}

impl PacketDevice {
    fn sending(&mut self) -> Sending<'_> {
        Sending {
            writer: &self.writer,
            buffer: &mut self.buffer,
        }
    }
}

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.buffer.resize(len, 0);
        let done = f(self.buffer);
        self.writer.write(self.buffer);
        done
    }
}

/// Whether a connection can be served at all: the stack takes no address of many machines.
pub(super) fn is_servable(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_multicast() || address.is_unspecified() || is_broadcast)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use smoltcp::wire::{Ipv4Packet, TcpControl, TcpPacket};

    use super::super::interface::SandboxInterface;
    use super::super::tests::numbered;
    use super::*;

    const PORT: u16 = 10;

    /// A connection that its program took, and the program's side of the interface.
    fn connected(server: SocketAddr) -> (HostEnd, UnixDatagram, i32) {
        let (sandbox, host) = UnixDatagram::pair().unwrap();
        sandbox.set_nonblocking(true).unwrap();
        let interface = SandboxInterface::registered(host.into()).unwrap();
        let mut end = HostEnd::new(server, interface.writer());
        let request = numbered(PORT, server, TcpControl::Syn, (1000, None), &[]);
        end.take([request].into());
        let mut answer = [0; 100];
        let length = sandbox.recv(&mut answer).unwrap();
        let packet = Ipv4Packet::new_checked(&answer[..length]).unwrap();
        let next = TcpPacket::new_checked(packet.payload())
            .unwrap()
            .seq_number()
            .0
            .wrapping_add(1);
        let taken = numbered(PORT, server, TcpControl::None, (1001, Some(next)), &[]);
        end.take([taken].into());
        assert_eq!(end.socket().state(), State::Established);
        (end, sandbox, next)
    }

    /// Lets time go by without a packet.
    fn pass_time(end: &mut HostEnd, time: Duration) {
        for past in [&mut end.begun, &mut end.last_moved, &mut end.last_heard] {
            *past = past.checked_sub(time).unwrap();
        }
    }

    #[tokio::test]
    async fn a_connection_is_idle_for_longer_than_an_answer_may_take() {
        const PAUSE: Duration = Duration::from_secs(70);
        let server: SocketAddr = "192.0.2.1:22".parse().unwrap();
        let (mut end, _sandbox, next) = connected(server);
        assert!(PAUSE > UNANSWERED);
        pass_time(&mut end, PAUSE);
        end.take(VecDeque::new());
        assert_eq!(end.socket().state(), State::Established);
        assert!(end.deadline() > Instant::now() + UNANSWERED);

        // What the server sends then has its own time.
        end.socket().send_slice(b"late").unwrap();
        end.poll();
        assert!(end.deadline() > Instant::now() + UNANSWERED / 2);
        let acknowledged = (1001, Some(next.wrapping_add(4)));
        let taken = numbered(PORT, server, TcpControl::None, acknowledged, &[]);
        end.take([taken].into());
        assert!(end.deadline() > Instant::now() + UNANSWERED);

        // And so has the server's end.
        pass_time(&mut end, PAUSE);
        end.take(VecDeque::new());
        end.socket().close();
        end.poll();
        assert_eq!(end.socket().state(), State::FinWait1);
        assert!(end.deadline() > Instant::now() + UNANSWERED / 2);
    }

    #[tokio::test]
    async fn a_program_that_acknowledges_nothing_is_given_up() {
        let server: SocketAddr = "192.0.2.1:22".parse().unwrap();
        for ends in [false, true] {
            let (mut end, _sandbox, _) = connected(server);
            if ends {
                end.socket().close();
            } else {
                end.socket().send_slice(b"unheard").unwrap();
            }
            end.poll();
            pass_time(&mut end, UNANSWERED);
            end.take(VecDeque::new());
            assert!(end.deadline() <= Instant::now());
        }
    }
}
