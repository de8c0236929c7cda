//! Numbers, times and ids as SQLite stores them.

use std::fmt::Display;

use chrono::{DateTime, Utc};
use rusqlite::ToSql;
use rusqlite::types::ToSqlOutput;

/// An id or a digest, stored as its text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AsText<T>(pub(crate) T);

impl<T: Display> ToSql for AsText<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.to_string().into())
    }
}

/// SQLite's integers are signed; none of these numbers comes near the limit.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The time of so many milliseconds since 1970.
pub(crate) fn time(at: u64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(to_sql(at)).unwrap_or_default()
}
