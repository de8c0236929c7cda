//! The values that the log holds.
//!
//! # Invariants
//! - One [`RoundRow`] is everything that a round did.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::usage::{ModelCallRow, UsageTotals};
use crate::digest::Digest;
use crate::ids::{EffectId, SessionId};
use crate::user::UserId;

/// The status of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStatus {
    /// Written, and not started.
    Created,
    /// Provisioning, working, or waiting for the next message.
    Running,
    /// Over; its sandbox and workspace may still exist.
    Stopping,
    /// Over, and only this log is left of it.
    Ended,
}

impl SessionStatus {
    /// The status as the log and clients have it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        }
    }

    /// The status of this text. An unknown one counts as the end.
    pub fn parse(text: &str) -> Self {
        match text {
            "created" => Self::Created,
            "running" => Self::Running,
            "stopping" => Self::Stopping,
            _ => Self::Ended,
        }
    }
}

/// The kind of an effect, which waits for a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EffectKind {
    /// A model call.
    Model,
    /// A tool call.
    Tool,
    /// A question to the user.
    Ask,
    /// A timer.
    Timer,
    /// Ended without its policy's knowledge: the step that was to be told of it failed, or ended
    /// the task.
    Orphan,
    /// A pull request that the host opens for what was pushed.
    Change,
}

impl EffectKind {
    /// The kind as the log has it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Tool => "tool",
            Self::Ask => "ask",
            Self::Timer => "timer",
            Self::Orphan => "orphan",
            Self::Change => "change",
        }
    }

    /// The kind of this text; `None` if this build knows no such kind.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "model" => Some(Self::Model),
            "tool" => Some(Self::Tool),
            "ask" => Some(Self::Ask),
            "timer" => Some(Self::Timer),
            "orphan" => Some(Self::Orphan),
            "change" => Some(Self::Change),
            _ => None,
        }
    }
}

/// An effect that has no result yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectRow {
    /// The effect's id.
    pub id: EffectId,
    /// The effect's kind.
    pub kind: EffectKind,
    /// Expiry of a timer, in milliseconds since 1970.
    pub due_at: Option<u64>,
    /// Delay of a timer, in milliseconds.
    pub delay_ms: Option<u64>,
    /// `false` if the host came to rest before the effect began, so that the next start may begin
    /// it.
    pub begun: bool,
}

/// The counters of a session: everything beside the inputs that a step's record is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionCounters {
    /// The number of the next policy step.
    pub step: u64,
    /// The number of the next row of the log.
    pub next_row: u64,
    /// The sequence number of the next frame; the first is 1.
    pub next_seq: u64,
    /// The number of the next transcript entry.
    pub next_entry: u64,
    /// Whether a task is open.
    pub task_open: bool,
    /// Start of the task, in milliseconds since 1970.
    pub task_started_at: u64,
    /// Time used by the task, in milliseconds.
    pub task_used_ms: u64,
    /// The host's uptime at the last round, in milliseconds.
    pub uptime_ms: u64,
    /// Model calls made in the task.
    pub iterations: u32,
    /// Tokens used in the task.
    pub tokens: u64,
    /// Usage totals of the session's model calls.
    pub totals: UsageTotals,
    /// Steps since the user's last message.
    pub steps_alone: u32,
}

/// The immutable configuration of a session.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The session's id.
    pub id: SessionId,
    /// The user that owns the session.
    pub user: UserId,
    /// The client's name for the project that the session belongs to.
    pub project_id: Option<String>,
    /// The task.
    pub task: String,
    /// The URL of the repository to clone.
    pub repo_url: Option<String>,
    /// The branch to check out.
    pub branch: Option<String>,
    /// Whether to open a pull request for what is pushed: `ready`, or as a `draft`.
    pub open_change: Option<String>,
    /// The author name for commits.
    pub git_user_name: Option<String>,
    /// The author email for commits.
    pub git_user_email: Option<String>,
    /// The policy's name.
    pub policy: String,
    /// The model provider's name; only a label if the policy makes no model calls.
    pub provider: String,
    /// The default model, used when the policy names none.
    pub model: String,
    /// The token limit, if any.
    pub token_limit: Option<u64>,
    /// The cost limit in millionths of a US dollar, if any.
    pub cost_limit: Option<u64>,
    /// The id of the chat that records the session.
    pub chat_id: String,
    /// The provider's API key, sealed.
    pub api_key: Option<Vec<u8>>,
    /// The git token, sealed.
    pub git_token: Option<Vec<u8>>,
    /// Creation time in milliseconds since 1970.
    pub created_at: u64,
}

/// A session as the log has it.
#[derive(Debug, Clone)]
pub struct SessionRow {
    /// The immutable configuration.
    pub fixed: SessionConfig,
    /// The status.
    pub status: SessionStatus,
    /// The counters.
    pub counters: SessionCounters,
    /// Schema and bytes of the policy's last state; `None` before the first step.
    pub state: Option<(u32, Vec<u8>)>,
    /// The branch that its last task pushed.
    pub pushed: Option<String>,
    /// The reason for the end, once it has ended.
    pub end_reason: Option<String>,
    /// Whether the session resumes only when its user comes back.
    pub held: bool,
    /// Time of the last round in milliseconds since 1970.
    pub updated_at: u64,
}

/// A chat message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatLine {
    /// `user` or `assistant`.
    pub role: &'static str,
    /// The full text.
    pub content: String,
    /// The event type of the wire contract.
    pub event_type: String,
    /// A JSON object.
    pub metadata: Option<String>,
}

/// The policy's part of a round.
#[derive(Debug, Clone)]
pub struct PolicyDecision {
    /// The number of the step in its session.
    pub step: u64,
    /// The context, as JSON.
    pub context: String,
    /// The inputs, as JSON.
    pub inputs: String,
    /// The commands, as JSON; `None` if the step failed.
    pub commands: Option<String>,
    /// Why the step failed.
    pub error: Option<String>,
    /// Schema and bytes of the new state; `None` if the step failed.
    pub state: Option<(u32, Arc<Vec<u8>>)>,
    /// SHA-256 of the new state's bytes.
    pub state_digest: Option<[u8; 32]>,
    /// The digest of the component that decided.
    pub plugin: Digest,
    /// Fuel used by the step.
    pub fuel: u64,
    /// Memory used, in bytes.
    pub memory: u64,
    /// Duration in microseconds.
    pub micros: u64,
}

/// Everything that one round writes.
#[derive(Debug, Clone)]
pub struct RoundRow {
    /// The session's id.
    pub session: SessionId,
    /// Whose session it is.
    pub user: UserId,
    /// The chat's id.
    pub chat: Arc<str>,
    /// The number of this row.
    pub row: u64,
    /// Time of the round in milliseconds since 1970.
    pub at: u64,
    /// The policy's part, if it had one.
    pub decision: Option<PolicyDecision>,
    /// Sequence number of the first frame.
    pub first_seq: u64,
    /// The frames, as clients get them.
    pub frames: Vec<Arc<str>>,
    /// New transcript entries: number, and message as JSON.
    pub entries: Vec<(u64, String)>,
    /// Model calls that were answered.
    pub calls: Vec<ModelCallRow>,
    /// New chat messages.
    pub chat_lines: Vec<ChatLine>,
    /// Effects that begin after the commit.
    pub opened: Vec<EffectRow>,
    /// Open effects, of this round or older, that this host will not begin.
    pub not_begun: Vec<EffectId>,
    /// Effects that have their result.
    pub closed: Vec<EffectId>,
    /// Messages from the user that have been processed, by their numbers in the inbox.
    pub processed: Vec<u64>,
    /// The new value of the pushed branch, if it changed.
    pub pushed: Option<Option<String>>,
    /// The session's counters after the round.
    pub counters: SessionCounters,
    /// The session's status after the round.
    pub status: SessionStatus,
    /// The reason for the end, once it has ended.
    pub end_reason: Option<String>,
    /// Whether the session is over and its workspace is kept for a while.
    pub retains_workspace: bool,
    /// Whether the log may write the round as one row, and what else that changes later. Until then it is read
    /// from the row.
    pub may_stay_pending: bool,
}

impl RoundRow {
    /// What a round takes in the log beside its texts, in bytes: its rows, and those of indexes.
    pub const OVERHEAD: usize = 512;

    /// About how many bytes it takes in the log; fewer where a text is in it several times.
    pub fn size(&self) -> u64 {
        let decision = self.decision.as_ref().map_or(0, |decision| {
            let state = decision.state.as_ref().map_or(0, |(_, bytes)| bytes.len());
            let commands = decision.commands.as_ref().map_or(0, String::len);
            decision.inputs.len() + commands + state
        });
        let frames: usize = self.frames.iter().map(|frame| frame.len()).sum();
        let entries: usize = self.entries.iter().map(|(_, message)| message.len()).sum();
        let lines = self
            .chat_lines
            .iter()
            .map(|line| line.content.len() + line.metadata.as_ref().map_or(0, String::len));
        (Self::OVERHEAD + decision + frames + entries + lines.sum::<usize>()) as u64
    }
}

/// Frames read from the log.
#[derive(Debug, Default)]
pub struct FrameChunk {
    /// The frames in order, with their sequence numbers.
    pub frames: Vec<(u64, Arc<str>)>,
}

/// A policy step read from the log, for a replay.
#[derive(Debug, Clone)]
pub struct LoggedStep {
    /// The step's number.
    pub step: u64,
    /// The context, as JSON.
    pub context: String,
    /// The inputs, as JSON.
    pub inputs: String,
    /// The commands, as JSON; `None` if the step failed.
    pub commands: Option<String>,
    /// The digest of the component that decided.
    pub plugin: Digest,
    /// Fuel used by that component; 0 if the step failed before it was called.
    pub fuel: u64,
}

/// The commands of a policy step read from the log.
#[derive(Debug, Clone)]
pub struct LoggedCommands {
    /// The number of the step's row.
    pub row: u64,
    /// The commands, as JSON.
    pub commands: String,
}

/// A user's message that no round has processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxMessage {
    /// Its number in the inbox.
    pub number: u64,
    /// What the user said.
    pub text: String,
}

/// A session that has not ended, with everything that is needed to resume it.
#[derive(Debug, Clone)]
pub struct LivingSession {
    /// The session.
    pub row: SessionRow,
    /// Its effects that have no result.
    pub effects: Vec<EffectRow>,
    /// The user's messages that no round has processed, in order.
    pub unread: Vec<InboxMessage>,
    /// The digest of the component whose state the session has: the one that took the last
    /// successful step.
    pub plugin: Option<Digest>,
}

/// A session's task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionTask {
    /// The session.
    pub session: SessionId,
    /// The task's full text.
    pub text: String,
    /// When the session was created, in milliseconds since 1970.
    pub created_at: u64,
}

/// The position of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionRow {
    /// The client's session.
    pub session: SessionId,
    /// The features that it requested, as a text by which it is recognised.
    pub features: String,
    /// The last frame that it has.
    pub taken: u64,
}

/// A workspace that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetainedWorkspace {
    /// The id of its former session.
    pub session: SessionId,
    /// The user that owned the session.
    pub user: UserId,
}
