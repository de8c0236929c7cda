//! The errors of the local database.

use std::path::PathBuf;
use std::sync::Arc;

/// Why a call of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or a file in it could not be used.
    #[error("the storage folder {path} cannot be used: {cause}")]
    Folder {
        /// The path of the folder or file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
    /// Another process uses the folder.
    #[error(
        "the storage folder {0} is in use by another lucid; stop that one, or choose another folder"
    )]
    InUse(PathBuf),
    /// An error from SQLite.
    #[error("the database refused: {0}")]
    Database(#[source] rusqlite::Error),
    /// The group's transaction could not be committed; nothing of it is written.
    #[error("the database could not commit: {0}")]
    Commit(#[source] Arc<rusqlite::Error>),
    /// The file was written by a newer build.
    #[error("the database has version {found}, and this build knows {known}; use a newer lucid")]
    TooNew {
        /// The version in the file.
        found: i64,
        /// The version that this build knows.
        known: i64,
    },
    /// The file was written by an older build, and is only to be read.
    #[error(
        "the database has version {found}, and this build reads {known}; start this lucid on it once, which brings it to that"
    )]
    TooOld {
        /// The version in the file.
        found: i64,
        /// The version that this build reads.
        known: i64,
    },
    /// The stored content is not what this build writes.
    #[error("the log holds something that this build does not understand: {0}")]
    Content(String),
    /// The writer has ended, or the write panicked.
    #[error("the store is closed, or a write in it failed badly; the log of the host says more")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            // What is in a row says nothing about the database, nor about other rows.
            rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..) => Self::Content(error.to_string()),
            error => Self::Database(error),
        }
    }
}
