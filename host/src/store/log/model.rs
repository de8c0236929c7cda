//! Owns what a row of the log holds, as the engine sees it.
//!
//! What always holds: one [`StepRow`] is everything that a round did. These are plain values; how
//! they are written is in `rows`, how they are read in `reads`.

use std::sync::Arc;

use super::usage::{CallRow, Totals};
use crate::store::StoreError;

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Written, and not started.
    Created,
    /// Provisioning, working, or waiting for the next message.
    Running,
    /// Over; its sandbox and workspace may still be there.
    Stopping,
    /// Over, and nothing is left of it but this log.
    Ended,
}

impl Status {
    /// As the log and clients have it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        }
    }

    pub(super) fn parse(text: &str) -> Self {
        match text {
            "created" => Self::Created,
            "running" => Self::Running,
            "stopping" => Self::Stopping,
            _ => Self::Ended,
        }
    }
}

/// What waits for a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EffectKind {
    /// A model call.
    Model,
    /// A tool run.
    Tool,
    /// A question to the user.
    Ask,
    /// A timer.
    Timer,
    /// Over without its policy having heard of it: the step that was to hear of it failed, or ended
    /// the task.
    Orphan,
    /// A change that the host opens of what was pushed.
    Change,
}

impl EffectKind {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Tool => "tool",
            Self::Ask => "ask",
            Self::Timer => "timer",
            Self::Orphan => "orphan",
            Self::Change => "change",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        match text {
            "model" => Ok(Self::Model),
            "tool" => Ok(Self::Tool),
            "ask" => Ok(Self::Ask),
            "timer" => Ok(Self::Timer),
            "orphan" => Ok(Self::Orphan),
            "change" => Ok(Self::Change),
            other => Err(StoreError::Content(format!("an effect of kind {other:?}"))),
        }
    }
}

/// An effect that has no result yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectRow {
    /// Its name, unique in its session.
    pub id: String,
    /// What it is.
    pub kind: EffectKind,
    /// When a timer runs out, in milliseconds since 1970.
    pub due_at: Option<u64>,
    /// Its delay, in milliseconds.
    pub delay_ms: Option<u64>,
    /// False where the host came to rest before it began, so that the next start may begin it.
    pub begun: bool,
}

/// The numbers of a session. All that a step's record is computed from, beside its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The next policy step.
    pub step: u64,
    /// The next row of the log.
    pub next_row: u64,
    /// The sequence number of the next frame; the first is 1.
    pub next_seq: u64,
    /// The next entry of the transcript.
    pub next_entry: u64,
    /// Whether a task is open.
    pub task_open: bool,
    /// When it was opened, in milliseconds since 1970.
    pub task_started_at: u64,
    /// What it has used of its time, in milliseconds.
    pub task_used_ms: u64,
    /// The host's uptime at the last round, in milliseconds.
    pub uptime_ms: u64,
    /// Model calls it has made.
    pub iterations: u32,
    /// Tokens it has used.
    pub tokens: u64,
    /// What all model calls of the session used.
    pub totals: Totals,
    /// Steps since the user last said something.
    pub steps_alone: u32,
}

/// What never changes about a session.
#[derive(Debug, Clone, Default)]
pub struct NewSessionRow {
    /// The session.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// The client's name for what it belongs to.
    pub project_id: Option<String>,
    /// What was asked for.
    pub task: String,
    /// What is cloned.
    pub repo_url: Option<String>,
    /// Which branch.
    pub branch: Option<String>,
    /// Whether a change is opened of what is pushed: `ready`, or as a `draft`.
    pub open_change: Option<String>,
    /// For commits.
    pub git_user_name: Option<String>,
    /// For commits.
    pub git_user_email: Option<String>,
    /// Which policy decides.
    pub policy: String,
    /// Which provider answers model calls; only a label where none are made.
    pub provider: String,
    /// The model, where the policy names none.
    pub model: String,
    /// How many tokens it may use, where there is a limit.
    pub token_limit: Option<u64>,
    /// What it may cost, in millionths of a US dollar, where there is a limit.
    pub cost_limit: Option<u64>,
    /// The chat that records it.
    pub chat_id: String,
    /// Sealed.
    pub api_key: Option<Vec<u8>>,
    /// Sealed.
    pub git_token: Option<Vec<u8>>,
    /// In milliseconds since 1970.
    pub created_at: u64,
}

/// A session as the log has it.
#[derive(Debug, Clone)]
pub struct SessionRow {
    /// What never changes.
    pub fixed: NewSessionRow,
    /// Where it stands.
    pub status: Status,
    /// Its numbers.
    pub counters: Counters,
    /// Schema and bytes of the policy's last state; none before the first step.
    pub state: Option<(u32, Vec<u8>)>,
    /// The branch that its last task pushed.
    pub pushed: Option<String>,
    /// Why it is over, where it is.
    pub end_reason: Option<String>,
    /// It goes on when its user comes back, and not by itself.
    pub held: bool,
    /// When the last round was written, in milliseconds since 1970.
    pub updated_at: u64,
}

/// One line of a chat's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatLine {
    /// `user` or `assistant`.
    pub role: &'static str,
    /// All of it.
    pub content: String,
    /// As in the wire contract.
    pub event_type: String,
    /// A JSON object.
    pub metadata: Option<String>,
}

/// The policy's part of a round.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// Which step of the session.
    pub step: u64,
    /// The context, as JSON.
    pub context: String,
    /// The inputs, as JSON.
    pub inputs: String,
    /// The commands, as JSON; none where the step failed.
    pub commands: Option<String>,
    /// Why the step failed.
    pub error: Option<String>,
    /// The new state; none where the step failed.
    pub state: Option<(u32, Arc<Vec<u8>>)>,
    /// SHA-256 of the new state's bytes.
    pub state_digest: Option<[u8; 32]>,
    /// Which component decided.
    pub plugin: String,
    /// What the step cost.
    pub fuel: u64,
    /// In bytes.
    pub memory: u64,
    /// In microseconds.
    pub micros: u64,
}

/// All that one round writes.
#[derive(Debug, Clone)]
pub struct StepRow {
    /// Whose round.
    pub session: Arc<str>,
    /// The session's chat.
    pub chat: Arc<str>,
    /// Number of this row.
    pub row: u64,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The policy's part, where it had one.
    pub decision: Option<Decision>,
    /// Sequence number of the first frame.
    pub first_seq: u64,
    /// The frames, as clients get them.
    pub frames: Vec<Arc<str>>,
    /// New entries of the transcript: number, and message as JSON.
    pub entries: Vec<(u64, String)>,
    /// Model calls that were answered.
    pub calls: Vec<CallRow>,
    /// New lines of the chat.
    pub chat_lines: Vec<ChatLine>,
    /// Effects that begin after the commit.
    pub opened: Vec<EffectRow>,
    /// Open effects, of this round or older, that this host begins no more.
    pub not_begun: Vec<String>,
    /// Effects that have their result.
    pub closed: Vec<String>,
    /// Messages of the user that are not to be taken again, by their numbers in the inbox.
    pub taken: Vec<u64>,
    /// The branch that was pushed, where that is another from here on.
    pub pushed: Option<Option<String>>,
    /// The session's numbers from here on.
    pub counters: Counters,
    /// Where the session stands from here on.
    pub status: Status,
    /// Why it is over, where it is.
    pub end_reason: Option<String>,
    /// It is over, and its workspace is kept for a while.
    pub retains_workspace: bool,
}

/// Frames out of the log.
#[derive(Debug, Default)]
pub struct FrameChunk {
    /// In order, with their sequence numbers.
    pub frames: Vec<(u64, Arc<str>)>,
}

/// A policy step out of the log, for a replay.
#[derive(Debug, Clone)]
pub struct LoggedStep {
    /// Its number.
    pub step: u64,
    /// The context, as JSON.
    pub context: String,
    /// The inputs, as JSON.
    pub inputs: String,
    /// The commands, as JSON; none where the step failed.
    pub commands: Option<String>,
    /// Which component decided.
    pub plugin: String,
    /// What that used; 0 where the step failed before the component was asked.
    pub fuel: u64,
}

/// Cuts a text to at most so many characters.
pub fn cut(text: &str, most: usize) -> &str {
    // Bytes are never fewer than characters: most texts are seen to fit without counting.
    if text.len() <= most {
        text
    } else {
        text.char_indices()
            .nth(most)
            .map_or(text, |(at, _)| &text[..at])
    }
}
