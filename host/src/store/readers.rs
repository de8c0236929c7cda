//! Owns the connections that read.
//!
//! What always holds: there are never more than a few, they cannot write, and a read runs off the
//! async threads. A connection on which a read panicked is not used again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::{StoreError, connect};

/// Enough to keep the disk busy; each has its own page cache.
const CONNECTIONS: usize = 4;

pub(super) struct Readers {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    free: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        let turns = Arc::new(Semaphore::new(CONNECTIONS));
        Self {
            shared: Arc::new(Shared {
                path,
                free: Mutex::new(Vec::new()),
                turns,
            }),
        }
    }

    pub(super) async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let shared = self.shared.clone();
        let turn = shared
            .turns
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let work = move || {
            let _turn = turn;
            let free = shared
                .free
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let connection = match free {
                Some(connection) => connection,
                None => connect(&shared.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
            };
            let result = read(&connection);
            shared
                .free
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection);
            result
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| StoreError::Closed)?
    }
}
