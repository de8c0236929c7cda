//! The editor: views and changes files of a workspace, and takes changes back.
//!
//! What always holds: a change is made whole or not at all; what `str_replace` replaces is the one
//! place it can mean; and what is kept for undoing is bounded, for each file and in all.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use similar::TextDiff;

use super::{ToolOutcome, near_miss, picture};
use crate::plural;
use crate::workspace::{Quota, Workspace, WorkspaceError, WorkspacePath};

/// The largest file that is viewed or edited.
const MAX_FILE: u64 = 4 << 20;
/// How many changes of a file can be taken back.
const MAX_UNDO: usize = 10;
/// How much all that is kept for undoing may be.
const MAX_KEPT: usize = 32 << 20;
/// How many lines around a change are shown.
const AROUND: usize = 4;
/// How many names of a folder are shown.
const MAX_NAMES: usize = 1000;
/// How many places of an ambiguous text are shown.
const PLACES: usize = 20;

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    View,
    Create,
    StrReplace,
    Insert,
    UndoEdit,
}

/// One call of the editor.
#[derive(Debug, Deserialize)]
pub(super) struct Edit {
    pub(super) command: Command,
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

/// What files were before they were changed. `None` is a file that was not there.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    files: HashMap<WorkspacePath, VecDeque<Option<String>>>,
    bytes: usize,
}

fn size(content: Option<&String>) -> usize {
    content.map_or(0, String::len)
}

impl History {
    fn push(&self, path: &WorkspacePath, content: Option<String>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += size(content.as_ref());
        let states = kept.files.entry(path.clone()).or_default();
        states.push_back(content);
        let old = if states.len() > MAX_UNDO {
            states.pop_front().flatten()
        } else {
            None
        };
        kept.bytes -= size(old.as_ref());
        if kept.bytes > MAX_KEPT {
            // All but this file's: what was just done is what may have to be undone.
            kept.files.retain(|file, _| file == path);
            kept.bytes = kept
                .files
                .values()
                .flatten()
                .map(|content| size(content.as_ref()))
                .sum();
        }
        while kept.bytes > MAX_KEPT {
            let Some(old) = kept.files.get_mut(path).and_then(VecDeque::pop_front) else {
                break;
            };
            kept.bytes -= size(old.as_ref());
        }
    }

    fn pop(&self, path: &WorkspacePath) -> Option<Option<String>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let content = kept.files.get_mut(path)?.pop_back()?;
        kept.bytes -= size(content.as_ref());
        Some(content)
    }
}

/// What happened, or a sentence that says why nothing did.
type Done = Result<ToolOutcome, String>;

/// What one call works on.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) history: &'a History,
    pub(super) quota: Option<&'a Quota>,
    /// The model sees pictures.
    pub(super) pictures: bool,
}

impl Ground<'_> {
    /// Puts a text in place of another, where the workspace may take what it is larger.
    fn write(&self, path: &WorkspacePath, before: usize, after: &str) -> Result<(), String> {
        if let Some(quota) = self.quota {
            quota.admit(self.workspace, after.len().saturating_sub(before) as u64)?;
        }
        self.workspace
            .write(path, after.as_bytes())
            .map_err(sentence)
    }
}

pub(super) fn run(ground: &Ground<'_>, edit: &Edit) -> ToolOutcome {
    let workspace = ground.workspace;
    let path = match workspace.path(&edit.path) {
        Ok(path) => path,
        Err(_) => {
            return ToolOutcome::failed(format!(
                "{} is not in the workspace. Paths are taken from its root.",
                edit.path
            ));
        }
    };
    let done = match edit.command {
        Command::View => picture::view(workspace, &path, ground.pictures)
            .unwrap_or_else(|| view(workspace, &path, edit.view_range)),
        Command::Create => create(ground, &path, edit),
        Command::StrReplace => replace(ground, &path, edit),
        Command::Insert => insert(ground, &path, edit),
        Command::UndoEdit => undo(ground, &path),
    };
    let shown = Some(path.shown());
    match done {
        Ok(outcome) => ToolOutcome {
            path: shown,
            ..outcome
        },
        Err(sentence) => ToolOutcome {
            path: shown,
            ..ToolOutcome::failed(sentence)
        },
    }
}

fn sentence(error: WorkspaceError) -> String {
    match error {
        WorkspaceError::Traversal => {
            "That path leads out of the workspace through a symbolic link.".to_owned()
        }
        WorkspaceError::Io { path, cause } => format!("{path}: {cause}."),
        other => other.to_string(),
    }
}

fn read(workspace: &Workspace, path: &WorkspacePath) -> Result<String, String> {
    let bytes = workspace.read(path, MAX_FILE).map_err(sentence)?;
    String::from_utf8(bytes).map_err(|_| {
        format!(
            "{} is not a text file (it is not UTF-8). Use the terminal for it.",
            path.shown()
        )
    })
}

fn view(workspace: &Workspace, path: &WorkspacePath, range: Option<(i64, i64)>) -> Done {
    if workspace.is_folder(path).map_err(sentence)? {
        if range.is_some() {
            return Err(format!(
                "{} is a folder: it has no lines to choose from.",
                path.shown()
            ));
        }
        let names = workspace.list(path, MAX_NAMES).map_err(sentence)?;
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
    let bytes = workspace.read(path, MAX_FILE).map_err(sentence)?;
    if bytes.contains(&0) {
        return Err(format!(
            "{} is not a text file. Use the terminal for it.",
            path.shown()
        ));
    }
    let content = String::from_utf8_lossy(&bytes);
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
                    return Err(format!(
                        "The lines {first} to {last} cannot be shown: {} has {}.",
                        path.shown(),
                        plural::count(count, "line")
                    ));
                }
            }
        }
    };
    let text = if count == 0 {
        "The file is empty.".to_owned()
    } else {
        numbered(&content, first, last)
    };
    Ok(ToolOutcome {
        text,
        ..ToolOutcome::default()
    })
}

fn create(ground: &Ground<'_>, path: &WorkspacePath, edit: &Edit) -> Done {
    let text = edit
        .file_text
        .as_deref()
        .ok_or("`create` needs `file_text`.")?;
    let before = match ground.workspace.read(path, MAX_FILE) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(WorkspaceError::NotFound(_)) => None,
        Err(error) => return Err(sentence(error)),
    };
    let said = if before.is_some() {
        "was written anew"
    } else {
        "was created"
    };
    let lines = text.lines().count();
    change(
        ground,
        path,
        before,
        text,
        format!("{} {said}: {}.", path.shown(), plural::count(lines, "line")),
    )
}

fn replace(ground: &Ground<'_>, path: &WorkspacePath, edit: &Edit) -> Done {
    let old = edit
        .old_str
        .as_deref()
        .ok_or("`str_replace` needs `old_str`.")?;
    let new = edit.new_str.as_deref().unwrap_or_default();
    if old.is_empty() {
        return Err(
            "`old_str` is empty. Use `insert` to add text, or `create` to write a whole file."
                .to_owned(),
        );
    }
    if old == new {
        return Err("`old_str` and `new_str` are the same: nothing to do.".to_owned());
    }
    let before = read(ground.workspace, path)?;
    // Overlapping places count too: each of them could be meant.
    let mut places = Vec::new();
    let mut from = 0;
    // No more are looked for than are shown: a file of one letter has one at each.
    while places.len() <= PLACES
        && let Some(at) = before[from..].find(old)
    {
        places.push(from + at);
        from += at + before[from + at..].chars().next().map_or(1, char::len_utf8);
    }
    let line_of = |at: usize| before[..at].matches('\n').count() + 1;
    match places.as_slice() {
        [] => Err(match near_miss::explain(&before, old) {
            Some(why) => format!("`old_str` does not occur in {}. {why}", path.shown()),
            None => format!(
                "`old_str` does not occur in {}. It must match exactly, spaces and line ends too: view the file first.",
                path.shown()
            ),
        }),
        [at] => {
            let after = [&before[..*at], new, &before[at + old.len()..]].concat();
            let first = line_of(*at);
            let text = around(&after, first, first + new.matches('\n').count());
            let text = format!(
                "{} was changed. Around the change it reads:\n{text}",
                path.shown()
            );
            change(ground, path, Some(before), &after, text)
        }
        _ => {
            let mut lines: Vec<String> = places
                .iter()
                .take(PLACES)
                .map(|at| line_of(*at).to_string())
                .collect();
            let more = places.len() > lines.len();
            if more {
                lines.push("…".to_owned());
            }
            Err(format!(
                "`old_str` occurs {}{} times in {}, at the lines {}. Add what is around the one you mean.",
                if more { "more than " } else { "" },
                places.len().min(PLACES),
                path.shown(),
                lines.join(", ")
            ))
        }
    }
}

fn insert(ground: &Ground<'_>, path: &WorkspacePath, edit: &Edit) -> Done {
    let line = edit.insert_line.ok_or("`insert` needs `insert_line`.")?;
    let new = edit.new_str.as_deref().ok_or("`insert` needs `new_str`.")?;
    let before = read(ground.workspace, path)?;
    let lines: Vec<&str> = before.split_inclusive('\n').collect();
    if line > lines.len() {
        return Err(format!(
            "Nothing can be inserted behind line {line}: {} has {}.",
            path.shown(),
            plural::count(lines.len(), "line")
        ));
    }
    let mut after = lines[..line].concat();
    if !after.is_empty() && !after.ends_with('\n') {
        after.push('\n');
    }
    after.push_str(new);
    let rest = lines[line..].concat();
    if !new.ends_with('\n') && (!rest.is_empty() || before.ends_with('\n')) {
        after.push('\n');
    }
    after.push_str(&rest);
    let text = around(&after, line + 1, line + new.lines().count().max(1));
    let text = format!(
        "{} was changed. Around the change it reads:\n{text}",
        path.shown()
    );
    change(ground, path, Some(before), &after, text)
}

fn undo(ground: &Ground<'_>, path: &WorkspacePath) -> Done {
    let workspace = ground.workspace;
    let Some(content) = ground.history.pop(path) else {
        return Err(format!(
            "There is no change of {} to take back.",
            path.shown()
        ));
    };
    let now = match workspace.read(path, MAX_FILE) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    };
    let text = match &content {
        Some(before) => {
            if let Err(sentence) = ground.write(path, now.len(), before) {
                // It can be taken back later.
                ground.history.push(path, content.clone());
                return Err(sentence);
            }
            format!("The last change of {} was taken back.", path.shown())
        }
        None => {
            workspace.remove_file(path).map_err(sentence)?;
            format!("{} was removed again.", path.shown())
        }
    };
    let diff = diff(path, Some(&now), content.as_deref());
    Ok(ToolOutcome {
        text,
        diff: Some(diff),
        ..ToolOutcome::default()
    })
}

fn change(
    ground: &Ground<'_>,
    path: &WorkspacePath,
    before: Option<String>,
    after: &str,
    text: String,
) -> Done {
    ground.write(path, size(before.as_ref()), after)?;
    let diff = Some(diff(path, before.as_deref(), Some(after)));
    ground.history.push(path, before);
    Ok(ToolOutcome {
        text,
        diff,
        ..ToolOutcome::default()
    })
}

fn diff(path: &WorkspacePath, before: Option<&str>, after: Option<&str>) -> String {
    let name = |side: &str, content: Option<&str>| match content {
        Some(_) => format!("{side}{}", path.shown()),
        None => "/dev/null".to_owned(),
    };
    TextDiff::configure()
        // A file that shares nothing with what it was must not take long to compare.
        .timeout(std::time::Duration::from_secs(1))
        .diff_lines(before.unwrap_or_default(), after.unwrap_or_default())
        .unified_diff()
        .context_radius(3)
        .header(&name("a", before), &name("b", after))
        .to_string()
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

fn around(content: &str, first: usize, last: usize) -> String {
    numbered(content, first.saturating_sub(AROUND).max(1), last + AROUND)
}
