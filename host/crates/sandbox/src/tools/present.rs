//! The content of a file at the time of an edit, and the diff between the two sides of an edit.
//!
//! # Invariants
//! - Whatever a file holds can be replaced: content that is not text, or too large to be kept, is
//!   no error here.

use std::io::Read as _;
use std::time::Duration;

use similar::TextDiff;

use super::history::PreviousContent;
use super::text_file::TextFile;
use crate::workspace::{Workspace, WorkspaceError, WorkspacePath};

/// The largest file that is viewed, edited or kept for undoing, in bytes.
pub(super) const MAX_FILE: u64 = 16 << 20;
/// How many bytes of a larger file determine its line endings and its encoding.
const SAMPLE: u64 = 64 << 10;
/// The time limit for diffing a file that has little in common with its previous content.
const COMPARING: Duration = Duration::from_secs(1);

/// A file before it is changed.
pub(super) enum ExistingFile {
    Absent,
    Text(TextFile),
    Binary(Vec<u8>),
    /// Too large to keep: its size in bytes, and its beginning if that is text.
    Large(u64, Option<TextFile>),
}

impl ExistingFile {
    pub(super) fn find(
        workspace: &Workspace,
        path: &WorkspacePath,
    ) -> Result<Self, WorkspaceError> {
        match workspace.read(path, MAX_FILE) {
            Ok(bytes) => Ok(TextFile::open(bytes).map_or_else(Self::Binary, Self::Text)),
            Err(WorkspaceError::NotFound(_)) => Ok(Self::Absent),
            Err(WorkspaceError::TooLarge { .. }) => {
                let (file, size) = workspace.open(path)?;
                let mut sample = Vec::new();
                // An unreadable sample just tells nothing.
                let _ = file.take(SAMPLE).read_to_end(&mut sample);
                let lines = sample.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
                sample.truncate(lines + 1);
                Ok(Self::Large(size, TextFile::open(sample).ok()))
            }
            Err(error) => Err(error),
        }
    }

    /// The file whose line endings and encoding a new text takes.
    pub(super) fn style_source(&self) -> Option<&TextFile> {
        match self {
            Self::Text(file) | Self::Large(_, Some(file)) => Some(file),
            Self::Absent | Self::Binary(_) | Self::Large(..) => None,
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Text(file) => file.size() as u64,
            Self::Binary(bytes) => bytes.len() as u64,
            Self::Large(size, _) => *size,
        }
    }

    pub(super) fn side(&self) -> DiffSide<'_> {
        match self {
            Self::Absent => DiffSide::Absent,
            Self::Text(file) => DiffSide::Text(file.text()),
            Self::Binary(_) | Self::Large(..) => DiffSide::NoText,
        }
    }

    pub(super) fn into_previous(self) -> PreviousContent {
        match self {
            Self::Absent => PreviousContent::Absent,
            Self::Text(file) => PreviousContent::Content(file.into_bytes()),
            Self::Binary(bytes) => PreviousContent::Content(bytes),
            Self::Large(size, _) => PreviousContent::TooLarge(size),
        }
    }
}

/// One side of a diff.
#[derive(Clone, Copy)]
pub(super) enum DiffSide<'a> {
    Absent,
    Text(&'a str),
    /// Binary, or too large to be compared.
    NoText,
}

/// The changes as a unified diff.
pub(super) fn diff(path: &WorkspacePath, before: DiffSide<'_>, after: DiffSide<'_>) -> String {
    let display_path = path.display();
    let name = |side: &str, content: DiffSide<'_>| match content {
        DiffSide::Absent => "/dev/null".to_owned(),
        DiffSide::Text(_) | DiffSide::NoText => format!("{side}{display_path}"),
    };
    let (old, new) = (name("a", before), name("b", after));
    let text = |side| match side {
        DiffSide::Absent => Some(""),
        DiffSide::Text(text) => Some(text),
        DiffSide::NoText => None,
    };
    let (Some(before), Some(after)) = (text(before), text(after)) else {
        return format!("Binary or large files {old} and {new} differ\n");
    };
    TextDiff::configure()
        .timeout(COMPARING)
        .diff_lines(before, after)
        .unified_diff()
        .context_radius(3)
        .header(&old, &new)
        .to_string()
}
