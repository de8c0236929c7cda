//! Deletes the log of sessions whose chats were deleted.
//!
//! A log may have gigabytes. It is deleted in pieces, each a write of its own, so that other sessions'
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
        "coalesce(octet_length(inputs), 0) + coalesce(octet_length(commands), 0) + octet_length(frames)",
    ),
    ("transcript", "octet_length(message)"),
    // After the rows that refer to them.
    ("texts", "octet_length(text)"),
];
/// About how many bytes are deleted at once, which takes a few milliseconds, unless one row has more.
const PIECE: i64 = 256 << 10;
/// How many rows are deleted at once.
const ROWS: u32 = 64;

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
            let sql = "SELECT id FROM sessions WHERE discarded AND status = 'ended'";
            let mut select = connection.prepare(sql)?;
            let ids = select.query_map([], |row| row.get(0))?;
            ids.map(|id| id.map_err(StoreError::from)).collect()
        });
        let begun: Vec<String> = begun.await?;
        let mut outcome = Ok(());
        for session in begun {
            // What cannot be deleted must not keep the others.
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
    let session = &session;
    for (table, size) in LARGE {
        // The sizes are read without the values.
        let sql = format!("SELECT rowid, {size} FROM {table} WHERE session_id = ?1 LIMIT {ROWS}");
        let mut select = connection.prepare_cached(&sql)?;
        let rows = select.query_map([session], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let rows = rows.collect::<Result<Vec<(i64, i64)>, _>>()?;
        let mut delete =
            connection.prepare_cached(&format!("DELETE FROM {table} WHERE rowid = ?1"))?;
        let mut bytes = 0;
        for (row, size) in &rows {
            delete.execute([row])?;
            bytes += size;
            if bytes >= PIECE {
                break;
            }
        }
        if !rows.is_empty() {
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
    use lucid_types::log::SessionLog;

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
            store.find(id()).await.unwrap().is_none(),
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
