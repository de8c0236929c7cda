//! The set of all live sessions: looking them up, listing, ending and pausing them.
//!
//! # Invariants
//! - A session is only handed out to its own user.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::actor::{idle, task_clock};
use super::handle::{SessionHandle, SessionPlugins};
use super::ports::EnvironmentSpec;
use super::registry::WorkKey;
use super::retention;
use super::shared::{CREATION_LOCKS, SessionDeps, SessionsShared};
use super::stream::frames;
use super::types::{CloseReason, LookupError, PausedSessions, SessionSummary};
use super::user_logs::{UserLogExceeded, UserLogs};
use lucid_types::ids::SessionId;
use lucid_types::transient::TransientFailure;
use lucid_types::user::UserId;

/// All live sessions. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    pub(super) shared: Arc<SessionsShared>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

impl Sessions {
    /// Creates an empty set; call [`Sessions::recover`] for the sessions of the last run. Needs a
    /// tokio runtime.
    pub fn new(deps: SessionDeps) -> Self {
        let user_logs = UserLogs::new(deps.log.clone(), deps.user_logs);
        let shared = Arc::new(SessionsShared {
            deps,
            user_logs: Arc::new(user_logs),
            halt: CancellationToken::new(),
            deadline_passed: CancellationToken::new(),
            paused_sessions: Mutex::default(),
            actors: TaskTracker::new(),
            registry: Mutex::default(),
            hasher: RandomState::new(),
            creation_locks: [const { tokio::sync::Mutex::const_new(()) }; CREATION_LOCKS],
            move_permits: Arc::new(Semaphore::new(
                std::thread::available_parallelism().map_or(1, NonZero::get),
            )),
        });
        tokio::spawn(idle::sweep(
            Arc::downgrade(&shared),
            shared.halt.clone(),
            shared.deps.limits.grace,
            shared.deps.limits.retention,
        ));
        tokio::spawn(retention::sweep(
            Arc::downgrade(&shared),
            shared.halt.clone(),
            shared.deps.limits.retention,
        ));
        tokio::spawn(task_clock::watch(
            Arc::downgrade(&shared),
            shared.halt.clone(),
        ));
        Self { shared }
    }

    /// Checks that a user may change so many bytes of what is written, and counts them.
    pub fn admit_change(&self, user: &UserId, bytes: usize) -> Result<(), UserLogExceeded> {
        self.shared.user_logs.admit_change(user, bytes)
    }

    /// Starts a session that has not been started.
    pub fn start(&self, session: &Arc<SessionHandle>) {
        session.launch();
    }

    /// Returns a live session of this user.
    pub fn get(&self, id: &SessionId, user: &UserId) -> Result<Arc<SessionHandle>, LookupError> {
        let session = self
            .shared
            .registry
            .lock()
            .by_id
            .get(id)
            .cloned()
            .ok_or(LookupError::NotFound)?;
        if session.info.user == *user {
            Ok(session)
        } else {
            Err(LookupError::NotYours)
        }
    }

    /// Returns the user's live sessions, newest first.
    pub fn list(&self, user: &UserId) -> Vec<SessionSummary> {
        let registry = self.shared.registry.lock();
        let ids = registry.by_user.get(user).into_iter().flatten();
        let mut found: Vec<_> = ids
            .filter_map(|id| registry.by_id.get(id))
            .cloned()
            .collect();
        drop(registry);
        found.sort_by_key(|session| std::cmp::Reverse((session.info.created_at, session.info.id)));
        let summary = |session: Arc<SessionHandle>| SessionSummary {
            session_id: session.info.id,
            user_id: session.info.user.clone(),
            task: session.info.task.to_string(),
            is_alive: session.is_alive(),
            created_at: frames::timestamp(session.info.created_at),
        };
        found.into_iter().map(summary).collect()
    }

    /// Finds a session of this user that does the same work and has a client attached, is within
    /// the grace period, or waits for its user's answer.
    pub fn find_same(
        &self,
        user: &UserId,
        project_id: Option<&str>,
        task: &str,
        repo_url: Option<&str>,
    ) -> Option<Arc<SessionHandle>> {
        let work: WorkKey<'_> = (user, project_id, task, repo_url);
        let registry = self.shared.registry.lock();
        let id = registry.by_work.get(&self.shared.hasher.hash_one(work))?;
        registry
            .by_id
            .get(id)
            .filter(|session| session.work() == work && session.is_alive())
            .cloned()
    }

    /// Ends a session and returns when only its log is left. Returns `false` if the end could not
    /// be written, in which case the session resumes at the next start.
    pub async fn stop(&self, id: &SessionId) -> bool {
        let Some(session) = self.shared.registry.lock().by_id.get(id).cloned() else {
            return true;
        };
        session.stop(CloseReason::stopped());
        let mut head = session.feed.watch();
        // Fails only if the session is gone, which is what is awaited.
        let _ = head.wait_for(|head| head.ended).await;
        if session.is_paused() {
            let reason = session.close_reason().reason;
            tracing::warn!(session = %id, reason, "a session was to be stopped, and goes on at the next start: its end could not be written");
            return false;
        }
        // It may have been ending for another reason.
        self.discard_any(id).await;
        true
    }

    /// Removes any remaining files of a session that is over and no longer in the log.
    pub async fn remove_files(&self, user: &UserId, session: SessionId) {
        let spec = EnvironmentSpec::of(session, user.clone());
        if let Err(cause) = self.shared.deps.environments.remove(spec).await {
            tracing::warn!(
                %session,
                %cause,
                "the files of a deleted session could not be removed"
            );
        }
    }

    /// Why the log cannot be written at the moment, or `None` if it can.
    pub fn log_failure(&self) -> Option<TransientFailure> {
        self.shared.deps.log.health().failure()
    }

    /// Returns an explanation if the remaining disk space is reserved for the log.
    pub async fn disk_shortage(&self) -> Option<String> {
        self.shared.deps.reserve.check_in_background().await
    }

    /// The number of live sessions.
    pub fn count(&self) -> usize {
        self.shared.registry.lock().by_id.len()
    }

    /// The number of live sessions for each set of plugins.
    pub fn count_by_plugins(&self) -> HashMap<SessionPlugins, usize> {
        let mut counts = HashMap::new();
        for session in self.shared.registry.lock().by_id.values() {
            *counts.entry(session.plugins()).or_default() += 1;
        }
        counts
    }

    /// The number of live sessions that have a workspace.
    pub fn count_with_workspace(&self) -> usize {
        self.shared
            .registry
            .lock()
            .by_id
            .values()
            .filter(|session| session.has_workspace())
            .count()
    }

    /// Stops everything that runs, but ends no session: they resume at the next start. Returns what
    /// was left behind.
    pub async fn shutdown(&self) -> PausedSessions {
        self.shut_down_within(Duration::ZERO).await
    }

    /// Takes what sessions that have come to rest so far left behind.
    pub fn take_paused(&self) -> PausedSessions {
        std::mem::take(&mut *self.shared.paused_sessions.lock())
    }

    /// Like [`Sessions::shutdown`], but gives running commands up to `patience` to finish.
    pub async fn shut_down_within(&self, patience: Duration) -> PausedSessions {
        // Before the sessions halt, since their positions are unknown afterwards.
        self.keep_positions().await;
        let shared = &self.shared;
        if patience.is_zero() {
            shared.deadline_passed.cancel();
        }
        shared.halt.cancel();
        shared.actors.close();
        let rest = shared.actors.wait();
        if timeout(patience, rest).await.is_err() {
            shared.deadline_passed.cancel();
            shared.actors.wait().await;
        }
        if let Err(cause) = shared.deps.log.note_uptime().await {
            tracing::warn!(%cause, "the host's uptime was not noted");
        }
        self.take_paused()
    }
}
