//! Where the database was last used: on which machine, in which folder, and by which start of a
//! host.
//!
//! # Invariants
//! - There is one row, which a host writes before it serves, and none before the first start.

use rusqlite::{Connection, OptionalExtension};

use crate::error::StoreError;
use crate::sqlite::sql::AsText;
use lucid_types::ids::SessionId;

/// A start of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOrigin {
    /// The machine's identity, or `None` if it has none of its own (most containers).
    pub machine: Option<String>,
    /// The storage folder, with links resolved.
    pub folder: String,
    /// The name of the marker file that this start left beside the workspaces.
    pub marker: String,
    /// Last change of that file's inode, in nanoseconds since 1970: a copy has a different time.
    pub marked_ns: i64,
}

/// Reads the last start.
pub fn last_start(connection: &Connection) -> Result<Option<HostOrigin>, StoreError> {
    let mut select =
        connection.prepare_cached("SELECT machine, folder, marker, marked_ns FROM host_origin")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(HostOrigin {
            machine: row.get(0)?,
            folder: row.get(1)?,
            marker: row.get(2)?,
            marked_ns: row.get(3)?,
        })
    };
    Ok(select.query_row([], read).optional()?)
}

/// Records this start. If `elsewhere` says that the last one was in another location, all sessions
/// are held from now on.
pub fn record_start(
    connection: &Connection,
    start: &HostOrigin,
    elsewhere: bool,
) -> Result<(), StoreError> {
    connection.execute("DELETE FROM host_origin", [])?;
    connection.execute(
        "INSERT INTO host_origin (machine, folder, marker, marked_ns) VALUES (?1, ?2, ?3, ?4)",
        (
            &start.machine,
            &start.folder,
            &start.marker,
            start.marked_ns,
        ),
    )?;
    if elsewhere {
        connection.execute("UPDATE sessions SET held = 1 WHERE status <> 'ended'", [])?;
    }
    Ok(())
}

/// Lets one session, or all of them, resume by themselves from now on.
pub fn release_sessions(
    connection: &Connection,
    session: Option<SessionId>,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE sessions SET held = 0
             WHERE held AND status <> 'ended' AND id = coalesce(?1, id)",
        )?
        .execute([session.map(AsText)])?;
    Ok(())
}
