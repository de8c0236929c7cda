//! Deletes the log of sessions whose chats were deleted.
//!
//! It may have gigabytes. It is deleted in pieces, each a write of its own, so that other sessions'
//! writes come between them.
//!
//! # Invariants
//!
//! - The log of a session that is over is deleted with its chat. A live session keeps what it works
//!   with, and its log is deleted when it ends.
//! - A deletion that was interrupted is finished by the next start.
//! - Another user's session is not touched, whatever chat is named.
//! - The cost of model calls is kept: numbers, and the names of providers and models. It contains
//!   no text and nothing that identifies a user.

use rusqlite::{Connection, OptionalExtension as _, ToSql, params};

use super::read::session_id;
use crate::error::StoreError;
use crate::sqlite::pieces::delete_rows;
use crate::sqlite::sql::AsText;
use crate::sqlite::{QueueKey, Store};
use lucid_types::ids::SessionId;
use lucid_types::log::SessionStatus;
use lucid_types::user::UserId;

/// Tables whose rows name their session in a column `session_id`.
const OF_SESSION: &[&str] = &[
    "steps",
    "transcript",
    "effects",
    "inbox",
    "texts",
    "client_positions",
    "connections",
];

/// Tables that may have much of a session, and the size of a row.
const LARGE: [(&str, &str); 3] = [
    (
        "steps",
        "coalesce(octet_length(inputs), 0) + coalesce(octet_length(commands), 0) + octet_length(frames)
            + coalesce(octet_length(pending), 0) + coalesce(octet_length(state), 0)",
    ),
    ("transcript", "octet_length(message)"),
    // After the rows that refer to them.
    ("texts", "octet_length(text)"),
];
impl Store {
    /// Deletes the log of the user's session that has this chat, or marks it for deletion at the
    /// session's end. Returns the sessions deleted now.
    pub(crate) async fn discard_chat(
        &self,
        user: UserId,
        chat: String,
    ) -> Result<Vec<SessionId>, StoreError> {
        let key = QueueKey::User(user.clone());
        // The chat's lines were deleted before, and are not to stay in SQLite's log either.
        let marked = self.erase_for(key.clone(), move |connection| {
            mark(connection, &user, &chat)
        });
        let over = marked.await?;
        let mut sessions = Vec::new();
        for (row, session) in over {
            self.remove_log(key.clone(), row).await?;
            sessions.extend(session);
        }
        Ok(sessions)
    }

    /// Deletes all that the log has of a session that is over and whose chat was deleted, by what
    /// its row has as the id, proper or not.
    pub(super) async fn remove_log(
        &self,
        key: QueueKey,
        session: impl ToSql + Clone + Send + 'static,
    ) -> Result<(), StoreError> {
        loop {
            let row = session.clone();
            let piece =
                self.write_for(key.clone(), move |connection| remove_piece(connection, row));
            if !piece.await? {
                break;
            }
        }
        self.erase_for(key, move |connection| remove(connection, session))
            .await
    }

    /// Finishes the deletions that the last run of the host began.
    pub async fn finish_deletions(&self) -> Result<(), StoreError> {
        let begun = self.read(|connection| {
            let ids = |sql: &str| {
                let mut select = connection.prepare(sql)?;
                let ids = select.query_map([], |row| row.get(0))?;
                ids.collect::<Result<Vec<String>, _>>()
            };
            Ok((
                ids("SELECT id FROM discarded_chats")?,
                ids("SELECT id FROM sessions WHERE discarded AND status = 'ended'")?,
            ))
        });
        let (chats, sessions) = begun.await?;
        let mut outcome = Ok(());
        // What cannot be deleted must not keep the others.
        for chat in chats {
            outcome = outcome.and(self.remove_messages(QueueKey::Host, chat).await);
        }
        for session in sessions {
            outcome = outcome.and(self.remove_log(QueueKey::Host, session).await);
        }
        outcome
    }
}

/// Marks the user's session that has this chat. Returns what its row has as the id, and the id if
/// that is a proper one, if it is over.
fn mark(
    connection: &Connection,
    user: &UserId,
    chat: &str,
) -> Result<Vec<(String, Option<SessionId>)>, StoreError> {
    let mut mark = connection
        .prepare_cached("UPDATE sessions SET discarded = 1 WHERE chat_id = ?1 AND user_id = ?2")?;
    let user = user.as_str();
    if mark.execute([chat, user])? == 0 {
        return Ok(Vec::new());
    }
    let mut select = connection.prepare_cached(
        "SELECT id FROM sessions WHERE chat_id = ?1 AND user_id = ?2 AND status = ?3",
    )?;
    let over = select.query_map(params![chat, user, SessionStatus::Ended.text()], |row| {
        Ok((row.get("id")?, session_id(row, "id")?))
    })?;
    over.map(|id| id.map_err(StoreError::from)).collect()
}

/// Whether a session's chat has been deleted.
pub(super) fn is_discarded(
    connection: &Connection,
    session: SessionId,
) -> Result<bool, StoreError> {
    let discarded = connection
        .prepare_cached("SELECT discarded FROM sessions WHERE id = ?1")?
        .query_row([AsText(session)], |row| row.get(0))
        .optional()?;
    Ok(discarded.unwrap_or(false))
}

/// Deletes a part of a session's log. Returns `false` if no large table has anything of it.
fn remove_piece(connection: &Connection, session: impl ToSql) -> Result<bool, StoreError> {
    for table in LARGE {
        if delete_rows(connection, table, &session)?.any {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes everything that the log has of a session, by what its row has as the id, proper or not.
fn remove(connection: &Connection, session: impl ToSql) -> Result<(), StoreError> {
    let session = &session;
    for table in OF_SESSION {
        connection
            .prepare_cached(&format!("DELETE FROM {table} WHERE session_id = ?1"))?
            .execute([session])?;
    }
    // Any remaining files are due at once: the retention sweep removes them next.
    connection
        .prepare_cached("UPDATE retained_workspaces SET uptime_ms = 0 WHERE session_id = ?1")?
        .execute([session])?;
    connection
        .prepare_cached("DELETE FROM sessions WHERE id = ?1")?
        .execute([session])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::session_log::tests::{id, new_session, round};
    use super::*;
    use crate::chat_store::removal::hide_chat;
    use crate::chat_store::sqlite::SqliteChatStore;
    use crate::chat_store::{ChatStore, Principal};
    use lucid_types::log::{ChatLine, SessionLog};

    /// How many rows there are of any session.
    fn left(connection: &Connection) -> Result<i64, StoreError> {
        let mut rows = 0;
        for table in OF_SESSION.iter().chain(&["sessions"]) {
            let sql = format!("SELECT count(*) FROM {table}");
            rows += connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?;
        }
        Ok(rows)
    }

    /// A session with a long log.
    async fn long(store: &Store) {
        store.create(new_session(), round(0, None)).await.unwrap();
        for row in 1..300 {
            let text = format!("[\"{row} {}\"]", "x".repeat(2000));
            let mut round = round(row, Some(text));
            round.entries.push((row, "{}".to_owned()));
            store.append(Arc::new(round)).await.unwrap();
        }
    }

    fn last() -> Arc<lucid_types::log::RoundRow> {
        let mut last = round(300, None);
        last.status = SessionStatus::Ended;
        Arc::new(last)
    }

    #[tokio::test]
    async fn a_long_log_goes_in_pieces_with_its_chat() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        long(&store).await;
        store.append(last()).await.unwrap();
        let other = store.discard_chat("v".into(), "c".to_owned());
        assert_eq!(other.await.unwrap(), []);
        let (_, before) = store.written();
        let removed = store.discard_chat("u".into(), "c".to_owned());
        assert_eq!(removed.await.unwrap(), [id()]);
        assert_eq!(store.read(left).await.unwrap(), 0);
        let (_, after) = store.written();
        assert!(after - before > 6, "{} writes", after - before);
    }

    #[tokio::test]
    async fn the_log_of_a_session_that_lives_goes_when_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        long(&store).await;
        let marked = store.discard_chat("u".into(), "c".to_owned());
        assert_eq!(marked.await.unwrap(), []);
        assert!(store.read(left).await.unwrap() > 300);
        store.append(last()).await.unwrap();
        assert!(
            store.find(id(), None).await.unwrap().is_none(),
            "it is found while its log is deleted"
        );
        let gone = async {
            while store.read(left).await.unwrap() > 0 {
                tokio::task::yield_now().await;
            }
        };
        let gone = tokio::time::timeout(std::time::Duration::from_secs(60), gone).await;
        assert!(gone.is_ok(), "it is still there");
    }

    /// How much there is of any chat: its row, its messages, and what says that it is being deleted.
    fn left_of_chats(connection: &Connection) -> Result<[i64; 3], StoreError> {
        let count = |table| {
            let sql = format!("SELECT count(*) FROM {table}");
            connection.query_row(&sql, [], |row| row.get(0))
        };
        Ok([
            count("chat_sessions")?,
            count("chat_messages")?,
            count("discarded_chats")?,
        ])
    }

    /// The user's chats, where one has many messages.
    async fn chats(store: &Store) -> SqliteChatStore {
        store.create(new_session(), round(0, None)).await.unwrap();
        let mut said = round(1, None);
        for number in 0..1000 {
            said.chat_lines.push(ChatLine {
                role: "user",
                content: format!("{number}"),
                event_type: "UserMessage".to_owned(),
                metadata: None,
            });
        }
        store.append(Arc::new(said)).await.unwrap();
        SqliteChatStore::new(store.clone())
    }

    #[tokio::test]
    async fn a_chat_with_many_messages_goes_in_pieces_and_is_seen_by_nobody_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let chats = chats(&store).await;
        let (caller, other) = (Principal::service("u"), Principal::service("v"));
        assert!(!chats.delete(&other, "c").await.unwrap());
        let [_, messages, _] = store.read(left_of_chats).await.unwrap();
        assert!(messages >= 1000);
        let (_, before) = store.written();
        // After the first piece.
        store.crash_after(1);
        assert!(chats.delete(&caller, "c").await.is_err());
        let [rows, left, hidden] = store.read(left_of_chats).await.unwrap();
        assert_eq!((rows, hidden), (0, 1));
        assert!(left > 0 && left < messages, "{left} of {messages}");
        assert!(chats.find(&caller, "c").await.unwrap().is_none());
        assert_eq!(chats.messages(&caller, "c").await.unwrap(), []);
        assert_eq!(chats.list(&caller, 10, 0).await.unwrap(), []);
        store.crash_after(u64::MAX);
        // Who deletes it again deletes what is left.
        assert!(!chats.delete(&other, "c").await.unwrap());
        assert!(chats.delete(&caller, "c").await.unwrap());
        assert_eq!(store.read(left_of_chats).await.unwrap(), [0, 0, 0]);
        assert!(!chats.delete(&caller, "c").await.unwrap());
        let (_, after) = store.written();
        assert!(after - before > 10, "{} writes", after - before);
    }

    #[tokio::test]
    async fn a_chat_with_few_messages_goes_in_one_write() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.create(new_session(), round(0, None)).await.unwrap();
        let chats = SqliteChatStore::new(store.clone());
        let (_, before) = store.written();
        let caller = Principal::service("u");
        assert!(chats.delete(&caller, "c").await.unwrap());
        let (_, after) = store.written();
        assert_eq!(after - before, 1);
        assert_eq!(store.read(left_of_chats).await.unwrap(), [0, 0, 0]);
    }

    #[tokio::test]
    async fn a_chat_whose_deletion_was_interrupted_is_deleted_by_the_next_start_and_made_by_nobody_before()
     {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let chats = chats(&store).await;
        let caller = Principal::service("u");
        let chat = chats.find(&caller, "c").await.unwrap().unwrap();
        store.crash_after(3);
        assert!(chats.delete(&caller, "c").await.is_err());
        drop((chats, store));
        let store = Store::open(folder.path()).unwrap();
        let chats = SqliteChatStore::new(store.clone());
        let other = Principal::service("v");
        chats.create(&other, chat.clone()).await.unwrap();
        let [rows, left, _] = store.read(left_of_chats).await.unwrap();
        assert!(rows == 0 && left > 0, "{rows} chats, {left} messages");
        store.finish_deletions().await.unwrap();
        assert_eq!(store.read(left_of_chats).await.unwrap(), [0, 0, 0]);
        chats.create(&other, chat).await.unwrap();
        assert!(chats.find(&other, "c").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_chat_that_is_gone_takes_its_sessions_log_with_it_whatever_came_of_the_deletion() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        long(&store).await;
        store.append(last()).await.unwrap();
        let hidden = store.erase(|connection| hide_chat(connection, "c").map(drop));
        hidden.await.unwrap();
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        store.finish_deletions().await.unwrap();
        assert_eq!(store.read(left).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_deletion_that_was_interrupted_is_finished_by_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        long(&store).await;
        store.append(last()).await.unwrap();
        store.crash_after(5);
        let interrupted = store.discard_chat("u".into(), "c".to_owned());
        assert!(interrupted.await.is_err());
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert!(store.read(left).await.unwrap() > 0);
        store.finish_deletions().await.unwrap();
        assert_eq!(store.read(left).await.unwrap(), 0);
    }
}
