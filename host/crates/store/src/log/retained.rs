//! Workspaces that are kept for a while after their sessions end.
//!
//! # Invariants
//! - A row is written in the transaction that ends its session, and deleted once the files are
//!   gone, so the next sweep picks up whatever failed in between.
//! - Age is counted in the host's uptime.

use rusqlite::{Connection, OptionalExtension, Row};

use super::read::{parsed, session_id, user_id};
use crate::error::StoreError;
use crate::sqlite::sql::{AsText, to_sql};
use lucid_types::ids::SessionId;
use lucid_types::log::RetainedWorkspace;

/// The number of workspaces that are read at once.
const AT_ONCE: usize = 64;

fn read(row: &Row<'_>) -> rusqlite::Result<RetainedWorkspace> {
    Ok(RetainedWorkspace {
        session: parsed(row, "session_id")?,
        user: user_id(row, "user_id")?,
    })
}

/// Records that a session's workspace is kept, starting at this uptime of the host.
pub(super) fn retain(
    connection: &Connection,
    session: SessionId,
    uptime_ms: u64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO retained_workspaces (session_id, user_id, uptime_ms)
             SELECT id, user_id, ?2 FROM sessions WHERE id = ?1",
        )?
        .execute((AsText(session), to_sql(uptime_ms)))?;
    Ok(())
}

/// Reads some of the workspaces that have been kept since before this uptime of the host, oldest
/// first.
pub(super) fn retained_before(
    connection: &Connection,
    uptime_ms: u64,
) -> Result<Vec<RetainedWorkspace>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT session_id, user_id FROM retained_workspaces WHERE uptime_ms <= ?1
         ORDER BY uptime_ms",
    )?;
    let rows = select.query_map([to_sql(uptime_ms)], |row| {
        let Some(session) = session_id(row, "session_id")? else {
            return Ok(None);
        };
        let user = user_id(row, "user_id")?;
        Ok(Some(RetainedWorkspace { session, user }))
    })?;
    // Counted after those that are passed over, which stay and are the oldest.
    let rows = rows.filter_map(|row| row.transpose()).take(AT_ONCE);
    rows.map(|row| row.map_err(StoreError::from)).collect()
}

/// Reads the entry of one session, if its workspace is kept.
pub(super) fn retained(
    connection: &Connection,
    session: SessionId,
) -> Result<Option<RetainedWorkspace>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT session_id, user_id FROM retained_workspaces WHERE session_id = ?1",
    )?;
    Ok(select.query_row([AsText(session)], read).optional()?)
}

/// Postpones a removal, as if the workspace had been kept since this uptime of the host.
pub(super) fn extend_retention(
    connection: &Connection,
    session: SessionId,
    uptime_ms: u64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE retained_workspaces SET uptime_ms = ?2 WHERE session_id = ?1")?
        .execute((AsText(session), to_sql(uptime_ms)))?;
    Ok(())
}

/// Records that a workspace is gone.
pub(super) fn forget_retained(
    connection: &Connection,
    session: SessionId,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("DELETE FROM retained_workspaces WHERE session_id = ?1")?
        .execute([AsText(session)])?;
    Ok(())
}
