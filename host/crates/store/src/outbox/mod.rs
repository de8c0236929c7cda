//! The outbox: sends chats to the store that keeps them, if that is not the local database.
//!
//! Messages go out in batches of 20, or of what arrived within 2 s. A store that is down is retried
//! after increasing pauses of up to 30 s.
//!
//! # Invariants
//! - A session never waits for that store. What it says is written to the local database in the
//!   transaction of its step, and is sent from there.
//! - A chat's messages are sent in order, each with the id it was written with, so a batch whose
//!   response was lost is sent again without duplicates.
//! - The progress of each chat is in the database too (`progress`), so the next run continues
//!   there.
//! - A chat that fails does not hold up another.
//! - Users' tokens are in memory only. Without one that is still valid the service key is used, and
//!   without that the user's rows wait until the user comes back.

mod progress;
mod relay;
mod user_tokens;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub(super) use self::progress::{add, changed};
use self::relay::OutboxRelay;
use self::user_tokens::UserTokens;
use crate::chat_store::{ChatStoreError, Principal};
use crate::error::StoreError;
use crate::sqlite::outbox_signal::OutboxSignal;
use crate::sqlite::{QueueKey, Store};
use crate::supabase::SupabaseChatStore;
use lucid_types::identity::Identity;
use lucid_types::secret::Secret;
use lucid_types::user::UserId;

/// How long a message waits for others.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a user's call waits for what is still to be sent for that user.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The outbox, with the task that sends what is in it. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    signal: Arc<OutboxSignal>,
    tokens: Arc<UserTokens>,
    /// Requests to send everything now, each with a channel to answer once that was tried.
    flush_requests: mpsc::Sender<oneshot::Sender<()>>,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    /// Starts sending what the previous run left and what is written from now on, including chats
    /// that were only kept in the local database. Needs a tokio runtime, and ends with the last
    /// clone.
    pub async fn start(store: Store, records: SupabaseChatStore) -> Result<Self, StoreError> {
        // From here on they are read from their tables alone.
        store.settle_all().await?;
        store.write(progress::enqueue_all).await?;
        let signal = store.enable_outbox();
        let tokens = Arc::new(UserTokens::default());
        let (now, asked) = mpsc::channel(64);
        let deliverer = OutboxRelay::new(store.clone(), records, signal.clone(), tokens.clone());
        tokio::spawn(deliverer.run(asked));
        Ok(Self {
            shared: Arc::new(Shared {
                store,
                signal,
                tokens,
                flush_requests: now,
            }),
        })
    }

    /// Remembers a user's token, to send what is waiting for that user.
    pub fn remember_token(&self, who: &Identity) {
        if self.shared.tokens.store_token(who) {
            self.shared.signal.wake();
        }
    }

    /// The token that a user presented last, if it is still valid.
    pub fn token_of(&self, user: &UserId) -> Option<Secret> {
        match self.shared.tokens.caller(user)? {
            Principal::User { token, .. } => Some(token),
            Principal::Service { .. } => None,
        }
    }

    /// Sends what is waiting for a user, and waits for that for as long as a caller should.
    pub async fn wait_for_user(&self, user: &UserId) {
        let (key, user) = (QueueKey::User(user.clone()), user.clone());
        let work = move |connection: &_| progress::has_pending(connection, &user, None);
        let pending = self.shared.store.read_for(key, work);
        // If that cannot be determined, the read that follows reports why.
        if pending.await.unwrap_or(false) {
            self.flush(TIMEOUT).await;
        }
    }

    /// Sends everything, and waits for that for at most `patience`.
    pub async fn flush(&self, patience: Duration) {
        let (sender, done) = oneshot::channel();
        let asked = async {
            if self.shared.flush_requests.send(sender).await.is_ok() {
                let _ = done.await;
            }
        };
        // Whatever is not sent by then continues to be sent.
        let _ = timeout(patience, asked).await;
    }

    /// Returns whether a chat of the user is still to be created in the store.
    pub(super) async fn has_pending(
        &self,
        user: &UserId,
        chat: &str,
    ) -> Result<bool, ChatStoreError> {
        let key = QueueKey::User(user.clone());
        let (user, chat) = (user.clone(), chat.to_owned());
        let work = move |connection: &_| progress::has_pending(connection, &user, Some(&chat));
        Ok(self.shared.store.read_for(key, work).await?)
    }

    /// Forgets a deleted chat: nothing more of it is sent, and nothing of it stays here.
    pub(super) async fn forget(&self, chat: &str) -> Result<(), ChatStoreError> {
        remove(&self.shared.store, chat.to_owned(), progress::remove).await?;
        Ok(())
    }
}

/// Removes what the local database has of a chat, by a write that says whether there are more messages
/// of it.
async fn remove(
    store: &Store,
    chat: String,
    hide: fn(&Connection, &str) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let hidden = chat.clone();
    if store
        .write(move |connection| hide(connection, &hidden))
        .await?
    {
        store.remove_messages(QueueKey::Host, chat).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use std::sync::atomic::Ordering;

    use super::*;
    use crate::log::session_log::tests::{new_session, round};
    use lucid_types::log::SessionLog;

    #[tokio::test]
    async fn the_log_tells_the_outbox_of_what_it_committed_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let signal = store.enable_outbox();
        store.create(new_session(), round(0, None)).await.unwrap();
        let sender = tokio::time::timeout(Duration::from_secs(10), signal.wake.notified());
        sender.await.expect("a new chat wakes it");
        let lines = || signal.lines.load(Ordering::Relaxed);
        assert_eq!(lines(), 0);
        store.append(Arc::new(round(1, None))).await.unwrap();
        assert_eq!(lines(), 1);
        store.fill_disk(true);
        store.append(Arc::new(round(2, None))).await.unwrap_err();
        assert_eq!(lines(), 1);
    }
}
