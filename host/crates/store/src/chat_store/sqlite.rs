//! The chat store in the local database.
//!
//! # Invariants
//! - Every lookup and every change names the user, and another user's chat does not exist for it.
//! - A session's messages are written in the session's own transaction, with the same statements.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    Chat, ChatMessage, ChatProgress, ChatStore, ChatStoreError, ChatStoreFuture, Principal,
    TITLE_LENGTH,
};
use crate::chat_store::removal::hide_chat;
use crate::error::StoreError;
use crate::sqlite::pending::{self, PendingLine};
use crate::sqlite::sql::to_sql;
use crate::sqlite::texts::{self, PackedValue};
use crate::sqlite::{QueueKey, Store, totals};
use lucid_types::ids::SessionId;
use lucid_types::log::UsageTotals;
use lucid_types::text::cut;
use lucid_types::user::UserId;

/// The chats of all users in the local database; each call sees those of one user.
#[derive(Debug, Clone)]
pub struct SqliteChatStore {
    store: Store,
}

const COLUMNS: &str =
    "id, agent_session_id, project_id, title, model_provider, is_active, created_at, updated_at";
const SUMS: &str = totals::COLUMNS;

impl SqliteChatStore {
    /// The chats in a store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    fn read<T, F>(&self, caller: &Principal, read: F) -> ChatStoreFuture<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let key = QueueKey::User(caller.user().clone());
        Box::pin(async move {
            let read = self.store.read_for(key, read).await;
            read.map_err(ChatStoreError::from)
        })
    }

    fn write<T, F>(&self, caller: &Principal, write: F) -> ChatStoreFuture<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let key = QueueKey::User(caller.user().clone());
        Box::pin(async move {
            let written = self.store.write_for(key, write).await;
            written.map_err(ChatStoreError::from)
        })
    }
}

impl ChatStore for SqliteChatStore {
    fn list(&self, caller: &Principal, limit: u32, offset: u32) -> ChatStoreFuture<'_, Vec<Chat>> {
        let user = caller.user().clone();
        self.read(caller, move |connection| {
            let connection = &*connection.unchecked_transaction()?;
            let mut select = connection.prepare_cached(&format!(
                "SELECT {COLUMNS}, {SUMS} FROM chat_sessions WHERE user_id = ?1 ORDER BY updated_at DESC, id DESC
                 LIMIT ?2 OFFSET ?3"
            ))?;
            let rows = select.query_map(params![user.as_str(), limit, offset], chat)?;
            let chats = rows.map(|row| with_pending(connection, row?));
            let mut chats = chats.collect::<Result<Vec<_>, StoreError>>()?;
            // They are counted off in the order of what was settled, seconds ago at most.
            chats.sort_by(|one, other| {
                let by_time = other.updated_at.cmp(&one.updated_at);
                by_time.then_with(|| other.id.cmp(&one.id))
            });
            Ok(chats)
        })
    }

    fn find(&self, caller: &Principal, id: &str) -> ChatStoreFuture<'_, Option<Chat>> {
        let (user, id) = (caller.user().clone(), id.to_owned());
        self.read(caller, move |connection| {
            let connection = &*connection.unchecked_transaction()?;
            let found = find_chat(connection, Some(&user), &id)?;
            found.map(|chat| with_pending(connection, chat)).transpose()
        })
    }

    fn create(&self, caller: &Principal, chat: Chat) -> ChatStoreFuture<'_, ()> {
        let user = caller.user().clone();
        self.write(caller, move |connection| {
            insert_chat(connection, &user, &chat)
        })
    }

    fn rename(
        &self,
        caller: &Principal,
        id: &str,
        title: &str,
    ) -> ChatStoreFuture<'_, Option<String>> {
        let (user, id, title) = (
            caller.user().clone(),
            id.to_owned(),
            cut(title, TITLE_LENGTH).to_owned(),
        );
        self.write(caller, move |connection| {
            let changed = connection
                .prepare_cached("UPDATE chat_sessions SET title = ?3, updated_at = ?4 WHERE id = ?1 AND user_id = ?2")?
                .execute(params![id, user.as_str(), title, Utc::now().timestamp_millis()])?;
            Ok((changed > 0).then_some(title))
        })
    }

    fn update_progress(
        &self,
        caller: &Principal,
        id: &str,
        progress: ChatProgress,
    ) -> ChatStoreFuture<'_, bool> {
        let (user, id) = (caller.user().clone(), id.to_owned());
        self.write(caller, move |connection| {
            let changed = connection
                .prepare_cached("UPDATE chat_sessions SET is_active = ?3, updated_at = ?4 WHERE id = ?1 AND user_id = ?2")?
                .execute(params![id, user.as_str(), progress.is_active, Utc::now().timestamp_millis()])?;
            if changed > 0 {
                totals::set_sums(connection, "chat_sessions", &id, &progress.totals)?;
            }
            Ok(changed > 0)
        })
    }

    fn delete(&self, caller: &Principal, id: &str) -> ChatStoreFuture<'_, bool> {
        let (user, id) = (caller.user().clone(), id.to_owned());
        let (key, chat) = (QueueKey::from(&user), id.clone());
        let hidden = self.write(caller, move |connection| {
            if find_chat(connection, Some(&user), &id)?.is_some() {
                return hide_chat(connection, &id).map(Some);
            }
            // One whose deletion was cut off is deleted further.
            let is_hidden = connection
                .prepare_cached("SELECT 1 FROM discarded_chats WHERE id = ?1 AND user_id = ?2")?
                .exists([&id, user.as_str()])?;
            Ok(is_hidden.then_some(true))
        });
        Box::pin(async move {
            let Some(more) = hidden.await? else {
                return Ok(false);
            };
            if more {
                self.store.remove_messages(key, chat).await?;
            }
            Ok(true)
        })
    }

    fn append(
        &self,
        caller: &Principal,
        id: &str,
        messages: Vec<ChatMessage>,
    ) -> ChatStoreFuture<'_, bool> {
        let (user, id) = (caller.user().clone(), id.to_owned());
        self.write(caller, move |connection| {
            if find_chat(connection, Some(&user), &id)?.is_none() {
                return Ok(false);
            }
            for message in &messages {
                let known = connection
                    .prepare_cached(
                        "SELECT 1 FROM chat_messages WHERE session_id = ?1 AND id = ?2",
                    )?
                    .exists([&id, &message.id])?;
                if !known {
                    insert_message(connection, &id, &message.into())?;
                }
            }
            Ok(true)
        })
    }

    fn messages(&self, caller: &Principal, id: &str) -> ChatStoreFuture<'_, Vec<ChatMessage>> {
        let (user, id) = (caller.user().clone(), id.to_owned());
        self.read(caller, move |connection| {
            // It may be deleted meanwhile, and is read whole or not at all.
            let connection = &*connection.unchecked_transaction()?;
            let Some(chat) = find_chat(connection, Some(&user), &id)? else {
                return Ok(Vec::new());
            };
            let session = session_of(&chat);
            let mut select = connection.prepare_cached(
                "SELECT id, role, content, event_type, metadata_json, created_at FROM chat_messages
                 WHERE session_id = ?1 ORDER BY n",
            )?;
            let mut rows = select.query([&id])?;
            let mut messages = Vec::new();
            while let Some(row) = rows.next()? {
                messages.push(message(connection, session, row)?);
            }
            let Some(session) = session else {
                return Ok(messages);
            };
            for round in pending::of_chat(connection, session, &id)? {
                let at = crate::sqlite::sql::time(round.at);
                for line in round.into_lines() {
                    messages.push(pending_message(connection, session, line, at)?);
                }
            }
            Ok(messages)
        })
    }
}

/// Makes a chat what it is after the pending rounds of its session.
fn with_pending(connection: &Connection, mut chat: Chat) -> Result<Chat, StoreError> {
    let session = session_of(&chat).filter(|_| chat.is_active);
    let pending = session.map(|session| pending::chat_row(connection, session, &chat.id));
    let pending = match pending.transpose() {
        // One chat must not keep its user from the others.
        Err(StoreError::Content(cause)) => {
            tracing::error!(
                chat = chat.id,
                cause,
                "what a chat's session left pending cannot be understood"
            );
            None
        }
        pending => pending?.flatten(),
    };
    if let Some(pending) = pending {
        chat.totals = pending.totals;
        if let Some(at) = pending.said_at {
            chat.updated_at = chat.updated_at.max(crate::sqlite::sql::time(at));
        }
    }
    Ok(chat)
}

/// A line of a chat that is pending.
fn pending_message(
    connection: &Connection,
    session: SessionId,
    line: PendingLine<'_>,
    at: DateTime<Utc>,
) -> Result<ChatMessage, StoreError> {
    let metadata = line.metadata.map(|json| json.read(connection, session));
    Ok(ChatMessage {
        id: line.id.to_string(),
        role: line.role.into_owned(),
        content: line.content.read(connection, session)?,
        event_type: Some(line.event_type.into_owned()),
        metadata_json: metadata.transpose()?,
        created_at: at,
    })
}

/// Finds a chat by its id: the user's, or anybody's if no user is given.
pub(crate) fn find_chat(
    connection: &Connection,
    user: Option<&UserId>,
    id: &str,
) -> Result<Option<Chat>, StoreError> {
    let found = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS}, {SUMS} FROM chat_sessions WHERE id = ?1 AND user_id = coalesce(?2, user_id)"
        ))?
        .query_row(params![id, user.map(UserId::as_str)], chat)
        .optional()?;
    Ok(found)
}

/// Inserts a chat. An existing one is left unchanged, also one that is being deleted.
pub(crate) fn insert_chat(
    connection: &Connection,
    user: &UserId,
    chat: &Chat,
) -> Result<(), StoreError> {
    let made = connection
        .prepare_cached(
            "INSERT INTO chat_sessions (id, user_id, agent_session_id, project_id, title, model_provider,
                 is_active, created_at, updated_at)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9
             WHERE NOT EXISTS (SELECT 1 FROM discarded_chats WHERE id = ?1)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            chat.id,
            user.as_str(),
            chat.agent_session_id,
            chat.project_id,
            cut(&chat.title, TITLE_LENGTH),
            chat.model_provider,
            chat.is_active,
            chat.created_at.timestamp_millis(),
            chat.updated_at.timestamp_millis(),
        ])?;
    if made > 0 && chat.totals != UsageTotals::default() {
        totals::set_sums(connection, "chat_sessions", &chat.id, &chat.totals)?;
    }
    Ok(())
}

/// A chat message to be inserted.
pub(crate) struct MessageInsert<'a> {
    pub id: &'a str,
    pub role: &'a str,
    pub content: PackedValue<'a>,
    pub event_type: Option<&'a str>,
    pub metadata: Option<PackedValue<'a>>,
    /// Milliseconds since 1970.
    pub at: i64,
}

impl<'a> From<&'a ChatMessage> for MessageInsert<'a> {
    fn from(message: &'a ChatMessage) -> Self {
        Self {
            id: &message.id,
            role: &message.role,
            content: PackedValue::Whole(&message.content),
            event_type: message.event_type.as_deref(),
            metadata: message.metadata_json.as_deref().map(PackedValue::Whole),
            at: message.created_at.timestamp_millis(),
        }
    }
}

/// Inserts a chat message. Does nothing if the chat does not exist: its user may have deleted it.
pub(crate) fn insert_message(
    connection: &Connection,
    chat: &str,
    line: &MessageInsert<'_>,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO chat_messages (id, session_id, role, content, event_type, metadata_json, created_at)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (SELECT 1 FROM chat_sessions WHERE id = ?2)",
        )?
        .execute(params![
            line.id,
            chat,
            line.role,
            line.content,
            line.event_type,
            line.metadata,
            line.at,
        ])?;
    Ok(())
}

/// Returns the text of the last message in a session's chat that has one of the wanted types and is
/// no older than `since`.
pub(crate) fn last_line(
    connection: &Connection,
    (session, chat): (SessionId, &str),
    since: u64,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Option<String>, StoreError> {
    let connection = &*connection.unchecked_transaction()?;
    for round in pending::of_chat(connection, session, chat)?
        .into_iter()
        .rev()
    {
        if round.at < since {
            continue;
        }
        let mut lines = round.into_lines().into_iter().rev();
        if let Some(line) =
            lines.find(|line| line.role == "assistant" && is_wanted(&line.event_type))
        {
            return line.content.read(connection, session).map(Some);
        }
    }
    let mut select = connection.prepare_cached(
        "SELECT content, event_type FROM chat_messages
         WHERE session_id = ?1 AND role = 'assistant' AND created_at >= ?2 ORDER BY n DESC",
    )?;
    let mut rows = select.query(params![chat, to_sql(since)])?;
    while let Some(row) = rows.next()? {
        let event_type: Option<String> = row.get(1)?;
        if event_type.is_some_and(|event_type| is_wanted(&event_type)) {
            return texts::unpack_column(connection, session, row, 0).map(Some);
        }
    }
    Ok(None)
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<DateTime<Utc>> {
    Ok(DateTime::from_timestamp_millis(row.get(column)?).unwrap_or_default())
}

fn chat(row: &Row<'_>) -> rusqlite::Result<Chat> {
    Ok(Chat {
        id: row.get(0)?,
        agent_session_id: row.get(1)?,
        project_id: row.get(2)?,
        title: row.get(3)?,
        model_provider: row.get(4)?,
        is_active: row.get(5)?,
        totals: totals::read(row)?,
        created_at: time(row, 6)?,
        updated_at: time(row, 7)?,
    })
}

/// The session that wrote a chat. `None` if its id is none of this host's: then all texts of the
/// chat are in its rows.
pub(crate) fn session_of(chat: &Chat) -> Option<SessionId> {
    chat.agent_session_id.as_deref()?.parse().ok()
}

/// Reads a complete chat message from a row.
pub(crate) fn message(
    connection: &Connection,
    session: Option<SessionId>,
    row: &Row<'_>,
) -> Result<ChatMessage, StoreError> {
    Ok(ChatMessage {
        id: row.get(0)?,
        role: row.get(1)?,
        content: texts::unpack_column(connection, session, row, 2)?,
        event_type: row.get(3)?,
        metadata_json: texts::optional(connection, session, row, 4)?,
        created_at: time(row, 5)?,
    })
}
