//! Reads and changes chats for the API, over the deployment's chat store and the outbox of what is
//! still to be sent there.
//!
//! # Invariants
//! - What a user's sessions said before a call is visible to it, as far as the store accepts it
//!   within moments.
//! - A chat that has not reached the store yet is not reported as absent.

use std::sync::Arc;

use crate::chat_store::sqlite::SqliteChatStore;
use crate::chat_store::{Chat, ChatMessage, ChatStore, ChatStoreError, Principal};
use crate::error::StoreError;
use crate::outbox::Outbox;
use crate::sqlite::Store;
use lucid_types::ids::SessionId;

/// The result of deleting a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedChat {
    /// Whether the chat itself was deleted; `false` if the caller has no such chat.
    pub chat: bool,
    /// The sessions removed from the log. A live session is removed when it ends.
    pub sessions: Vec<SessionId>,
}

/// The chats of all users; each call sees those of one user. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Chats {
    /// The store that holds the logs of their sessions.
    store: Store,
    remote: Arc<dyn ChatStore>,
    outbox: Option<Outbox>,
}

impl Chats {
    /// Chats in the local database.
    pub fn new(store: Store) -> Self {
        Self {
            store: store.clone(),
            remote: Arc::new(SqliteChatStore::new(store)),
            outbox: None,
        }
    }

    /// Chats in another store, with the outbox that sends them there.
    pub fn remote(store: Store, records: Arc<dyn ChatStore>, outbox: Outbox) -> Self {
        Self {
            store,
            remote: records,
            outbox: Some(outbox),
        }
    }

    /// Lists the caller's chats, most recently changed first.
    pub async fn list(
        &self,
        caller: &Principal,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<Chat>, ChatStoreError> {
        self.flush_pending(caller).await;
        self.remote.list(caller, limit, offset).await
    }

    /// Returns one of the caller's chats, with its messages in the order they were written.
    pub async fn get(
        &self,
        caller: &Principal,
        id: &str,
    ) -> Result<Option<(Chat, Vec<ChatMessage>)>, ChatStoreError> {
        self.flush_pending(caller).await;
        let Some(chat) = self.remote.find(caller, id).await? else {
            return self.missing_or_pending(caller, id, None).await;
        };
        let messages = self.remote.messages(caller, id).await?;
        Ok(Some((chat, messages)))
    }

    /// Renames a chat. Returns the new title, or `None` if the caller has no such chat.
    pub async fn rename(
        &self,
        caller: &Principal,
        id: &str,
        title: &str,
    ) -> Result<Option<String>, ChatStoreError> {
        self.flush_pending(caller).await;
        match self.remote.rename(caller, id, title).await? {
            None => self.missing_or_pending(caller, id, None).await,
            title => Ok(title),
        }
    }

    /// Deletes a chat, its messages and the log of its session.
    pub async fn delete(
        &self,
        caller: &Principal,
        id: &str,
    ) -> Result<DeletedChat, ChatStoreError> {
        self.flush_pending(caller).await;
        let chat = match self.remote.delete(caller, id).await? {
            true => true,
            false => self.missing_or_pending(caller, id, false).await?,
        };
        if let Some(outbox) = self.outbox.as_ref().filter(|_| chat) {
            outbox.forget(id).await?;
        }
        // Even if the chat is not there: an earlier call may have stopped after deleting it.
        let (store, user, id) = (self.store.clone(), caller.user().clone(), id.to_owned());
        // To its end, even if the caller leaves.
        let discarding = tokio::spawn(async move { store.discard_chat(user, id).await });
        let sessions = discarding.await.map_err(|_| StoreError::Closed)??;
        Ok(DeletedChat { chat, sessions })
    }

    /// Sends now what is waiting for this user.
    async fn flush_pending(&self, caller: &Principal) {
        if let Some(outbox) = &self.outbox {
            outbox.wait_for_user(caller.user()).await;
        }
    }

    /// Handles a chat that the store does not have: it may still be waiting to be created there.
    async fn missing_or_pending<T>(
        &self,
        caller: &Principal,
        id: &str,
        none: T,
    ) -> Result<T, ChatStoreError> {
        match &self.outbox {
            Some(outbox) if outbox.has_pending(caller.user(), id).await? => {
                Err(ChatStoreError::Unavailable { answered: true })
            }
            _ => Ok(none),
        }
    }
}
