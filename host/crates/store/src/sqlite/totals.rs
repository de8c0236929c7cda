//! The usage totals in the rows of sessions and of chats.
//!
//! # Invariants
//! - Amounts of money are in millionths of a US dollar.

use rusqlite::{Connection, Row, ToSql, params};

use super::sql::to_sql;
use crate::error::StoreError;
use lucid_types::log::UsageTotals;

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

/// Writes the totals of a row.
pub(crate) fn set_sums(
    connection: &Connection,
    table: &str,
    id: impl ToSql,
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
