//! The threads that read, and their connections.
//!
//! The first connection is opened with the store. If no other can be opened because file
//! descriptors have run out, reads share the existing ones.
//!
//! # Invariants
//! - There are never more than a few connections, and they cannot write.
//! - A read runs in a thread of its own kind, which no other work can occupy.
//! - Those on whose behalf something is read are served in turn, and none has all threads.
//! - A read that nobody waits for any more does not begin, or is interrupted.
//! - A connection on which a read panicked is not used again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, InterruptHandle, OpenFlags};
use tokio::sync::oneshot;

use super::connection::connect;
use super::queue_key::QueueKey;
use crate::error::StoreError;
use lucid_types::fair::{FairLimits, FairQueue};

/// Enough to keep the disk busy; each has its own page cache.
const CONNECTIONS: usize = 4;
/// Reads at the same time on behalf of one.
const READS_OF_ONE: usize = 2;
/// How long to wait for another process's lock, and for a connection to be returned if none can be
/// opened.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A queued read.
type ReadJob = Box<dyn FnOnce(&Shared) + Send>;

pub(crate) struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    free: Mutex<Vec<Connection>>,
    released: Condvar,
    jobs: Mutex<ReadQueue>,
    /// Notified of a new job, of a slot that came back, and of the end.
    changed: Condvar,
}

/// What the threads have to do.
struct ReadQueue {
    fair: FairQueue<QueueKey, ReadJob>,
    is_closed: bool,
}

/// Ends the read of a caller who no longer waits.
struct ReadCaller(Arc<Mutex<Option<InterruptHandle>>>);

impl Drop for ReadCaller {
    fn drop(&mut self) {
        // Held by the lock, so that no later read on the same connection is meant.
        if let Some(running) = &*self.0.lock() {
            running.interrupt();
        }
    }
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

impl Shared {
    /// Takes jobs until the end.
    fn work(&self) {
        let mut jobs = self.jobs.lock();
        while !jobs.is_closed {
            let Some((key, job)) = jobs.fair.pop() else {
                self.changed.wait(&mut jobs);
                continue;
            };
            drop(jobs);
            job(self);
            jobs = self.jobs.lock();
            jobs.fair.release(&key);
            self.changed.notify_one();
        }
    }

    /// Runs a read on a connection. `None` if it panicked.
    fn run<T>(
        &self,
        running: &Mutex<Option<InterruptHandle>>,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Option<Result<T, StoreError>> {
        let connection = match self.acquire() {
            Ok(connection) => connection,
            Err(cause) => return Some(Err(cause)),
        };
        *running.lock() = Some(connection.get_interrupt_handle());
        // The closure shares nothing of ours but the connection, and that is closed.
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&connection)));
        *running.lock() = None;
        let result = outcome.ok()?;
        // The end of a transaction may be interrupted as well, and an open one would show everybody who reads
        // next what was then.
        if connection.is_autocommit() {
            self.release(connection);
        }
        Some(result)
    }
}

impl Readers {
    pub(crate) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let limits = FairLimits {
            each: READS_OF_ONE,
            all: CONNECTIONS,
        };
        let shared = Arc::new(Shared {
            path,
            free: Mutex::default(),
            released: Condvar::new(),
            jobs: Mutex::new(ReadQueue {
                fair: FairQueue::new(limits),
                is_closed: false,
            }),
            changed: Condvar::new(),
        });
        let first = shared.open()?;
        // SQLite opens the log's files with the first read.
        first.query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        })?;
        shared.release(first);
        let mut readers = Self {
            shared,
            threads: Vec::with_capacity(CONNECTIONS),
        };
        for number in 0..CONNECTIONS {
            let shared = readers.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("lucid-read-{number}"))
                .spawn(move || shared.work())
                .map_err(|cause| StoreError::Folder {
                    path: "a reader's thread".into(),
                    cause,
                })?;
            readers.threads.push(thread);
        }
        Ok(readers)
    }

    /// Runs a read in turn with those of others. It ends early if the future is dropped.
    pub(crate) async fn read<T, F>(&self, key: QueueKey, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (done, outcome) = oneshot::channel();
        let running = Arc::new(Mutex::new(None));
        let _caller = ReadCaller(running.clone());
        let job: ReadJob = Box::new(move |shared| {
            // Otherwise the caller is gone.
            if !done.is_closed()
                && let Some(result) = shared.run(&running, read)
            {
                let _ = done.send(result);
            }
        });
        self.shared.jobs.lock().fair.push(key, job);
        self.shared.changed.notify_one();
        outcome.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.jobs.lock().is_closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // The last handle of a store may be dropped by a read.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
