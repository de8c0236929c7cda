//! The contents of files before the editor changed them, so that a change can be undone.
//!
//! # Invariants
//! - Stored contents are bounded, for each file and in total.
//! - A change is identified by the file's content right after it, and is undone only on top of
//!   that.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::workspace::WorkspacePath;

/// The most changes of a file that can be undone.
const MAX_UNDO: usize = 10;
/// Maximum size in bytes of everything kept for undoing.
const MAX_KEPT: usize = 32 << 20;

/// A file before a change.
#[derive(Debug)]
pub(super) enum PreviousContent {
    /// The file did not exist.
    Absent,
    /// The file's content.
    Content(Vec<u8>),
    /// The content is too large to keep; its size in bytes.
    TooLarge(u64),
}

impl PreviousContent {
    fn size(&self) -> usize {
        match self {
            Self::Content(bytes) => bytes.len(),
            Self::Absent | Self::TooLarge(_) => 0,
        }
    }
}

/// A change of a file.
#[derive(Debug)]
pub(super) struct FileChange {
    pub(super) before: PreviousContent,
    /// The file's length in bytes after the change, and its SHA-256.
    after: (usize, [u8; 32]),
}

impl FileChange {
    /// A change that has just been made.
    pub(super) fn new(before: PreviousContent, after: &[u8]) -> Self {
        Self {
            before,
            after: fingerprint(after),
        }
    }

    /// Whether the file is still as the change left it.
    pub(super) fn is_latest(&self, now: &[u8]) -> bool {
        self.after == fingerprint(now)
    }

    /// The file's length in bytes after the change.
    pub(super) fn length(&self) -> usize {
        self.after.0
    }
}

fn fingerprint(bytes: &[u8]) -> (usize, [u8; 32]) {
    (bytes.len(), Sha256::digest(bytes).into())
}

/// The changes of a session's files.
#[derive(Debug, Default)]
pub(super) struct EditHistory(Mutex<FileChanges>);

#[derive(Debug, Default)]
struct FileChanges {
    files: HashMap<WorkspacePath, VecDeque<FileChange>>,
    bytes: usize,
}

impl EditHistory {
    /// Adds a file's latest change.
    pub(super) fn push(&self, path: &WorkspacePath, change: FileChange) {
        let mut all = self.0.lock();
        all.bytes += change.before.size();
        let changes = all.files.entry(path.clone()).or_default();
        changes.push_back(change);
        let oldest = (changes.len() > MAX_UNDO)
            .then(|| changes.pop_front())
            .flatten();
        all.bytes -= oldest.map_or(0, |change| change.before.size());
        if all.bytes > MAX_KEPT {
            // All but this file's: the latest change is the likeliest to be undone.
            all.files.retain(|file, _| file == path);
            let rest = all.files.values().flatten();
            all.bytes = rest.map(|change| change.before.size()).sum();
        }
        while all.bytes > MAX_KEPT {
            let Some(oldest) = all.files.get_mut(path).and_then(VecDeque::pop_front) else {
                break;
            };
            all.bytes -= oldest.before.size();
        }
    }

    /// Removes and returns a file's latest change.
    pub(super) fn pop(&self, path: &WorkspacePath) -> Option<FileChange> {
        let mut all = self.0.lock();
        let change = all.files.get_mut(path)?.pop_back()?;
        all.bytes -= change.before.size();
        Some(change)
    }
}
