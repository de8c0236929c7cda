//! Deletes rows in pieces: what is large is deleted in several writes, so that others come between them.

use rusqlite::{Connection, ToSql};

use crate::error::StoreError;

/// About how many bytes are deleted at once, which takes a few milliseconds, unless one row has more.
const PIECE: i64 = 256 << 10;
/// How many rows are deleted at once.
const ROWS: usize = 64;

/// What was deleted at once.
pub(crate) struct DeletedRows {
    pub(crate) any: bool,
    /// Whether there may be more.
    pub(crate) more: bool,
}

/// Deletes a piece of what a table has of a session, or of a chat.
pub(crate) fn delete_rows(
    connection: &Connection,
    (table, size): (&str, &str),
    session: &impl ToSql,
) -> Result<DeletedRows, StoreError> {
    // The sizes are read without the values.
    let sql = format!("SELECT rowid, {size} FROM {table} WHERE session_id = ?1 LIMIT {ROWS}");
    let mut select = connection.prepare_cached(&sql)?;
    let rows = select.query_map([session], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let rows = rows.collect::<Result<Vec<(i64, i64)>, _>>()?;
    let mut delete = connection.prepare_cached(&format!("DELETE FROM {table} WHERE rowid = ?1"))?;
    let (mut deleted, mut bytes) = (0, 0);
    for (row, size) in &rows {
        delete.execute([row])?;
        deleted += 1;
        bytes += size;
        if bytes >= PIECE {
            break;
        }
    }
    Ok(DeletedRows {
        any: deleted > 0,
        more: deleted < rows.len() || deleted == ROWS,
    })
}
