//! Stores the positions of clients that do not count frames themselves, across a restart of the
//! host.
//!
//! # Invariants
//! - A stored position is never ahead of what a client has received.

use rusqlite::{Connection, params};

use super::read::session_id;
use crate::error::StoreError;
use crate::sqlite::sql::{AsText, to_sql};
use lucid_types::log::PositionRow;

/// Replaces the stored positions with these.
pub(super) fn save_positions(
    connection: &Connection,
    rows: &[PositionRow],
) -> Result<(), StoreError> {
    connection.execute("DELETE FROM client_positions", [])?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO client_positions (session_id, features, taken) VALUES (?1, ?2, ?3)",
    )?;
    for row in rows {
        insert.execute(params![
            AsText(row.session),
            row.features,
            to_sql(row.taken)
        ])?;
    }
    Ok(())
}

/// Reads all stored positions.
pub(super) fn saved_positions(connection: &Connection) -> Result<Vec<PositionRow>, StoreError> {
    let mut select =
        connection.prepare("SELECT session_id, features, taken FROM client_positions")?;
    let rows = select.query_map([], |row| {
        let Some(session) = session_id(row, "session_id")? else {
            return Ok(None);
        };
        let taken: i64 = row.get(2)?;
        Ok(Some(PositionRow {
            session,
            features: row.get(1)?,
            taken: u64::try_from(taken).unwrap_or_default(),
        }))
    })?;
    let rows = rows.filter_map(|row| row.transpose());
    Ok(rows.collect::<Result<_, _>>()?)
}
