//! The public details of one session, live or ended, as the log has them.
//!
//! # Invariants
//! - A session is looked up together with its user.
//! - No secret is included.

use super::sessions::Sessions;
use super::stream::frames::timestamp;
use super::types::LookupError;
use lucid_types::ids::SessionId;
use lucid_types::log::{LogError, SessionStatus, UsageTotals};
use lucid_types::user::UserId;

/// A session, as the log has it.
#[derive(Debug, Clone)]
pub struct SessionDetails {
    /// The session's id.
    pub session_id: SessionId,
    /// The user that owns the session.
    pub user_id: UserId,
    /// The full text of the task.
    pub task: String,
    /// The status: `created`, `running`, `stopping` or `ended`.
    pub status: &'static str,
    /// The reason for the end, once it has ended.
    pub end_reason: Option<String>,
    /// Whether the session can still continue.
    pub is_alive: bool,
    /// The client's name for the project that the session belongs to.
    pub project_id: Option<String>,
    /// The id of the chat that records the session.
    pub chat_id: String,
    /// The policy's name.
    pub policy: String,
    /// The model provider's name; only a label if the policy makes no model calls.
    pub provider: String,
    /// The sandbox backend in use, or `None` while the session has no sandbox.
    pub sandbox: Option<String>,
    /// The default model, used when the policy names none.
    pub model: String,
    /// Usage totals of the session's model calls.
    pub totals: UsageTotals,
    /// The token limit, if any.
    pub token_limit: Option<u64>,
    /// The cost limit in millionths of a US dollar, if any.
    pub cost_limit: Option<u64>,
    /// Creation time (RFC 3339).
    pub created_at: String,
    /// Time of the last write to the session (RFC 3339).
    pub updated_at: String,
}

/// An error from looking up a session's details.
#[derive(Debug, thiserror::Error)]
pub enum SessionDetailsError {
    /// No session of this id belongs to this user.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Sessions {
    /// Whether a session of this user that does not live here continues at the next start. True as well
    /// if the log cannot be read.
    pub async fn is_resumable(&self, id: &SessionId, user: &UserId) -> bool {
        match self.details(id, user).await {
            Ok(details) => details.is_alive,
            Err(SessionDetailsError::Lookup(_)) => false,
            Err(SessionDetailsError::Log(_)) => true,
        }
    }

    /// Returns one session of this user, whatever its status.
    pub async fn details(
        &self,
        id: &SessionId,
        user: &UserId,
    ) -> Result<SessionDetails, SessionDetailsError> {
        let row = self.shared.deps.log.find(*id, Some(user)).await?;
        let row = row.ok_or(LookupError::NotFound)?;
        if row.fixed.user != *user {
            return Err(LookupError::NotYours.into());
        }
        let fixed = row.fixed;
        Ok(SessionDetails {
            session_id: *id,
            user_id: user.clone(),
            task: fixed.task,
            status: row.status.text(),
            end_reason: row.end_reason,
            is_alive: matches!(row.status, SessionStatus::Created | SessionStatus::Running),
            project_id: fixed.project_id,
            chat_id: fixed.chat_id,
            policy: fixed.policy,
            provider: fixed.provider,
            sandbox: self.shared.deps.environments.sandbox_of(*id),
            model: fixed.model,
            totals: row.counters.totals,
            token_limit: fixed.token_limit,
            cost_limit: fixed.cost_limit,
            created_at: timestamp(fixed.created_at),
            updated_at: timestamp(row.updated_at),
        })
    }
}
