//! The usage of model calls: one row per call.
//!
//! # Invariants
//! - The totals of a session equal the sum of its rows, since one transaction writes both.
//! - Amounts of money are in millionths of a US dollar.

use rusqlite::{Connection, params};

use crate::error::StoreError;
use crate::sqlite::sql::{AsText, to_sql};
use lucid_types::ids::SessionId;
use lucid_types::log::ModelCallRow;

/// Writes the calls of a round.
pub(super) fn insert(
    connection: &Connection,
    session: SessionId,
    row: u64,
    calls: &[ModelCallRow],
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
            AsText(session),
            to_sql(row),
            call.effect.as_str(),
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
    Ok(())
}
