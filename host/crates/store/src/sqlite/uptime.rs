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

use crate::log::write::to_sql;
use crate::{Store, StoreError};

/// How long to wait for another process's lock.
const TIMEOUT: Duration = Duration::from_secs(1);

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

    fn now(&self) -> u64 {
        let running = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.earlier.saturating_add(running)
    }
}

impl Store {
    /// The host's uptime in milliseconds. Only differences are meaningful.
    pub fn uptime(&self) -> u64 {
        self.inner.uptime.now()
    }

    /// Stores the uptime. Not worth a long wait: what is missing is less than what a crash loses.
    pub async fn note_uptime(&self) -> Result<(), StoreError> {
        let now = to_sql(self.uptime());
        self.write_within(TIMEOUT, move |connection| {
            connection.execute(
                "UPDATE host_uptime SET uptime_ms = max(uptime_ms, ?1)",
                [now],
            )?;
            Ok(())
        })
        .await
    }
}
