//! The reasons for which something fails now and may succeed later.
//!
//! # Invariants
//! - A reason is decided from an error's code, never from its text.

use std::io;

use rustix::io::Errno;

/// The reason for a transient failure. Each message is the end of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TransientFailure {
    /// The disk is full, or a quota is used up.
    #[error("the disk is full")]
    DiskFull,
    /// Another process holds the log's lock.
    #[error("another process has locked the database")]
    Locked,
    /// A file of the log cannot be opened.
    #[error("a file of the database cannot be opened, or no file descriptor is left")]
    CannotOpen,
    /// No file descriptor is left.
    #[error("no file descriptor is left")]
    NoDescriptor,
    /// No more processes can be started.
    #[error("no more processes can be started")]
    NoProcess,
    /// No memory is left.
    #[error("no memory is left")]
    OutOfMemory,
    /// A file system mounted read-only, or a permission that was revoked.
    #[error("the database may not be written")]
    ReadOnly,
    /// Any other error of the disk that may pass.
    #[error("the disk reports an error")]
    Io,
}

impl TransientFailure {
    /// Classifies an error of the operating system; `None` if it is permanent.
    pub fn of_io(error: &io::Error) -> Option<Self> {
        let errno = Errno::from_io_error(error);
        if matches!(errno, Some(Errno::MFILE | Errno::NFILE)) {
            return Some(Self::NoDescriptor);
        }
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Self::DiskFull),
            io::ErrorKind::OutOfMemory => Some(Self::OutOfMemory),
            io::ErrorKind::ReadOnlyFilesystem => Some(Self::ReadOnly),
            io::ErrorKind::WouldBlock => Some(Self::NoProcess),
            io::ErrorKind::Interrupted | io::ErrorKind::ResourceBusy => Some(Self::Io),
            _ => None,
        }
    }
}
