//! Owns what a user may know of one session of theirs, alive or over, as the log has it.
//!
//! What always holds: a session is looked up together with its user; nothing secret is among it.

use crate::store::{SessionRow, Status, StoreError, Totals};
use crate::types::user::UserId;

use super::stream::frames::timestamp;
use super::{LookupError, SessionId, Sessions};

/// A session, as the log has it.
#[derive(Debug, Clone)]
pub struct Details {
    /// Its id.
    pub session_id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// All of the task.
    pub task: String,
    /// Where it stands: `created`, `running`, `stopping` or `ended`.
    pub status: &'static str,
    /// Why it is over, where it is.
    pub end_reason: Option<String>,
    /// Whether more can happen in it.
    pub is_alive: bool,
    /// The client's name for what it belongs to.
    pub project_id: Option<String>,
    /// The chat that records it.
    pub chat_id: String,
    /// Who decides.
    pub policy: String,
    /// Who answers model calls; only a label where none are made.
    pub provider: String,
    /// What keeps its commands in now; none while it has no sandbox.
    pub sandbox: Option<String>,
    /// The model, where the policy names none.
    pub model: String,
    /// What its model calls used.
    pub totals: Totals,
    /// How many tokens it may use, where there is a limit.
    pub token_limit: Option<u64>,
    /// What it may cost, in millionths of a US dollar, where there is a limit.
    pub cost_limit: Option<u64>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339: when something was last written of it.
    pub updated_at: String,
}

/// Why nothing is told of a session.
#[derive(Debug, thiserror::Error)]
pub enum DetailsError {
    /// There is none of that id, or not of this user.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The log could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Sessions {
    /// One session of this user, whatever became of it.
    pub async fn details(&self, id: &SessionId, user: &UserId) -> Result<Details, DetailsError> {
        let name = id.to_string();
        let store = &self.shared.deps.store;
        let row = store
            .read(move |connection| SessionRow::find(connection, &name))
            .await?;
        let row = row.ok_or(LookupError::NotFound)?;
        if row.fixed.user != user.as_str() {
            return Err(LookupError::NotYours.into());
        }
        let fixed = row.fixed;
        Ok(Details {
            session_id: *id,
            user_id: user.clone(),
            task: fixed.task,
            status: row.status.text(),
            end_reason: row.end_reason,
            is_alive: matches!(row.status, Status::Created | Status::Running),
            project_id: fixed.project_id,
            chat_id: fixed.chat_id,
            policy: fixed.policy,
            provider: fixed.provider,
            sandbox: self.shared.deps.places.sandbox_of(&id.to_string()),
            model: fixed.model,
            totals: row.counters.totals,
            token_limit: fixed.token_limit,
            cost_limit: fixed.cost_limit,
            created_at: timestamp(fixed.created_at),
            updated_at: timestamp(row.updated_at),
        })
    }
}
