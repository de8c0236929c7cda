//! Live sessions: creating, finding and ending them, and resuming them after a restart.
//!
//! # Invariants
//! - A session is only handed out to its own user.
//! - What a session is told and does is in the log before anybody sees it, so `recover` continues
//!   where the last host stopped, and no effect is run a second time.
//! - Sessions share nothing but the store; a failure in one does not affect another.

mod actor;
mod create;
mod details;
mod effects;
mod handle;
mod ports;
mod recover;
mod registry;
mod replay;
mod retention;
mod retry;
mod round;
mod seal;
mod traffic_split;

pub mod stream;
#[cfg(test)]
mod tests;

pub use self::handle::{AttachGuard, SessionHandle, SessionPlugins};
pub use self::ports::tools::{
    EventSink, NoToolProvider, SEPARATOR, SessionTools, ToolOutput, ToolProvider, ToolsSpec,
};
pub use self::replay::diff::{difference, readable};
pub use self::replay::shadow::{
    DifferenceKind, ShadowDifference, ShadowLimits as ShadowBounds, ShadowReport,
};
pub use self::seal::{SealError, Sealer};
pub use self::stream::frames::{
    CONTENT_LENGTH, EventDraft, Features, THOUGHT_LENGTH, dollars, kind_of, render,
};
pub use self::stream::positions::{ClientPosition, ConnectionLoss};
pub use self::stream::subscription::{Subscription, SubscriptionItem};
pub use self::traffic_split::{SplitSlot, TrafficSplit};
pub use create::{CreateError, NewSession, OpenChange};
pub use details::{SessionDetails, SessionDetailsError};
pub use ports::{
    AvailableModels, BuildAssignment, CallCost, DeltaKind, DeltaSink, Deployment, Environment,
    EnvironmentError, EnvironmentProvider, EnvironmentSpec, Generation, ModelAnswer, ModelFailure,
    ModelRequest, ModelSelection, Models, NewPullRequest, NoticeSink, OpenedPullRequest,
    OutputSink, Policies, PolicyInfo, PullRequests, SessionPolicy, StepOutcome, StepVerdict,
    ToolResultWithEvent, UsageMeter,
};
pub use replay::{Replay, ReplayError};
pub use retention::WorkspaceLookupError;

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZero;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::actor::{idle, task_clock};
use self::stream::frames;
use lucid_types::disk_reserve::DiskReserve;
use lucid_types::log::SessionLog;
use lucid_types::transient::Transient;
use lucid_types::user::UserId;

use self::handle::held;
use registry::{SessionRegistry, WorkKey};

/// A session's identifier, stable for its whole life and across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Uuid);

impl SessionId {
    fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// The close code of a host that stops.
const RESTARTING: u16 = 1012;

/// The code and text with which a connection is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// The WebSocket close code: 1000 if the session is over, any other if the client may
    /// reconnect.
    pub code: u16,
    /// The explanation, a sentence.
    pub reason: String,
    /// The same with what a close has no room for, if there is more to say.
    recorded: Option<String>,
    /// Nobody asked for the end, so the session's files are kept for the retention period.
    keeps_files: bool,
}

impl Default for CloseReason {
    fn default() -> Self {
        Self::done("The session has ended.")
    }
}

impl CloseReason {
    /// The session is over.
    pub fn done(reason: &str) -> Self {
        Self::new(1000, reason, false)
    }

    fn new(code: u16, reason: &str, keeps_files: bool) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            recorded: None,
            keeps_files,
        }
    }

    /// The session is over although nobody asked for it. Its files, if it has any, are kept for that long.
    fn expired(reason: &str, retention: Option<Duration>) -> Self {
        let ended = Self::new(1000, reason, true);
        let Some(kept) = retention.map(retention::sentence) else {
            return ended;
        };
        Self {
            reason: format!("{reason} {kept}."),
            recorded: Some(format!("{reason} {kept}{}.", retention::CONDITION)),
            ..ended
        }
    }

    /// The sentence for the log, and for frames that have room for it.
    fn recorded(&self) -> &str {
        self.recorded.as_deref().unwrap_or(&self.reason)
    }

    /// The user stopped the session.
    pub fn stopped() -> Self {
        Self::done("Stopping the session.")
    }

    /// The host stops, and the session goes on when it is back.
    pub fn restarting() -> Self {
        let reason = "The server restarts; the session goes on afterwards.";
        Self::new(RESTARTING, reason, true)
    }

    /// The session goes no further in this host, which failed.
    pub fn failed(reason: &str) -> Self {
        Self::new(1011, reason, true)
    }

    /// Whether it is over in this host because that stops.
    pub fn is_restart(&self) -> bool {
        self.code == RESTARTING
    }
}

/// Why a message was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageRejected {
    /// The session is over.
    #[error("The session has ended.")]
    Over,
    /// Too many messages are waiting already.
    #[error("The session has not yet taken the messages before this one. Try again in a moment.")]
    Busy,
    /// The log could not be written.
    #[error("The server could not write the message down. Try again in a moment.")]
    Unwritten,
}

/// Why a session was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No live session has this id.
    #[error("Session not found.")]
    NotFound,
    /// The session belongs to another user.
    #[error("The session belongs to another user.")]
    NotYours,
}

/// The limits of sessions.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Model calls per task.
    pub iterations: u32,
    /// Tokens per session, if limited.
    pub session_tokens: Option<u64>,
    /// Cost per session in millionths of a US dollar, if limited.
    pub session_cost: Option<u64>,
    /// Maximum duration of one task.
    pub task_time: Duration,
    /// How long an idle session lives with nobody attached. A session that waits for its user's
    /// answer loses only its sandbox after this time.
    pub grace: Duration,
    /// How long the workspace of a session is kept that ended without its user's request.
    pub retention: Duration,
    /// Live sessions per user.
    pub sessions_per_user: usize,
}

/// The dependencies of [`Sessions`].
pub struct SessionDeps {
    /// The log.
    pub log: Arc<dyn SessionLog>,
    /// Seals the secrets in the log.
    pub sealer: Sealer,
    /// The current policies and models.
    pub deployment: Deployment,
    /// The provider of execution environments.
    pub environments: Arc<dyn EnvironmentProvider>,
    /// Opens the pull requests that users request.
    pub pull_requests: Arc<dyn PullRequests>,
    /// The disk space that is reserved for the log.
    pub reserve: DiskReserve,
    /// The limits of each session.
    pub limits: SessionLimits,
}

/// A session in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    /// The session's id.
    pub session_id: SessionId,
    /// The user that owns the session.
    pub user_id: UserId,
    /// The full text of the task.
    pub task: String,
    /// Whether the session can still continue.
    pub is_alive: bool,
    /// Creation time (RFC 3339).
    pub created_at: String,
}

/// All live sessions. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<SessionsShared>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

/// The number of locks for concurrent lookups and creations.
const TURNS: usize = 64;

struct SessionsShared {
    deps: SessionDeps,
    halt: CancellationToken,
    /// Cancelled when the time for what still runs at a shutdown is up.
    hurry: CancellationToken,
    /// What sessions that have come to rest left behind.
    left: Mutex<PausedSessions>,
    actors: TaskTracker,
    registry: Mutex<SessionRegistry>,
    hasher: RandomState,
    /// Held while a session is looked up and created, one lock per hash of the work.
    turns: [tokio::sync::Mutex<()>; TURNS],
    /// Limits how many sessions move to a newer generation at a time with nothing else to do, so
    /// that those that have something to do, new ones above all, need not wait for all of them.
    moves: Arc<Semaphore>,
}

impl Sessions {
    /// Creates an empty set; call [`Sessions::recover`] for the sessions of the last run. Needs a
    /// tokio runtime.
    pub fn new(deps: SessionDeps) -> Self {
        let shared = Arc::new(SessionsShared {
            deps,
            halt: CancellationToken::new(),
            hurry: CancellationToken::new(),
            left: Mutex::default(),
            actors: TaskTracker::new(),
            registry: Mutex::default(),
            hasher: RandomState::new(),
            turns: [const { tokio::sync::Mutex::const_new(()) }; TURNS],
            moves: Arc::new(Semaphore::new(
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

    /// Starts a session that has not been started.
    pub fn start(&self, session: &Arc<SessionHandle>) {
        session.launch();
    }

    /// Returns a live session of this user.
    pub fn get(&self, id: &SessionId, user: &UserId) -> Result<Arc<SessionHandle>, LookupError> {
        let session = held(&self.shared.registry)
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
        let registry = held(&self.shared.registry);
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
        let registry = held(&self.shared.registry);
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
        let Some(session) = held(&self.shared.registry).by_id.get(id).cloned() else {
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

    /// Whether a session of this user that does not live here continues at the next start. True as well
    /// if the log cannot be read.
    pub async fn is_resumable(&self, id: &SessionId, user: &UserId) -> bool {
        match self.details(id, user).await {
            Ok(details) => details.is_alive,
            Err(SessionDetailsError::Lookup(_)) => false,
            Err(SessionDetailsError::Log(_)) => true,
        }
    }

    /// Removes any remaining files of a session that is over and no longer in the log.
    pub async fn remove_files(&self, user: &UserId, session: String) {
        let spec = EnvironmentSpec {
            session,
            user: user.to_string(),
            ..EnvironmentSpec::default()
        };
        let session = spec.session.clone();
        if let Err(cause) = self.shared.deps.environments.remove(spec).await {
            tracing::warn!(
                session,
                cause,
                "the files of a deleted session could not be removed"
            );
        }
    }

    /// Why the log cannot be written at the moment, or `None` if it can.
    pub fn log_failure(&self) -> Option<Transient> {
        self.shared.deps.log.health().failure()
    }

    /// Returns an explanation if the remaining disk space is reserved for the log.
    pub async fn disk_shortage(&self) -> Option<String> {
        self.shared.deps.reserve.check_in_background().await
    }

    /// The number of live sessions.
    pub fn count(&self) -> usize {
        held(&self.shared.registry).by_id.len()
    }

    /// The number of live sessions for each set of plugins.
    pub fn count_by_plugins(&self) -> HashMap<SessionPlugins, usize> {
        let mut counts = HashMap::new();
        for session in held(&self.shared.registry).by_id.values() {
            *counts.entry(session.plugins()).or_default() += 1;
        }
        counts
    }

    /// The number of live sessions that have a workspace.
    pub fn count_with_workspace(&self) -> usize {
        held(&self.shared.registry)
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
        std::mem::take(&mut *held(&self.shared.left))
    }

    /// Like [`Sessions::shutdown`], but gives running commands up to `patience` to finish.
    pub async fn shut_down_within(&self, patience: Duration) -> PausedSessions {
        // Before the sessions halt, since their positions are unknown afterwards.
        self.keep_positions().await;
        let shared = &self.shared;
        if patience.is_zero() {
            shared.hurry.cancel();
        }
        shared.halt.cancel();
        shared.actors.close();
        let rest = shared.actors.wait();
        if timeout(patience, rest).await.is_err() {
            shared.hurry.cancel();
            shared.actors.wait().await;
        }
        if let Err(cause) = shared.deps.log.note_uptime().await {
            tracing::warn!(%cause, "the host's uptime was not noted");
        }
        self.take_paused()
    }
}

/// What a stopping host left for the next start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PausedSessions {
    /// The number of sessions that resume then.
    pub sessions: usize,
    /// The commands that were interrupted, each with its session.
    pub commands: Vec<(SessionId, String)>,
}

impl SessionsShared {
    /// Records that a session came to rest and which command was interrupted for it, if any.
    fn paused(&self, session: &SessionHandle, command: Option<String>) {
        let mut left = held(&self.left);
        left.sessions += 1;
        left.commands
            .extend(command.map(|command| (session.info.id, command)));
    }
}
