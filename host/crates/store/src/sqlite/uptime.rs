//! The host's uptime: how long hosts have run on this database, in total.
//!
//! Waits that may outlast a process (a question's week, the retention of a workspace) are counted
//! in it, so that no wall clock ends them.
//!
//! # Invariants
//! - It never goes back and never jumps: it is measured with the monotonic clock while a host runs,
//!   and excludes the time when none did.
//! - It is stored every minute, with every round of a session, and at shutdown; a crash loses less
//!   than that minute.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::sql::to_sql;
use crate::error::StoreError;

/// How long to wait for another process's lock.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Uptime {
    earlier: u64,
    since: Instant,
}

impl Uptime {
    /// Continues where the last host stopped.
    pub(crate) fn resume(connection: &Connection) -> Result<Self, StoreError> {
        // Looks only at live sessions, for which there is an index.
        let before: i64 = connection.query_row(
            "SELECT max(uptime_ms, coalesce((SELECT max(uptime_ms) FROM sessions WHERE status <> 'ended'), 0))
             FROM host_uptime",
            [],
            |row| row.get(0),
        )?;
        Ok(Self {
            earlier: u64::try_from(before).unwrap_or(0),
            since: Instant::now(),
        })
    }

    /// The uptime in milliseconds.
    pub(super) fn now(&self) -> u64 {
        let running = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.earlier.saturating_add(running)
    }
}

/// Records an uptime; the stored one never goes back.
pub(super) fn record(connection: &Connection, now: u64) -> Result<(), StoreError> {
    connection.execute(
        "UPDATE host_uptime SET uptime_ms = max(uptime_ms, ?1)",
        [to_sql(now)],
    )?;
    Ok(())
}
