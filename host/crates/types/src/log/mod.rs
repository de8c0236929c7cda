//! The session log: what the engine writes and reads, and the trait that it does so through.
//!
//! A log holds, for each session, its configuration, the rounds in order, the effects that have no
//! result, and the user's messages that no round has processed; beside that the positions of
//! clients and the workspaces that outlive their sessions.
//!
//! # Invariants
//! - What a method has returned is committed, and survives a crash of the host.
//! - A call that fails leaves nothing behind. If its failure is transient, the same call can simply
//!   be repeated.
//! - Reads see whatever was committed before.

mod error;
mod health;
mod model;
mod usage;

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::ids::SessionId;
use crate::user::UserId;

pub use self::error::LogError;
pub use self::health::{LogHealth, PausedWriter, pauses};
pub use self::model::{
    ChatLine, EffectKind, EffectRow, FrameChunk, InboxMessage, LivingSession, LoggedCommands,
    LoggedStep, PolicyDecision, PositionRow, RetainedWorkspace, RoundRow, SessionConfig,
    SessionCounters, SessionRow, SessionStatus, SessionTask,
};
pub use self::usage::{ModelCallRow, UsageTotals};

/// The result of a call of the log.
pub type Logged<T> = BoxFuture<'static, Result<T, LogError>>;

/// The log of all sessions.
///
/// No method retries: how long a transient failure is waited for is the caller's decision, except
/// that a method may wait for seconds if another process locks the log.
///
/// Users have their turns with the log, however many sessions each has. A method that is given a user
/// has that user's turn; without one, the host's own. Whose the session is that is read decides nothing.
pub trait SessionLog: Send + Sync {
    /// Writes a session, the chat that records it, and its first round, all or nothing.
    fn create(&self, session: Arc<SessionConfig>, first: RoundRow) -> Logged<()>;
    /// Writes a round, all or nothing. Rounds of many sessions may be committed together.
    fn append(&self, round: Arc<RoundRow>) -> Logged<()> {
        self.append_all(vec![round])
    }
    /// Writes rounds of one session that follow one another, all or nothing. None are no write.
    fn append_all(&self, rounds: Vec<Arc<RoundRow>>) -> Logged<()>;
    /// Records that a session was started, before it has stepped: after a crash it resumes by
    /// itself.
    fn mark_started(&self, session: SessionId, user: &UserId) -> Logged<()>;
    /// Records that all open effects of a session begin, including those that an older host left.
    fn mark_begun(&self, session: SessionId, user: &UserId) -> Logged<()>;
    /// Puts in its place what rounds left pending beside their rows. It is read in any case.
    fn settle(&self, session: SessionId, user: &UserId) -> Logged<()>;
    /// Lets a session that was held resume by itself from now on.
    fn release(&self, session: SessionId, user: &UserId) -> Logged<()>;
    /// Stores a user's message until a round processes it. Returns `None` if the session is over
    /// and no round will.
    fn keep_message(
        &self,
        session: SessionId,
        user: &UserId,
        text: String,
    ) -> Logged<Option<InboxMessage>>;

    /// Reads one session, whatever its status.
    fn find(&self, session: SessionId, user: Option<&UserId>) -> Logged<Option<SessionRow>>;
    /// Reads the ids of all sessions that have not ended, oldest first.
    fn living_ids(&self) -> Logged<Vec<SessionId>>;
    /// Reads those of these sessions that have not ended, in this order. One that this build does not
    /// understand is passed over, and the host's log says so.
    fn living(&self, sessions: Vec<SessionId>, user: Option<&UserId>)
    -> Logged<Vec<LivingSession>>;
    /// Reads the tasks of those of these sessions that are the user's, in this order.
    fn tasks(&self, sessions: Vec<SessionId>, user: &UserId) -> Logged<Vec<SessionTask>>;
    /// Reads the ids of a policy's most recent sessions that have stepped, newest first.
    fn last_sessions(&self, policy: &str, most: u64) -> Logged<Vec<SessionId>>;
    /// Reads some of the frames after a sequence number; empty if there are no more.
    fn frames_after(
        &self,
        session: SessionId,
        user: &UserId,
        seq: u64,
        most_bytes: usize,
    ) -> Logged<FrameChunk>;
    /// Reads some policy steps from a number on, at least one unless there are no more.
    fn steps_from(
        &self,
        session: SessionId,
        user: Option<&UserId>,
        step: u64,
    ) -> Logged<Vec<LoggedStep>>;
    /// Reads the commands of some policy steps before a row, newest first; empty if there are no
    /// more.
    fn commands_before(
        &self,
        session: SessionId,
        user: &UserId,
        row: u64,
    ) -> Logged<Vec<LoggedCommands>>;
    /// Reads transcript entries, as JSON, from one number to another, inclusive.
    fn transcript(
        &self,
        session: SessionId,
        user: &UserId,
        first: u64,
        last: u64,
    ) -> Logged<Vec<String>>;
    /// Reads the text of the last message in a session's chat that is of a wanted event type and
    /// no older than `since`, in milliseconds since 1970.
    fn last_line(
        &self,
        session: SessionId,
        user: &UserId,
        chat: &str,
        since: u64,
        is_wanted: fn(&str) -> bool,
    ) -> Logged<Option<String>>;

    /// Replaces the stored positions of clients with these.
    fn keep_positions(&self, positions: Vec<PositionRow>) -> Logged<()>;
    /// Reads the stored positions of clients.
    fn kept_positions(&self) -> Logged<Vec<PositionRow>>;

    /// Reads some of the workspaces that have been kept since before this uptime of the host,
    /// oldest first.
    fn retained_before(&self, uptime_ms: u64) -> Logged<Vec<RetainedWorkspace>>;
    /// Reads the entry of one session, if its workspace is kept.
    fn retained(
        &self,
        session: SessionId,
        user: Option<&UserId>,
    ) -> Logged<Option<RetainedWorkspace>>;
    /// Postpones the removal of a workspace, as if it had been kept since this uptime of the host.
    fn retain_longer(&self, session: SessionId, user: &UserId, uptime_ms: u64) -> Logged<()>;
    /// Records that a workspace is gone.
    fn forget_retained(&self, session: SessionId, user: &UserId) -> Logged<()>;

    /// Reads the size of all that the log holds of a user, in bytes. It falls when a chat is deleted.
    fn user_size(&self, user: &UserId) -> Logged<u64>;

    /// Whether the log can be written at the moment.
    fn health(&self) -> &LogHealth;
    /// How long hosts have run on this log, in milliseconds. Only differences are meaningful.
    fn uptime(&self) -> u64;
    /// Stores the uptime.
    fn note_uptime(&self) -> Logged<()>;
}
