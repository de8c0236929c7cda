//! The exec server's first message, by which the host knows it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketType, recvmsg,
};
use tokio::io::{AsyncRead, Interest};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::error::Elapsed;

use super::reader::{read_frame, read_frame_after};
use crate::error::SandboxError;
use crate::proxy::SandboxInterface;
use lucid_exec::protocol::{Frame, FrameKind, Hello, VERSION};
use lucid_types::sanitize::sanitize;

/// Why a sandbox's exec server is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetError {
    /// It is of another build.
    #[error("its exec server speaks another version")]
    Version,
    /// It sent something else first.
    #[error("its exec server did not say hello")]
    NoHello,
    /// It closed the connection.
    #[error("it ended at once")]
    Ended(#[source] std::io::Error),
    /// It sent nothing in time.
    #[error("it was not ready after {} seconds", .0.as_secs())]
    NotReady(Duration),
}

impl From<GreetError> for SandboxError {
    fn from(error: GreetError) -> Self {
        Self::Start(error.to_string())
    }
}

/// A sandbox's ways to the network, as its exec server hands them over.
#[derive(Debug, Default)]
pub(crate) struct NetworkEnds {
    /// Where its programs look for a proxy.
    pub(crate) listener: Option<TcpListener>,
    /// Where the packets of those arrive that do not.
    pub(crate) interface: Option<SandboxInterface>,
    /// Why there is no interface though one is wanted.
    pub(crate) no_interface: Option<String>,
}

/// The most of a reason that is repeated, in characters.
const REASON: usize = 300;
/// How many descriptors come with the first byte.
const DESCRIPTORS: usize = 2;

/// Reads the first frame.
pub(crate) async fn read_hello(
    reader: &mut (impl AsyncRead + Unpin),
    patience: Duration,
) -> Result<(), GreetError> {
    let read = tokio::time::timeout(patience, read_frame(reader)).await;
    checked(read, patience).map(drop)
}

/// Reads the first frame, and takes the descriptors that may come with it.
pub(crate) async fn greet(
    stream: &mut UnixStream,
    patience: Duration,
) -> Result<NetworkEnds, GreetError> {
    let mut ends = NetworkEnds::default();
    let greeted = async {
        let (first, descriptors) = receive_first(stream).await?;
        for descriptor in descriptors {
            match tcp_listener(descriptor) {
                Ok(listener) => ends.listener = Some(listener),
                Err(other) => ends.interface = other.and_then(SandboxInterface::new),
            }
        }
        read_frame_after(first, stream).await
    };
    let greeted = tokio::time::timeout(patience, greeted).await;
    let reason = checked(greeted, patience)?.no_interface;
    ends.no_interface = reason.map(|reason| sanitize(&reason, REASON));
    Ok(ends)
}

/// Receives one byte, and the descriptors that were sent with it.
async fn receive_first(stream: &UnixStream) -> io::Result<(u8, Vec<OwnedFd>)> {
    loop {
        stream.readable().await?;
        let received = stream.try_io(Interest::READABLE, || {
            let mut byte = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let mut into = [IoSliceMut::new(&mut byte)];
            if recvmsg(stream, &mut into, &mut control, flags)?.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut descriptors = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(sent) = message {
                    descriptors.extend(sent);
                }
            }
            Ok((byte[0], descriptors))
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

/// A sandbox could send any descriptor. What is no socket is given back; of sockets, anything but a
/// listening one of TCP is dropped.
fn tcp_listener(descriptor: OwnedFd) -> Result<TcpListener, Option<OwnedFd>> {
    let Ok(kind) = socket_type(&descriptor) else {
        return Err(Some(descriptor));
    };
    let is_listener = kind == SocketType::STREAM
        && socket_domain(&descriptor) == Ok(AddressFamily::INET)
        && socket_acceptconn(&descriptor) == Ok(true);
    if !is_listener {
        return Err(None);
    }
    let listener = std::net::TcpListener::from(descriptor);
    let registered = listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener));
    registered.map_err(|_| None)
}

fn checked(
    received: Result<io::Result<Frame>, Elapsed>,
    patience: Duration,
) -> Result<Hello, GreetError> {
    match received {
        Ok(Ok(Frame {
            kind: FrameKind::Hello,
            payload,
            ..
        })) => match serde_json::from_slice::<Hello>(&payload) {
            Ok(hello) if hello.version == VERSION => Ok(hello),
            _ => Err(GreetError::Version),
        },
        Ok(Ok(_)) => Err(GreetError::NoHello),
        Ok(Err(cause)) => Err(GreetError::Ended(cause)),
        Err(_) => Err(GreetError::NotReady(patience)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_the_descriptors_that_a_sandbox_could_send_only_a_listener_and_a_tunnel_are_taken() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/zero").unwrap();
        let others: [OwnedFd; 4] = [
            connected.into(),
            local.into(),
            datagrams.into(),
            file.into(),
        ];
        for other in others {
            let shown = format!("{other:?}");
            let rest = tcp_listener(other).expect_err(&shown);
            assert!(rest.and_then(SandboxInterface::new).is_none(), "{shown}");
        }
        assert!(tcp_listener(listener.into()).is_ok());
        if let Ok(tunnel) = std::fs::File::open("/dev/net/tun") {
            let tunnel = tcp_listener(tunnel.into()).unwrap_err().unwrap();
            assert!(SandboxInterface::new(tunnel).is_some());
        }
    }
}
