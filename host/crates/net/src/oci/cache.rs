//! On-disk cache of registry content: manifests and components by digest, and the digest that each
//! tag resolved to when it was last asked for.
//!
//! # Invariants
//! - A file is complete or absent, and what is returned has the digest that is its name.
//! - A file that cannot be parsed counts as absent and is fetched again.
//! - What the current manifest names is kept; when the cache is too large, the oldest of the rest
//!   is evicted.
//! - The folder is accessible to the server's user only.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::reference::Reference;
use lucid_types::digest::Digest;

/// Prefix of the names of unfinished files.
const TEMPORARY_PREFIX: &str = ".draft-";
/// The age at which a draft's writer counts as dead.
const ABANDONED: Duration = Duration::from_secs(60 * 60);
/// Maximum size in bytes of any file other than a component.
const LARGEST_TEXT: u64 = 4 << 20;

/// How much is kept beside what is needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheLimits {
    pub(super) components: usize,
    pub(super) bytes: u64,
}

/// The folder. A clone is the same one; reading from it creates nothing.
#[derive(Debug, Clone)]
pub(super) struct ComponentCache {
    path: PathBuf,
    pub(super) limits: CacheLimits,
}

/// The last known target of a tag.
#[derive(Serialize, Deserialize)]
struct Tag {
    reference: String,
    /// The digest of its manifest.
    manifest: Digest,
}

impl ComponentCache {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            limits: CacheLimits {
                components: 64,
                bytes: 2 << 30,
            },
        }
    }

    fn manifest_file(&self, digest: Digest) -> PathBuf {
        self.path.join(format!("{digest}.json"))
    }

    pub(super) fn component_file(&self, digest: Digest) -> PathBuf {
        self.path.join(format!("{digest}.wasm"))
    }

    fn tag_file(&self, reference: &Reference) -> PathBuf {
        self.path.join(format!("{}.tag", tag_name(reference)))
    }

    /// A manifest, if it is cached and intact.
    pub(super) fn manifest(&self, digest: Digest) -> Option<Vec<u8>> {
        let text = read(&self.manifest_file(digest), LARGEST_TEXT).ok()?;
        (Digest::of(&text) == digest).then_some(text)
    }

    /// The path of a component, if it is cached and intact. Reads all of it.
    pub(super) fn component(&self, digest: Digest) -> Option<PathBuf> {
        let path = self.component_file(digest);
        let mut file = File::open(&path).ok()?;
        let mut found = Sha256::new();
        io::copy(&mut file, &mut DigestWriter(&mut found)).ok()?;
        (Digest::from(<[u8; 32]>::from(found.finalize())) == digest).then_some(path)
    }

    /// The manifest digest that a tag last resolved to, if known.
    pub(super) fn tag(&self, reference: &Reference) -> Option<Digest> {
        let text = read(&self.tag_file(reference), LARGEST_TEXT).ok()?;
        let tag: Tag = serde_json::from_slice(&text).ok()?;
        (tag.reference == reference.to_string()).then_some(tag.manifest)
    }

    /// Starts writing a file.
    pub(super) fn temporary_file(&self) -> io::Result<NamedTempFile> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.path)?;
        // It has mode 0600, and is removed if it is never persisted.
        tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempfile_in(&self.path)
    }

    /// Stores a component that was written completely and has this digest.
    pub(super) fn store_component(&self, draft: NamedTempFile, digest: Digest) -> io::Result<()> {
        persist(draft, &self.component_file(digest))
    }

    /// Stores a manifest.
    pub(super) fn store_manifest(&self, text: &[u8], digest: Digest) -> io::Result<()> {
        self.write_file(&self.manifest_file(digest), text)
    }

    /// Stores what a tag resolves to.
    pub(super) fn store_tag(&self, reference: &Reference, manifest: Digest) -> io::Result<()> {
        let tag = Tag {
            reference: reference.to_string(),
            manifest,
        };
        self.write_file(&self.tag_file(reference), &serde_json::to_vec(&tag)?)
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut draft = self.temporary_file()?;
        draft.write_all(bytes)?;
        persist(draft, path)
    }

    /// Evicts what exceeds the bounds, oldest first, and nothing whose name is `needed`. What
    /// cannot be removed now is retried with the next component.
    pub(super) fn evict(&self, needed: &BTreeSet<Digest>) {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten();
        let mut files: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
        let (mut components, mut bytes) = (0, 0);
        for entry in entries.filter_map(Result::ok) {
            let (Ok(data), Ok(name)) = (entry.metadata(), entry.file_name().into_string()) else {
                continue;
            };
            let written = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if name.starts_with(TEMPORARY_PREFIX) {
                let age = SystemTime::now()
                    .duration_since(written)
                    .unwrap_or_default();
                if age > ABANDONED {
                    let _ = std::fs::remove_file(entry.path());
                }
                continue;
            }
            bytes += data.len();
            components += usize::from(name.ends_with(".wasm"));
            let stem = name.split('.').next().unwrap_or_default();
            if !stem.parse().is_ok_and(|digest| needed.contains(&digest)) {
                files.push((written, entry.path(), data.len()));
            }
        }
        files.sort();
        for (_, path, size) in files {
            if components <= self.limits.components && bytes <= self.limits.bytes {
                return;
            }
            if std::fs::remove_file(&path).is_ok() {
                bytes = bytes.saturating_sub(size);
                components -= usize::from(path.extension().is_some_and(|kind| kind == "wasm"));
            }
        }
    }
}

/// The name of the file that stores a tag.
pub(super) fn tag_name(reference: &Reference) -> Digest {
    Digest::of(reference.to_string())
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn persist(draft: NamedTempFile, path: &Path) -> io::Result<()> {
    draft.as_file().sync_all()?;
    draft.persist(path).map(drop).map_err(|error| error.error)
}

/// Adapts a digest to [`std::io::Write`].
struct DigestWriter<'a>(&'a mut Sha256);

impl io::Write for DigestWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
