//! The database: one SQLite file for the session log and for chats. If a deployment keeps its chats
//! in Supabase (`supabase`), they are written here first, and `outbox` sends them on.
//!
//! # Invariants
//! - There is one process (enforced by a lock file), and in it one writer, an operating system
//!   thread that commits what many sessions wrote together.
//! - A write is acknowledged only after its commit. A write that fails undoes itself and none of
//!   its neighbours.
//! - Reads have connections of their own and never wait for the writer.
//! - Only the owner can access the folder (0700) and the file (0600).
//!
//! # Durability
//! The database uses `synchronous=NORMAL` with a write-ahead log: whatever was acknowledged
//! survives a crash or a kill of this process, since the operating system has the pages. A power
//! failure or a crash of the operating system may lose the last moments (what was written since the
//! last checkpoint and not yet flushed); the file stays consistent, and a session then continues
//! from the last step that is there. FULL would cost one flush per group commit and guard against
//! nothing else.

#![forbid(unsafe_code)]

mod accounts;
pub mod blobs;
mod chats;
mod outbox;
mod supabase;

pub mod log;
pub(crate) mod sqlite;
#[cfg(test)]
mod tests;

pub use self::accounts::{Integration, IntegrationFuture, Integrations, NewIntegration};
pub use self::chats::sqlite::SqliteChatStore;
pub use self::chats::store::{
    Chat, ChatMessage, ChatProgress, ChatStore, ChatStoreError, ChatStoreFuture, MissingSchema,
    Principal, TITLE_LENGTH,
};
pub use self::log::read::{find_session, logged_steps};
pub use self::sqlite::failure::transient_cause;
pub use self::sqlite::origin::{HostOrigin, last_start, record_start, release_sessions};
use self::sqlite::{readers, uptime, writer};
pub use chats::{Chats, DeletedChat};
use lucid_types::log::LogHealth;
pub use outbox::Outbox;
pub use supabase::{Supabase, SupabaseChatStore, SupabaseSettings};

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// The name of the database file in the storage folder.
const DATABASE: &str = "lucid.db";
/// How long a write waits for another process's lock.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The lock file, held by the process that uses the folder.
const LOCK: &str = "lucid.lock";
/// The migrations, one per version, in order; `user_version` counts those that were run.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../../migrations/0001_log_and_chats.sql"),
    include_str!("../../../../migrations/0002_inbox.sql"),
    include_str!("../../../../migrations/0003_usage.sql"),
    include_str!("../../../../migrations/0004_integrations.sql"),
    include_str!("../../../../migrations/0005_changes.sql"),
    include_str!("../../../../migrations/0006_outbox.sql"),
    include_str!("../../../../migrations/0007_begun.sql"),
    include_str!("../../../../migrations/0008_uptime.sql"),
    include_str!("../../../../migrations/0009_retained_workspaces.sql"),
    include_str!("../../../../migrations/0010_origin.sql"),
    include_str!("../../../../migrations/0011_client_positions.sql"),
    include_str!("../../../../migrations/0012_deletion.sql"),
    include_str!("../../../../migrations/0013_texts.sql"),
];

/// Why a call of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or a file in it could not be used.
    #[error("the storage folder {path} cannot be used: {cause}")]
    Folder {
        /// The path of the folder or file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
    /// Another process uses the folder.
    #[error(
        "the storage folder {0} is in use by another lucid; stop that one, or choose another folder"
    )]
    InUse(PathBuf),
    /// An error from SQLite.
    #[error("the database refused: {0}")]
    Database(#[from] rusqlite::Error),
    /// The group's transaction could not be committed; nothing of it is written.
    #[error("the database could not commit: {0}")]
    Commit(#[source] Arc<rusqlite::Error>),
    /// The file was written by a newer build.
    #[error("the database has version {found}, and this build knows {known}; use a newer lucid")]
    TooNew {
        /// The version in the file.
        found: i64,
        /// The version that this build knows.
        known: i64,
    },
    /// The stored content is not what this build writes.
    #[error("the log holds something that this build does not understand: {0}")]
    Content(String),
    /// The writer has ended, or the write panicked.
    #[error("the store is closed, or a write in it failed badly; the log of the host says more")]
    Closed,
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    // Dropped in this order: the writer drains and ends, then the readers, then the lock.
    writer: writer::WriterThread,
    readers: readers::Readers,
    health: LogHealth,
    folder: PathBuf,
    uptime: uptime::Uptime,
    /// Set if chats are sent to another store; notified of new ones.
    signal: OnceLock<Arc<outbox::OutboxSignal>>,
    _lock: File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("folder", &self.inner.folder)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database in a folder, creating both if necessary. Blocks briefly.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |cause| StoreError::Folder { path, cause }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed(folder))?;
        std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(failed(folder))?;
        let private = |name: &str| -> Result<File, StoreError> {
            let path = folder.join(name);
            let open = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            let file = open.map_err(failed(&path))?;
            file.set_permissions(Permissions::from_mode(0o600))
                .map_err(failed(&path))?;
            Ok(file)
        };
        let lock = private(LOCK)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(StoreError::InUse(folder.to_owned()));
            }
            Err(std::fs::TryLockError::Error(cause)) => {
                return Err(failed(&folder.join(LOCK))(cause));
            }
        }
        drop(private(DATABASE)?);
        let path = folder.join(DATABASE);
        let mut connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        migrate(&mut connection)?;
        let uptime = uptime::Uptime::resume(&connection)?;
        let health = LogHealth::default();
        let writer = writer::WriterThread::start(connection, health.clone())?;
        let readers = readers::Readers::open(path)?;
        Ok(Self {
            inner: Arc::new(Inner {
                writer,
                readers,
                health,
                folder: folder.to_owned(),
                uptime,
                signal: OnceLock::new(),
                _lock: lock,
            }),
        })
    }

    /// The storage folder.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// The store's name in `GET /`.
    pub fn kind(&self) -> &'static str {
        match self.inner.signal.get() {
            Some(_) => "supabase",
            None => "sqlite",
        }
    }

    /// Turns on sending of chats, and returns the notifier for new ones.
    fn enable_outbox(&self) -> Arc<outbox::OutboxSignal> {
        self.inner.signal.get_or_init(Arc::default).clone()
    }

    /// Returns whether the chat of a new session is to be sent to another store.
    fn sends_chats(&self) -> bool {
        self.inner.signal.get().is_some()
    }

    /// Notifies the outbox that a session and its chat were written.
    fn notify_chat_written(&self) {
        if let Some(signal) = self.inner.signal.get() {
            signal.chat();
        }
    }

    /// Notifies the outbox that a step was written, with this many chat messages.
    fn notify_messages_written(&self, lines: usize) {
        if let Some(signal) = self.inner.signal.get() {
            signal.lines(lines);
        }
    }

    /// Runs one write in the writer's thread, and returns when it is committed. A write that
    /// returns an error leaves nothing behind.
    pub async fn write<T, F>(&self, write: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.write_within(TIMEOUT, write).await
    }

    /// Like [`Store::write`], but waits less long for another process's lock, for a caller that
    /// retries by itself or is being waited for.
    pub async fn write_within<T, F>(&self, patience: Duration, write: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.inner.writer.write(patience, write).await
    }

    /// Whether the log can be written at the moment.
    pub fn health(&self) -> &LogHealth {
        &self.inner.health
    }

    /// Performs a write that changes nothing, to update [`Store::health`].
    pub async fn probe(&self) -> Result<(), StoreError> {
        let same = |connection: &Connection| {
            let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            Ok(connection.pragma_update(None, "user_version", version)?)
        };
        self.write_within(Duration::ZERO, same).await
    }

    /// Runs a write whose deletions must also disappear from the disk, including SQLite's own log.
    pub async fn erase<T, F>(&self, erase: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let empty_log = self.inner.writer.empty_log();
        let erase = move |connection: &Connection| {
            empty_log.store(true, Ordering::Relaxed);
            erase(connection)
        };
        self.write(erase).await
    }

    /// Runs one read on a connection of its own, off the async threads. It sees whatever was
    /// committed before.
    pub async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let store = self.inner.clone();
        store.readers.read(read).await
    }

    /// Makes the writer accept this many more writes and then stop as in a crash.
    #[cfg(any(test, feature = "testing"))]
    pub fn crash_after(&self, writes: u64) {
        self.inner.writer.crash_after(writes);
    }

    /// Simulates a full disk, or ends the simulation.
    #[cfg(any(test, feature = "testing"))]
    pub fn fill_disk(&self, full: bool) {
        self.inner.writer.fill_disk(full);
    }

    /// The number of transactions and of writes so far.
    #[cfg(any(test, feature = "testing"))]
    pub fn written(&self) -> (u64, u64) {
        self.inner.writer.written()
    }
}

/// Opens the database in a folder read-only, even while another process uses it.
pub fn open_read_only(folder: &Path) -> Result<Connection, StoreError> {
    let path = folder.join(DATABASE);
    if let Err(cause) = path.metadata() {
        return Err(StoreError::Folder { path, cause });
    }
    let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    Ok(connection)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
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

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
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
