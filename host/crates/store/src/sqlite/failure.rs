//! Distinguishes transient failures of the store from permanent ones.
//!
//! # Invariants
//!
//! - This is decided here and nowhere else; nothing depends on an error's text.
//! - A transient failure left nothing behind: the same call can simply be repeated.

use std::error::Error;
use std::io;

use rusqlite::ErrorCode;

use crate::StoreError;

/// The reason for a transient failure. Each message is the end of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Transient {
    /// ENOSPC.
    #[error("the disk is full")]
    DiskFull,
    /// SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PROTOCOL.
    #[error("another process has locked the database")]
    Locked,
    /// SQLITE_CANTOPEN.
    #[error("a file of the database cannot be opened, or no file descriptor is left")]
    CannotOpen,
    /// EMFILE, ENFILE.
    #[error("no file descriptor is left")]
    NoDescriptor,
    /// EAGAIN when starting a process.
    #[error("no more processes can be started")]
    NoProcess,
    /// SQLITE_NOMEM.
    #[error("no memory is left")]
    OutOfMemory,
    /// A file system mounted read-only, or a permission that was revoked.
    #[error("the database may not be written")]
    ReadOnly,
    /// SQLITE_IOERR, and any other error from the operating system.
    #[error("the disk reports an error")]
    Io,
}

impl StoreError {
    /// Returns why the call failed if the same call may succeed later, or `None` if it never will.
    pub fn transient(&self) -> Option<Transient> {
        match self {
            Self::Database(cause) => of_sqlite(cause),
            Self::Commit(cause) => of_sqlite(cause),
            Self::Folder { cause, .. } => Transient::of_io(cause),
            Self::InUse(_) | Self::TooNew { .. } | Self::Content(_) | Self::Closed => None,
        }
    }
}

impl Transient {
    /// Returns the reason for a transient failure if one of the error's causes is transient.
    pub fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let of_store = || error.downcast_ref().and_then(StoreError::transient);
        let of_database = || error.downcast_ref().and_then(of_sqlite);
        let of_system = || error.downcast_ref().and_then(Self::of_io);
        let own = of_store().or_else(of_database).or_else(of_system);
        own.or_else(|| Self::behind(error.source()?))
    }

    /// Classifies an error of the operating system; `None` if it is permanent.
    pub fn of_io(error: &io::Error) -> Option<Self> {
        let errno = rustix::io::Errno::from_io_error(error);
        if matches!(
            errno,
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
        ) {
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

/// Classifies an error of SQLite; `None` if it is permanent.
pub(super) fn of_sqlite(error: &rusqlite::Error) -> Option<Transient> {
    let code = error.sqlite_error()?.code;
    Some(match code {
        ErrorCode::DiskFull => Transient::DiskFull,
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed => Transient::Locked,
        ErrorCode::CannotOpen => Transient::CannotOpen,
        ErrorCode::OutOfMemory => Transient::OutOfMemory,
        ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Transient::ReadOnly,
        ErrorCode::SystemIoFailure
        | ErrorCode::OperationInterrupted
        | ErrorCode::OperationAborted => Transient::Io,
        // Not a database, a corrupt one, a missing table, a constraint, a bug.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn what_may_pass_is_told_from_what_never_will() {
        let failed = |code| {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            StoreError::from(error).transient()
        };
        for (code, expected) in [
            (ffi::SQLITE_FULL, Transient::DiskFull),
            (ffi::SQLITE_BUSY, Transient::Locked),
            (ffi::SQLITE_BUSY_SNAPSHOT, Transient::Locked),
            (ffi::SQLITE_LOCKED, Transient::Locked),
            (ffi::SQLITE_CANTOPEN, Transient::CannotOpen),
            (ffi::SQLITE_NOMEM, Transient::OutOfMemory),
            (ffi::SQLITE_READONLY, Transient::ReadOnly),
            (ffi::SQLITE_IOERR_WRITE, Transient::Io),
        ] {
            assert_eq!(failed(code), Some(expected), "{code}");
        }
        for code in [
            ffi::SQLITE_NOTADB,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_ERROR,
            ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
            ffi::SQLITE_MISUSE,
        ] {
            assert_eq!(failed(code), None, "{code}");
        }
        assert_eq!(StoreError::Closed.transient(), None);
    }

    #[test]
    fn a_reason_that_passes_is_found_behind_other_errors() {
        #[derive(Debug, thiserror::Error)]
        #[error("nothing starts: {0}")]
        struct Outer(#[source] Box<dyn Error>);
        let full = || io::Error::from(rustix::io::Errno::NOSPC);
        let found = |cause: Box<dyn Error>| Transient::behind(&Outer(cause));
        assert_eq!(found(full().into()), Some(Transient::DiskFull));
        let busy = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None);
        let busy = StoreError::Commit(std::sync::Arc::new(busy));
        assert_eq!(found(busy.into()), Some(Transient::Locked));
        assert_eq!(found(StoreError::Closed.into()), None);
    }

    #[test]
    fn a_folder_without_room_or_descriptors_may_be_used_later() {
        let failed = |errno: rustix::io::Errno| {
            let cause = io::Error::from(errno);
            let path = "storage".into();
            StoreError::Folder { path, cause }.transient()
        };
        assert_eq!(failed(rustix::io::Errno::NOSPC), Some(Transient::DiskFull));
        assert_eq!(
            failed(rustix::io::Errno::MFILE),
            Some(Transient::NoDescriptor)
        );
        assert_eq!(failed(rustix::io::Errno::NOENT), None);
    }
}
