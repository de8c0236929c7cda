//! The lock of the upload store's folder, and all that is written under it.
//!
//! # Invariants
//!
//! - A file is written completely or not at all.
//! - A build that is active or can be rolled back to is never removed to make room.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::error::failed;
use super::{
    Activations, LARGEST_RECORD, StorageLimits, UploadMetadata, UploadStore, UploadStoreError,
};
use lucid_types::digest::Digest;

/// The prefix of files that are not complete yet.
pub(super) const TEMPORARY_PREFIX: &str = ".draft-";
const LOCK: &str = ".lock";

impl UploadStore {
    /// Waits for the folder's lock. May block for a while, so not for an executor thread.
    pub(crate) fn lock(&self) -> Result<UploadStoreLock, UploadStoreError> {
        self.create_dir()?;
        let path = self.folder.join(LOCK);
        let mut options = File::options();
        options.create(true).write(true).truncate(false).mode(0o600);
        let lock = options.open(&path).and_then(|file| {
            file.lock()?;
            Ok(file)
        });
        Ok(UploadStoreLock {
            store: self.clone(),
            _lock: lock.map_err(|cause| failed(&path, "locked", cause))?,
        })
    }
}

/// The right to write, until it is dropped.
#[derive(Debug)]
pub(crate) struct UploadStoreLock {
    store: UploadStore,
    _lock: File,
}

impl UploadStoreLock {
    /// Stores a build, and returns its digest. Makes room by removing the oldest of those that are
    /// neither active nor can be rolled back to.
    pub(crate) fn store(
        &self,
        wasm: &[u8],
        label: &UploadMetadata,
    ) -> Result<Digest, UploadStoreError> {
        let digest = Digest::of(wasm);
        self.sweep();
        self.make_room(digest, wasm.len() as u64)?;
        // The label first: a build exists when its component does.
        let text = serde_json::to_vec(label).unwrap_or_default();
        self.write_file(&self.store.label_file(digest), &text)?;
        let path = self.store.file(digest);
        if let Err(error) = self.write_file(&path, wasm) {
            if !path.is_file() {
                let _ = std::fs::remove_file(self.store.label_file(digest));
            }
            return Err(error);
        }
        Ok(digest)
    }

    /// Writes the record of active builds.
    pub(crate) fn write(&self, record: &Activations) -> Result<(), UploadStoreError> {
        let path = self.store.record_file();
        let text = serde_json::to_vec_pretty(record);
        let text = text.map_err(|error| failed(&path, "written", error.into()))?;
        if text.len() as u64 > LARGEST_RECORD {
            // A record that cannot be read again would keep the server from starting.
            let cause = io::Error::other("it would be too large; roll back what is not used");
            return Err(failed(&path, "written", cause));
        }
        self.write_file(&path, &text)
    }

    /// Writes a file completely or not at all.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), UploadStoreError> {
        let folder = &self.store.folder;
        let put = || {
            // Its mode is 0600. On failure it is removed.
            let mut draft = tempfile::Builder::new()
                .prefix(TEMPORARY_PREFIX)
                .tempfile_in(folder)?;
            draft.write_all(bytes)?;
            draft.as_file().sync_all()?;
            draft.persist(path).map_err(|error| error.error)?;
            File::open(folder)?.sync_all()
        };
        put().map_err(|cause| failed(path, "written", cause))
    }

    /// Removes incomplete files after a crash. Nobody else is writing now.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.store.folder).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(TEMPORARY_PREFIX.as_bytes())
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn make_room(&self, digest: Digest, size: u64) -> Result<(), UploadStoreError> {
        let StorageLimits { builds, bytes } = self.store.limits;
        let record = self.store.record()?;
        let in_use = record.digests();
        let mut kept = self.store.list();
        kept.retain(|one| one.digest != digest);
        let mut total: u64 = kept.iter().map(|one| one.size).sum();
        while kept.len() >= builds || total.saturating_add(size) > bytes {
            let idle = kept.iter().rposition(|one| !in_use.contains(&one.digest));
            let Some(oldest) = idle.map(|at| kept.remove(at)) else {
                return Err(UploadStoreError::Full { in_use: kept.len() });
            };
            let path = self.store.file(oldest.digest);
            std::fs::remove_file(&path).map_err(|cause| failed(&path, "removed", cause))?;
            let _ = std::fs::remove_file(self.store.label_file(oldest.digest));
            total = total.saturating_sub(oldest.size);
        }
        Ok(())
    }
}
