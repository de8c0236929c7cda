//! The pool of read connections.
//!
//! The first connection is opened with the store. If no other can be opened because file
//! descriptors have run out, reads share the existing ones.
//!
//! # Invariants
//! - There are never more than a few connections, and they cannot write.
//! - A read runs off the async threads.
//! - A connection on which a read panicked is not used again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::connection::connect;
use crate::error::StoreError;

/// Enough to keep the disk busy; each has its own page cache.
const CONNECTIONS: usize = 4;
/// How long to wait for another process's lock, and for a connection to be returned if none can be
/// opened.
const TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Readers {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    free: Mutex<Vec<Connection>>,
    released: Condvar,
    slots: Arc<Semaphore>,
}

impl Shared {
    fn open(&self) -> Result<Connection, StoreError> {
        let connection = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(TIMEOUT)?;
        Ok(connection)
    }

    /// Takes a free connection, a new one or, if none can be opened, the next one returned.
    fn acquire(&self) -> Result<Connection, StoreError> {
        let free = self.free.lock().pop();
        if let Some(connection) = free {
            return Ok(connection);
        }
        let failed = match self.open() {
            Ok(connection) => return Ok(connection),
            Err(cause) => cause,
        };
        let mut free = self.free.lock();
        self.released
            .wait_while_for(&mut free, |free| free.is_empty(), TIMEOUT);
        free.pop().ok_or(failed)
    }

    fn release(&self, connection: Connection) {
        let mut free = self.free.lock();
        free.push(connection);
        self.released.notify_one();
    }
}

impl Readers {
    pub(crate) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let shared = Shared {
            path,
            free: Mutex::default(),
            released: Condvar::new(),
            slots: Arc::new(Semaphore::new(CONNECTIONS)),
        };
        let first = shared.open()?;
        // SQLite opens the log's files with the first read.
        first.query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        })?;
        shared.release(first);
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    pub(crate) async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let shared = self.shared.clone();
        let turn = shared
            .slots
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let work = move || {
            let _turn = turn;
            let connection = shared.acquire()?;
            let result = read(&connection);
            shared.release(connection);
            result
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| StoreError::Closed)?
    }
}
