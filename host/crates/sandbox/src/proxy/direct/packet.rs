//! The packets of a sandbox's interface: what is read of one, and those that the host makes itself.
//!
//! # Invariants
//! - What is no whole packet of TCP or UDP is none: a broken one, another protocol, a fragment.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, IpRepr, IpVersion, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use super::ports::IpTransport;

/// How far a packet goes, which on this interface is one step.
const HOPS: u8 = 64;
/// The length of a datagram's header.
const UDP_HEADER: u8 = 8;
/// The longest datagram, in bytes: IPv4's, which are shorter than IPv6's.
const MAX_DATAGRAM: usize = 65_507;

/// Both ends of a connection, as the program in the sandbox sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) transport: IpTransport,
    pub(super) program: SocketAddr,
    pub(super) server: SocketAddr,
}

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// Asks for a connection.
    Open,
    /// Belongs to a connection.
    Segment,
    /// Ends a connection.
    Reset,
    /// A datagram.
    Datagram(&'a [u8]),
}

/// Why a datagram does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// It may not.
    Prohibited,
    /// Nobody is there.
    Port,
}

struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        // The version is read without a look at whether it is there.
        if bytes.is_empty() {
            return None;
        }
        match IpVersion::of_packet(bytes).ok()? {
            IpVersion::Ipv4 => {
                let packet = Ipv4Packet::new_checked(bytes).ok()?;
                let is_fragment = packet.more_frags() || packet.frag_offset() != 0;
                (!is_fragment).then(|| Self {
                    source: packet.src_addr().into(),
                    destination: packet.dst_addr().into(),
                    protocol: packet.next_header(),
                    payload: packet.payload(),
                })
            }
            IpVersion::Ipv6 => {
                let packet = Ipv6Packet::new_checked(bytes).ok()?;
                Some(Self {
                    source: packet.src_addr().into(),
                    destination: packet.dst_addr().into(),
                    protocol: packet.next_header(),
                    payload: packet.payload(),
                })
            }
        }
    }
}

/// Reads a packet. `None` for what is left unanswered.
pub(super) fn parse(bytes: &[u8]) -> Option<(Flow, Content<'_>)> {
    let ip = Ip::parse(bytes)?;
    let (transport, from, to, content) = match ip.protocol {
        IpProtocol::Tcp => {
            let segment = TcpPacket::new_checked(ip.payload).ok()?;
            let content = if segment.rst() {
                Content::Reset
            } else if segment.syn() && !segment.ack() {
                Content::Open
            } else {
                Content::Segment
            };
            (
                IpTransport::Tcp,
                segment.src_port(),
                segment.dst_port(),
                content,
            )
        }
        IpProtocol::Udp => {
            let datagram = UdpPacket::new_checked(ip.payload).ok()?;
            let content = Content::Datagram(datagram.payload());
            (
                IpTransport::Udp,
                datagram.src_port(),
                datagram.dst_port(),
                content,
            )
        }
        _ => return None,
    };
    let flow = Flow {
        transport,
        program: SocketAddr::new(ip.source, from),
        server: SocketAddr::new(ip.destination, to),
    };
    Some((flow, content))
}

/// The answer to a segment of no connection.
pub(super) fn reset(bytes: &[u8]) -> Option<Vec<u8>> {
    let ip = Ip::parse(bytes)?;
    let segment = TcpPacket::new_checked(ip.payload).ok()?;
    if ip.protocol != IpProtocol::Tcp || segment.rst() {
        return None;
    }
    // RFC 9293, section 3.10.7.1.
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        let next = segment.seq_number() + segment.segment_len();
        (TcpSeqNumber(0), Some(next))
    };
    let answer = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (from, to) = (ip.destination, ip.source);
    made((from, to), IpProtocol::Tcp, answer.buffer_len(), |buffer| {
        let mut packet = TcpPacket::new_unchecked(buffer);
        answer.emit(&mut packet, &from.into(), &to.into(), &checksums());
    })
}

/// The answer to a datagram of a flow that does not arrive. It repeats the datagram's headers, by which the
/// program's kernel finds the socket.
pub(super) fn unreachable(flow: Flow, why: Unreachable) -> Option<Vec<u8>> {
    let [from, to] = [flow.program.port(), flow.server.port()].map(u16::to_be_bytes);
    let repeated = [from, to, [0, UDP_HEADER], [0, 0]].concat();
    let payload_len = repeated.len();
    match (flow.program.ip(), flow.server.ip()) {
        (IpAddr::V4(program), IpAddr::V4(server)) => {
            let answer = Icmpv4Repr::DstUnreachable {
                reason: match why {
                    Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
                    Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
                },
                header: Ipv4Repr {
                    src_addr: program,
                    dst_addr: server,
                    next_header: IpProtocol::Udp,
                    payload_len,
                    hop_limit: HOPS,
                },
                data: &repeated,
            };
            let ends = (server.into(), program.into());
            made(ends, IpProtocol::Icmp, answer.buffer_len(), |mut buffer| {
                let mut packet = Icmpv4Packet::new_unchecked(&mut buffer);
                answer.emit(&mut packet, &checksums());
            })
        }
        (IpAddr::V6(program), IpAddr::V6(server)) => {
            let answer = Icmpv6Repr::DstUnreachable {
                reason: match why {
                    Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
                    Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
                },
                header: Ipv6Repr {
                    src_addr: program,
                    dst_addr: server,
                    next_header: IpProtocol::Udp,
                    payload_len,
                    hop_limit: HOPS,
                },
                data: &repeated,
            };
            let ends = (server.into(), program.into());
            made(
                ends,
                IpProtocol::Icmpv6,
                answer.buffer_len(),
                |mut buffer| {
                    let mut packet = Icmpv6Packet::new_unchecked(&mut buffer);
                    answer.emit(&server, &program, &mut packet, &checksums());
                },
            )
        }
        _ => None,
    }
}

/// A datagram from a flow's server to its program. `None` if it is longer than one can be.
pub(super) fn datagram(flow: Flow, payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() > MAX_DATAGRAM {
        return None;
    }
    let header = UdpRepr {
        src_port: flow.server.port(),
        dst_port: flow.program.port(),
    };
    let (from, to) = (flow.server.ip(), flow.program.ip());
    let length = header.header_len() + payload.len();
    made((from, to), IpProtocol::Udp, length, |buffer| {
        let mut packet = UdpPacket::new_unchecked(buffer);
        header.emit(
            &mut packet,
            &from.into(),
            &to.into(),
            payload.len(),
            |into| into.copy_from_slice(payload),
            &checksums(),
        );
    })
}

/// A packet with a header of IP before what `fill` writes. `None` for ends of different versions.
fn made(
    (from, to): (IpAddr, IpAddr),
    protocol: IpProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Option<Vec<u8>> {
    if from.is_ipv4() != to.is_ipv4() {
        return None;
    }
    let header = IpRepr::new(from.into(), to.into(), protocol, length, HOPS);
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut bytes, &checksums());
    fill(&mut bytes[header.header_len()..]);
    Some(bytes)
}

fn checksums() -> ChecksumCapabilities {
    ChecksumCapabilities::default()
}
