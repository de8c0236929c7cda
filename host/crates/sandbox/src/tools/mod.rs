//! The tools a policy may use: a terminal in the session's sandbox and an editor of its workspace.
//!
//! # Invariants
//! - A tool's failure is its outcome, which the model reads; an error only ever means that the
//!   sandbox is gone.
//! - A result is bounded, and says what it leaves out.

mod describe;
mod edit_error;
mod editor;
mod history;
mod image;
mod locate;
mod match_hint;
mod present;
mod terminal;
#[cfg(test)]
mod tests;
mod text_file;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

pub use self::image::EncodedImage;
pub use describe::{CallView, describe_call};
use editor::EditorCall;
use history::EditHistory;

use crate::error::SandboxError;
use crate::handle::Sandbox;
use crate::workspace::{Quota, Workspace};
use lucid_types::exec::{ExecRequest, ExecResult, LimitHit};
use lucid_types::plural;
use lucid_types::unicode::lossy;

/// Maximum size of a result, in bytes.
pub const MAX_RESULT: usize = 30_000;
/// How many of the last bytes of a command's output are read. Only what a person would see of them
/// counts towards the result.
const READ: usize = 1 << 20;
/// How many bytes may be skipped to reach the start of a line, when output begins in the middle.
const LONGEST_LINE: usize = 4096;
/// The longest timeout that a policy may set for a command, in seconds.
const MAX_SECONDS: u64 = 3600;

/// A tool's definition for a model.
#[derive(Debug, Clone)]
pub struct SandboxToolDefinition {
    /// The tool's name.
    pub name: &'static str,
    /// Its purpose and when to use it.
    pub description: &'static str,
    /// The JSON schema of its arguments.
    pub input_schema: Value,
}

/// The definitions of all tools.
#[must_use]
pub fn definitions() -> Vec<SandboxToolDefinition> {
    vec![
        SandboxToolDefinition {
            name: "terminal",
            description: "Runs a command line in the sandbox's shell, in the workspace's folder, and gives back what \
                it wrote to standard output and error, and its exit code. Each call is a new shell: `cd` and \
                variables do not last. It has no standard input, so it must not ask questions. A process started \
                with `&` goes on after the call; send its output to a file. Long output is cut in the middle.",
            input_schema: json!({
                "type": "object",
                "properties": {
                    "command": {"type": "string", "description": "The command line."},
                    "input": {"type": "string", "description": "What the command reads from standard input; empty unless given."},
                    "timeout": {
                        "type": "integer", "minimum": 1, "maximum": MAX_SECONDS,
                        "description": "After how many seconds the command is killed.",
                    },
                },
                "required": ["command"],
                "additionalProperties": false,
            }),
        },
        SandboxToolDefinition {
            name: "file_editor",
            description: "Views and changes text files of the workspace. `view` shows a file with line numbers, what is \
                in a folder, or a picture (PNG, JPEG, GIF, WebP); `create` writes a whole file; `str_replace` replaces `old_str`, which must occur \
                exactly once, by `new_str`; `insert` puts `new_str` behind line `insert_line` (0 is the beginning); \
                `undo_edit` takes back the last change of that file. A file keeps its line ends and its encoding: write LF.",
            input_schema: json!({
                "type": "object",
                "properties": {
                    "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert", "undo_edit"]},
                    "path": {"type": "string", "description": "The file or folder: relative to the workspace's root, or absolute and in the workspace."},
                    "file_text": {"type": "string", "description": "For `create`: the whole content."},
                    "old_str": {"type": "string", "description": "For `str_replace`: the text to replace, with enough around it to be unique."},
                    "new_str": {"type": "string", "description": "For `str_replace` and `insert`: the new text."},
                    "insert_line": {"type": "integer", "minimum": 0, "description": "For `insert`: the line to insert behind."},
                    "view_range": {
                        "type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                        "description": "For `view`: the first and the last line to show; -1 is the file's end.",
                    },
                },
                "required": ["command", "path"],
                "additionalProperties": false,
            }),
        },
    ]
}

/// The outcome of a tool call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolOutcome {
    /// Whether the tool could not do what was asked. A command that fails has an exit code instead.
    pub is_error: bool,
    /// The text that the model reads.
    pub text: String,
    /// The output for a person's terminal, if that differs: a command's output with its escape
    /// codes.
    pub shown: Option<String>,
    /// The exit code of a command.
    pub exit_code: Option<i32>,
    /// The file or folder, relative to the workspace's root.
    pub path: Option<String>,
    /// The changes of an edit, as a unified diff.
    pub diff: Option<String>,
    /// An image for the model.
    pub image: Option<EncodedImage>,
    /// A limit of the sandbox that a command hit.
    pub limit: Option<LimitHit>,
}

impl ToolOutcome {
    fn failed(text: impl Into<String>) -> Self {
        Self {
            is_error: true,
            text: text.into(),
            ..Self::default()
        }
    }
}

/// The tools of one session, and what they work on.
#[derive(Debug, Clone)]
pub struct SandboxTools {
    sandbox: Sandbox,
    workspace: Arc<Workspace>,
    history: Arc<EditHistory>,
    /// If absent, the editor writes as much as the disk holds.
    quota: Option<Arc<Quota>>,
    /// Whether the model accepts images.
    images: bool,
}

impl SandboxTools {
    /// The tools of a session, with an empty undo history.
    #[must_use]
    pub fn new(sandbox: Sandbox, workspace: Arc<Workspace>) -> Self {
        Self {
            sandbox,
            workspace,
            history: Arc::default(),
            quota: None,
            images: false,
        }
    }

    /// Sets the quota that the editor respects.
    #[must_use]
    pub fn with_quota(mut self, quota: Arc<Quota>) -> Self {
        self.quota = Some(quota);
        self
    }

    /// Sets whether the model is shown images.
    #[must_use]
    pub fn with_images(mut self, seen: bool) -> Self {
        self.images = seen;
        self
    }

    /// The sandbox that commands run in.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }
}

#[derive(Deserialize)]
struct Terminal {
    command: String,
    #[serde(default)]
    timeout: Option<f64>,
    #[serde(default)]
    input: Option<String>,
}

/// Runs a tool. `timeout` is a command's timeout if its call sets none.
///
/// # Errors
/// Only if the sandbox is gone; a tool's own failure is its outcome.
pub async fn run(
    tools: &SandboxTools,
    name: &str,
    arguments: &str,
    timeout: Duration,
    on_output: impl FnMut(&[u8]) + Send,
) -> Result<ToolOutcome, SandboxError> {
    match name {
        "terminal" => match serde_json::from_str::<Terminal>(arguments) {
            Ok(call) => terminal(tools, call, timeout, on_output).await,
            Err(error) => Ok(unreadable(name, &error)),
        },
        "file_editor" => match serde_json::from_str::<EditorCall>(arguments) {
            Ok(edit) => Ok(edit_file(tools, edit).await),
            Err(error) => Ok(unreadable(name, &error)),
        },
        _ => Ok(ToolOutcome::failed(format!(
            "There is no tool {name:?}. There are: terminal, file_editor."
        ))),
    }
}

fn unreadable(name: &str, error: &serde_json::Error) -> ToolOutcome {
    ToolOutcome::failed(format!(
        "The arguments of {name} cannot be read: {error}. Give them as its schema says."
    ))
}

async fn terminal(
    tools: &SandboxTools,
    call: Terminal,
    timeout: Duration,
    on_output: impl FnMut(&[u8]) + Send,
) -> Result<ToolOutcome, SandboxError> {
    if call.command.trim().is_empty() {
        return Ok(ToolOutcome::failed("The command is empty."));
    }
    let timeout = match call.timeout {
        Some(seconds) if seconds >= 1.0 => Duration::from_secs_f64(seconds.min(MAX_SECONDS as f64)),
        Some(_) => {
            return Ok(ToolOutcome::failed(
                "The time-out must be a second or more.",
            ));
        }
        None => timeout,
    };
    let mut request = ExecRequest::shell(call.command)
        .timeout(timeout)
        .keep_output(MAX_RESULT / 2, READ);
    if let Some(input) = call.input {
        request = request.stdin(input);
    }
    let result = match tools.sandbox.exec(request, on_output).await {
        Ok(result) => result,
        Err(SandboxError::Refused(sentence)) => return Ok(ToolOutcome::failed(sentence)),
        Err(error) => return Err(error),
    };
    let (timed_out, exit_code, limit) = (result.timed_out, result.exit_code, result.limit);
    let rendered = tokio::task::spawn_blocking(move || read_output(&result));
    let (mut text, mut shown) = rendered.await.unwrap_or_else(|_| {
        let sentence = "[The output could not be read. Send it to a file, and view that.]";
        (sentence.to_owned(), None)
    });
    for text in [Some(&mut text), shown.as_mut()].into_iter().flatten() {
        if let Some(limit) = limit {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(limit.sentence());
        }
        if timed_out {
            text.push_str(&format!(
                "\n[The command was killed after {}. Give it more time, or run it in the background.]",
                plural::count(timeout.as_secs(), "second")
            ));
        }
    }
    Ok(ToolOutcome {
        is_error: timed_out,
        text,
        shown,
        exit_code: Some(exit_code),
        limit,
        ..ToolOutcome::default()
    })
}

/// The part of a command's output that the model reads, and the output for a terminal if that
/// differs.
fn read_output(result: &ExecResult) -> (String, Option<String>) {
    let (head, tail) = &result.bytes;
    let (head, tail, omitted) = if result.omitted == 0 {
        // In one piece: a character or an escape sequence may lie across the seam.
        ([head.as_slice(), tail].concat(), &[][..], 0)
    } else {
        // A partial line at the beginning would be misread.
        let line = tail
            .iter()
            .take(LONGEST_LINE)
            .position(|byte| *byte == b'\n');
        let skipped = line.map_or(0, |end| end + 1);
        let omitted = result.omitted + skipped as u64;
        (head.clone(), &tail[skipped..], omitted)
    };
    let read = join_truncated(
        terminal::rendered(&head),
        &terminal::rendered(tail),
        omitted,
    );
    let output = join_truncated(lossy(&head).into_owned(), &lossy(tail), omitted);
    let differs = output != read;
    (read, differs.then_some(output))
}

/// A beginning and an end, with a sentence in place of what does not fit into a result.
fn join_truncated(head: String, tail: &str, omitted: u64) -> String {
    if omitted == 0 {
        return truncate_middle(head, MAX_RESULT);
    }
    let half = MAX_RESULT / 2;
    let end = head.floor_char_boundary(half.min(head.len()));
    let from = tail.ceil_char_boundary(tail.len().saturating_sub(half));
    let omitted = omitted + (head.len() - end + from) as u64;
    format!(
        "{}\n[… {omitted} bytes left out …]\n{}",
        &head[..end],
        &tail[from..]
    )
}

async fn edit_file(tools: &SandboxTools, edit: EditorCall) -> ToolOutcome {
    let tools = tools.clone();
    let edited = tokio::task::spawn_blocking(move || {
        let context = editor::EditorContext {
            workspace: &tools.workspace,
            root: tools.sandbox.workspace_path(),
            history: &tools.history,
            quota: tools.quota.as_deref(),
            images: tools.images,
        };
        editor::run(&context, &edit)
    });
    match edited.await {
        Ok(mut outcome) => {
            outcome.text = truncate_middle(outcome.text, MAX_RESULT);
            outcome.diff = outcome.diff.map(|diff| truncate_middle(diff, MAX_RESULT));
            outcome
        }
        Err(_) => ToolOutcome::failed(
            "The editor stopped unexpectedly; the file may be unchanged. View it first.",
        ),
    }
}

/// The text, or its beginning and its end with a sentence between them.
pub fn truncate_middle(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    let head = text.floor_char_boundary(most / 2);
    let tail = text.ceil_char_boundary(text.len() - most / 2);
    format!(
        "{}\n[… {} left out …]\n{}",
        &text[..head],
        plural::count(tail - head, "byte"),
        &text[tail..]
    )
}
