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
use lucid_exec::protocol::{Frame, FrameKind, Hello, VERSION};

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

/// Reads the first frame.
pub(crate) async fn read_hello(
    reader: &mut (impl AsyncRead + Unpin),
    patience: Duration,
) -> Result<(), GreetError> {
    checked(
        tokio::time::timeout(patience, read_frame(reader)).await,
        patience,
    )
}

/// Reads the first frame, and takes the listener that may come with it.
pub(crate) async fn greet(
    stream: &mut UnixStream,
    patience: Duration,
) -> Result<Option<TcpListener>, GreetError> {
    let mut listener = None;
    let greeted = async {
        let (first, descriptor) = receive_first(stream).await?;
        listener = descriptor.and_then(tcp_listener);
        read_frame_after(first, stream).await
    };
    checked(tokio::time::timeout(patience, greeted).await, patience)?;
    Ok(listener)
}

/// Receives one byte, and the descriptor that was sent with it.
async fn receive_first(stream: &UnixStream) -> io::Result<(u8, Option<OwnedFd>)> {
    loop {
        stream.readable().await?;
        let received = stream.try_io(Interest::READABLE, || {
            let mut byte = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let mut into = [IoSliceMut::new(&mut byte)];
            if recvmsg(stream, &mut into, &mut control, flags)?.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let descriptor = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut sent) => sent.next(),
                _ => None,
            });
            Ok((byte[0], descriptor))
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

/// A sandbox could send any descriptor. Anything but a listening TCP socket is dropped.
fn tcp_listener(descriptor: OwnedFd) -> Option<TcpListener> {
    let is_listener = socket_type(&descriptor) == Ok(SocketType::STREAM)
        && socket_domain(&descriptor) == Ok(AddressFamily::INET)
        && socket_acceptconn(&descriptor) == Ok(true);
    if !is_listener {
        return None;
    }
    let listener = std::net::TcpListener::from(descriptor);
    listener.set_nonblocking(true).ok()?;
    TcpListener::from_std(listener).ok()
}

fn checked(
    received: Result<io::Result<Frame>, Elapsed>,
    patience: Duration,
) -> Result<(), GreetError> {
    match received {
        Ok(Ok(Frame {
            kind: FrameKind::Hello,
            payload,
            ..
        })) => match serde_json::from_slice::<Hello>(&payload) {
            Ok(hello) if hello.version == VERSION => Ok(()),
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
    async fn of_the_descriptors_that_a_sandbox_could_send_only_a_listening_tcp_socket_is_taken() {
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
            assert!(tcp_listener(other).is_none(), "{shown}");
        }
        assert!(tcp_listener(listener.into()).is_some());
    }
}
