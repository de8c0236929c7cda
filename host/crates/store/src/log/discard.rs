//! Deletes the log of sessions whose chats were deleted.
//!
//! # Invariants
//!
//! - The log of a session that is over is deleted with its chat. A live session keeps what it works
//!   with, and is deleted in the transaction that ends it.
//! - Another user's session is not touched, whatever chat is named.
//! - The cost of model calls is kept: numbers, and the names of providers and models. It contains
//!   no text and nothing that identifies a user.

use rusqlite::{Connection, OptionalExtension as _, ToSql, params};

use super::read::session_id;
use crate::error::StoreError;
use crate::sqlite::sql::AsText;
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

/// Deletes the log of the user's session that has this chat, or marks it for deletion at the
/// session's end. Returns the sessions deleted now.
pub(crate) fn of_chat(
    connection: &Connection,
    user: &UserId,
    chat: &str,
) -> Result<Vec<SessionId>, StoreError> {
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
    let over = over.collect::<Result<Vec<(String, Option<SessionId>)>, _>>()?;
    for (row, _) in &over {
        remove(connection, row)?;
    }
    Ok(over.into_iter().filter_map(|(_, id)| id).collect())
}

/// At a session's end, deletes its log if its chat has been deleted.
pub(super) fn discard_if_deleted(
    connection: &Connection,
    session: SessionId,
) -> Result<(), StoreError> {
    let session = AsText(session);
    let discarded = connection
        .prepare_cached("SELECT discarded FROM sessions WHERE id = ?1")?
        .query_row([session], |row| row.get(0))
        .optional()?;
    match discarded {
        Some(true) => remove(connection, session),
        _ => Ok(()),
    }
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
