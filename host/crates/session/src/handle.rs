//! A session in memory: its identity, mailbox, feed and attached clients, and the handle by which the
//! rest of the host holds it.
//!
//! # Invariants
//! - A session does not go to sleep while anyone outside the engine has its handle, so that no message
//!   and no subscription ends up with a session that is no longer there.
//! - A user's message is acknowledged only once it is written.
//! - The first reason to end is the one that counts, as far as it could be written.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::detached::to_completion;
use super::message::{ActorMessage, Mailbox};
use super::ports::PolicyInfo;
use super::stream::feed::Feed;
use super::stream::frames::Features;
use super::stream::positions::{ClientPosition, ClientPositions, ConnectionLoss};
use super::stream::subscription::Subscription;
use super::types::{CloseReason, Closing, MessageRejected};
use super::user_logs::UserLogs;
use lucid_types::digest::Digest;
use lucid_types::ids::SessionId;
use lucid_types::log::{LogError, SessionLog};
use lucid_types::user::UserId;

/// The state of a session, as far as it matters while nobody is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdleState {
    /// Being set up, or running a task.
    Working,
    /// Waiting for its user's answer and nothing else. Holds the host's uptime at the last
    /// activity, in milliseconds.
    Asking(u64),
    /// No task is open, since this instant.
    Idle(Instant),
    /// Not started until its user comes back or an operator asks for it.
    Held,
}

impl IdleState {
    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Asking(_) => "asking",
            Self::Idle(_) => "idle",
            Self::Held => "held",
        }
    }
}

/// A session's handle for the rest of the host. While it is held, the session is kept in memory.
#[derive(Debug)]
pub struct SessionHandle {
    pub(super) session: Arc<Session>,
}

impl Deref for SessionHandle {
    type Target = Arc<Session>;

    fn deref(&self) -> &Arc<Session> {
        &self.session
    }
}

/// A session that is live or has just ended.
pub struct Session {
    pub(super) info: SessionInfo,
    pub(super) log: Arc<dyn SessionLog>,
    user_logs: Arc<UserLogs>,
    pub(super) mailbox: Mailbox,
    /// Whether the session's files can be read.
    has_workspace: AtomicBool,
    pub(super) stop: CancellationToken,
    pub(super) feed: Arc<Feed>,
    /// The current state; see [`Session::set_idle_state`].
    pub(super) idle_state: Mutex<IdleState>,
    /// The number of the last frame before the session began to wait for its user's answer; 0 if it
    /// is not waiting.
    pub(super) question: watch::Sender<u64>,
    /// Notified when nobody has been attached for a while, so that unneeded resources may be
    /// released.
    pub(super) unattended: Notify,
    /// Notified when the last client has left.
    pub(super) left: Notify,
    pub(super) closing: Arc<Closing>,
    pub(super) launch: Mutex<Option<ActorLauncher>>,
    attached: Mutex<AttachedClients>,
    pub(super) positions: ClientPositions,
    plugins: Mutex<SessionPlugins>,
}

/// The plugins that a session works with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionPlugins {
    /// The policy's name.
    pub policy: String,
    /// The digest of the policy's component.
    pub digest: Digest,
    /// The model provider's name; empty if the policy makes no model calls.
    pub provider: String,
}

impl SessionPlugins {
    /// The plugins of a session with this policy and provider.
    pub(super) fn of(policy: &PolicyInfo, provider: &str) -> Self {
        Self {
            policy: policy.name.clone(),
            digest: policy.digest,
            provider: if policy.calls_models {
                provider.to_owned()
            } else {
                String::new()
            },
        }
    }
}

/// Starts the actor; called at most once.
pub(super) type ActorLauncher = Box<dyn FnOnce(Arc<Session>) + Send>;

struct AttachedClients {
    clients: usize,
    since: Instant,
}

/// The immutable facts about a session.
pub(super) struct SessionInfo {
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
            .field("id", &self.info.id)
            .finish_non_exhaustive()
    }
}

impl SessionHandle {
    /// Accepts a message from the user. When this returns, the message is written and will be
    /// processed once, even after a crash.
    ///
    /// # Errors
    /// Fails if the session is over, if too many messages are waiting already, if the user has
    /// written as much as one may, or if the log could not be written.
    pub async fn message(self: &Arc<Self>, text: impl Into<String>) -> Result<(), MessageRejected> {
        if !self.is_alive() {
            return Err(MessageRejected::Over);
        }
        let permit = self.mailbox.clone().try_reserve_owned();
        let permit = permit.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => MessageRejected::Busy,
            mpsc::error::TrySendError::Closed(_) => MessageRejected::Over,
        })?;
        let text = text.into();
        self.user_logs.admit(&self.info.user, text.len()).await?;
        let queued = self.log.keep_message(self.info.id, &self.info.user, text);
        // Runs to completion even if the client goes away: a message that is written is also
        // delivered, to a session that does not go to sleep meanwhile.
        let handle = self.clone();
        let queued = to_completion(async move {
            let _handle = handle;
            let queued = queued.await?;
            Ok::<_, LogError>(queued.map(|message| {
                let actor_message = ActorMessage::Message(message.number, message.text);
                permit.send(Box::new(actor_message));
            }))
        });
        match queued.await {
            Ok(Ok(Some(()))) => Ok(()),
            Ok(Ok(None)) => Err(MessageRejected::Over),
            Ok(Err(cause)) => {
                tracing::warn!(session = %self.info.id, %cause, "a message could not be written down; its user was told");
                Err(MessageRejected::Unwritten)
            }
            Err(_) => Err(MessageRejected::Unwritten),
        }
    }

    /// Registers a client. The grace period starts when the last guard is dropped.
    pub fn attach(self: &Arc<Self>) -> AttachGuard {
        self.attached.lock().clients += 1;
        AttachGuard {
            handle: self.clone(),
        }
    }

    /// Subscribes to everything after a sequence number. 0 is the beginning.
    pub fn subscribe(self: &Arc<Self>, last_seq: u64) -> Subscription {
        Subscription::new(
            self.clone(),
            self.feed.clone(),
            self.log.clone(),
            (self.info.id, self.info.user.clone()),
            self.closing.clone(),
            last_seq,
        )
    }
}

impl Session {
    /// Creates a session whose last frame so far is `seq`.
    pub(super) fn new(
        about: SessionInfo,
        seq: u64,
        (log, user_logs): (Arc<dyn SessionLog>, Arc<UserLogs>),
        mailbox: Mailbox,
        launch: ActorLauncher,
        plugins: SessionPlugins,
    ) -> Arc<Self> {
        Arc::new(Self {
            info: about,
            log,
            user_logs,
            mailbox,
            has_workspace: AtomicBool::new(false),
            stop: CancellationToken::new(),
            feed: Arc::new(Feed::new(seq)),
            idle_state: Mutex::new(IdleState::Idle(Instant::now())),
            question: watch::Sender::new(0),
            unattended: Notify::new(),
            left: Notify::new(),
            closing: Arc::default(),
            launch: Mutex::new(Some(launch)),
            attached: Mutex::new(AttachedClients {
                clients: 0,
                since: Instant::now(),
            }),
            positions: ClientPositions::default(),
            plugins: Mutex::new(plugins),
        })
    }

    /// The session's id.
    pub fn id(&self) -> &SessionId {
        &self.info.id
    }

    /// The user that owns the session.
    pub fn user(&self) -> &UserId {
        &self.info.user
    }

    /// Returns whether the policy is the built-in mock.
    pub fn is_mock(&self) -> bool {
        self.info.mock
    }

    /// Returns whether the session can still continue.
    pub fn is_alive(&self) -> bool {
        !self.feed.head().ended && self.closing.wish().is_none() && !self.is_paused()
    }

    /// Watches for questions to the user: the number of the frame with the question or of a later
    /// one, or 0 while the session is not waiting for an answer.
    pub fn questions(&self) -> watch::Receiver<u64> {
        self.question.subscribe()
    }

    /// The plugins that the session works with now.
    pub fn plugins(&self) -> SessionPlugins {
        self.plugins.lock().clone()
    }

    /// Sets the plugins that the session works with from here on.
    pub(super) fn set_plugins(&self, policy: &PolicyInfo, provider: &str) {
        *self.plugins.lock() = SessionPlugins::of(policy, provider);
    }

    /// Returns whether the session has a workspace whose files can be read.
    pub fn has_workspace(&self) -> bool {
        self.has_workspace.load(Ordering::Relaxed)
    }

    /// Makes the session's files readable.
    pub(super) fn show_workspace(&self) {
        self.has_workspace.store(true, Ordering::Relaxed);
    }

    /// Ends the session. Returns at once; a subscription reports when it is over.
    pub fn stop(self: &Arc<Self>, reason: CloseReason) {
        // The first reason wins.
        self.closing.end(reason);
        self.stop.cancel();
        // A session that never ran must run in order to end.
        self.launch();
    }

    pub(super) fn launch(self: &Arc<Self>) {
        let launch = self.launch.lock().take();
        if let Some(launch) = launch {
            launch(self.clone());
        }
    }

    /// Registers the connection of a client that does not count frames and is given everything
    /// after `from`. Call [`Session::close_position`] when the connection is lost or closed.
    pub fn open_position(&self, features: Features, from: u64) -> Arc<ClientPosition> {
        self.positions.open(features, from)
    }

    /// Records that a client's connection was lost, or that the client closed it.
    pub fn close_position(&self, position: &Arc<ClientPosition>, loss: Option<ConnectionLoss>) {
        self.positions.close(position, loss);
    }

    /// Returns the last frame that a returning client has, if its connection was lost and it comes
    /// back with its first message.
    pub async fn lost_position(&self, features: Features) -> Option<u64> {
        self.positions.find(features).await
    }

    /// Takes up again what is known of a session that slept: its state, and since when nobody has been
    /// attached.
    pub(super) fn wake(&self, idle_state: IdleState, unattended_since: Instant) {
        *self.idle_state.lock() = idle_state;
        self.attached.lock().since = unattended_since;
    }

    /// Since when nobody has been attached, or `None` while somebody is.
    pub(super) fn unattended_since(&self) -> Option<Instant> {
        let attached = self.attached.lock();
        (attached.clients == 0).then_some(attached.since)
    }

    /// How long nobody has been attached, or `None` while somebody is.
    pub(super) fn unattended_for(&self) -> Option<Duration> {
        self.unattended_since().map(|since| since.elapsed())
    }

    /// Marks the end: nothing more will come.
    pub(super) fn end(&self, reason: CloseReason) {
        self.closing.end(reason);
        self.feed.end();
    }

    /// Ends the session's life in this host while it lives on in the log: nobody who asked for its
    /// end is told that it ended.
    pub(super) fn pause(&self, reason: CloseReason) {
        self.closing.pause(reason);
        self.feed.end();
    }

    /// Returns whether the session lives on in the log although nothing more will come from this
    /// host.
    pub(super) fn is_paused(&self) -> bool {
        self.closing.is_paused()
    }

    /// The reason with which its clients' connections are closed.
    pub fn close_reason(&self) -> CloseReason {
        self.closing.reason()
    }
}

/// An attached client.
#[derive(Debug)]
pub struct AttachGuard {
    handle: Arc<SessionHandle>,
}

impl Drop for AttachGuard {
    fn drop(&mut self) {
        let mut attached = self.handle.attached.lock();
        attached.clients -= 1;
        attached.since = Instant::now();
        if attached.clients == 0 {
            self.handle.left.notify_one();
        }
    }
}
