//! The usage of model calls: one row per call, and the totals of a session and of its chat.
//!
//! # Invariants
//! - The totals equal the sum of the rows, since one transaction writes both.
//! - Amounts of money are in millionths of a US dollar.

use rusqlite::{Connection, Row, params};

use super::write::to_sql;
use crate::StoreError;
use lucid_types::log::{ModelCallRow, UsageTotals};

/// The columns of the totals, in the order that [`read`] expects.
pub(crate) const COLUMNS: &str =
    "model_calls, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost";

/// Reads the totals from a row that has their columns.
pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<UsageTotals> {
    let number = |column: &str| -> rusqlite::Result<u64> {
        Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
    };
    Ok(UsageTotals {
        calls: number("model_calls")?,
        input_tokens: number("input_tokens")?,
        output_tokens: number("output_tokens")?,
        cache_read_tokens: number("cache_read_tokens")?,
        cache_write_tokens: number("cache_write_tokens")?,
        cost: number("cost")?,
    })
}

/// Writes the calls of a round, and the resulting totals.
pub(super) fn write(
    connection: &Connection,
    (session, chat): (&str, &str),
    row: u64,
    calls: &[ModelCallRow],
    sums: &UsageTotals,
) -> Result<(), StoreError> {
    if calls.is_empty() {
        return Ok(());
    }
    let mut insert = connection.prepare_cached(
        "INSERT INTO model_calls (session_id, row, effect_id, provider, model, input_tokens, output_tokens,
             cache_read_tokens, cache_write_tokens, cost, tries)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    for call in calls {
        let used = &call.used;
        insert.execute(params![
            session,
            to_sql(row),
            call.effect,
            call.provider,
            call.model,
            to_sql(used.input_tokens),
            to_sql(used.output_tokens),
            to_sql(used.cache_read_tokens),
            to_sql(used.cache_write_tokens),
            call.priced.then(|| to_sql(used.cost)),
            call.tries,
        ])?;
    }
    // A session has one chat, so their totals are equal; the chat may have been deleted meanwhile.
    for (table, id) in [("sessions", session), ("chat_sessions", chat)] {
        set_sums(connection, table, id, sums)?;
    }
    Ok(())
}

/// Writes the totals of a row.
pub(crate) fn set_sums(
    connection: &Connection,
    table: &str,
    id: &str,
    sums: &UsageTotals,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(&format!(
            "UPDATE {table} SET model_calls = ?2, input_tokens = ?3, output_tokens = ?4,
                 cache_read_tokens = ?5, cache_write_tokens = ?6, cost = ?7 WHERE id = ?1"
        ))?
        .execute(params![
            id,
            to_sql(sums.calls),
            to_sql(sums.input_tokens),
            to_sql(sums.output_tokens),
            to_sql(sums.cache_read_tokens),
            to_sql(sums.cache_write_tokens),
            to_sql(sums.cost),
        ])?;
    Ok(())
}
