//! Paths inside a workspace, parsed from what a client or a model wrote.
//!
//! # Invariants
//! - A [`WorkspacePath`] has no `..` and no leading slash. Symbolic links on it are another matter:
//!   only the open folder it is resolved in keeps those inside.

use std::path::{Path, PathBuf};

use super::WorkspaceError;
use super::names::{decode_name, encode_name};

/// `PATH_MAX` and `NAME_MAX`, in bytes.
const LONGEST_PATH: usize = 4096;
const LONGEST_NAME: usize = 255;

/// A path inside a workspace: validated, without `..` and without a leading slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkspacePath(PathBuf);

impl WorkspacePath {
    /// Parses what a client or a model wrote: relative to the workspace's root, with or without a
    /// leading slash or one of the prefixes in `known_at`. Names that are not UTF-8 are written as
    /// by `encode_name`.
    pub fn parse(text: &str, known_at: &[&str]) -> Result<Self, WorkspaceError> {
        if text.contains('\0') {
            return Err(WorkspaceError::Traversal);
        }
        let inside = known_at.iter().find_map(|root| {
            let rest = text.strip_prefix(root.trim_end_matches('/'))?;
            (rest.is_empty() || rest.starts_with('/')).then_some(rest)
        });
        let mut path = PathBuf::new();
        for part in inside.unwrap_or(text).split('/') {
            match part {
                "" | "." => {}
                ".." if path.pop() => {}
                ".." => return Err(WorkspaceError::Traversal),
                name => path.push(decode_name(name)),
            }
        }
        Ok(Self(path))
    }

    /// The workspace itself.
    pub(super) fn root() -> Self {
        Self(PathBuf::new())
    }

    /// The path relative to the workspace's root; empty for the root.
    pub(super) fn below_root(&self) -> &Path {
        &self.0
    }

    /// The path relative to the workspace's root, for system calls.
    pub(super) fn on_disk(&self) -> &Path {
        if self.0.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &self.0
        }
    }

    /// Whether it is the workspace itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.as_os_str().is_empty()
    }

    /// Whether it, or a name in it, is longer than Linux allows.
    pub(super) fn is_too_long(&self) -> bool {
        let longest = self.0.iter().map(std::ffi::OsStr::len).max();
        self.0.as_os_str().len() >= LONGEST_PATH || longest.is_some_and(|most| most > LONGEST_NAME)
    }

    /// The path as commands in the workspace's folder write it.
    #[must_use]
    pub fn relative(&self) -> String {
        encode_name(self.on_disk().as_os_str())
    }

    /// The path as clients see it: from the root, with a leading slash.
    #[must_use]
    pub fn display(&self) -> String {
        format!("/{}", encode_name(self.0.as_os_str()))
    }
}
