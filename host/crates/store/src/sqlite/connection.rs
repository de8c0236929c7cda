//! Connections to the database file, and its schema.
//!
//! # Invariants
//! - A file that a newer build wrote is not used.

use std::path::Path;
use std::time::Duration;

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
];

/// Opens a connection to the database file.
pub(super) fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(TIMEOUT)?;
    // No folder for temporary files is needed, and a full one cannot make a savepoint fail.
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.set_prepared_statement_cache_capacity(64);
    if access.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        // Deleted content is not left behind in free pages.
        connection.pragma_update(None, "secure_delete", "on")?;
        // 16 MB of log before a checkpoint: fewer, longer stretches of copying.
        connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
        connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    }
    Ok(connection)
}

/// Returns the version of the file's schema, unless a newer build wrote it.
pub(super) fn known_version(connection: &Connection) -> Result<i64, StoreError> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
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
