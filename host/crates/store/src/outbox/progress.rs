//! The rows that record how much of each chat has been sent.
//!
//! # Invariants
//! - A chat has a row from the transaction that creates it until all of it is sent and its session
//!   is over. What the local database has of the chat is deleted with the row.
//! - A write for a chat that has been deleted meanwhile has no effect.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, params};

use crate::chat_store::removal::hide_chat;
use crate::chat_store::sqlite::{find_chat, message, session_of};
use crate::chat_store::{Chat, ChatMessage};
use crate::error::StoreError;
use crate::sqlite::outbox_signal::BATCH;
use lucid_types::user::UserId;

/// Maximum size of a batch in bytes, unless a single message is larger.
const BATCH_BYTES: usize = 2 << 20;

/// The progress of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutboxEntry {
    pub(super) chat: String,
    pub(super) user: UserId,
    pub(super) created: bool,
    /// The number of the last message sent, and its time in the other store in microseconds since
    /// 1970.
    pub(super) sent: i64,
    pub(super) sent_at: i64,
    pub(super) changed: i64,
    pub(super) sent_changes: i64,
}

/// A batch of a chat's messages, and the chat's progress once they have arrived.
#[derive(Debug, Default)]
pub(super) struct OutboxBatch {
    pub(super) messages: Vec<ChatMessage>,
    pub(super) sent: i64,
    pub(super) sent_at: i64,
}

/// Condition: part of the chat is still to be sent.
const OPEN: &str = "refused IS NULL AND (made = 0 OR told < changed OR EXISTS (
    SELECT 1 FROM chat_messages WHERE session_id = chat_id AND n > sent))";

/// Condition: nothing more will be said in the chat.
const OVER: &str =
    "NOT EXISTS (SELECT 1 FROM chat_sessions c JOIN sessions s ON s.id = c.agent_session_id
    WHERE c.id = chat_id AND s.status <> 'ended')";

/// Enters all chats, including those that the store refused in an earlier run, as it may accept
/// them now. Users of another identity provider, whose ids are not UUIDs, keep their chats here.
pub(super) fn enqueue_all(connection: &Connection) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO outbox (chat_id, user_id) SELECT id, user_id FROM chat_sessions
         WHERE user_id GLOB '????????-????-????-????-????????????' ON CONFLICT DO NOTHING",
        [],
    )?;
    connection.execute(
        "UPDATE outbox SET refused = NULL WHERE refused IS NOT NULL",
        [],
    )?;
    Ok(())
}

/// Enters a chat.
pub(crate) fn add(connection: &Connection, chat: &str, user: &UserId) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO outbox (chat_id, user_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?
        .execute([chat, user.as_str()])?;
    Ok(())
}

/// Counts a change of a chat's row. Does nothing if chats are not sent.
pub(crate) fn changed(connection: &Connection, chat: &str) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE outbox SET changed = changed + 1 WHERE chat_id = ?1")?
        .execute([chat])?;
    Ok(())
}

/// Returns the chats with something to send, oldest first.
pub(super) fn open(connection: &Connection) -> Result<Vec<OutboxEntry>, StoreError> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT chat_id, user_id, made, sent, sent_at, changed, told FROM outbox WHERE {OPEN} ORDER BY chat_id"
    ))?;
    let rows = select.query_map([], |row| {
        Ok(OutboxEntry {
            chat: row.get(0)?,
            user: row.get::<_, String>(1)?.into(),
            created: row.get(2)?,
            sent: row.get(3)?,
            sent_at: row.get(4)?,
            changed: row.get(5)?,
            sent_changes: row.get(6)?,
        })
    })?;
    rows.map(|row| row.map_err(StoreError::from)).collect()
}

/// Returns whether anything of a user's chats is to be sent or, for a single chat, whether it is to
/// be created.
pub(super) fn has_pending(
    connection: &Connection,
    user: &UserId,
    chat: Option<&str>,
) -> Result<bool, StoreError> {
    let user = user.as_str();
    let found = match chat {
        None => connection
            .prepare_cached(&format!("SELECT 1 FROM outbox WHERE user_id = ?1 AND {OPEN}"))?
            .exists([user])?,
        Some(chat) => connection
            .prepare_cached(
                "SELECT 1 FROM outbox WHERE chat_id = ?2 AND user_id = ?1 AND made = 0 AND refused IS NULL",
            )?
            .exists([user, chat])?,
    };
    Ok(found)
}

/// Reads the chat itself, as it is now.
pub(super) fn chat(connection: &Connection, chat: &str) -> Result<Option<Chat>, StoreError> {
    find_chat(connection, None, chat)
}

/// Returns the messages after the last one sent. The times that they are sent with are distinct and
/// increasing, so that reading them by time gives their order: the lines of one step have the same
/// time here.
pub(super) fn next(
    connection: &Connection,
    chat: &str,
    sent: i64,
    sent_at: i64,
) -> Result<OutboxBatch, StoreError> {
    let found = find_chat(connection, None, chat)?;
    let session = found.as_ref().and_then(session_of);
    let mut select = connection.prepare_cached(
        "SELECT id, role, content, event_type, metadata_json, created_at, n FROM chat_messages
         WHERE session_id = ?1 AND n > ?2 ORDER BY n LIMIT ?3",
    )?;
    let mut rows = select.query(params![
        chat,
        sent,
        i64::try_from(BATCH).unwrap_or(i64::MAX)
    ])?;
    let mut batch = OutboxBatch {
        messages: Vec::new(),
        sent,
        sent_at,
    };
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let mut message = message(connection, session, row)?;
        bytes += message.content.len() + message.metadata_json.as_ref().map_or(0, String::len);
        if bytes > BATCH_BYTES && !batch.messages.is_empty() {
            break;
        }
        batch.sent = row.get(6)?;
        batch.sent_at = message.created_at.timestamp_micros().max(batch.sent_at + 1);
        message.created_at = time(batch.sent_at);
        batch.messages.push(message);
    }
    Ok(batch)
}

fn time(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// Records that the chat was created, as it was after this many changes.
pub(super) fn record_created(
    connection: &Connection,
    chat: &str,
    changes: i64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE outbox SET made = 1, told = ?2 WHERE chat_id = ?1")?
        .execute(params![chat, changes])?;
    Ok(())
}

/// Records that a batch arrived.
pub(super) fn record_batch_sent(
    connection: &Connection,
    chat: &str,
    batch: (i64, i64),
) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE outbox SET sent = ?2, sent_at = ?3 WHERE chat_id = ?1")?
        .execute(params![chat, batch.0, batch.1])?;
    Ok(())
}

/// Records that the chat's row was sent as it was after this many changes.
pub(super) fn record_row_sent(
    connection: &Connection,
    chat: &str,
    changes: i64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE outbox SET told = ?2 WHERE chat_id = ?1")?
        .execute(params![chat, changes])?;
    Ok(())
}

/// Records that the chat was refused and is not sent again in this run.
pub(super) fn refused(connection: &Connection, chat: &str, why: &str) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE outbox SET refused = ?2 WHERE chat_id = ?1")?
        .execute([chat, why])?;
    Ok(())
}

/// Removes what the local database has of a chat, if all of it is sent and nothing more will come.
/// Returns as [`remove`] does.
pub(super) fn remove_if_sent(connection: &Connection, chat: &str) -> Result<bool, StoreError> {
    let done = connection
        .prepare_cached(&format!(
            "SELECT 1 FROM outbox WHERE chat_id = ?1 AND refused IS NULL AND NOT ({OPEN}) AND {OVER}"
        ))?
        .query_row([chat], |_| Ok(()))
        .optional()?;
    match done {
        Some(()) => remove(connection, chat),
        None => Ok(false),
    }
}

/// Returns the chats that are fully sent and whose sessions ended with nothing more to send.
pub(super) fn finished(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT chat_id FROM outbox WHERE refused IS NULL AND NOT ({OPEN}) AND {OVER} LIMIT 256"
    ))?;
    let rows = select.query_map([], |row| row.get(0))?;
    rows.map(|row| row.map_err(StoreError::from)).collect()
}

/// Removes what the local database has of a chat. Returns whether there are more messages of it: then
/// [`Store::remove_messages`](crate::sqlite::Store::remove_messages) is to follow.
pub(super) fn remove(connection: &Connection, chat: &str) -> Result<bool, StoreError> {
    connection
        .prepare_cached("DELETE FROM outbox WHERE chat_id = ?1")?
        .execute([chat])?;
    hide_chat(connection, chat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::Store;

    const ANN: &str = "0198c0de-0000-7000-8000-00000000000a";

    fn fill(connection: &Connection) -> Result<(), StoreError> {
        connection.execute_batch(&format!(
            "INSERT INTO chat_sessions (id, user_id, title, is_active, created_at, updated_at) VALUES
                 ('c1', '{ANN}', 't', 1, 5, 5), ('c2', 'not-of-the-project', 't', 1, 5, 5);
             INSERT INTO chat_messages (id, session_id, role, content, created_at) VALUES
                 ('m1', 'c1', 'user', 'a', 5), ('m2', 'c1', 'user', 'b', 5), ('m3', 'c1', 'user', 'c', 4),
                 ('m4', 'c2', 'user', 'd', 9), ('m5', 'c1', 'user', 'e', 7);"
        ))?;
        Ok(())
    }

    #[tokio::test]
    async fn chats_from_before_are_taken_in_and_their_messages_times_rise() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let work = |connection: &Connection| {
            fill(connection)?;
            enqueue_all(connection)?;
            enqueue_all(connection)?;
            let open = open(connection)?;
            let batch = next(connection, "c1", 0, 0)?;
            let rest = next(connection, "c1", batch.sent, batch.sent_at)?;
            Ok((open, batch, rest))
        };
        let (open, batch, rest) = store.write(work).await.unwrap();
        let chats: Vec<_> = open.iter().map(|entry| entry.chat.as_str()).collect();
        assert_eq!(chats, ["c1"], "whose user is no UUID stays here");
        let sent: Vec<_> = batch
            .messages
            .iter()
            .map(|line| (line.id.as_str(), line.created_at.timestamp_micros()))
            .collect();
        // With the same time, an earlier one and a later one.
        let expected = [("m1", 5000), ("m2", 5001), ("m3", 5002), ("m5", 7000)];
        assert_eq!(sent, expected);
        assert!(rest.messages.is_empty() && rest.sent == batch.sent);
    }

    #[tokio::test]
    async fn a_chat_goes_from_here_when_all_of_it_is_there_and_its_session_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let work = |connection: &Connection| {
            fill(connection)?;
            enqueue_all(connection)?;
            let left = || -> Result<i64, StoreError> {
                remove_if_sent(connection, "c1")?;
                let count = "SELECT count(*) FROM chat_messages WHERE session_id = 'c1'";
                Ok(connection.query_row(count, [], |row| row.get(0))?)
            };
            let mut seen = vec![("nothing is sent", left()?)];
            record_created(connection, "c1", 0)?;
            seen.push(("its messages are not sent", left()?));
            record_batch_sent(connection, "c1", (5, 7000))?;
            changed(connection, "c1")?;
            seen.push(("a change is not sent", left()?));
            refused(connection, "c1", "23503")?;
            record_row_sent(connection, "c1", 1)?;
            seen.push(("it was refused", left()?));
            enqueue_all(connection)?;
            let all = finished(connection)?;
            seen.push(("", left()?));
            Ok((seen, all))
        };
        let (seen, all) = store.write(work).await.unwrap();
        for (why, left) in seen {
            assert_eq!(left, if why.is_empty() { 0 } else { 4 }, "{why}");
        }
        assert_eq!(all, ["c1"]);
    }
}
