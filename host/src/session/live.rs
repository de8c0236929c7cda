//! Owns a session as the rest of the host holds it: its name, its queue, who is attached, and what
//! was shown last.
//!
//! What always holds: only what is committed is published. The last frames are kept, at most 32 and
//! 16 KB, however long the session lives; everything older is in the log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::auth::UserId;
use crate::store::{self, Store};
use crate::workspace::Workspace;

use super::ports::{Mailbox, News};
use super::subscription::Subscription;
use super::{CloseReason, NotTaken, SessionId};

/// Frames that are kept in memory.
const RING_FRAMES: usize = 32;
/// Bytes that they may have together.
const RING_BYTES: usize = 16 * 1024;
/// Deltas that a slow reader may be behind before it loses some.
const DELTAS: usize = 128;

/// A session that is alive, or just ended.
pub struct Session {
    pub(super) about: About,
    pub(super) store: Store,
    pub(super) mailbox: Mailbox,
    pub(super) workspace: OnceLock<Arc<Workspace>>,
    pub(super) stop: CancellationToken,
    pub(super) head: watch::Sender<Head>,
    pub(super) closing: OnceLock<CloseReason>,
    pub(super) launch: Mutex<Option<Launch>>,
    ring: Mutex<Ring>,
    deltas: OnceLock<broadcast::Sender<Arc<str>>>,
    attached: Mutex<Attached>,
}

/// Starts the actor; called at most once.
pub(super) type Launch = Box<dyn FnOnce(Arc<Session>) + Send>;

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// The last published frame.
    pub(super) seq: u64,
    /// Nothing more will come.
    pub(super) ended: bool,
}

#[derive(Default)]
struct Ring {
    frames: VecDeque<(u64, Arc<str>)>,
    bytes: usize,
}

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
            head: watch::Sender::new(Head { seq, ended: false }),
            closing: OnceLock::new(),
            launch: Mutex::new(Some(launch)),
            ring: Mutex::default(),
            deltas: OnceLock::new(),
            attached: Mutex::new(Attached {
                clients: 0,
                since: Instant::now(),
            }),
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
        !self.head.borrow().ended && self.closing.get().is_none()
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
            let written = store.write(move |connection| {
                let number = store::keep_message(connection, &id, &text)?;
                Ok(News::Message(number, text))
            });
            written.await.map(|news| {
                room.send(Box::new(news));
            })
        });
        match kept.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(cause)) => {
                tracing::error!(session = %self.about.id, %cause, "a message could not be written down");
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

    /// Since when nobody is attached; none while somebody is.
    pub(super) fn alone_since(&self) -> Option<Instant> {
        let attached = held(&self.attached);
        (attached.clients == 0).then_some(attached.since)
    }

    /// Everything after a sequence number, and then what comes. 0 is from the beginning.
    pub fn subscribe(self: &Arc<Self>, last_seq: u64) -> Subscription {
        Subscription::new(self.clone(), last_seq)
    }

    /// Shows what was committed.
    pub(super) fn publish(&self, first: u64, frames: &[Arc<str>]) {
        if frames.is_empty() {
            return;
        }
        {
            let mut ring = held(&self.ring);
            for (seq, frame) in (first..).zip(frames) {
                ring.bytes += frame.len();
                ring.frames.push_back((seq, frame.clone()));
            }
            while ring.frames.len() > RING_FRAMES || ring.bytes > RING_BYTES {
                let Some((_, oldest)) = ring.frames.pop_front() else {
                    break;
                };
                ring.bytes -= oldest.len();
            }
            ring.frames.shrink_to(RING_FRAMES);
        }
        self.head
            .send_modify(|head| head.seq = first + frames.len() as u64 - 1);
    }

    /// The frames after a number, where all of them are in memory.
    pub(super) fn recent(&self, after: u64) -> Option<Vec<(u64, Arc<str>)>> {
        let ring = held(&self.ring);
        let (oldest, _) = ring.frames.front()?;
        (*oldest <= after + 1).then(|| {
            ring.frames
                .iter()
                .filter(|(seq, _)| *seq > after)
                .cloned()
                .collect()
        })
    }

    /// Nothing more will come.
    pub(super) fn end(&self, reason: CloseReason) {
        let _ = self.closing.set(reason);
        self.head.send_modify(|head| head.ended = true);
    }

    pub(super) fn deltas(&self) -> broadcast::Receiver<Arc<str>> {
        self.deltas
            .get_or_init(|| broadcast::Sender::new(DELTAS))
            .subscribe()
    }

    /// Shows a piece to those who asked; made only where somebody did.
    pub(super) fn delta(&self, frame: impl FnOnce() -> String) {
        if let Some(deltas) = self
            .deltas
            .get()
            .filter(|deltas| deltas.receiver_count() > 0)
        {
            // Fails where the last one left just now.
            let _ = deltas.send(frame().into());
        }
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
