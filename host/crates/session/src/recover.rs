//! Resumes the sessions of the previous run.
//!
//! # Invariants
//! - Every session that the log does not call ended is either restarted from its last committed
//!   round, or left as it is if this host cannot continue it.
//! - Nothing that had begun is begun again.

use std::collections::HashSet;
use std::sync::Arc;

use super::actor::resume::ResumeState;
use super::actor::{sleep, takes_over};
use super::create::{key_for, seal_context};
use super::error::CreateError;
use super::handle::IdleState;
use super::ports::{Generation, MigrateError};
use super::registry::SleepingClocks;
use super::retry::when_possible;
use super::seal::SealError;
use super::sessions::Sessions;
use super::shared::SessionsShared;
use lucid_types::ids::SessionId;
use lucid_types::log::{LivingSession, LogError, SessionStatus};
use lucid_types::wit::policy::Snapshot;

/// How many sessions are read at once at a start.
const AT_ONCE: usize = 256;

/// Why this host cannot continue a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResumeError {
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
        let asleep = registry.asleep().map(|(_, sleeping)| sleeping.idle_state);
        let live = registry.live().map(|session| *session.idle_state.lock());
        let states = asleep.chain(live);
        states.filter(|state| *state == IdleState::Held).count()
    }

    async fn resume_all(&self, hold_all: bool) -> Result<usize, LogError> {
        let log = &self.shared.deps.log;
        let mut ids = when_possible(|| log.living_ids()).await?;
        // Those that another attempt resumed before it failed.
        ids.retain(|id| self.shared.registry.lock().get(id).is_none());
        let mut count = 0;
        // In pieces, since most of what is read is needed for a moment only: who waits sleeps on.
        for ids in ids.chunks(AT_ONCE) {
            for mut session in when_possible(|| log.living(ids.to_vec(), None)).await? {
                let row = &mut session.row;
                row.held |= hold_all;
                // A session that was never started waits anyway, and one that is over is cleaned up
                // in any case.
                row.held &= row.status == SessionStatus::Running;
                let held = row.held;
                count += usize::from(self.resume(session) && !held);
            }
        }
        // The deployment may have changed meanwhile.
        self.shared.wake_outdated().await;
        self.restore_positions().await;
        Ok(count)
    }

    /// Has a session of the last run go on: asleep if it waits, or held.
    fn resume(&self, living: LivingSession) -> bool {
        let id = living.row.fixed.id;
        let generation = self.shared.deps.deployment.borrow().clone();
        let mut found = match self.shared.resume_state(living, generation) {
            Ok(found) => found,
            Err(reason) => {
                tracing::error!(session = %id, %reason, "a session cannot go on; it stays as it is until the host is started with what it needs");
                return false;
            }
        };
        sleep::count_slept_time(&self.shared, &mut found);
        if let Some(sleeping) = sleep::after_restart(&self.shared, &found) {
            let fixed = &found.fixed;
            let (project_id, repo_url) = (fixed.project_id.as_deref(), fixed.repo_url.as_deref());
            let work = (&fixed.user, project_id, &*fixed.task, repo_url);
            self.shared.register_asleep(id, work, sleeping);
            return true;
        }
        let is_created = found.status == SessionStatus::Created;
        let session = self.shared.assemble(id, found);
        self.shared.register(&session);
        if !is_created {
            // A session that was never started still waits for its client.
            self.start(&session);
        }
        true
    }
}

impl SessionsShared {
    /// Returns what is needed to go on with a session of the log in a generation of the deployment.
    pub(super) fn resume_state(
        &self,
        living: LivingSession,
        generation: Arc<Generation>,
    ) -> Result<ResumeState, ResumeError> {
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
                .map(|sealed| self.deps.sealer.open_secret(sealed, &context));
            opened.transpose()
        };
        let state = row.state.take();
        let state = state.map(|(schema, bytes)| Snapshot { schema, bytes });
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
        let api_key = open(&row.fixed.api_key, &key_for)?;
        let git_token = open(&row.fixed.git_token, "git-token")?;
        Ok(ResumeState {
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
            clocks: SleepingClocks::default(),
        })
    }
}
