//! The descriptor of a sandbox's network interface, which its exec server hands over.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use lucid_exec::protocol::INTERFACE_MTU;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat, major, minor};
use tokio::net::unix::pipe;

/// The driver of tunnels, as a device.
const DRIVER: (u32, u32) = (10, 200);

/// The host's end of a sandbox's network interface. The runtime knows it as a pipe, of which it says when
/// there is something to read, and which it reads in the same way.
pub struct SandboxInterface(Arc<pipe::Receiver>);

impl fmt::Debug for SandboxInterface {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SandboxInterface").finish_non_exhaustive()
    }
}

impl SandboxInterface {
    /// `None` for a descriptor of anything else: a sandbox could send any. Must be called within the
    /// runtime.
    pub(crate) fn new(descriptor: OwnedFd) -> Option<Self> {
        let status = fstat(&descriptor).ok()?;
        let is_tunnel = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
            && (major(status.st_rdev), minor(status.st_rdev)) == DRIVER;
        is_tunnel.then(|| Self::registered(descriptor)).flatten()
    }

    /// The same of anything that keeps packets apart.
    pub(super) fn registered(descriptor: OwnedFd) -> Option<Self> {
        let flags = fcntl_getfl(&descriptor).ok()?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK).ok()?;
        let registered = pipe::Receiver::from_owned_fd_unchecked(descriptor).ok()?;
        Some(Self(Arc::new(registered)))
    }

    pub(super) fn writer(&self) -> PacketWriter {
        PacketWriter(Arc::clone(&self.0))
    }

    /// Waits for packets, and has as many of them looked at as there are, up to a number.
    ///
    /// # Errors
    /// If there will be none any more.
    pub(super) async fn read(
        &self,
        buffer: &mut [u8; INTERFACE_MTU as usize],
        most: usize,
        mut look: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.0.readable().await?;
        for _ in 0..most {
            match self.0.try_read(&mut buffer[..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => look(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Writes packets to a sandbox.
#[derive(Clone)]
pub(super) struct PacketWriter(Arc<pipe::Receiver>);

impl PacketWriter {
    /// Sends a packet. One that the sandbox's kernel does not take now is lost, as on a network.
    pub(super) fn write(&self, packet: &[u8]) {
        let _ = rustix::io::write(self.0.as_fd(), packet);
    }
}
