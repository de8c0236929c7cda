//! Connections to the database file, and its schema.
//!
//! # Invariants
//! - A file that a newer build wrote is not used.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::StoreError;

/// How long a write waits for another process's lock.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// The migrations, one per version, in order; `user_version` counts those that were run.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../../../migrations/0001_log_and_chats.sql"),
    include_str!("../../../../../migrations/0002_inbox.sql"),
    include_str!("../../../../../migrations/0003_usage.sql"),
    include_str!("../../../../../migrations/0004_integrations.sql"),
    include_str!("../../../../../migrations/0005_changes.sql"),
    include_str!("../../../../../migrations/0006_outbox.sql"),
    include_str!("../../../../../migrations/0007_begun.sql"),
    include_str!("../../../../../migrations/0008_uptime.sql"),
    include_str!("../../../../../migrations/0009_retained_workspaces.sql"),
    include_str!("../../../../../migrations/0010_origin.sql"),
    include_str!("../../../../../migrations/0011_client_positions.sql"),
    include_str!("../../../../../migrations/0012_deletion.sql"),
    include_str!("../../../../../migrations/0013_texts.sql"),
    include_str!("../../../../../migrations/0014_account_macs.sql"),
    include_str!("../../../../../migrations/0015_connections.sql"),
    include_str!("../../../../../migrations/0016_log_bytes.sql"),
    include_str!("../../../../../migrations/0017_discarded_chats.sql"),
    include_str!("../../../../../migrations/0018_pending_rounds.sql"),
];

/// `PRAGMA auto_vacuum` of a file that can shrink.
pub(super) const INCREMENTAL: i64 = 2;
/// The largest file that is rewritten at a start, in bytes. SQLite keeps the copy in memory.
const LARGEST_REWRITE: u64 = 64 << 20;

/// Opens a connection to the database file.
pub(super) fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(TIMEOUT)?;
    // No folder for temporary files is needed, and a full one cannot make a savepoint fail.
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.set_prepared_statement_cache_capacity(256);
    // A plan that depends on the values given is made anew for each use of a statement.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    if access.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
        // Before anything is written. In a file that has something it would be a write for nothing.
        if path.metadata().is_ok_and(|file| file.len() == 0) {
            connection.pragma_update(None, "auto_vacuum", "incremental")?;
        }
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        // Deleted content is not left behind in free pages.
        connection.pragma_update(None, "secure_delete", "on")?;
        // No commit copies SQLite's log; a thread does (see `checkpoint`).
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    }
    Ok(connection)
}

/// The version of the schema that this build writes.
pub(super) fn latest_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Returns the version of the file's schema, unless a newer build wrote it.
pub(super) fn known_version(connection: &Connection) -> Result<i64, StoreError> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = latest_version();
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    Ok(found)
}

/// Runs the migrations that the file lacks.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found = known_version(connection)?;
    for (version, sql) in (1i64..).zip(MIGRATIONS) {
        if version > found {
            let transaction = connection.transaction()?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "user_version", version)?;
            transaction.commit()?;
        }
    }
    Ok(())
}

/// Lets the space of what is deleted go back to the disk, in a file that an older build made. That
/// rewrites the file, so a large one is left as it is: [`gives_space_back`] tells.
pub(super) fn make_shrinkable(connection: &Connection) -> Result<(), StoreError> {
    if gives_space_back(connection)? || file_size(connection)? > LARGEST_REWRITE {
        return Ok(());
    }
    // Only an optimization, and a full disk must not prevent a start.
    if let Err(cause) = connection.execute_batch("PRAGMA auto_vacuum = incremental; VACUUM") {
        tracing::warn!(%cause, "the database could not be rewritten, so it keeps its size when chats are deleted");
    }
    Ok(())
}

/// Whether the space of what is deleted can go back to the disk.
pub(super) fn gives_space_back(connection: &Connection) -> Result<bool, StoreError> {
    let mode: i64 = connection.query_row("PRAGMA auto_vacuum", [], |row| row.get(0))?;
    Ok(mode == INCREMENTAL)
}

/// The size of the file, in bytes.
pub(super) fn file_size(connection: &Connection) -> Result<u64, StoreError> {
    let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let (pages, size) = (number("PRAGMA page_count")?, number("PRAGMA page_size")?);
    Ok(u64::try_from(pages.saturating_mul(size)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_statement_is_prepared_once_whatever_values_it_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lucid.db");
        let access = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = connect(&path, access).unwrap();
        let table = "CREATE TABLE t (a, b, c); CREATE UNIQUE INDEX i ON t (a, b)";
        connection.execute_batch(table).unwrap();
        let sql = "SELECT c FROM t WHERE a = ?1 AND b >= ?2 ORDER BY b";
        for number in 0..4 {
            let mut select = connection.prepare_cached(sql).unwrap();
            assert!(!select.exists([number, number]).unwrap());
            assert_eq!(
                select.get_status(StatementStatus::RePrepare),
                0,
                "use {number}"
            );
        }
    }
}
