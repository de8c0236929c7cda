//! The contents of files before the editor changed them, so that a change can be undone.
//!
//! # Invariants
//! - Stored contents are bounded, for each file and in total.
//! - A change is identified by the file's content right after it, and is undone only on top of
//!   that.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::sandbox::workspace::WorkspacePath;

/// How many changes of a file can be taken back.
const MAX_UNDO: usize = 10;
/// How much all that is kept for undoing may be.
const MAX_KEPT: usize = 32 << 20;

/// What a file was before a change.
#[derive(Debug)]
pub(super) enum Before {
    /// It was not there.
    Absent,
    /// These bytes.
    Content(Vec<u8>),
    /// More than can be kept: so many bytes.
    TooLarge(u64),
}

impl Before {
    fn kept(&self) -> usize {
        match self {
            Self::Content(bytes) => bytes.len(),
            Self::Absent | Self::TooLarge(_) => 0,
        }
    }
}

/// A change of a file.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) before: Before,
    /// How long the file was after it, and its SHA-256.
    after: (usize, [u8; 32]),
}

impl Change {
    /// A change that has just been made.
    pub(super) fn new(before: Before, after: &[u8]) -> Self {
        Self {
            before,
            after: fingerprint(after),
        }
    }

    /// Whether the file is still what the change made of it.
    pub(super) fn is_latest(&self, now: &[u8]) -> bool {
        self.after == fingerprint(now)
    }

    /// How long the file was after it.
    pub(super) fn length(&self) -> usize {
        self.after.0
    }
}

fn fingerprint(bytes: &[u8]) -> (usize, [u8; 32]) {
    (bytes.len(), Sha256::digest(bytes).into())
}

/// The changes of a session's files.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Changes>);

#[derive(Debug, Default)]
struct Changes {
    files: HashMap<WorkspacePath, VecDeque<Change>>,
    bytes: usize,
}

impl History {
    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the last change of a file.
    pub(super) fn push(&self, path: &WorkspacePath, change: Change) {
        let mut all = self.lock();
        all.bytes += change.before.kept();
        let changes = all.files.entry(path.clone()).or_default();
        changes.push_back(change);
        let oldest = (changes.len() > MAX_UNDO)
            .then(|| changes.pop_front())
            .flatten();
        all.bytes -= oldest.map_or(0, |change| change.before.kept());
        if all.bytes > MAX_KEPT {
            // All but this file's: what was just done is what may have to be undone.
            all.files.retain(|file, _| file == path);
            let rest = all.files.values().flatten();
            all.bytes = rest.map(|change| change.before.kept()).sum();
        }
        while all.bytes > MAX_KEPT {
            let Some(oldest) = all.files.get_mut(path).and_then(VecDeque::pop_front) else {
                break;
            };
            all.bytes -= oldest.before.kept();
        }
    }

    /// Takes the last change of a file out.
    pub(super) fn pop(&self, path: &WorkspacePath) -> Option<Change> {
        let mut all = self.lock();
        let change = all.files.get_mut(path)?.pop_back()?;
        all.bytes -= change.before.kept();
        Some(change)
    }
}
