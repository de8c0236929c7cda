//! Resumes the sessions of the previous run.
//!
//! # Invariants
//! - Every session that the log does not call ended is either restarted from its last committed
//!   round, or left as it is if this host cannot continue it.
//! - Nothing that had begun is begun again.

use std::collections::HashSet;
use std::sync::Arc;

use super::actor::resume::ResumeState;
use super::actor::takes_over;
use super::create::{key_for, seal_context};
use super::error::CreateError;
use super::handle::IdleState;
use super::handle::SessionHandle;
use super::ports::MigrateError;
use super::retry::when_possible;
use super::seal::SealError;
use super::sessions::Sessions;
use lucid_types::ids::SessionId;
use lucid_types::log::{LivingSession, LogError, SessionStatus};
use lucid_types::wit::policy::Snapshot;

/// Why this host cannot continue a session.
#[derive(Debug, thiserror::Error)]
enum ResumeError {
    /// The deployment does not have its policy.
    #[error(transparent)]
    Policy(#[from] CreateError),
    /// No build of its policy takes over its state.
    #[error(transparent)]
    State(#[from] MigrateError),
    /// Its secrets do not open.
    #[error(transparent)]
    Secret(#[from] SealError),
}

impl Sessions {
    /// The ids of all sessions that the log does not call ended.
    pub async fn in_log(&self) -> Result<HashSet<SessionId>, LogError> {
        let log = &self.shared.deps.log;
        let ids = when_possible(|| log.living_ids()).await?;
        Ok(ids.into_iter().collect())
    }

    /// Restarts every session that has not ended, and returns how many. Sessions that wait for
    /// their users are neither started nor counted. A session that cannot continue (its policy is
    /// not in this deployment, or its secrets do not open with this key) stays in the log, with its
    /// workspace, for a start that has what it needs; the host's log says why.
    pub async fn recover(&self) -> Result<usize, LogError> {
        self.resume_all(false).await
    }

    /// Like [`Sessions::recover`], but holds all of them until their users come back.
    pub async fn recover_held(&self) -> Result<(), LogError> {
        self.resume_all(true).await.map(drop)
    }

    /// The number of sessions that wait for their users to come back.
    pub fn count_held(&self) -> usize {
        let registry = self.shared.registry.lock();
        let is_held = |session: &&Arc<SessionHandle>| *session.idle_state.lock() == IdleState::Held;
        registry.by_id.values().filter(is_held).count()
    }

    async fn resume_all(&self, hold_all: bool) -> Result<usize, LogError> {
        let log = &self.shared.deps.log;
        let living = when_possible(|| log.living()).await?;
        let mut count = 0;
        for mut session in living {
            let row = &mut session.row;
            row.held |= hold_all;
            // A session that was never started waits anyway, and one that is over is cleaned up in
            // any case.
            row.held &= row.status == SessionStatus::Running;
            let held = row.held;
            count += usize::from(self.resume(session) && !held);
        }
        self.restore_positions().await;
        Ok(count)
    }

    fn resume(&self, living: LivingSession) -> bool {
        let LivingSession {
            mut row,
            effects,
            unread,
            plugin,
        } = living;
        let id = row.fixed.id;
        let open = |sealed: &Option<Vec<u8>>, what: &str| {
            let context = seal_context(id, what);
            let opened = sealed
                .as_ref()
                .map(|sealed| self.shared.deps.sealer.open_secret(sealed, &context));
            opened.transpose()
        };
        let generation = self.shared.deps.deployment.borrow().clone();
        let state = row.state.take();
        let state = state.map(|(schema, bytes)| Snapshot { schema, bytes });
        let parts = || -> Result<_, ResumeError> {
            let name = &row.fixed.policy;
            let policy = match generation.policies.successor(name, plugin) {
                Some(policy) => policy,
                // In the words of the provider that offers them.
                None => generation.policies.find(Some(name))?,
            };
            let policy = match state.as_ref().map(|state| takes_over(policy.info(), state)) {
                // The previous build may still be loaded while the active one is on probation.
                Some(Err(error)) => {
                    let older = generation.policies.fallback(name, policy.info().digest);
                    let own = older.filter(|older| Some(older.info().digest) == plugin);
                    own.ok_or(error)?
                }
                _ => policy,
            };
            let key_for = key_for(policy.info(), &*generation.models, &row.fixed.provider);
            Ok((
                open(&row.fixed.api_key, &key_for)?,
                open(&row.fixed.git_token, "git-token")?,
                policy,
            ))
        };
        let (api_key, git_token, policy) = match parts() {
            Ok(parts) => parts,
            Err(reason) => {
                tracing::error!(session = %id, %reason, "a session cannot go on; it stays as it is until the host is started with what it needs");
                return false;
            }
        };
        let found = ResumeState {
            previous_build: plugin
                .filter(|digest| state.is_some() && *digest != policy.info().digest),
            generation,
            fixed: Arc::new(row.fixed),
            policy,
            api_key,
            git_token,
            counters: row.counters,
            state,
            pushed: row.pushed,
            open: effects,
            inbox: unread,
            status: row.status,
            waits_for_user: row.held,
        };
        let session = self.shared.assemble(id, found);
        if row.held {
            session.set_idle_state(IdleState::Held);
        } else if row.status != SessionStatus::Created {
            // A session that was never started still waits for its client.
            self.start(&session);
        }
        true
    }
}
