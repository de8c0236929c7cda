//! One flow of datagrams between a program and a server.
//!
//! # Invariants
//! - It ends after a while without a datagram: nothing else says that it is over.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::interface::PacketWriter;
use super::packet::{Flow, datagram};
use super::queue::PacketQueue;
use crate::proxy::tunnel::Traffic;

/// How long a flow lasts without a datagram. Longer than the pauses of what keeps its flows alive.
const IDLE: Duration = Duration::from_secs(60);

/// A socket that only this server is heard by.
pub(super) async fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// Passes datagrams on until there are none for a while.
///
/// # Errors
/// If the server's machine says that nobody is there.
pub(super) async fn serve(
    flow: Flow,
    socket: &UdpSocket,
    queue: &PacketQueue,
    writer: &PacketWriter,
    traffic: &Traffic,
) -> io::Result<()> {
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = queue.arrived() => {
                for payload in queue.take() {
                    let sent = socket.send(&payload).await;
                    traffic.add_sent(passed(sent)?);
                }
            }
            readable = socket.readable() => {
                readable?;
                receive(flow, socket, writer, traffic)?;
            }
            () = tokio::time::sleep_until(last + IDLE) => return Ok(()),
        }
        last = Instant::now();
        tokio::task::coop::consume_budget().await;
    }
}

fn receive(
    flow: Flow,
    socket: &UdpSocket,
    writer: &PacketWriter,
    traffic: &Traffic,
) -> io::Result<()> {
    // Held only while there is something to receive.
    let mut payload = vec![0; usize::from(u16::MAX)];
    for _ in 0..64 {
        match socket.try_recv(&mut payload) {
            Ok(length) => {
                traffic.add_received(length);
                if let Some(packet) = datagram(flow, &payload[..length]) {
                    writer.write(&packet);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return passed(Err(error)).map(drop),
        }
    }
    Ok(())
}

/// How many bytes passed. A datagram may be lost for many reasons, of which one is an answer.
fn passed(done: io::Result<usize>) -> io::Result<usize> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(error),
        done => Ok(done.unwrap_or(0)),
    }
}
