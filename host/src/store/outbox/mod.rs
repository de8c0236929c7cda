//! Owns getting the record of chats to the store that keeps it, where that is not the local database.
//!
//! What always holds: a session never waits for that store. What it says is in the local database, in
//! the transaction of its step, and goes from there: a chat's messages in their order, in batches of
//! 20 or what 2 s brought, each with the id it was written with, so that a batch whose answer was lost
//! is sent again and does not double. How far each chat is stands in the database too (`entries`), so
//! that the next run goes on there. A store that is down is asked again after longer and longer pauses,
//! up to 30 s; a chat that troubles it holds no other up. Users' tokens are in memory only: without one that
//! is still good the service key is used, and where there is none the user's rows wait until they come
//! back.

mod progress;
mod relay;
mod user_tokens;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

pub(super) use self::progress::{add, changed};
use self::relay::Deliverer;
use self::user_tokens::Tokens;
use super::{Caller, RecordError, Store, StoreError, SupabaseRecords};
use crate::auth::Identity;
use crate::types::secret::Secret;
use crate::types::user::UserId;

/// How many messages are sent at once, and how many are reason to send.
const BATCH: usize = 20;
/// How long a message waits for others.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a user's call waits for what is still to be sent for them.
const PATIENCE: Duration = Duration::from_secs(2);

/// Says that something was written that is to be sent.
#[derive(Debug, Default)]
pub(super) struct News {
    lines: AtomicUsize,
    wake: Notify,
}

impl News {
    /// A step wrote so many lines of a chat.
    pub(super) fn lines(&self, lines: usize) {
        if self.lines.fetch_add(lines, Ordering::Relaxed) + lines >= BATCH {
            self.wake.notify_one();
        }
    }

    /// There is a new chat, which users look for at once.
    pub(super) fn chat(&self) {
        self.wake.notify_one();
    }
}

/// What waits to be sent, and whoever sends it. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    news: Arc<News>,
    tokens: Arc<Tokens>,
    /// Asks for everything to be sent now, and to be told when that was tried.
    now: mpsc::Sender<oneshot::Sender<()>>,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    /// Begins to send what the last run left, and what is written from now on. Chats that were kept
    /// in the local database alone go too. Needs a tokio runtime, and ends with the last clone.
    pub async fn start(store: Store, records: SupabaseRecords) -> Result<Self, StoreError> {
        store.write(progress::take_in).await?;
        let news = store.announce();
        let tokens = Arc::new(Tokens::default());
        let (now, asked) = mpsc::channel(64);
        let deliverer = Deliverer::new(store.clone(), records, news.clone(), tokens.clone());
        tokio::spawn(deliverer.run(asked));
        Ok(Self {
            shared: Arc::new(Shared {
                store,
                news,
                tokens,
                now,
            }),
        })
    }

    /// A user was here: their token serves to send what waits for them.
    pub fn seen(&self, who: &Identity) {
        if self.shared.tokens.take(who) {
            self.shared.news.wake.notify_one();
        }
    }

    /// The token that a user brought last, where it is still good.
    pub fn token_of(&self, user: &UserId) -> Option<Secret> {
        match self.shared.tokens.caller(user)? {
            Caller::User { token, .. } => Some(token),
            Caller::Service { .. } => None,
        }
    }

    /// Has what waits for a user sent, and waits for that as long as a caller has patience.
    pub async fn settle(&self, user: &UserId) {
        let user = user.to_string();
        let work = move |connection: &_| progress::any_of(connection, &user, None);
        // Where that cannot be told, whoever reads next finds out why.
        if self.shared.store.read(work).await.unwrap_or(false) {
            self.flush(PATIENCE).await;
        }
    }

    /// Has everything sent, and waits for that so long at the most.
    pub async fn flush(&self, patience: Duration) {
        let (told, done) = oneshot::channel();
        let asked = async {
            if self.shared.now.send(told).await.is_ok() {
                let _ = done.await;
            }
        };
        // What is not sent by then goes on being sent.
        let _ = timeout(patience, asked).await;
    }

    /// Whether a chat of the user is still to be made.
    pub(super) async fn waits(&self, user: &UserId, chat: &str) -> Result<bool, RecordError> {
        let (user, chat) = (user.to_string(), chat.to_owned());
        let work = move |connection: &_| progress::any_of(connection, &user, Some(&chat));
        Ok(self.shared.store.read(work).await?)
    }

    /// A chat was deleted: nothing more of it is sent, and nothing of it stays here.
    pub(super) async fn forget(&self, chat: &str) -> Result<(), RecordError> {
        let chat = chat.to_owned();
        let work = move |connection: &_| progress::remove(connection, &chat);
        Ok(self.shared.store.write(work).await?)
    }
}
