//! The database's handle, and how its file is opened.
//!
//! # Invariants
//! - There is one process (enforced by a lock file), and in it one connection that writes.
//! - Only the owner can access the folder (0700) and the file (0600).

#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::checkpoint::{CheckpointThread, Checkpoints};
use super::connection::{
    TIMEOUT, connect, file_size, gives_space_back, known_version, latest_version, make_shrinkable,
    migrate,
};
use super::outbox_signal::OutboxSignal;
use super::queue_key::QueueKey;
use super::readers::Readers;
use super::uptime::{self, Uptime};
use super::writer::Writer;
use crate::error::StoreError;
use lucid_types::ids::SessionId;
use lucid_types::log::LogHealth;

/// The name of the database file in the storage folder.
const DATABASE: &str = "lucid.db";
/// The lock file, held by the process that uses the folder.
const LOCK: &str = "lucid.lock";

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    // Dropped in this order: nothing is copied any more, the writer drains and ends, then the readers,
    // then the lock.
    _checkpointing: CheckpointThread,
    writer: Writer,
    readers: Readers,
    checkpoints: Checkpoints,
    health: LogHealth,
    folder: PathBuf,
    uptime: Uptime,
    /// Set if chats are sent to another store; notified of new ones.
    signal: OnceLock<Arc<OutboxSignal>>,
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
        make_shrinkable(&connection)?;
        let uptime = Uptime::resume(&connection)?;
        let health = LogHealth::default();
        let checkpoints = Checkpoints::new();
        let copying = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let checkpointing = checkpoints.start(copying)?;
        // What was erased shortly before a crash may still be there.
        checkpoints.empty();
        let writer = Writer::start(connection, checkpoints.clone(), health.clone())?;
        let readers = Readers::open(path)?;
        Ok(Self {
            inner: Arc::new(Inner {
                _checkpointing: checkpointing,
                writer,
                readers,
                checkpoints,
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
    pub(crate) fn enable_outbox(&self) -> Arc<OutboxSignal> {
        self.inner.signal.get_or_init(Arc::default).clone()
    }

    /// Returns the notifier for new chats, if chats are sent to another store.
    pub(crate) fn outbox_signal(&self) -> Option<Arc<OutboxSignal>> {
        self.inner.signal.get().cloned()
    }

    /// Runs one write of the host's own in the writer's thread, and returns when it is committed. A
    /// write that returns an error leaves nothing behind.
    pub async fn write<T, F>(&self, write: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.write_for(QueueKey::Host, write).await
    }

    /// Like [`Store::write`], on behalf of a user or a session: each has its turn, however many writes
    /// another asked for.
    pub(crate) async fn write_for<T, F>(&self, key: QueueKey, write: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.write_then(key, TIMEOUT, write, || {}).await
    }

    /// Like [`Store::write`], but waits less long for another process's lock, for a caller that
    /// retries by itself or is being waited for.
    pub async fn write_within<T, F>(&self, patience: Duration, write: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.write_then(QueueKey::Host, patience, write, || {})
            .await
    }

    /// Runs a write as the others say; once it is committed, the writer calls `then`, even if the
    /// caller no longer waits.
    pub(crate) async fn write_then<T, F, N>(
        &self,
        key: QueueKey,
        patience: Duration,
        write: F,
        then: N,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        N: FnOnce() + Send + 'static,
    {
        let who = (key, None);
        self.inner.writer.write(who, patience, write, then).await
    }

    /// Like [`Store::write_then`], for a short write of a session: the caller carries it out, if nothing is
    /// being written.
    pub(crate) async fn write_at_once<T, F, N>(
        &self,
        (key, session): (QueueKey, SessionId),
        patience: Duration,
        write: F,
        then: N,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        N: FnOnce() + Send + 'static,
    {
        let who = (key, Some(session));
        self.inner.writer.write(who, patience, write, then).await
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
        self.erase_for(QueueKey::Host, erase).await
    }

    /// Like [`Store::erase`], on behalf of a user or a session.
    pub(crate) async fn erase_for<T, F>(&self, key: QueueKey, erase: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let checkpoints = self.inner.checkpoints.clone();
        self.write_then(key, TIMEOUT, erase, move || checkpoints.empty())
            .await
    }

    /// Runs one read of the host's own. It sees whatever was committed before.
    pub async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.read_for(QueueKey::Host, read).await
    }

    /// Runs one read for a user or for a session, off the async threads. Each has its turn, however
    /// many reads another asked for. It ends early if the future is dropped.
    pub(crate) async fn read_for<T, F>(&self, key: QueueKey, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let store = self.inner.clone();
        store.readers.read(key, read).await
    }

    /// The host's uptime in milliseconds. Only differences are meaningful.
    pub fn uptime(&self) -> u64 {
        self.inner.uptime.now()
    }

    /// Stores the uptime. Not worth a long wait: what is missing is less than what a crash loses.
    pub async fn note_uptime(&self) -> Result<(), StoreError> {
        let now = self.uptime();
        self.write_within(uptime::TIMEOUT, move |connection| {
            uptime::record(connection, now)
        })
        .await
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

    /// Ends a simulation of a full disk after so many more transactions.
    #[cfg(any(test, feature = "testing"))]
    pub fn free_disk_after(&self, refused: u64) {
        self.inner.writer.free_disk_after(refused);
    }

    /// Has callers carry out their own writes however long the disk takes.
    #[cfg(any(test, feature = "testing"))]
    pub fn trust_the_disk(&self) {
        self.inner.writer.trust_the_disk();
    }

    /// The number of transactions and of writes so far.
    #[cfg(any(test, feature = "testing"))]
    pub fn written(&self) -> (u64, u64) {
        self.inner.writer.written()
    }
}

/// The size in bytes of a database that keeps its size when something is deleted; `None` of one that
/// gives the space back.
pub fn size_that_stays(connection: &Connection) -> Result<Option<u64>, StoreError> {
    if gives_space_back(connection)? {
        return Ok(None);
    }
    file_size(connection).map(Some)
}

/// Opens the database in a folder read-only, even while another process uses it.
pub fn open_read_only(folder: &Path) -> Result<Connection, StoreError> {
    let path = folder.join(DATABASE);
    if let Err(cause) = path.metadata() {
        return Err(StoreError::Folder { path, cause });
    }
    let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let (found, known) = (known_version(&connection)?, latest_version());
    if found < known {
        return Err(StoreError::TooOld { found, known });
    }
    Ok(connection)
}
