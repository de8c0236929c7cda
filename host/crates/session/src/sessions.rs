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
use super::error::{GetSessionError, WakeError};
use super::handle::{SessionHandle, SessionPlugins};
use super::ports::EnvironmentSpec;
use super::registry::{SessionEntry, WorkKey};
use super::retention;
use super::shared::{CREATION_LOCKS, SessionDeps, SessionsShared};
use super::sleeping;
use super::stream::frames;
use super::types::{CloseReason, LookupError, PausedSessions, SessionSummary};
use super::user_logs::{UserLogExceeded, UserLogs};
use lucid_types::ids::SessionId;
use lucid_types::log::LogError;
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
            draining: CancellationToken::new(),
            halt: CancellationToken::new(),
            deadline_passed: CancellationToken::new(),
            paused_sessions: Mutex::default(),
            actors: TaskTracker::new(),
            registry: Mutex::default(),
            hasher: RandomState::new(),
            creation_locks: [const { tokio::sync::Mutex::const_new(()) }; CREATION_LOCKS],
            wakes_changed: Arc::default(),
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
        let (weak, halt) = (Arc::downgrade(&shared), &shared.halt);
        tokio::spawn(task_clock::watch(weak.clone(), halt.clone()));
        tokio::spawn(sleeping::watch_time(weak.clone(), halt.clone()));
        tokio::spawn(sleeping::watch_deployment(weak, halt.clone()));
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

    /// Returns a session of this user that has not ended, and wakes it if it sleeps.
    ///
    /// # Errors
    /// Fails if there is none, if it is another user's, or if it sleeps and cannot be woken.
    pub async fn get(
        &self,
        id: &SessionId,
        user: &UserId,
    ) -> Result<Arc<SessionHandle>, GetSessionError> {
        self.shared.registry.lock().find(id, user)?;
        let session = self.shared.awake(*id, Some(user)).await?;
        Ok(session.ok_or(LookupError::NotFound)?)
    }

    /// Returns the user's sessions that have not ended, newest first.
    ///
    /// # Errors
    /// Fails if some sleep and the log cannot be read.
    pub async fn list(&self, user: &UserId) -> Result<Vec<SessionSummary>, LogError> {
        let (mut live, mut asleep) = (Vec::new(), Vec::new());
        for (id, entry) in self.shared.registry.lock().of_user(user) {
            match entry {
                SessionEntry::Asleep(_) => asleep.push(id),
                SessionEntry::Live(session) => live.push(session.clone()),
            }
        }
        let of_live = live.iter().map(|session| {
            let (info, is_alive) = (&session.info, session.is_alive());
            (info.created_at, info.id, info.task.to_string(), is_alive)
        });
        let mut found: Vec<_> = of_live.collect();
        if !asleep.is_empty() {
            let tasks = self.shared.deps.log.tasks(asleep, user).await?.into_iter();
            found.extend(tasks.map(|task| (task.created_at, task.session, task.text, true)));
        }
        found.sort_by_key(|(created_at, id, ..)| std::cmp::Reverse((*created_at, *id)));
        let summary = |(created_at, session_id, task, is_alive)| SessionSummary {
            session_id,
            user_id: user.clone(),
            task,
            is_alive,
            created_at: frames::timestamp(created_at),
        };
        Ok(found.into_iter().map(summary).collect())
    }

    /// Finds a session of this user that does the same work and has a client attached, is within
    /// the grace period, or waits for its user's answer. Wakes it if it sleeps.
    ///
    /// # Errors
    /// Fails if it sleeps and cannot be woken.
    pub async fn find_same(
        &self,
        user: &UserId,
        project_id: Option<&str>,
        task: &str,
        repo_url: Option<&str>,
    ) -> Result<Option<Arc<SessionHandle>>, WakeError> {
        let work: WorkKey<'_> = (user, project_id, task, repo_url);
        let hash = self.shared.hasher.hash_one(work);
        let newest = self.shared.registry.lock().newest(hash);
        let Some(id) = newest else {
            return Ok(None);
        };
        let session = self.shared.awake(id, Some(user)).await?;
        Ok(session.filter(|session| session.work() == work && session.is_alive()))
    }

    /// Ends a session and returns when only its log is left. Returns `false` if the end could not
    /// be written, in which case the session resumes at the next start.
    pub async fn stop(&self, id: &SessionId) -> bool {
        let session = match self.shared.awake(*id, None).await {
            Ok(Some(session)) => session,
            Ok(None) => return true,
            Err(cause) => {
                tracing::warn!(session = %id, %cause, "a session was to be stopped, and sleeps on: it could not be woken");
                return false;
            }
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
        self.shared.registry.lock().len()
    }

    /// The number of sessions that sleep.
    pub fn count_asleep(&self) -> usize {
        self.shared.registry.lock().asleep().count()
    }

    /// The number of live sessions for each set of plugins.
    pub fn count_by_plugins(&self) -> HashMap<SessionPlugins, usize> {
        let mut counts = HashMap::new();
        let registry = self.shared.registry.lock();
        for session in registry.live() {
            *counts.entry(session.plugins()).or_default() += 1;
        }
        for (_, sleeping) in registry.asleep() {
            match counts.get_mut(&*sleeping.plugins) {
                Some(count) => *count += 1,
                None => drop(counts.insert((*sleeping.plugins).clone(), 1)),
            }
        }
        counts
    }

    /// The number of sessions of each policy in each state: `working`, `asking`, `idle`, `held` or `asleep`.
    pub fn count_by_state(&self) -> HashMap<(String, &'static str), usize> {
        let mut counts = HashMap::new();
        let registry = self.shared.registry.lock();
        for session in registry.live() {
            let state = session.idle_state.lock().name();
            *counts.entry((session.plugins().policy, state)).or_default() += 1;
        }
        // There may be many, and few sets of plugins.
        let mut asleep = HashMap::<&SessionPlugins, usize>::new();
        for (_, sleeping) in registry.asleep() {
            *asleep.entry(&sleeping.plugins).or_default() += 1;
        }
        for (plugins, count) in asleep {
            *counts
                .entry((plugins.policy.clone(), "asleep"))
                .or_default() += count;
        }
        counts
    }

    /// The number of live sessions that have a workspace.
    pub fn count_with_workspace(&self) -> usize {
        let registry = self.shared.registry.lock();
        let live = registry.live().map(|session| session.has_workspace());
        let asleep = registry
            .asleep()
            .map(|(_, sleeping)| sleeping.has_workspace);
        live.chain(asleep).filter(|has_one| *has_one).count()
    }

    /// Refuses new sessions from here on. Those that there are go on.
    pub fn drain(&self) {
        self.shared.draining.cancel();
    }

    /// Whether new sessions are refused, because the host is about to stop.
    pub fn are_draining(&self) -> bool {
        self.shared.draining.is_cancelled() || self.shared.halt.is_cancelled()
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
        // The others rest as they are.
        shared.paused_sessions.lock().sessions += shared.registry.lock().take_asleep();
        if let Err(cause) = shared.deps.log.note_uptime().await {
            tracing::warn!(%cause, "the host's uptime was not noted");
        }
        self.take_paused()
    }
}
