//! The writer thread.
//!
//! Another process's lock is waited for in short turns, so that a write whose caller has run out of
//! patience can be returned meanwhile.
//!
//! # Invariants
//! - Writes are carried out in the order of their [queue](super::write_queue). Those that wait together
//!   form one transaction, each in a savepoint of its own, until it has taken [`GROUP_TIME`].
//! - No caller is told of success before its transaction is committed, and every caller is told of
//!   a failure.
//! - The space of what was deleted goes back to the disk in small pieces, while no write waits.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
#[cfg(any(test, feature = "testing"))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::hooks::Wal;
use rusqlite::{Connection, ffi};
use tokio::sync::oneshot;

use super::checkpoint::Checkpoints;
use super::connection::INCREMENTAL;
use super::failure::of_sqlite;
use super::queue_key::QueueKey;
use super::write_queue::WriteQueue;
use crate::error::StoreError;
use lucid_types::log::LogHealth;
use lucid_types::transient::TransientFailure;

/// Maximum number of writes committed together.
const GROUP: usize = 256;
/// How long a transaction takes writes in. What is queued meanwhile waits that long and for one write.
const GROUP_TIME: Duration = Duration::from_millis(5);
/// Free pages that the file keeps for what is written next: 4 MiB.
const SPARE_PAGES: i64 = 1024;
/// Pages that are given back at once, while no write waits: a few milliseconds.
const RECLAIMED_PAGES: i64 = 64;
/// How long one turn of waiting for another process's lock lasts.
const TURN: Duration = Duration::from_millis(200);

/// Why a whole group was not committed.
type Cause = Arc<rusqlite::Error>;
/// Reports the result to the caller; called after the commit, with the reason if that failed.
type Acknowledge = Box<dyn FnOnce(Option<Cause>) + Send>;

/// A queued write.
pub(super) trait Write: Send {
    /// Carries out the write, and returns how to report it.
    fn run(self: Box<Self>, connection: &Connection) -> UncommittedWrite;
    /// Reports to the caller that the write was not carried out.
    fn refuse(self: Box<Self>, cause: Cause);
    /// Returns whether the caller still waits for another process's lock.
    fn is_patient(&self, now: Instant) -> bool;
}

/// A write that was carried out and is not yet committed.
pub(super) struct UncommittedWrite {
    /// Whether its savepoint is kept.
    succeeded: bool,
    /// SQLite's error code, if the write failed with one.
    code: Option<ffi::Error>,
    acknowledge: Acknowledge,
}

struct WriteJob<T, F, N> {
    work: F,
    /// Called once the write is committed.
    then: N,
    done: oneshot::Sender<Result<T, StoreError>>,
    patient_until: Instant,
}

impl<T, F, N> Write for WriteJob<T, F, N>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    N: FnOnce() + Send + 'static,
{
    fn run(self: Box<Self>, connection: &Connection) -> UncommittedWrite {
        let Self {
            work, then, done, ..
        } = *self;
        let result = work(connection);
        let code = match &result {
            Err(StoreError::Database(cause)) => cause.sqlite_error().copied(),
            _ => None,
        };
        let good = result.is_ok();
        let acknowledge: Acknowledge = Box::new(move |failed| {
            if good && failed.is_none() {
                then();
            }
            // The caller may be gone, and then nobody is waiting for the result.
            let _ = done.send(match failed {
                Some(cause) if good => Err(StoreError::Commit(cause)),
                _ => result,
            });
        });
        UncommittedWrite {
            succeeded: good,
            code,
            acknowledge,
        }
    }

    fn refuse(self: Box<Self>, cause: Cause) {
        let _ = self.done.send(Err(StoreError::Commit(cause)));
    }

    fn is_patient(&self, now: Instant) -> bool {
        self.patient_until > now
    }
}

pub(crate) struct WriterThread {
    queue: Arc<WriteQueue>,
    thread: Option<JoinHandle<()>>,
    #[cfg(any(test, feature = "testing"))]
    probe: Arc<WriterProbe>,
}

/// State that tests observe and manipulate.
#[cfg(any(test, feature = "testing"))]
pub(super) struct WriterProbe {
    left: AtomicU64,
    full: AtomicBool,
    groups: AtomicU64,
    writes: AtomicU64,
}

#[cfg(any(test, feature = "testing"))]
impl WriterProbe {
    /// Counts a write. Returns whether the writer has stopped before it.
    fn is_crashed(&self) -> bool {
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            return true;
        }
        if left != u64::MAX {
            self.left.store(left - 1, Ordering::SeqCst);
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        false
    }
}

impl WriterThread {
    pub(crate) fn start(
        mut connection: Connection,
        checkpoints: Checkpoints,
        health: LogHealth,
    ) -> Result<Self, StoreError> {
        connection.busy_timeout(TURN)?;
        let watching = checkpoints.clone();
        connection.wal_hook(Some(move |_: &mut Wal, pages| {
            watching.grown(pages);
            Ok(())
        }))?;
        let queue = Arc::new(WriteQueue::new());
        #[cfg(any(test, feature = "testing"))]
        let probe = Arc::new(WriterProbe {
            left: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
            groups: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        });
        let mut work = Work {
            connection,
            checkpoints,
            queue: queue.clone(),
            group: VecDeque::new(),
            health,
            is_reclaiming: true,
            #[cfg(any(test, feature = "testing"))]
            probe: probe.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("lucid-store".to_owned())
            .spawn(move || work.run())
            .map_err(|cause| StoreError::Folder {
                path: "the writer's thread".into(),
                cause,
            })?;
        Ok(Self {
            queue,
            thread: Some(thread),
            #[cfg(any(test, feature = "testing"))]
            probe,
        })
    }

    /// Runs a write, and calls `then` in this thread once it is committed. `patience` is how long
    /// to wait for another process's lock.
    pub(crate) async fn write<T, F, N>(
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
        let (done, outcome) = oneshot::channel();
        let job = Box::new(WriteJob {
            work: write,
            then,
            done,
            patient_until: Instant::now() + patience,
        });
        self.queue.push(key, job).await?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn crash_after(&self, writes: u64) {
        self.probe.left.store(writes, Ordering::SeqCst);
    }

    /// Simulates a full disk, or ends the simulation.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn fill_disk(&self, full: bool) {
        self.probe.full.store(full, Ordering::SeqCst);
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn written(&self) -> (u64, u64) {
        (
            self.probe.groups.load(Ordering::SeqCst),
            self.probe.writes.load(Ordering::SeqCst),
        )
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // What is queued is still written. The thread has nothing else to do, so this is short.
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Work {
    connection: Connection,
    queue: Arc<WriteQueue>,
    /// Writes that were taken from the queue.
    group: VecDeque<Box<dyn Write>>,
    checkpoints: Checkpoints,
    health: LogHealth,
    /// Whether there may be more free pages than the file needs.
    is_reclaiming: bool,
    #[cfg(any(test, feature = "testing"))]
    probe: Arc<WriterProbe>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

impl Work {
    fn run(&mut self) {
        while let Some(first) = self.next() {
            self.group.push_back(first);
            let checkpoints = self.checkpoints.clone();
            checkpoints.exclusively(|| {
                if self.begin() {
                    self.commit();
                }
            });
            self.is_reclaiming = true;
        }
        // Leaves one file behind instead of three, unless a reader is in the way.
        let _ = self
            .connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
    }

    /// Waits for a write, and gives space back until there is one. `None` at the end.
    fn next(&mut self) -> Option<Box<dyn Write>> {
        let mut reclaimed = false;
        while self.is_reclaiming && !self.queue.is_closed() {
            if let Some(write) = self.queue.try_pop() {
                return Some(write);
            }
            // Where it fails it is tried again after the next write.
            let checkpoints = self.checkpoints.clone();
            self.is_reclaiming = checkpoints.exclusively(|| self.reclaim()).unwrap_or(false);
            reclaimed |= self.is_reclaiming;
        }
        if reclaimed {
            // Only then does the file become smaller.
            self.checkpoints.copy();
        }
        self.queue.pop()
    }

    /// Gives some free pages back. Returns `false` if there are none to spare.
    fn reclaim(&self) -> rusqlite::Result<bool> {
        let mut select = self.connection.prepare_cached("PRAGMA freelist_count")?;
        let free: i64 = select.query_row([], |row| row.get(0))?;
        let surplus = (free - SPARE_PAGES).min(RECLAIMED_PAGES);
        let mut mode = self.connection.prepare_cached("PRAGMA auto_vacuum")?;
        let cannot_shrink = mode.query_row([], |row| row.get::<_, i64>(0))? != INCREMENTAL;
        if surplus <= 0 || cannot_shrink {
            return Ok(false);
        }
        let reclaim = format!("PRAGMA incremental_vacuum({surplus})");
        let mut reclaim = self.connection.prepare(&reclaim)?;
        // It gives back a page for each row.
        let mut pages = reclaim.query([])?;
        while pages.next()?.is_some() {}
        Ok(true)
    }

    /// The next write of a group that was begun at that time. `None` if it has enough; one that failed
    /// takes no more in.
    fn next_of_group(&mut self, begun: Instant, is_good: bool) -> Option<Box<dyn Write>> {
        self.group.pop_front().or_else(|| {
            let is_open = is_good && begun.elapsed() < GROUP_TIME;
            is_open.then(|| self.queue.try_pop()).flatten()
        })
    }

    /// Begins the group's transaction. Returns `false` if no write is left in the group.
    fn begin(&mut self) -> bool {
        while !self.group.is_empty() {
            let Err(cause) = self.try_begin() else {
                return true;
            };
            let locked = of_sqlite(&cause) == Some(TransientFailure::Locked);
            self.note(&cause);
            let cause = Arc::new(cause);
            let now = Instant::now();
            for write in std::mem::take(&mut self.group) {
                if locked && write.is_patient(now) {
                    self.group.push_back(write);
                } else {
                    write.refuse(cause.clone());
                }
            }
            // Those that came meanwhile wait for the lock too, each as long as it likes.
            while self.group.len() < GROUP
                && let Some(next) = self.queue.try_pop()
            {
                self.group.push_back(next);
            }
        }
        false
    }

    fn try_begin(&self) -> rusqlite::Result<()> {
        #[cfg(any(test, feature = "testing"))]
        if self.probe.full.load(Ordering::SeqCst) {
            return Err(full());
        }
        self.connection
            .prepare_cached("BEGIN IMMEDIATE")?
            .execute([])
            .map(drop)
    }

    fn commit(&mut self) {
        let mut done: Vec<Acknowledge> = Vec::new();
        let mut failed: Option<Cause> = None;
        let begun = Instant::now();
        #[cfg(any(test, feature = "testing"))]
        self.probe.groups.fetch_add(1, Ordering::SeqCst);
        let mut writes = 0;
        while writes < GROUP
            && let Some(write) = self.next_of_group(begun, failed.is_none())
        {
            writes += 1;
            #[cfg(any(test, feature = "testing"))]
            if self.probe.is_crashed() {
                continue;
            }
            if let Some(cause) = &failed {
                write.refuse(cause.clone());
                continue;
            }
            match one(&self.connection, write) {
                Ok(acknowledge) => done.extend(acknowledge),
                Err((cause, acknowledge)) => {
                    done.extend(acknowledge);
                    failed = Some(Arc::new(cause));
                }
            }
        }
        if failed.is_none() {
            let committed = self
                .connection
                .prepare_cached("COMMIT")
                .and_then(|mut commit| commit.execute([]));
            failed = committed.err().map(Arc::new);
        }
        match &failed {
            None => self.health.succeeded(),
            Some(cause) => {
                self.note(cause);
                if !self.connection.is_autocommit() {
                    let _ = self.connection.execute_batch("ROLLBACK");
                }
            }
        }
        for acknowledge in done {
            acknowledge(failed.clone());
        }
    }

    /// Records why nothing was written.
    fn note(&self, cause: &rusqlite::Error) {
        match of_sqlite(cause) {
            Some(reason) => self.health.failed(reason),
            None => tracing::error!(%cause, "the log could not be written"),
        }
    }
}

#[cfg(any(test, feature = "testing"))]
fn full() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None)
}

/// Runs one write in its savepoint. Returns `None` for the acknowledgement if the write panicked:
/// its changes are undone, and its caller is told that the store is closed. An error concerns the
/// whole group.
fn one(
    connection: &Connection,
    write: Box<dyn Write>,
) -> Result<Option<Acknowledge>, (rusqlite::Error, Option<Acknowledge>)> {
    let run = |sql: &str| -> rusqlite::Result<()> {
        connection.prepare_cached(sql)?.execute([]).map(drop)
    };
    if let Err(cause) = run("SAVEPOINT one") {
        let error = Arc::new(clone_error(&cause));
        write.refuse(error);
        return Err((cause, None));
    }
    // The closure shares nothing of ours but the connection, and that is rolled back.
    let outcome = catch_unwind(AssertUnwindSafe(|| write.run(connection)));
    let done = outcome.ok();
    let undone = match done.as_ref().filter(|done| !done.succeeded) {
        // When it lacks space, memory or a working disk, SQLite rolls back the whole transaction.
        Some(UncommittedWrite {
            code: Some(code), ..
        }) if connection.is_autocommit() || passes(*code) => {
            Err(rusqlite::Error::SqliteFailure(*code, None))
        }
        None if done.is_some() => Ok(()),
        _ => run("ROLLBACK TO one"),
    };
    let acknowledge = done.map(|done| done.acknowledge);
    match undone.and_then(|()| run("RELEASE one")) {
        Ok(()) => Ok(acknowledge),
        Err(cause) => Err((cause, acknowledge)),
    }
}

/// Returns whether a write failed for a reason that its neighbours would meet as well.
fn passes(code: ffi::Error) -> bool {
    of_sqlite(&rusqlite::Error::SqliteFailure(code, None)).is_some()
}

/// SQLite's errors cannot be cloned; only the code matters.
fn clone_error(error: &rusqlite::Error) -> rusqlite::Error {
    let code = error.sqlite_error().copied();
    rusqlite::Error::SqliteFailure(
        code.unwrap_or_else(|| ffi::Error::new(ffi::SQLITE_ERROR)),
        None,
    )
}
