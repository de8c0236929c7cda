//! The host's uptime: how long hosts have run on this database, all together.
//!
//! # Invariants
//! It never goes back and never jumps: it is measured with the monotonic clock while a host runs, and
//! written down every minute, with every round of a session, and at the end; what a crash takes of it is
//! less than that minute. The time that no host ran is not in it. Waits that are longer than a process (a
//! question's week, how long a workspace is kept) are counted in it, so that no wall clock ends them.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::store::log::write::to_sql;
use crate::store::{Store, StoreError};

/// How long another process's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct Uptime {
    before: u64,
    since: Instant,
}

impl Uptime {
    /// Goes on where the last host stopped.
    pub(crate) fn go_on(connection: &Connection) -> Result<Self, StoreError> {
        // With one look at the sessions that are alive, which an index has.
        let before: i64 = connection.query_row(
            "SELECT max(uptime_ms, coalesce((SELECT max(uptime_ms) FROM sessions WHERE status <> 'ended'), 0))
             FROM host_uptime",
            [],
            |row| row.get(0),
        )?;
        Ok(Self {
            before: u64::try_from(before).unwrap_or(0),
            since: Instant::now(),
        })
    }

    fn now(&self) -> u64 {
        let running = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.before.saturating_add(running)
    }
}

impl Store {
    /// The host's uptime, in milliseconds. Only differences mean something.
    pub fn uptime(&self) -> u64 {
        self.inner.uptime.now()
    }

    /// Writes it down. Not worth a long wait: what is missing is less than what a crash takes.
    pub async fn note_uptime(&self) -> Result<(), StoreError> {
        let now = to_sql(self.uptime());
        self.write_within(PATIENCE, move |connection| {
            connection.execute(
                "UPDATE host_uptime SET uptime_ms = max(uptime_ms, ?1)",
                [now],
            )?;
            Ok(())
        })
        .await
    }
}
