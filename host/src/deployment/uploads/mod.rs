//! The store of uploads: components by their digest, and the record of which are active, in one
//! folder.
//!
//! # Invariants
//!
//! - A file there is complete or absent, even after a crash or on a full disk.
//! - A writer holds the folder's lock, so a server and a command line beside it do not undo each
//!   other's work.
//! - A build that is active or can be rolled back to is never removed to make room.
//! - A record that cannot be understood is an error, never an empty one.

mod activations;
mod error;
mod lock;
mod overrides;
#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use self::activations::ActivationsError;
pub(crate) use self::activations::{
    Activation, Activations, AutoRollback, Candidate, DeactivatedBuild,
};
pub(crate) use self::error::UploadStoreError;
use self::error::failed;
pub(crate) use self::lock::UploadStoreLock;
use lucid_types::digest::Digest;

/// The file with the record of active builds.
const RECORD: &str = "active.json";
/// The maximum size of a record, in bytes.
const LARGEST_RECORD: u64 = 4 << 20;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
struct StorageLimits {
    builds: usize,
    bytes: u64,
}

/// The upload store's folder. A clone is the same store. Looking at it creates nothing.
#[derive(Debug, Clone)]
pub(crate) struct UploadStore {
    folder: PathBuf,
    limits: StorageLimits,
}

/// The metadata of an uploaded build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadMetadata {
    /// `policy`, `llm`, `tools` or `git`.
    pub(crate) kind: String,
    /// The component's own name.
    pub(crate) name: String,
    /// The component's own version.
    pub(crate) version: String,
    /// Who uploaded it.
    pub(crate) by: String,
    /// When it was uploaded.
    pub(crate) at: DateTime<Utc>,
}

/// A stored build.
#[derive(Debug)]
pub(crate) struct StoredUpload {
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// `None` if its label was lost.
    pub(crate) label: Option<UploadMetadata>,
    written: SystemTime,
}

impl UploadStore {
    /// The store in this folder.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            limits: StorageLimits {
                builds: 64,
                bytes: 4 << 30,
            },
        }
    }

    /// The record's file.
    pub(crate) fn record_file(&self) -> PathBuf {
        self.folder.join(RECORD)
    }

    /// The path of a build, whether it exists or not.
    pub(crate) fn file(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}.wasm"))
    }

    fn label_file(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}.json"))
    }

    /// Whether a build is stored.
    pub(crate) fn has(&self, digest: Digest) -> bool {
        self.file(digest).is_file()
    }

    /// The record of active builds. Empty if none was ever activated.
    pub(crate) fn record(&self) -> Result<Activations, UploadStoreError> {
        let path = self.record_file();
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| {
            let mut file = file.take(LARGEST_RECORD);
            file.read_to_string(&mut text)
        });
        match read {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Ok(Activations::default());
            }
            Err(cause) if cause.kind() != io::ErrorKind::InvalidData => {
                return Err(failed(&path, "read", cause));
            }
            Err(cause) => {
                let source = cause.into();
                return Err(UploadStoreError::Damaged { path, source });
            }
            Ok(_) => {}
        }
        let parsed = serde_json::from_str::<Activations>(&text).map_err(ActivationsError::from);
        let checked = parsed.and_then(|record| record.check().map(|()| record));
        checked.map_err(|source| UploadStoreError::Damaged { path, source })
    }

    /// All stored builds, the newest first. Unreadable ones are left out.
    pub(crate) fn list(&self) -> Vec<StoredUpload> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        let mut all: Vec<StoredUpload> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                let digest: Digest = name.strip_suffix(".wasm")?.parse().ok()?;
                let found = entry.metadata().ok()?;
                let label = std::fs::read(self.label_file(digest)).ok();
                Some(StoredUpload {
                    digest,
                    size: found.len(),
                    label: label.and_then(|label| serde_json::from_slice(&label).ok()),
                    written: found.modified().ok()?,
                })
            })
            .collect();
        all.sort_by(|a, b| (b.written, &a.digest).cmp(&(a.written, &b.digest)));
        all
    }

    /// Creates the folder, if possible.
    pub(crate) fn prepare(&self) {
        if let Err(error) = self.create_dir() {
            tracing::warn!("no plugin can be uploaded: {error}");
        }
    }

    fn create_dir(&self) -> Result<(), UploadStoreError> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|cause| failed(&self.folder, "made", cause))
    }
}
