//! Owns live sessions: making them, finding them, ending them, and going on with them after a
//! restart.
//!
//! What always holds: a session that is found was asked for by its user. What a session is told and
//! does is in the log before anybody sees it, so `recover` goes on where the last host stopped, and
//! no effect is run a second time. Sessions share nothing but the store; one that fails takes no
//! other along.

mod actor;
mod budget;
mod clock;
mod compare;
mod create;
mod details;
mod doors;
mod effects;
mod feed;
mod frames;
mod grace;
mod intake;
mod kept_positions;
mod last_words;
mod live;
mod ports;
mod positions;
mod prompt;
mod record;
mod recover;
mod registry;
mod replay;
mod retention;
mod shadow;
mod share;
mod stream;
mod subscription;
mod tools;

#[cfg(test)]
mod tests;

pub(crate) use compare::{difference, readable};
pub use create::{CreateError, NewSession, OpenChange};
pub use details::{Details, DetailsError};
pub use frames::{CONTENT_LENGTH, EventDraft, Features, THOUGHT_LENGTH, dollars, kind_of, render};
pub use live::{AttachGuard, Runs, Session};
pub use ports::{
    ChangeOpened, ChangeRequest, Changes, DeltaKind, DeltaSink, Deployment, Drawn, Generation,
    Meter, ModelAnswer, ModelFailure, ModelRequest, Models, NoticeSink, Offers, OutputSink, Place,
    PlaceError, PlaceSpec, Places, Policies, Policy, PolicyInfo, Provider, Spent, Stepped, Took,
    ToolDone,
};
pub use positions::{Loss, Position};
pub use replay::{Replay, ReplayError};
pub use retention::WorkspaceLookupError;
pub use shadow::{Bounds as ShadowBounds, Difference, Differs, Shadowed};
pub use share::{Share, Turn};
pub use subscription::{Batch, Subscription};
pub use tools::{EventSink, NoTools, SEPARATOR, SessionTools, Showing, Tools, ToolsSpec};

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

use crate::auth::UserId;
use crate::disk_reserve::Reserve;
use crate::seal::Sealer;
use crate::store::{Store, Transient};

use live::held;
use registry::{Registry, Work};

/// Names a session for its whole life, across restarts.
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

/// With which code and words a connection is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// A WebSocket close code: 1000 where the session is over, any other where the client may come
    /// again.
    pub code: u16,
    /// A sentence.
    pub reason: String,
    /// The same with what a close has no room for, where there is more to say.
    recorded: Option<String>,
    /// Nobody wished for the end, so the session's files stay for the retention time.
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

    /// The session is over, and nobody wished that. What files it has stay for so long.
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

    /// The sentence of the log, and of frames that have room for it.
    fn recorded(&self) -> &str {
        self.recorded.as_deref().unwrap_or(&self.reason)
    }

    /// The user stopped it.
    pub fn stopped() -> Self {
        Self::done("Stopping the session.")
    }

    /// The host stops, and the session goes on when it is back.
    pub(crate) fn restarting() -> Self {
        let reason = "The server restarts; the session goes on afterwards.";
        Self::new(RESTARTING, reason, true)
    }

    /// The session goes no further in this host, which failed.
    pub(crate) fn failed(reason: &str) -> Self {
        Self::new(1011, reason, true)
    }

    /// Whether it is over in this host because that stops.
    pub(crate) fn is_restart(&self) -> bool {
        self.code == RESTARTING
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// There is no more to come.
    #[error("The session has ended.")]
    Over,
    /// Too many messages wait already.
    #[error("The session has not yet taken the messages before this one. Try again in a moment.")]
    Busy,
    /// The log did not take it.
    #[error("The server could not write the message down. Try again in a moment.")]
    Unwritten,
}

/// Why a session is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No session has this id, or it has ended.
    #[error("Session not found.")]
    NotFound,
    /// It is another user's.
    #[error("The session belongs to another user.")]
    NotYours,
}

/// What sessions may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Model calls in one task.
    pub iterations: u32,
    /// Tokens of one session, where there is a limit.
    pub session_tokens: Option<u64>,
    /// What one session may cost, in millionths of a US dollar, where there is a limit.
    pub session_cost: Option<u64>,
    /// How long one task may take.
    pub task_time: Duration,
    /// How long a session goes on with nobody attached; one that waits for its user's answer keeps only
    /// its sandbox so long.
    pub grace: Duration,
    /// How long the workspace of a session is kept that ended without its user's wish.
    pub retention: Duration,
    /// Live sessions of one user.
    pub sessions_per_user: usize,
}

/// All that sessions need.
pub struct Deps {
    /// The log.
    pub store: Store,
    /// For the secrets in the log.
    pub sealer: Sealer,
    /// Who decides and who answers, now.
    pub deployment: Deployment,
    /// Where work happens.
    pub places: Arc<dyn Places>,
    /// Who opens the changes that users want of it.
    pub changes: Arc<dyn Changes>,
    /// What of the disk is kept for the log.
    pub reserve: Reserve,
    /// What sessions may use.
    pub limits: Limits,
}

/// A session in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub session_id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// All of the task.
    pub task: String,
    /// Whether more can happen in it.
    pub is_alive: bool,
    /// RFC 3339.
    pub created_at: String,
}

/// All live sessions. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

/// How many sessions can be looked for and made at a time.
const TURNS: usize = 64;

struct Shared {
    deps: Deps,
    halt: CancellationToken,
    /// The time for what still runs when the host halts is up.
    hurry: CancellationToken,
    /// What sessions that came to rest left.
    left: Mutex<Paused>,
    actors: TaskTracker,
    registry: Mutex<Registry>,
    hasher: RandomState,
    /// Held while a session is looked for and made, one for work of the same hash.
    turns: [tokio::sync::Mutex<()>; TURNS],
    /// For sessions that move to a newer generation with nothing else to do: so many at a time, so that
    /// those that have something to do, new ones first of all, need not wait for all of them.
    moves: Arc<Semaphore>,
}

impl Sessions {
    /// No sessions yet; call [`Sessions::recover`] for those of the last run. Needs a tokio runtime.
    pub fn new(deps: Deps) -> Self {
        let shared = Arc::new(Shared {
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
        tokio::spawn(grace::sweep(
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
        tokio::spawn(clock::watch(Arc::downgrade(&shared), shared.halt.clone()));
        Self { shared }
    }

    /// Starts a session that is not started yet.
    pub fn start(&self, session: &Arc<Session>) {
        session.launch();
    }

    /// A live session of this user.
    pub fn get(&self, id: &SessionId, user: &UserId) -> Result<Arc<Session>, LookupError> {
        let session = held(&self.shared.registry)
            .by_id
            .get(id)
            .cloned()
            .ok_or(LookupError::NotFound)?;
        if session.about.user == *user {
            Ok(session)
        } else {
            Err(LookupError::NotYours)
        }
    }

    /// The user's live sessions, the newest first.
    pub fn list(&self, user: &UserId) -> Vec<Summary> {
        let registry = held(&self.shared.registry);
        let ids = registry.by_user.get(user).into_iter().flatten();
        let mut found: Vec<_> = ids
            .filter_map(|id| registry.by_id.get(id))
            .cloned()
            .collect();
        drop(registry);
        found
            .sort_by_key(|session| std::cmp::Reverse((session.about.created_at, session.about.id)));
        let summary = |session: Arc<Session>| Summary {
            session_id: session.about.id,
            user_id: session.about.user.clone(),
            task: session.about.task.to_string(),
            is_alive: session.is_alive(),
            created_at: frames::timestamp(session.about.created_at),
        };
        found.into_iter().map(summary).collect()
    }

    /// A session of this user that does the very same work, with a client, within the
    /// grace time, or waiting for its user's answer.
    pub fn find_same(
        &self,
        user: &UserId,
        project_id: Option<&str>,
        task: &str,
        repo_url: Option<&str>,
    ) -> Option<Arc<Session>> {
        let work: Work<'_> = (user, project_id, task, repo_url);
        let registry = held(&self.shared.registry);
        let id = registry.by_work.get(&self.shared.hasher.hash_one(work))?;
        registry
            .by_id
            .get(id)
            .filter(|session| session.work() == work && session.is_alive())
            .cloned()
    }

    /// Ends a session; returns when nothing is left of it but its log. False where that it ended could not
    /// be written, so that it goes on at the next start.
    pub async fn stop(&self, id: &SessionId) -> bool {
        let Some(session) = held(&self.shared.registry).by_id.get(id).cloned() else {
            return true;
        };
        session.stop(CloseReason::stopped());
        let mut head = session.feed.watch();
        // Fails only where the session is gone, which is what is waited for.
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

    /// Whether a session of this user that does not live here goes on at the next start, or may do so where
    /// the log cannot be read.
    pub async fn goes_on(&self, id: &SessionId, user: &UserId) -> bool {
        match self.details(id, user).await {
            Ok(details) => details.is_alive,
            Err(DetailsError::Lookup(_)) => false,
            Err(DetailsError::Store(_)) => true,
        }
    }

    /// Removes what may be left of the files of a session that is over and gone from the log.
    pub async fn remove_files(&self, user: &UserId, session: String) {
        let spec = PlaceSpec {
            session,
            user: user.to_string(),
            ..PlaceSpec::default()
        };
        let session = spec.session.clone();
        if let Err(cause) = self.shared.deps.places.wipe(spec).await {
            tracing::warn!(
                session,
                cause,
                "the files of a deleted session could not be removed"
            );
        }
    }

    /// Why the log cannot be written; none where it can.
    pub fn log_failure(&self) -> Option<Transient> {
        self.shared.deps.store.health().failure()
    }

    /// A sentence where what is left of the disk is kept for the log.
    pub async fn disk_shortage(&self) -> Option<String> {
        self.shared.deps.reserve.looked_at().await
    }

    /// How many sessions live.
    pub fn count(&self) -> usize {
        held(&self.shared.registry).by_id.len()
    }

    /// How many of them work with which plugins.
    pub fn count_by_plugins(&self) -> HashMap<Runs, usize> {
        let mut counts = HashMap::new();
        for session in held(&self.shared.registry).by_id.values() {
            *counts.entry(session.runs()).or_default() += 1;
        }
        counts
    }

    /// How many of them have a workspace to work in.
    pub fn count_with_workspace(&self) -> usize {
        held(&self.shared.registry)
            .by_id
            .values()
            .filter(|session| session.workspace.get().is_some())
            .count()
    }

    /// Ends what runs, but no session: they go on at the next start. Returns what it left.
    pub async fn shutdown(&self) -> Paused {
        self.shut_down_within(Duration::ZERO).await
    }

    /// What sessions that came to rest so far left.
    pub fn take_paused(&self) -> Paused {
        std::mem::take(&mut *held(&self.shared.left))
    }

    /// The same; commands that run may come to their end for so long.
    pub async fn shut_down_within(&self, patience: Duration) -> Paused {
        // Before they are halted, since nobody knows them afterwards.
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
        if let Err(cause) = shared.deps.store.note_uptime().await {
            tracing::warn!(%cause, "the host's uptime was not noted");
        }
        self.take_paused()
    }
}

/// What a host that came to rest left to the next start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paused {
    /// Sessions that go on then.
    pub sessions: usize,
    /// The commands that were cut off, each with its session.
    pub commands: Vec<(SessionId, String)>,
}

impl Shared {
    /// One session came to rest, and this was cut off for it.
    fn paused(&self, session: &Session, command: Option<String>) {
        let mut left = held(&self.left);
        left.sessions += 1;
        left.commands
            .extend(command.map(|command| (session.about.id, command)));
    }
}
