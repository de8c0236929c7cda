//! Why the editor did not do what it was asked to.
//!
//! # Invariants
//! - A model reads an error as a sentence, which says what to do next, and names paths as commands see them.

use super::image::ImageError;
use super::locate::LocateError;
use super::text_file::UnencodableChar;
use crate::workspace::{QuotaError, WorkspaceError, WorkspacePath};
use lucid_types::plural;
use lucid_types::sentence::{full_stop, sentence};

/// An edit that was not made, or a file that is not shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum EditError {
    /// The path leads out of the workspace.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// An argument is missing.
    #[error("`{command}` needs `{argument}`")]
    Missing {
        /// The editor's command.
        command: &'static str,
        /// The argument.
        argument: &'static str,
    },
    /// The file could not be read or written.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// A part of the path is no folder.
    #[error(
        "{0} cannot be written: a part of the path is a file, a link that leads nowhere, or too long a name"
    )]
    Unwritable(String),
    /// The file would be too large for the workspace.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// The file is not text.
    #[error("{0} is a binary file. Use the terminal for it")]
    Binary(String),
    /// The file is an image that is not shown.
    #[error("{path} {problem}")]
    Image {
        /// The file.
        path: String,
        /// Why it is not shown.
        #[source]
        problem: ImageError,
    },
    /// Lines of a folder were asked for.
    #[error("{0} is a folder: it has no lines to choose from")]
    Folder(String),
    /// The file has not all of the lines.
    #[error(
        "the lines {first} to {last} cannot be shown: {path} has {}",
        plural::count(*.count, "line")
    )]
    Lines {
        /// The first line that was asked for.
        first: i64,
        /// The last one.
        last: i64,
        /// The file.
        path: String,
        /// How many lines it has.
        count: usize,
    },
    /// The text to replace is empty.
    #[error("`old_str` is empty. Use `insert` to add text, or `create` to write a whole file")]
    EmptyText,
    /// A text is to be replaced by itself.
    #[error("`old_str` and `new_str` are the same: nothing to do")]
    SameText,
    /// A text is to be replaced by itself with other line ends.
    #[error(
        "`old_str` and `new_str` differ in line ends alone, and the editor keeps those of the file. Convert them with a command"
    )]
    LineEnds,
    /// The text to replace is not there.
    #[error("`old_str` does not occur in {path}. {hint}")]
    NoMatch {
        /// The file.
        path: String,
        /// What the file has instead.
        hint: String,
    },
    /// The text to replace is there more than once.
    #[error(
        "`old_str` occurs {}{} times in {path}, at the lines {}{}. Add what is around the one you mean",
        if *.more { "more than " } else { "" },
        lines.len(),
        joined(.lines),
        if *.more { ", …" } else { "" }
    )]
    Ambiguous {
        /// The file.
        path: String,
        /// The lines at which it is found.
        lines: Vec<usize>,
        /// Whether there are more.
        more: bool,
    },
    /// The file does not have the line to insert behind.
    #[error("nothing can be inserted behind line {line}: {path} has {}", plural::count(*.count, "line"))]
    NoLine {
        /// The line that was named.
        line: usize,
        /// The file.
        path: String,
        /// How many lines it has.
        count: usize,
    },
    /// The file's encoding lacks a character.
    #[error(
        "{path} was not changed: {cause}. Convert the file to UTF-8 with a command first (`iconv -f WINDOWS-1252 -t UTF-8`)"
    )]
    Encoding {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        cause: UnencodableChar,
    },
    /// The editor has not changed the file.
    #[error("there is no change of {0} to take back")]
    NoChange(String),
    /// The file has changed since the editor changed it.
    #[error(
        "{0} was changed by something else since the editor changed it, and that would be lost. View it, and edit what it is now"
    )]
    ChangedSince(String),
    /// The file was removed since the editor changed it.
    #[error(
        "{0} was removed by something else since the editor changed it: there is nothing to take back"
    )]
    RemovedSince(String),
    /// What the file was is not known any more.
    #[error(
        "{path} had {size} bytes before its last change, too many to be kept: that cannot be taken back"
    )]
    NotKept {
        /// The file.
        path: String,
        /// Its size in bytes.
        size: u64,
    },
}

impl EditError {
    pub(super) fn image(path: &WorkspacePath, problem: ImageError) -> Self {
        let path = path.relative();
        Self::Image { path, problem }
    }

    /// The error as the model reads it.
    pub(super) fn told(self) -> String {
        match self {
            Self::Workspace(error) => told(error),
            Self::Quota(_) | Self::Lines { .. } | Self::NoLine { .. } | Self::NoChange(_) => {
                sentence(self)
            }
            // The hint is in sentences, and may end with lines of the file.
            Self::NoMatch { .. } => self.to_string(),
            // Their first word is a path's, or code.
            error => full_stop(error),
        }
    }
}

fn joined(lines: &[usize]) -> String {
    let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
    lines.join(", ")
}

fn told(mut error: WorkspaceError) -> String {
    use WorkspaceError::{Forbidden, Io, NotAFile, NotFound, TooLarge, Traversal};
    // A model reads paths as its commands see them.
    if let NotFound(path)
    | NotAFile(path)
    | Forbidden(path)
    | TooLarge { path, .. }
    | Io { path, .. } = &mut error
        && path.len() > 1
        && path.starts_with('/')
    {
        path.remove(0);
    }
    match error {
        Traversal => "That path leads out of the workspace through a symbolic link.".to_owned(),
        Io { path, cause } => format!("{path}: {cause}."),
        NotFound(path) => format!("File not found: {path}"),
        // Their first word is a path.
        other => full_stop(other),
    }
}
