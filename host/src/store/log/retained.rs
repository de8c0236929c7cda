//! The workspaces that outlive their sessions for a while.
//!
//! # Invariants
//! A row is written in the transaction that ends its session, and goes when the files are gone, so whatever
//! fails in between is found by the next look. Age is counted in the host's uptime.

use rusqlite::{Connection, OptionalExtension, Row};

use super::write::to_sql;
use crate::store::StoreError;

/// A workspace that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained {
    /// The session that it was.
    pub session: String,
    /// Whose it is.
    pub user: String,
}

fn read(row: &Row<'_>) -> rusqlite::Result<Retained> {
    Ok(Retained {
        session: row.get(0)?,
        user: row.get(1)?,
    })
}

/// Notes that a session's workspace is kept, from this uptime of the host on.
pub(super) fn retain(
    connection: &Connection,
    session: &str,
    uptime_ms: u64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO retained_workspaces (session_id, user_id, uptime_ms)
             SELECT id, user_id, ?2 FROM sessions WHERE id = ?1",
        )?
        .execute((session, to_sql(uptime_ms)))?;
    Ok(())
}

/// Those that were kept before this uptime of the host, the oldest first, some at a time.
pub fn retained_before(
    connection: &Connection,
    uptime_ms: u64,
) -> Result<Vec<Retained>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT session_id, user_id FROM retained_workspaces WHERE uptime_ms <= ?1
         ORDER BY uptime_ms LIMIT 64",
    )?;
    let rows = select.query_map([to_sql(uptime_ms)], read)?;
    rows.map(|row| row.map_err(StoreError::from)).collect()
}

/// One of them, where it is kept.
pub fn retained(connection: &Connection, session: &str) -> Result<Option<Retained>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT session_id, user_id FROM retained_workspaces WHERE session_id = ?1",
    )?;
    Ok(select.query_row([session], read).optional()?)
}

/// Puts one off, as if it had been kept from this uptime of the host on.
pub fn retain_longer(
    connection: &Connection,
    session: &str,
    uptime_ms: u64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE retained_workspaces SET uptime_ms = ?2 WHERE session_id = ?1")?
        .execute((session, to_sql(uptime_ms)))?;
    Ok(())
}

/// Notes that one is gone.
pub fn forget_retained(connection: &Connection, session: &str) -> Result<(), StoreError> {
    connection
        .prepare_cached("DELETE FROM retained_workspaces WHERE session_id = ?1")?
        .execute([session])?;
    Ok(())
}
