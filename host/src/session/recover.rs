//! Owns how the sessions of the last run go on.
//!
//! What always holds: every session that the log does not call ended is either started again from
//! its last committed round, or closed with a frame that says why. Nothing that was begun is begun
//! again.

use std::sync::Arc;

use crate::plugins::policy_types::Snapshot;
use crate::secret::Secret;
use crate::store::{self, EffectRow, SessionRow, Status, StoreError};

use super::actor;
use super::create::{Secrets, seal_context};
use super::ports::Policy;
use super::{CloseReason, Sessions};

impl Sessions {
    /// Starts every session again that has not ended, and returns how many. One that cannot go on
    /// (its policy is gone, its secrets do not open) is ended and says so.
    pub async fn recover(&self) -> Result<usize, StoreError> {
        let read = |connection: &rusqlite::Connection| {
            let rows = SessionRow::alive(connection)?;
            let with_effects = |row: SessionRow| {
                let effects = store::open_effects(connection, &row.fixed.id)?;
                Ok((row, effects))
            };
            rows.into_iter()
                .map(with_effects)
                .collect::<Result<Vec<_>, StoreError>>()
        };
        let rows = self.shared.deps.store.read(read).await?;
        let mut count = 0;
        for (row, effects) in rows {
            count += usize::from(self.resume(row, effects));
        }
        Ok(count)
    }

    fn resume(&self, mut row: SessionRow, effects: Vec<EffectRow>) -> bool {
        let Ok(id) = row.fixed.id.parse() else {
            tracing::error!(
                session = row.fixed.id,
                "the log holds a session without a proper id; it is passed over"
            );
            return false;
        };
        // The time the host was down is not the task's.
        let down = actor::now().saturating_sub(row.updated_at);
        row.counters.task_started_at = row.counters.task_started_at.saturating_add(down);
        let mut trouble = None;
        let mut open = |sealed: &Option<Vec<u8>>, what: &str| -> Option<Secret> {
            let context = seal_context(&row.fixed.id, what);
            match self
                .shared
                .deps
                .sealer
                .open_secret(sealed.as_ref()?, &context)
            {
                Ok(secret) => Some(secret),
                Err(cause) => {
                    trouble = Some(cause.to_string());
                    None
                }
            }
        };
        let secrets = Secrets {
            api_key: open(&row.fixed.api_key, "api-key"),
            git_token: open(&row.fixed.git_token, "git-token"),
        };
        let policy: Arc<dyn Policy> = match self.shared.deps.policies.find(Some(&row.fixed.policy))
        {
            Ok(policy) => policy,
            Err(cause) => {
                trouble = Some(cause.to_string());
                Arc::new(super::ports::NoPolicy::default())
            }
        };
        let state = row.state.map(|(schema, bytes)| Snapshot { schema, bytes });
        let fixed = Arc::new(row.fixed);
        let session = self.shared.assemble(
            id,
            fixed,
            policy,
            secrets,
            row.counters,
            state,
            effects,
            row.status,
        );
        if let Some(reason) = trouble {
            tracing::error!(session = %id, reason, "a session cannot go on after the restart");
            session.stop(CloseReason::done(&reason));
        } else if row.status != Status::Created {
            // One that nobody started yet still waits for its client.
            self.start(&session);
        }
        true
    }
}
