//! Distinguishes transient failures of the store from permanent ones.
//!
//! # Invariants
//!
//! - This is decided here and nowhere else; nothing depends on an error's text.
//! - A transient failure left nothing behind: the same call can simply be repeated.

use std::error::Error;

use rusqlite::ErrorCode;

use crate::error::StoreError;
use lucid_types::log::LogError;
use lucid_types::transient::TransientFailure;

impl StoreError {
    /// Returns why the call failed if the same call may succeed later, or `None` if it never will.
    pub fn transient(&self) -> Option<TransientFailure> {
        match self {
            Self::Database(cause) => of_sqlite(cause),
            Self::Commit(cause) => of_sqlite(cause),
            Self::Folder { cause, .. } => TransientFailure::of_io(cause),
            Self::InUse(_)
            | Self::TooNew { .. }
            | Self::TooOld { .. }
            | Self::Content(_)
            | Self::Closed => None,
        }
    }
}

/// Returns the reason for a transient failure if one of the error's causes is transient.
pub fn transient_cause(error: &(dyn Error + 'static)) -> Option<TransientFailure> {
    let of_log = || error.downcast_ref().and_then(LogError::transient);
    let of_store = || error.downcast_ref().and_then(StoreError::transient);
    let of_database = || error.downcast_ref().and_then(of_sqlite);
    let of_system = || error.downcast_ref().and_then(TransientFailure::of_io);
    let own = of_log().or_else(of_store).or_else(of_database);
    let own = own.or_else(of_system);
    own.or_else(|| transient_cause(error.source()?))
}

/// Classifies an error of SQLite; `None` if it is permanent.
pub(super) fn of_sqlite(error: &rusqlite::Error) -> Option<TransientFailure> {
    let code = error.sqlite_error()?.code;
    Some(match code {
        ErrorCode::DiskFull => TransientFailure::DiskFull,
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed => TransientFailure::Locked,
        ErrorCode::CannotOpen => TransientFailure::CannotOpen,
        ErrorCode::OutOfMemory => TransientFailure::OutOfMemory,
        ErrorCode::ReadOnly | ErrorCode::PermissionDenied => TransientFailure::ReadOnly,
        ErrorCode::SystemIoFailure
        | ErrorCode::OperationInterrupted
        | ErrorCode::OperationAborted => TransientFailure::Io,
        // Not a database, a corrupt one, a missing table, a constraint, a bug.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use rusqlite::ffi;

    use super::*;

    #[test]
    fn what_may_pass_is_told_from_what_never_will() {
        let failed = |code| {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            StoreError::from(error).transient()
        };
        for (code, expected) in [
            (ffi::SQLITE_FULL, TransientFailure::DiskFull),
            (ffi::SQLITE_BUSY, TransientFailure::Locked),
            (ffi::SQLITE_BUSY_SNAPSHOT, TransientFailure::Locked),
            (ffi::SQLITE_LOCKED, TransientFailure::Locked),
            (ffi::SQLITE_CANTOPEN, TransientFailure::CannotOpen),
            (ffi::SQLITE_NOMEM, TransientFailure::OutOfMemory),
            (ffi::SQLITE_READONLY, TransientFailure::ReadOnly),
            (ffi::SQLITE_IOERR_WRITE, TransientFailure::Io),
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
        let found = |cause: Box<dyn Error>| transient_cause(&Outer(cause));
        assert_eq!(found(full().into()), Some(TransientFailure::DiskFull));
        let busy = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None);
        let busy = StoreError::Commit(std::sync::Arc::new(busy));
        assert_eq!(found(busy.into()), Some(TransientFailure::Locked));
        let logged = LogError::Transient {
            reason: TransientFailure::Locked,
            source: "the log is locked".into(),
        };
        assert_eq!(found(logged.into()), Some(TransientFailure::Locked));
        assert_eq!(found(StoreError::Closed.into()), None);
    }

    #[test]
    fn a_folder_without_room_or_descriptors_may_be_used_later() {
        let failed = |errno: rustix::io::Errno| {
            let cause = io::Error::from(errno);
            let path = "storage".into();
            StoreError::Folder { path, cause }.transient()
        };
        assert_eq!(
            failed(rustix::io::Errno::NOSPC),
            Some(TransientFailure::DiskFull)
        );
        assert_eq!(
            failed(rustix::io::Errno::MFILE),
            Some(TransientFailure::NoDescriptor)
        );
        assert_eq!(failed(rustix::io::Errno::NOENT), None);
    }
}
