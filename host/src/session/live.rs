//! Owns a session as the rest of the host holds it: its name, its queue, its feed, and who is attached.
//!
//! What always holds: a message of the user that was taken is written down first. The first reason to
//! end is the one that holds, as far as it could be written.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::auth::UserId;
use crate::store::{self, Store, StoreError};
use crate::workspace::Workspace;

use super::feed::Feed;
use super::frames::Features;
use super::grace::Standing;
use super::ports::{Mailbox, News, PolicyInfo};
use super::positions::{Loss, Position, Positions};
use super::subscription::Subscription;
use super::{CloseReason, NotTaken, SessionId};

/// How long a message waits for another process's lock on the log. Its client says nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// A session that is alive, or just ended.
pub struct Session {
    pub(super) about: About,
    pub(super) store: Store,
    pub(super) mailbox: Mailbox,
    pub(super) workspace: OnceLock<Arc<Workspace>>,
    pub(super) stop: CancellationToken,
    pub(super) feed: Feed,
    /// What it does; see [`Session::stands`].
    pub(super) standing: Mutex<Standing>,
    /// The number of the last frame before it began to wait for its user's answer; 0 where it does not.
    pub(super) question: watch::Sender<u64>,
    /// Nobody has been there for a while: what is not needed meanwhile may be given back.
    pub(super) unattended: Notify,
    pub(super) closing: OnceLock<CloseReason>,
    /// Why it goes no further in this host, where it is not over for that.
    paused: OnceLock<CloseReason>,
    pub(super) launch: Mutex<Option<Launch>>,
    attached: Mutex<Attached>,
    pub(super) positions: Positions,
    runs: Mutex<Runs>,
}

/// Which of the deployment's plugins a session works with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Runs {
    /// Its policy's name.
    pub policy: String,
    /// Which build of it, by the component's SHA-256 in lower-case hex.
    pub digest: String,
    /// The model provider's name; empty where the policy calls no model.
    pub provider: String,
}

/// Starts the actor; called at most once.
pub(super) type Launch = Box<dyn FnOnce(Arc<Session>) + Send>;

struct Attached {
    clients: usize,
    since: Instant,
}

/// What a session is known by; it never changes.
pub(super) struct About {
    pub(super) id: SessionId,
    pub(super) user: UserId,
    pub(super) project_id: Option<String>,
    pub(super) task: Arc<str>,
    pub(super) repo_url: Option<String>,
    pub(super) mock: bool,
    pub(super) created_at: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.about.id)
            .finish_non_exhaustive()
    }
}

pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// One whose last frame so far is `seq`.
    pub(super) fn new(
        about: About,
        seq: u64,
        store: Store,
        mailbox: Mailbox,
        launch: Launch,
    ) -> Arc<Self> {
        Arc::new(Self {
            about,
            store,
            mailbox,
            workspace: OnceLock::new(),
            stop: CancellationToken::new(),
            feed: Feed::new(seq),
            standing: Mutex::new(Standing::Idle(Instant::now())),
            question: watch::Sender::new(0),
            unattended: Notify::new(),
            closing: OnceLock::new(),
            paused: OnceLock::new(),
            launch: Mutex::new(Some(launch)),
            attached: Mutex::new(Attached {
                clients: 0,
                since: Instant::now(),
            }),
            positions: Positions::default(),
            runs: Mutex::default(),
        })
    }

    /// Its id.
    pub fn id(&self) -> &SessionId {
        &self.about.id
    }

    /// Whose it is.
    pub fn user(&self) -> &UserId {
        &self.about.user
    }

    /// Whether its policy is the rehearsal.
    pub fn is_mock(&self) -> bool {
        self.about.mock
    }

    /// Whether more can happen in it.
    pub fn is_alive(&self) -> bool {
        !self.feed.head().ended && self.closing.get().is_none() && !self.is_paused()
    }

    /// Tells when it begins to wait for its user's answer, by the number of the frame with the question or
    /// a later one; 0 while it does not wait.
    pub fn questions(&self) -> watch::Receiver<u64> {
        self.question.subscribe()
    }

    /// The plugins it works with by now.
    pub fn runs(&self) -> Runs {
        held(&self.runs).clone()
    }

    /// From here on it works with these.
    pub(super) fn set_runs(&self, policy: &PolicyInfo, provider: &str) {
        *held(&self.runs) = Runs {
            policy: policy.name.clone(),
            digest: policy.digest.clone(),
            provider: if policy.calls_models {
                provider.to_owned()
            } else {
                String::new()
            },
        };
    }

    /// Its workspace, once there is one.
    pub fn workspace(&self) -> Option<Arc<Workspace>> {
        self.workspace.get().cloned()
    }

    /// The user says something. When this returns it is written down, and is taken once, also after
    /// a crash. Fails where the session is over, or where the user has said more than it can take
    /// at once.
    pub async fn message(&self, text: impl Into<String>) -> Result<(), NotTaken> {
        if !self.is_alive() {
            return Err(NotTaken::Over);
        }
        let room = self.mailbox.clone().try_reserve_owned();
        let room = room.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Busy,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Over,
        })?;
        let (id, text) = (self.about.id.to_string(), text.into());
        let store = self.store.clone();
        // To its end, also when the client goes meanwhile: what is written is taken.
        let kept = tokio::spawn(async move {
            let written = store.write_within(PATIENCE, move |connection| {
                let number = store::keep_message(connection, &id, &text)?;
                Ok(number.map(|number| News::Message(number, text)))
            });
            let news = written.await?;
            Ok::<_, StoreError>(news.map(|news| {
                room.send(Box::new(news));
            }))
        });
        match kept.await {
            Ok(Ok(Some(()))) => Ok(()),
            Ok(Ok(None)) => Err(NotTaken::Over),
            Ok(Err(cause)) => {
                tracing::warn!(session = %self.about.id, %cause, "a message could not be written down; its user was told");
                Err(NotTaken::Unwritten)
            }
            Err(_) => Err(NotTaken::Unwritten),
        }
    }

    /// Ends the session. Returns at once; a subscription says when it is over.
    pub fn stop(self: &Arc<Self>, reason: CloseReason) {
        // The first reason holds.
        let _ = self.closing.set(reason);
        self.stop.cancel();
        // One that never ran must run to end.
        self.launch();
    }

    pub(super) fn launch(self: &Arc<Self>) {
        let launch = held(&self.launch).take();
        if let Some(launch) = launch {
            launch(self.clone());
        }
    }

    /// Says that a client is there. When the last guard is dropped, the grace time starts.
    pub fn attach(self: &Arc<Self>) -> AttachGuard {
        held(&self.attached).clients += 1;
        AttachGuard {
            session: self.clone(),
        }
    }

    /// A client that does not count frames connects, and is given everything after one of them. Whether it
    /// is lost or closes the connection, [`Session::close_position`] is to be told.
    pub fn open_position(&self, features: Features, from: u64) -> Arc<Position> {
        self.positions.open(features, from)
    }

    /// A client's connection is over: it was lost, or its client closed it.
    pub fn close_position(&self, position: &Arc<Position>, loss: Option<Loss>) {
        self.positions.close(position, loss);
    }

    /// The last frame that a client has whose connection was lost, and that comes back with its first
    /// message.
    pub async fn lost_position(&self, features: Features) -> Option<u64> {
        self.positions.find(features).await
    }

    /// How long nobody has been attached; none while somebody is.
    pub(super) fn alone_for(&self) -> Option<Duration> {
        let attached = held(&self.attached);
        (attached.clients == 0).then(|| attached.since.elapsed())
    }

    /// Everything after a sequence number, and then what comes. 0 is from the beginning.
    pub fn subscribe(self: &Arc<Self>, last_seq: u64) -> Subscription {
        Subscription::new(self.clone(), last_seq)
    }

    /// Nothing more will come.
    pub(super) fn end(&self, reason: CloseReason) {
        let _ = self.closing.set(reason);
        self.feed.end();
    }

    /// Nothing more will come from this host, and for the log the session lives: whoever wished for its end
    /// is not told that it came.
    pub(super) fn pause(&self, reason: CloseReason) {
        let _ = self.paused.set(reason);
        self.feed.end();
    }

    /// Whether it lives on for the log, though nothing more will come from this host.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.get().is_some()
    }

    /// With which words its clients' connections are closed.
    pub fn close_reason(&self) -> CloseReason {
        let reason = self.paused.get().or_else(|| self.closing.get());
        reason.cloned().unwrap_or_default()
    }
}

/// A client that is there.
#[derive(Debug)]
pub struct AttachGuard {
    session: Arc<Session>,
}

impl Drop for AttachGuard {
    fn drop(&mut self) {
        let mut attached = held(&self.session.attached);
        attached.clients -= 1;
        attached.since = Instant::now();
    }
}
