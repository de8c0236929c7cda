//! Deletes chats of this database.
//!
//! # Invariants
//! - A chat is seen whole or not at all: its own row goes first.
//! - The log of its session goes with it, also if the deletion is cut off after that.

use rusqlite::Connection;

use crate::error::StoreError;
use crate::sqlite::pieces::delete_rows;
use crate::sqlite::{QueueKey, Store};

/// The messages of chats, and the size of one.
const MESSAGES: (&str, &str) = (
    "chat_messages",
    "octet_length(content) + coalesce(octet_length(metadata_json), 0)",
);
impl Store {
    /// Deletes the messages of a chat of which [`hide_chat`] says that there are more, to the end, even
    /// if the caller leaves.
    pub(crate) async fn remove_messages(
        &self,
        key: QueueKey,
        chat: String,
    ) -> Result<(), StoreError> {
        let store = self.clone();
        let removing = tokio::spawn(async move {
            loop {
                let of = chat.clone();
                let piece = store.write_for(key.clone(), move |connection| {
                    Ok(delete_rows(connection, MESSAGES, &of)?.more)
                });
                if !piece.await? {
                    break;
                }
            }
            // Nor are they to stay in SQLite's log.
            let gone = store.erase_for(key, move |connection| {
                connection
                    .prepare_cached("DELETE FROM discarded_chats WHERE id = ?1")?
                    .execute([chat])?;
                Ok(())
            });
            gone.await
        });
        removing.await.map_err(|_| StoreError::Closed)?
    }
}

/// Makes a chat one that nobody finds, with the first of its messages. Returns whether there are more:
/// then [`Store::remove_messages`] is to follow.
pub(crate) fn hide_chat(connection: &Connection, chat: &str) -> Result<bool, StoreError> {
    let more = delete_rows(connection, MESSAGES, &chat)?.more;
    if more {
        connection
            .prepare_cached(
                "INSERT INTO discarded_chats (id, user_id)
                 VALUES (?1, coalesce((SELECT user_id FROM chat_sessions WHERE id = ?1), ''))
                 ON CONFLICT DO NOTHING",
            )?
            .execute([chat])?;
    }
    // With it goes the log of its session, also if nothing else of the deletion comes about.
    connection
        .prepare_cached(
            "UPDATE sessions SET discarded = 1
             WHERE chat_id = ?1 AND user_id = (SELECT user_id FROM chat_sessions WHERE id = ?1)",
        )?
        .execute([chat])?;
    connection
        .prepare_cached("DELETE FROM chat_sessions WHERE id = ?1")?
        .execute([chat])?;
    Ok(more)
}
