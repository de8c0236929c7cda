//! Owns the record that people read: chats and their messages.
//!
//! What always holds: every look and every change names the user, and another user's chat is not
//! there. Lines are written by the session's own transaction, never here.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Store, StoreError, Totals, cut, usage};

/// How many characters a title has at the most.
pub const TITLE_LENGTH: usize = 255;

/// A chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chat {
    /// The chat's own id.
    pub id: String,
    /// The session that wrote it.
    pub agent_session_id: Option<String>,
    /// The client's name for what it belongs to.
    pub project_id: Option<String>,
    /// What it is called.
    pub title: String,
    /// The provider that the session used.
    pub model_provider: Option<String>,
    /// Whether its session goes on.
    pub is_active: bool,
    /// What the model calls of its session used.
    pub totals: Totals,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// One line of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Its id.
    pub id: String,
    /// `user` or `assistant`.
    pub role: String,
    /// All of it.
    pub content: String,
    /// As in the wire contract.
    pub event_type: Option<String>,
    /// A JSON object, as text.
    pub metadata_json: Option<String>,
    /// When it was written.
    pub created_at: DateTime<Utc>,
}

/// The chats of all users; each call sees one user's.
#[derive(Debug, Clone)]
pub struct Chats {
    store: Store,
}

const COLUMNS: &str =
    "id, agent_session_id, project_id, title, model_provider, is_active, created_at, updated_at";
const SUMS: &str = usage::COLUMNS;

impl Chats {
    /// The chats of a store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// The user's chats, the last changed first.
    pub async fn list(&self, user: &str, limit: u32, offset: u32) -> Result<Vec<Chat>, StoreError> {
        let user = user.to_owned();
        let work = move |connection: &Connection| {
            let mut select = connection.prepare_cached(&format!(
                "SELECT {COLUMNS}, {SUMS} FROM chat_sessions WHERE user_id = ?1 ORDER BY updated_at DESC, id DESC
                 LIMIT ?2 OFFSET ?3"
            ))?;
            let rows = select.query_map(params![user, limit, offset], chat)?;
            rows.map(|row| row.map_err(StoreError::from)).collect()
        };
        self.store.read(work).await
    }

    /// One chat of the user, with its messages in the order they were written.
    pub async fn get(
        &self,
        user: &str,
        id: &str,
    ) -> Result<Option<(Chat, Vec<ChatMessage>)>, StoreError> {
        let (user, id) = (user.to_owned(), id.to_owned());
        let work = move |connection: &Connection| {
            let Some(found) = connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS}, {SUMS} FROM chat_sessions WHERE id = ?1 AND user_id = ?2"
                ))?
                .query_row(params![id, user], chat)
                .optional()?
            else {
                return Ok(None);
            };
            let mut select = connection.prepare_cached(
                "SELECT id, role, content, event_type, metadata_json, created_at FROM chat_messages
                 WHERE session_id = ?1 ORDER BY n",
            )?;
            let rows = select.query_map([&found.id], message)?;
            let messages = rows.collect::<Result<Vec<_>, _>>()?;
            Ok(Some((found, messages)))
        };
        self.store.read(work).await
    }

    /// Gives a chat another title, cut to what a title may have. Gives the title back, or none
    /// where the user has no such chat.
    pub async fn rename(
        &self,
        user: &str,
        id: &str,
        title: &str,
    ) -> Result<Option<String>, StoreError> {
        let (user, id, title) = (
            user.to_owned(),
            id.to_owned(),
            cut(title, TITLE_LENGTH).to_owned(),
        );
        let work = move |connection: &Connection| {
            let changed = connection
                .prepare_cached("UPDATE chat_sessions SET title = ?3, updated_at = ?4 WHERE id = ?1 AND user_id = ?2")?
                .execute(params![id, user, title, Utc::now().timestamp_millis()])?;
            Ok((changed > 0).then_some(title))
        };
        self.store.write(work).await
    }

    /// Deletes a chat and its messages. False where the user has no such chat.
    pub async fn delete(&self, user: &str, id: &str) -> Result<bool, StoreError> {
        let (user, id) = (user.to_owned(), id.to_owned());
        let work = move |connection: &Connection| {
            let deleted = connection
                .prepare_cached("DELETE FROM chat_sessions WHERE id = ?1 AND user_id = ?2")?
                .execute(params![id, user])?;
            if deleted > 0 {
                connection
                    .prepare_cached("DELETE FROM chat_messages WHERE session_id = ?1")?
                    .execute([id])?;
            }
            Ok(deleted > 0)
        };
        self.store.write(work).await
    }
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
        totals: Totals::read(row)?,
        created_at: time(row, 6)?,
        updated_at: time(row, 7)?,
    })
}

fn message(row: &Row<'_>) -> rusqlite::Result<ChatMessage> {
    Ok(ChatMessage {
        id: row.get(0)?,
        role: row.get(1)?,
        content: row.get(2)?,
        event_type: row.get(3)?,
        metadata_json: row.get(4)?,
        created_at: time(row, 5)?,
    })
}
