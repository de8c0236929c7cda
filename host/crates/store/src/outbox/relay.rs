//! The relay: the one task that sends.
//!
//! # Invariants
//! - A chat is sent by one worker at a time, its row before its messages and its messages in order.
//! - What was sent is recorded before the next batch is sent. A failure leaves the chat where it
//!   was.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::StreamExt;
use futures::stream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::progress::{self, OutboxBatch, OutboxEntry};
use super::user_tokens::UserTokens;
use super::{INTERVAL, remove};
use crate::chat_store::{ChatProgress, ChatStore, ChatStoreError, Principal};
use crate::error::StoreError;
use crate::sqlite::Store;
use crate::sqlite::outbox_signal::OutboxSignal;
use crate::supabase::SupabaseChatStore;

/// Maximum number of chats sent at once.
const AT_ONCE: usize = 8;
/// The first pause after a failure, and the longest, before up to as much again is added at random: hosts are not to
/// retry at the same time.
const PAUSES: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(15));

pub(super) struct OutboxRelay {
    store: Store,
    chats: SupabaseChatStore,
    signal: Arc<OutboxSignal>,
    tokens: Arc<UserTokens>,
    /// The current pause of the store as a whole.
    backoff: Option<Backoff>,
    /// Pauses of chats that failed while others did not.
    failing: HashMap<String, Backoff>,
}

/// A pause during which nothing is tried.
#[derive(Debug)]
struct Backoff {
    pauses: ExponentialBackoff,
    until: Instant,
}

impl Backoff {
    /// Returns a pause about twice as long as the previous one.
    fn after(before: Option<Self>) -> Self {
        let mut pauses = before.map_or_else(pauses, |before| before.pauses);
        let pause = pauses.next().unwrap_or(PAUSES.1);
        Self {
            pauses,
            until: Instant::now() + pause,
        }
    }
}

/// The pauses between attempts, without end.
fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(PAUSES.0)
        .with_max_delay(PAUSES.1)
        .without_max_times()
        .with_jitter()
        .build()
}

/// The outcome of sending a chat.
enum DeliveryOutcome {
    /// Everything that was there has been sent.
    Sent,
    /// It waits for its user.
    NeedsToken,
    /// The store permanently refuses it.
    Refused(String),
    /// It failed, and is retried later.
    Failed(ChatStoreError),
}

impl OutboxRelay {
    pub(super) fn new(
        store: Store,
        records: SupabaseChatStore,
        signal: Arc<OutboxSignal>,
        tokens: Arc<UserTokens>,
    ) -> Self {
        Self {
            store,
            chats: records,
            signal,
            tokens,
            backoff: None,
            failing: HashMap::new(),
        }
    }

    /// Sends until nothing is left that could write.
    pub(super) async fn run(mut self, mut asked: mpsc::Receiver<oneshot::Sender<()>>) {
        loop {
            let next = self
                .backoff
                .as_ref()
                .map_or(Instant::now() + INTERVAL, |pause| pause.until);
            let mut waiting = Vec::new();
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.signal.woken(), if self.backoff.is_none() => {}
                one = asked.recv() => match one {
                    Some(one) => waiting.push(one),
                    None => return,
                },
            }
            while let Ok(one) = asked.try_recv() {
                waiting.push(one);
            }
            self.signal.reset();
            if let Err(cause) = self.send_pending().await {
                // The store itself reports a transient failure, once.
                match cause.transient() {
                    Some(_) => {
                        tracing::debug!(%cause, "what waits for the record of chats waits on")
                    }
                    None => {
                        tracing::error!(%cause, "what waits for the record of chats cannot be read")
                    }
                }
            }
            for one in waiting {
                // The requester may have given up waiting.
                let _ = one.send(());
            }
        }
    }

    /// Sends what is there.
    async fn send_pending(&mut self) -> Result<(), StoreError> {
        let (mut open, finished) = self
            .store
            .read(|connection| Ok((progress::open(connection)?, progress::finished(connection)?)))
            .await?;
        for chat in finished {
            remove(&self.store, chat, progress::remove_if_sent).await?;
        }
        let now = Instant::now();
        self.failing
            .retain(|chat, _| open.iter().any(|entry| entry.chat == *chat));
        let troubled = &self.failing;
        open.retain(|entry| {
            troubled
                .get(&entry.chat)
                .is_none_or(|pause| pause.until <= now)
        });
        if open.is_empty() {
            return Ok(());
        }
        let waiting = open.len();
        let unreached = AtomicBool::new(false);
        let outcomes: Vec<_> = stream::iter(open)
            .map(|entry| async {
                // A store that could not be reached is not tried again for each chat.
                if unreached.load(Ordering::Relaxed) {
                    return None;
                }
                let chat = entry.chat.clone();
                let outcome = self.deliver(entry).await;
                if let DeliveryOutcome::Failed(ChatStoreError::Unavailable { answered: false }) =
                    outcome
                {
                    unreached.store(true, Ordering::Relaxed);
                }
                Some((chat, outcome))
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (chat, outcome) in outcomes.into_iter().flatten() {
            self.record_outcome(chat, outcome).await?;
        }
        if unreached.into_inner() {
            if self.backoff.is_none() {
                tracing::warn!(
                    chats = waiting,
                    "the record of chats cannot be reached; what sessions say waits in the local database"
                );
            }
            self.backoff = Some(Backoff::after(self.backoff.take()));
        } else if self.backoff.take().is_some() {
            tracing::info!("the record of chats is reached again");
        }
        Ok(())
    }

    async fn record_outcome(
        &mut self,
        chat: String,
        outcome: DeliveryOutcome,
    ) -> Result<(), StoreError> {
        let before = self.failing.remove(&chat);
        match outcome {
            DeliveryOutcome::Sent | DeliveryOutcome::NeedsToken => {}
            DeliveryOutcome::Failed(ChatStoreError::Unavailable { answered: false }) => {}
            DeliveryOutcome::Failed(why) => {
                if before.is_none() {
                    tracing::warn!(chat, %why, "a chat could not be sent to the record; it is tried again");
                }
                self.failing.insert(chat, Backoff::after(before));
            }
            DeliveryOutcome::Refused(why) => {
                tracing::error!(
                    chat,
                    why,
                    "the record of chats does not take a chat; it stays in the local database until the next start"
                );
                let note = move |connection: &_| progress::refused(connection, &chat, &why);
                self.store.write(note).await?;
            }
        }
        Ok(())
    }

    /// Sends a chat, with the user's token or otherwise the service key.
    async fn deliver(&self, mut entry: OutboxEntry) -> DeliveryOutcome {
        let user = entry.user.clone();
        let service = self
            .chats
            .has_service_key()
            .then(|| Principal::service(user.clone()));
        if let Some(caller) = self.tokens.caller(&user) {
            match self.send(&caller, &mut entry).await {
                // The token is not accepted, or no longer is.
                Err(ChatStoreError::Token) => self.tokens.remove_rejected(&caller),
                Err(ChatStoreError::Refused { .. }) if service.is_some() => {}
                outcome => return outcome_of(outcome),
            }
        }
        let Some(caller) = service else {
            self.tokens.mark_waiting(&user);
            return DeliveryOutcome::NeedsToken;
        };
        outcome_of(self.send(&caller, &mut entry).await)
    }

    async fn send(
        &self,
        caller: &Principal,
        entry: &mut OutboxEntry,
    ) -> Result<(), ChatStoreError> {
        let id = entry.chat.clone();
        let read = {
            let id = id.clone();
            self.store
                .read(move |connection| progress::chat(connection, &id))
        };
        let Some(chat) = read.await? else {
            return self.forget(id).await;
        };
        let progress = ChatProgress {
            is_active: chat.is_active,
            totals: chat.totals,
        };
        if !entry.created {
            self.chats.create(caller, chat).await?;
            let (id, changes) = (id.clone(), entry.changed);
            self.store
                .write(move |connection| progress::record_created(connection, &id, changes))
                .await?;
            (entry.created, entry.sent_changes) = (true, changes);
        }
        loop {
            let (chat, sent, sent_at) = (id.clone(), entry.sent, entry.sent_at);
            let OutboxBatch {
                messages,
                sent,
                sent_at,
            } = self
                .store
                .read(move |connection| progress::next(connection, &chat, sent, sent_at))
                .await?;
            if messages.is_empty() {
                break;
            }
            if !self.chats.append(caller, &id, messages).await? {
                return self.forget(id).await;
            }
            let chat = id.clone();
            self.store
                .write(move |connection| {
                    progress::record_batch_sent(connection, &chat, (sent, sent_at))
                })
                .await?;
            (entry.sent, entry.sent_at) = (sent, sent_at);
        }
        if entry.sent_changes < entry.changed {
            if !self.chats.update_progress(caller, &id, progress).await? {
                return self.forget(id).await;
            }
            let (chat, changes) = (id.clone(), entry.changed);
            self.store
                .write(move |connection| progress::record_row_sent(connection, &chat, changes))
                .await?;
            entry.sent_changes = entry.changed;
        }
        remove(&self.store, id, progress::remove_if_sent).await?;
        Ok(())
    }

    /// The chat was deleted in the store: the rest of it is not needed.
    async fn forget(&self, chat: String) -> Result<(), ChatStoreError> {
        tracing::debug!(chat, "a chat was deleted; what is left of it is dropped");
        remove(&self.store, chat, progress::remove).await?;
        Ok(())
    }
}

fn outcome_of(outcome: Result<(), ChatStoreError>) -> DeliveryOutcome {
    match outcome {
        Ok(()) => DeliveryOutcome::Sent,
        Err(ChatStoreError::Refused { code }) => DeliveryOutcome::Refused(code),
        Err(error) => DeliveryOutcome::Failed(error),
    }
}
