//! The errors of the upload store.

use std::io;
use std::path::{Path, PathBuf};

use super::activations::ActivationsError;
use crate::manifest::ManifestProblem;

/// An error of the upload store.
#[derive(Debug, thiserror::Error)]
pub enum UploadStoreError {
    /// The record is invalid.
    #[error(
        "{path} cannot be understood ({source}), so nobody knows which uploaded builds are active: put it right, or remove it to run what the manifest names"
    )]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        source: ActivationsError,
    },
    /// A file operation failed.
    #[error("{path} cannot be {what}: {cause}")]
    File {
        /// The file's path.
        path: PathBuf,
        /// The operation: `read`, `written` or so.
        what: &'static str,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// There is no room, and nothing that may be removed.
    #[error(
        "there is no room for another build: {in_use} are active or can be rolled back to, and they are all that is kept"
    )]
    Full {
        /// The number of stored builds that must stay.
        in_use: usize,
    },
}

impl UploadStoreError {
    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::File { cause, .. } if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl From<UploadStoreError> for ManifestProblem {
    fn from(error: UploadStoreError) -> Self {
        Self::plain(error.to_string())
    }
}

pub(super) fn failed(path: &Path, what: &'static str, cause: io::Error) -> UploadStoreError {
    UploadStoreError::File {
        path: path.to_owned(),
        what,
        cause,
    }
}
