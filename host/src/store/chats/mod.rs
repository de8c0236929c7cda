//! Owns what the API reads and changes of chats: over the store of records that the deployment has,
//! and over what waits to be sent there.
//!
//! What always holds: what a user's sessions said before a call is there when it is read, as far as
//! the store takes it within moments; a chat that the store does not have yet is not said to be absent.

pub(crate) mod sqlite;
pub(crate) mod store;

use std::sync::Arc;

use super::log::discard;
use super::outbox::Outbox;
use super::{Caller, Chat, ChatMessage, LocalRecords, RecordError, Records, Store};

/// What went with a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The chat itself; false where the caller has no such chat.
    pub chat: bool,
    /// The sessions that are gone from the log. One that lives goes when it ends.
    pub sessions: Vec<String>,
}

/// The chats of all users; each call sees one user's. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Chats {
    /// Where the logs of their sessions are.
    store: Store,
    records: Arc<dyn Records>,
    outbox: Option<Outbox>,
}

impl Chats {
    /// The chats of the local database.
    pub fn new(store: Store) -> Self {
        Self {
            store: store.clone(),
            records: Arc::new(LocalRecords::new(store)),
            outbox: None,
        }
    }

    /// Chats that are kept elsewhere, with what waits to be sent there.
    pub fn elsewhere(store: Store, records: Arc<dyn Records>, outbox: Outbox) -> Self {
        Self {
            store,
            records,
            outbox: Some(outbox),
        }
    }

    /// The caller's chats, the last changed first.
    pub async fn list(
        &self,
        caller: &Caller,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<Chat>, RecordError> {
        self.settle(caller).await;
        self.records.list(caller, limit, offset).await
    }

    /// One chat of the caller, with its messages in the order they were written.
    pub async fn get(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Option<(Chat, Vec<ChatMessage>)>, RecordError> {
        self.settle(caller).await;
        let Some(chat) = self.records.find(caller, id).await? else {
            return self.absent(caller, id, None).await;
        };
        let messages = self.records.messages(caller, id).await?;
        Ok(Some((chat, messages)))
    }

    /// Gives a chat another title. Gives the title back, or none where the caller has no such chat.
    pub async fn rename(
        &self,
        caller: &Caller,
        id: &str,
        title: &str,
    ) -> Result<Option<String>, RecordError> {
        self.settle(caller).await;
        match self.records.rename(caller, id, title).await? {
            None => self.absent(caller, id, None).await,
            title => Ok(title),
        }
    }

    /// Deletes a chat, its messages and the log of its session.
    pub async fn delete(&self, caller: &Caller, id: &str) -> Result<Deleted, RecordError> {
        self.settle(caller).await;
        let chat = match self.records.delete(caller, id).await? {
            true => true,
            false => self.absent(caller, id, false).await?,
        };
        if let Some(outbox) = self.outbox.as_ref().filter(|_| chat) {
            outbox.forget(id).await?;
        }
        // Also where the chat is not there: an earlier call may have come no further than that.
        let (user, id) = (caller.user().to_string(), id.to_owned());
        let discard = move |connection: &_| discard::of_chat(connection, &user, &id);
        let sessions = self.store.erase(discard).await?;
        Ok(Deleted { chat, sessions })
    }

    /// What waits for this user is sent now.
    async fn settle(&self, caller: &Caller) {
        if let Some(outbox) = &self.outbox {
            outbox.settle(caller.user()).await;
        }
    }

    /// The store has no such chat. It may be one that waits to be made there.
    async fn absent<T>(&self, caller: &Caller, id: &str, none: T) -> Result<T, RecordError> {
        match &self.outbox {
            Some(outbox) if outbox.waits(caller.user(), id).await? => {
                Err(RecordError::Unavailable { answered: true })
            }
            _ => Ok(none),
        }
    }
}
