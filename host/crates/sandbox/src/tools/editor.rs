//! The editor tool: views and changes files of a workspace, and undoes changes.
//!
//! # Invariants
//! - A change is made completely or not at all.
//! - `str_replace` replaces only a text that occurs exactly once.
//! - An undo reverts the editor's own last change, byte for byte.

use serde::Deserialize;

use super::edit_error::EditError;
use super::history::{EditHistory, FileChange, PreviousContent};
use super::locate::locate;
use super::present::{DiffSide, ExistingFile, MAX_FILE, diff};
use super::text_file::{TextFile, UnencodableChar};
use super::{ToolOutcome, image, match_hint};
use crate::workspace::{Quota, Workspace, WorkspaceError, WorkspacePath};
use lucid_types::plural;

/// How many lines around a change are shown.
const AROUND: usize = 4;
/// The most names of a folder that are shown.
const MAX_NAMES: usize = 1000;
/// The most places of an ambiguous text that are shown.
const MAX_MATCHES: usize = 20;

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum EditorCommand {
    View,
    Create,
    StrReplace,
    Insert,
    UndoEdit,
}

/// One call of the editor.
#[derive(Debug, Deserialize)]
pub(super) struct EditorCall {
    pub(super) command: EditorCommand,
    pub(super) path: String,
    #[serde(default)]
    pub(super) file_text: Option<String>,
    #[serde(default)]
    pub(super) old_str: Option<String>,
    #[serde(default)]
    pub(super) new_str: Option<String>,
    #[serde(default)]
    insert_line: Option<usize>,
    #[serde(default)]
    view_range: Option<(i64, i64)>,
}

/// The result of a call, or why nothing was done.
type EditorResult = Result<ToolOutcome, EditError>;

/// The context of one call.
#[derive(Clone, Copy)]
pub(super) struct EditorContext<'a> {
    pub(super) workspace: &'a Workspace,
    /// The workspace's path as commands see it.
    pub(super) root: &'a str,
    pub(super) history: &'a EditHistory,
    pub(super) quota: Option<&'a Quota>,
    /// Whether the model accepts images.
    pub(super) images: bool,
}

impl EditorContext<'_> {
    /// Replaces a file, if the workspace's quota allows its growth.
    fn write(&self, path: &WorkspacePath, before: u64, after: &[u8]) -> Result<(), EditError> {
        if let Some(quota) = self.quota {
            quota.admit(self.workspace, (after.len() as u64).saturating_sub(before))?;
        }
        self.workspace
            .write(path, after)
            .map_err(|error| match error {
                WorkspaceError::NotFound(_) => EditError::Unwritable(path.relative()),
                error => error.into(),
            })
    }
}

pub(super) fn run(context: &EditorContext<'_>, edit: &EditorCall) -> ToolOutcome {
    let workspace = context.workspace;
    let path = match locate(workspace, context.root, &edit.path) {
        Ok(path) => path,
        Err(error) => return ToolOutcome::failed(EditError::from(error).told()),
    };
    let done = match edit.command {
        EditorCommand::View => image::view(workspace, &path, context.images)
            .unwrap_or_else(|| view(workspace, &path, edit.view_range)),
        EditorCommand::Create => create(context, &path, edit),
        EditorCommand::StrReplace => replace(context, &path, edit),
        EditorCommand::Insert => insert(context, &path, edit),
        EditorCommand::UndoEdit => undo(context, &path),
    };
    let display_path = Some(path.display());
    match done {
        Ok(outcome) => ToolOutcome {
            path: display_path,
            ..outcome
        },
        Err(error) => ToolOutcome {
            path: display_path,
            ..ToolOutcome::failed(error.told())
        },
    }
}

fn read(workspace: &Workspace, path: &WorkspacePath) -> Result<TextFile, EditError> {
    let bytes = workspace.read(path, MAX_FILE)?;
    TextFile::open(bytes).map_err(|_| EditError::Binary(path.relative()))
}

fn view(workspace: &Workspace, path: &WorkspacePath, range: Option<(i64, i64)>) -> EditorResult {
    if workspace.is_folder(path)? {
        if range.is_some() {
            return Err(EditError::Folder(path.relative()));
        }
        let names = workspace.list(path, MAX_NAMES)?;
        let more = if names.len() == MAX_NAMES {
            "\n[… there are more …]"
        } else {
            ""
        };
        let text = if names.is_empty() {
            "The folder is empty.".to_owned()
        } else {
            names.join("\n") + more
        };
        return Ok(ToolOutcome {
            text,
            ..ToolOutcome::default()
        });
    }
    let file = read(workspace, path)?;
    let content = file.text();
    let count = content.lines().count();
    let (first, last) = match range {
        None => (1, count),
        Some((first, last)) => {
            let end = if last == -1 {
                Some(count)
            } else {
                usize::try_from(last).ok()
            };
            match (usize::try_from(first), end) {
                (Ok(first @ 1..), Some(last)) if first <= last && first <= count => {
                    (first, last.min(count))
                }
                _ => {
                    return Err(EditError::Lines {
                        first,
                        last,
                        path: path.relative(),
                        count,
                    });
                }
            }
        }
    };
    let text = if count == 0 {
        "The file is empty.".to_owned()
    } else {
        numbered(content, first, last)
    };
    Ok(ToolOutcome {
        text,
        ..ToolOutcome::default()
    })
}

fn create(context: &EditorContext<'_>, path: &WorkspacePath, edit: &EditorCall) -> EditorResult {
    let text = edit
        .file_text
        .as_deref()
        .ok_or(missing("create", "file_text"))?;
    let present = ExistingFile::find(context.workspace, path)?;
    let mut message = match present {
        ExistingFile::Absent => "was created",
        _ => "was written anew",
    }
    .to_owned();
    let model = present.style_source();
    let text = match model {
        Some(model) if model.has_mark() => text.trim_start_matches('\u{feff}'),
        _ => text,
    };
    // Line endings that a model spells out are intended; LF alone stands for whatever the file has.
    let written = model.map(|model| {
        if text.contains('\r') {
            model.with_text(text)
        } else {
            model.replace(0..model.text().len(), text)
        }
    });
    let bytes = match written {
        Some(Ok(bytes)) => bytes,
        Some(Err(UnencodableChar { .. })) => {
            message += " (in UTF-8: it was Windows-1252, which has not all of these characters)";
            text.as_bytes().to_vec()
        }
        None => text.as_bytes().to_vec(),
    };
    if let ExistingFile::Large(size, _) = present {
        message += &format!(" (its {size} bytes before are too many to be kept for `undo_edit`)");
    }
    let lines = text.lines().count();
    let message = format!(
        "{} {message}: {}.",
        path.relative(),
        plural::count(lines, "line")
    );
    let text = text.replace("\r\n", "\n");
    change(context, path, present, &bytes, &text, message)
}

fn replace(context: &EditorContext<'_>, path: &WorkspacePath, edit: &EditorCall) -> EditorResult {
    let old = edit
        .old_str
        .as_deref()
        .ok_or(missing("str_replace", "old_str"))?;
    let new = edit.new_str.as_deref().unwrap_or_default();
    let path_name = path.relative();
    if old.is_empty() {
        return Err(EditError::EmptyText);
    }
    if old == new {
        return Err(EditError::SameText);
    }
    let file = read(context.workspace, path)?;
    let (old, new) = (file.normalized(old), file.normalized(new));
    let (old, new) = (old.as_str(), new.as_str());
    if old == new {
        return Err(EditError::LineEnds);
    }
    let before = file.text();
    // Overlapping places count too: each of them could be meant.
    let mut places = Vec::new();
    let mut from = 0;
    // The search ends once enough are found to show: a file of one repeated letter matches
    // everywhere.
    while places.len() <= MAX_MATCHES
        && let Some(at) = before[from..].find(old)
    {
        places.push(from + at);
        from += at + before[from + at..].chars().next().map_or(1, char::len_utf8);
    }
    let line_of = |at: usize| before[..at].matches('\n').count() + 1;
    match places.as_slice() {
        [] => Err(EditError::NoMatch {
            path: path_name,
            hint: match_hint::explain(before, old).unwrap_or_else(|| {
                "It must match exactly, spaces too: view the file first.".to_owned()
            }),
        }),
        [at] => {
            let end = at + old.len();
            let after = [&before[..*at], new, &before[end..]].concat();
            let first = line_of(*at);
            let text = excerpt(&after, first, first + new.matches('\n').count());
            let text = format!("{path_name} was changed. Around the change it reads:\n{text}");
            let bytes = file
                .replace(*at..end, new)
                .map_err(|cause| unencodable(path, cause))?;
            change(
                context,
                path,
                ExistingFile::Text(file),
                &bytes,
                &after,
                text,
            )
        }
        _ => {
            let display_path = places.iter().take(MAX_MATCHES);
            Err(EditError::Ambiguous {
                path: path_name,
                lines: display_path.map(|at| line_of(*at)).collect(),
                more: places.len() > MAX_MATCHES,
            })
        }
    }
}

fn insert(context: &EditorContext<'_>, path: &WorkspacePath, edit: &EditorCall) -> EditorResult {
    let line = edit.insert_line.ok_or(missing("insert", "insert_line"))?;
    let new = edit
        .new_str
        .as_deref()
        .ok_or(missing("insert", "new_str"))?;
    let file = read(context.workspace, path)?;
    let path_name = path.relative();
    let before = file.text();
    let lines: Vec<&str> = before.split_inclusive('\n').collect();
    if line > lines.len() {
        return Err(EditError::NoLine {
            line,
            path: path_name,
            count: lines.len(),
        });
    }
    let at: usize = lines[..line].iter().map(|line| line.len()).sum();
    let (head, rest) = before.split_at(at);
    let mut inserted = String::new();
    if !head.is_empty() && !head.ends_with('\n') {
        inserted.push('\n');
    }
    inserted.push_str(&file.normalized(new));
    if !inserted.ends_with('\n') && (!rest.is_empty() || before.ends_with('\n')) {
        inserted.push('\n');
    }
    let after = [head, &inserted, rest].concat();
    let text = excerpt(&after, line + 1, line + new.lines().count().max(1));
    let text = format!("{path_name} was changed. Around the change it reads:\n{text}");
    let bytes = file
        .replace(at..at, &inserted)
        .map_err(|cause| unencodable(path, cause))?;
    change(
        context,
        path,
        ExistingFile::Text(file),
        &bytes,
        &after,
        text,
    )
}

fn missing(command: &'static str, argument: &'static str) -> EditError {
    EditError::Missing { command, argument }
}

fn unencodable(path: &WorkspacePath, cause: UnencodableChar) -> EditError {
    let path = path.relative();
    EditError::Encoding { path, cause }
}

fn undo(context: &EditorContext<'_>, path: &WorkspacePath) -> EditorResult {
    let Some(change) = context.history.pop(path) else {
        return Err(EditError::NoChange(path.relative()));
    };
    undo_edit(context, path, &change).inspect_err(|_| {
        // Put back, since undoing it may be possible later.
        context.history.push(path, change);
    })
}

fn undo_edit(
    context: &EditorContext<'_>,
    path: &WorkspacePath,
    change: &FileChange,
) -> EditorResult {
    let name = path.relative();
    let limit = MAX_FILE.max(change.length() as u64);
    let now = match context.workspace.read(path, limit) {
        Ok(now) if change.is_latest(&now) => now,
        Ok(_) | Err(WorkspaceError::TooLarge { .. }) => {
            return Err(EditError::ChangedSince(name));
        }
        Err(WorkspaceError::NotFound(_)) => {
            return Err(EditError::RemovedSince(name));
        }
        Err(error) => return Err(error.into()),
    };
    let length = now.len() as u64;
    let (text, before) = match &change.before {
        PreviousContent::Content(bytes) => {
            context.write(path, length, bytes)?;
            let before =
                TextFile::open(bytes.clone()).map_or_else(ExistingFile::Binary, ExistingFile::Text);
            (format!("The last change of {name} was taken back."), before)
        }
        PreviousContent::Absent => {
            context.workspace.remove_file(path)?;
            (format!("{name} was removed again."), ExistingFile::Absent)
        }
        PreviousContent::TooLarge(size) => {
            return Err(EditError::NotKept {
                path: name,
                size: *size,
            });
        }
    };
    let now = TextFile::open(now).map_or_else(ExistingFile::Binary, ExistingFile::Text);
    Ok(ToolOutcome {
        text,
        diff: Some(diff(path, now.side(), before.side())),
        ..ToolOutcome::default()
    })
}

/// Writes the result of an edit to a file.
fn change(
    context: &EditorContext<'_>,
    path: &WorkspacePath,
    before: ExistingFile,
    bytes: &[u8],
    after: &str,
    text: String,
) -> EditorResult {
    context.write(path, before.size(), bytes)?;
    let diff = Some(diff(path, before.side(), DiffSide::Text(after)));
    context
        .history
        .push(path, FileChange::new(before.into_previous(), bytes));
    Ok(ToolOutcome {
        text,
        diff,
        ..ToolOutcome::default()
    })
}

fn numbered(content: &str, first: usize, last: usize) -> String {
    let mut text = String::new();
    for (number, line) in content
        .lines()
        .enumerate()
        .skip(first - 1)
        .take(last + 1 - first)
    {
        text.push_str(&format!("{:>6}\t{line}\n", number + 1));
    }
    text
}

fn excerpt(content: &str, first: usize, last: usize) -> String {
    numbered(content, first.saturating_sub(AROUND).max(1), last + AROUND)
}
