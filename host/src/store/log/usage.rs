//! Owns what model calls cost: a row for each, and the sums of a session and of its chat.
//!
//! What always holds: the sums are those of the rows, since one transaction writes both. Money is in
//! millionths of a US dollar.

use rusqlite::{Connection, Row, params};

use super::write::to_sql;
use crate::store::StoreError;

/// What all model calls of a session used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// How many there were.
    pub calls: u64,
    /// Read by the model, without what came from a cache.
    pub input_tokens: u64,
    /// Written by the model.
    pub output_tokens: u64,
    /// Read from a prompt cache.
    pub cache_read_tokens: u64,
    /// Written to a prompt cache.
    pub cache_write_tokens: u64,
    /// Of the calls whose model has known prices.
    pub cost: u64,
}

/// One model call that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallRow {
    /// The call's effect.
    pub effect: String,
    /// Who answered.
    pub provider: String,
    /// Which model.
    pub model: String,
    /// What this one used; `calls` is 1, and `cost` is 0 where it is not known.
    pub used: Totals,
    /// Whether the model's prices are known.
    pub priced: bool,
    /// How often the provider was asked.
    pub tries: u32,
}

/// The columns of the sums, as [`Totals::read`] wants them.
pub(crate) const COLUMNS: &str =
    "model_calls, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost";

impl Totals {
    /// All tokens together.
    pub fn tokens(&self) -> u64 {
        self.input_tokens
            .saturating_add(self.output_tokens)
            .saturating_add(self.cache_read_tokens)
            .saturating_add(self.cache_write_tokens)
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.calls, other.calls),
            (&mut self.input_tokens, other.input_tokens),
            (&mut self.output_tokens, other.output_tokens),
            (&mut self.cache_read_tokens, other.cache_read_tokens),
            (&mut self.cache_write_tokens, other.cache_write_tokens),
            (&mut self.cost, other.cost),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Out of a row that has the columns of the sums.
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let number = |column: &str| -> rusqlite::Result<u64> {
            Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
        };
        Ok(Self {
            calls: number("model_calls")?,
            input_tokens: number("input_tokens")?,
            output_tokens: number("output_tokens")?,
            cache_read_tokens: number("cache_read_tokens")?,
            cache_write_tokens: number("cache_write_tokens")?,
            cost: number("cost")?,
        })
    }
}

/// Writes the calls of a round, and the sums from there on.
pub(super) fn write(
    connection: &Connection,
    (session, chat): (&str, &str),
    row: u64,
    calls: &[CallRow],
    sums: &Totals,
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
    // A session has one chat, so their sums are the same; a chat may be gone meanwhile.
    for (table, id) in [("sessions", session), ("chat_sessions", chat)] {
        set_sums(connection, table, id, sums)?;
    }
    Ok(())
}

/// Writes the sums of a row.
pub(crate) fn set_sums(
    connection: &Connection,
    table: &str,
    id: &str,
    sums: &Totals,
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
