//! Numbers and times as SQLite stores them.

use chrono::{DateTime, Utc};

/// SQLite's integers are signed; none of these numbers comes near the limit.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The time of so many milliseconds since 1970.
pub(crate) fn time(at: u64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(to_sql(at)).unwrap_or_default()
}
