//! The usage of model calls: one row per call, and the totals of a session and of its chat.
//!
//! # Invariants
//! - The totals equal the sum of the rows, since one transaction writes both.
//! - Amounts of money are in millionths of a US dollar.

use rusqlite::{Connection, params};

use crate::error::StoreError;
use crate::sqlite::sql::{AsText, to_sql};
use crate::sqlite::totals::set_sums;
use lucid_types::ids::SessionId;
use lucid_types::log::{ModelCallRow, UsageTotals};

/// Writes the calls of a round, and the resulting totals.
pub(super) fn write(
    connection: &Connection,
    (session, chat): (SessionId, &str),
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
    // A session has one chat, so their totals are equal; the chat may have been deleted meanwhile.
    set_sums(connection, "sessions", AsText(session), sums)?;
    set_sums(connection, "chat_sessions", chat, sums)
}
