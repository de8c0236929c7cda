//! The writer's thread, and what is carried out without it.
//!
//! Another process's lock is waited for in short turns, so that a write whose caller has run out of
//! patience can be returned meanwhile.
//!
//! # Invariants
//! - Writes that wait are carried out in the order of their [queue](super::write_queue). Those that wait
//!   together form one transaction, each but the first in a savepoint of its own, until it has taken
//!   [`GROUP_TIME`].
//! - No caller is told of success before its transaction is committed, and every caller is told of
//!   a failure.
//! - The space of what was deleted goes back to the disk in small pieces, while no write waits.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
#[cfg(any(test, feature = "testing"))]
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{Connection, ffi};
use tokio::sync::oneshot;

use super::checkpoint::Checkpoints;
use super::failure::of_sqlite;
use super::queue_key::QueueKey;
#[cfg(any(test, feature = "testing"))]
use super::write_connection::WriterProbe;
use super::write_connection::{AloneOutcome, WriteConnection};
use super::write_queue::WriteQueue;
use crate::error::StoreError;
use lucid_types::ids::SessionId;
use lucid_types::log::LogHealth;

/// Maximum number of writes committed together.
const GROUP: usize = 256;
/// How long a transaction takes writes in. What is queued meanwhile waits that long and for one write.
const GROUP_TIME: Duration = Duration::from_millis(5);
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
    /// The session that could have carried it out.
    fn session(&self) -> Option<SessionId>;
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
    session: Option<SessionId>,
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

    fn session(&self) -> Option<SessionId> {
        self.session
    }
}

/// Carries out writes; the thread ends when it is dropped.
pub(crate) struct Writer {
    shared: Arc<WriterShared>,
    thread: Option<JoinHandle<()>>,
    #[cfg(any(test, feature = "testing"))]
    probe: Arc<WriterProbe>,
}

/// What the thread and those who write without it share.
struct WriterShared {
    queue: Arc<WriteQueue>,
    checkpoints: Checkpoints,
    /// Used by whoever has the turn of `checkpoints`.
    connection: Mutex<WriteConnection>,
}

impl Writer {
    pub(crate) fn start(
        connection: Connection,
        checkpoints: Checkpoints,
        health: LogHealth,
    ) -> Result<Self, StoreError> {
        let connection = WriteConnection::new(connection, checkpoints.clone(), health)?;
        #[cfg(any(test, feature = "testing"))]
        let probe = connection.probe.clone();
        let shared = Arc::new(WriterShared {
            queue: Arc::new(WriteQueue::new()),
            checkpoints,
            connection: Mutex::new(connection),
        });
        let mut work = Work {
            shared: shared.clone(),
            group: VecDeque::new(),
            is_reclaiming: true,
        };
        let thread = std::thread::Builder::new()
            .name("lucid-store".to_owned())
            .spawn(move || work.run())
            .map_err(|cause| StoreError::Folder {
                path: "the writer's thread".into(),
                cause,
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            #[cfg(any(test, feature = "testing"))]
            probe,
        })
    }

    /// Runs a write, and calls `then` once it is committed, in the thread that committed it. A `session` is given
    /// for a short write of one: its caller carries it out, if nothing is being written and nothing waits.
    /// `patience` is how long to wait for another process's lock.
    pub(crate) async fn write<T, F, N>(
        &self,
        (key, session): (QueueKey, Option<SessionId>),
        patience: Duration,
        write: F,
        then: N,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        N: FnOnce() + Send + 'static,
    {
        let write = match session {
            Some(session) => match self.shared.write_alone(session, write) {
                AloneOutcome::Done(outcome) => return outcome.inspect(|_| then()),
                AloneOutcome::Left(write) => write,
            },
            None => write,
        };
        let (done, outcome) = oneshot::channel();
        let job = Box::new(WriteJob {
            work: write,
            then,
            done,
            patient_until: Instant::now() + patience,
            session,
        });
        self.shared.queue.push(key, job).await?;
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

    /// Ends a simulation of a full disk after so many more transactions.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn free_disk_after(&self, refused: u64) {
        self.probe.refused.store(refused, Ordering::SeqCst);
        self.probe.full.store(false, Ordering::SeqCst);
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn trust_the_disk(&self) {
        self.probe.is_disk_trusted.store(true, Ordering::SeqCst);
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn written(&self) -> (u64, u64) {
        (
            self.probe.groups.load(Ordering::SeqCst),
            self.probe.writes.load(Ordering::SeqCst),
        )
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // What is queued is still written. The thread has nothing else to do, so this is short.
            let _ = thread.join();
        }
    }
}

impl WriterShared {
    /// Carries a write out here and now, if nothing stands in the way.
    fn write_alone<T, F>(&self, session: SessionId, write: F) -> AloneOutcome<T, F>
    where
        F: FnOnce(&Connection) -> Result<T, StoreError>,
    {
        if !self.queue.is_idle() {
            return AloneOutcome::Left(write);
        }
        match self.checkpoints.try_turn() {
            Some(_turn) => self.connection.lock().alone(session, write),
            None => AloneOutcome::Left(write),
        }
    }

    /// Waits for the connection.
    fn exclusively<T>(&self, run: impl FnOnce(&mut WriteConnection) -> T) -> T {
        self.checkpoints
            .exclusively(|| run(&mut self.connection.lock()))
    }
}

/// The thread's state.
struct Work {
    shared: Arc<WriterShared>,
    /// Writes that were taken from the queue.
    group: VecDeque<Box<dyn Write>>,
    /// Whether there may be more free pages than the file needs.
    is_reclaiming: bool,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.shared.queue.abandon();
    }
}

impl Work {
    fn run(&mut self) {
        let shared = self.shared.clone();
        while let Some(first) = self.group.pop_front().or_else(|| self.next()) {
            self.group.push_front(first);
            shared.exclusively(|connection| {
                if self.begin(connection) {
                    self.commit(connection);
                }
            });
            self.is_reclaiming = true;
        }
        // Leaves one file behind instead of three, unless a reader is in the way.
        let _ = shared.exclusively(|connection| {
            let connection = connection.connection();
            connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        });
    }

    /// Waits for a write, and gives space back until there is one. `None` at the end.
    fn next(&mut self) -> Option<Box<dyn Write>> {
        let shared = self.shared.clone();
        let mut reclaimed = false;
        while self.is_reclaiming && !shared.queue.is_closed() {
            if let Some(write) = shared.queue.try_pop() {
                return Some(write);
            }
            // Where it fails it is tried again after the next write.
            let any = shared.exclusively(|connection| connection.reclaim());
            self.is_reclaiming = any.unwrap_or(false);
            reclaimed |= self.is_reclaiming;
        }
        if reclaimed {
            // Only then does the file become smaller.
            shared.checkpoints.copy();
        }
        shared.queue.pop()
    }

    /// The next write of a group that was begun at that time. `None` if it has enough; one that failed
    /// takes no more in.
    fn next_of_group(&mut self, begun: Instant, is_good: bool) -> Option<Box<dyn Write>> {
        self.group.pop_front().or_else(|| {
            let is_open = is_good && begun.elapsed() < GROUP_TIME;
            is_open.then(|| self.shared.queue.try_pop()).flatten()
        })
    }

    /// Begins the group's transaction. Returns `false` if no write is left in the group.
    fn begin(&mut self, connection: &WriteConnection) -> bool {
        while !self.group.is_empty() {
            let Err(cause) = connection.begin() else {
                return true;
            };
            let locked = WriteConnection::is_locked(&cause);
            connection.note(&cause);
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
                && let Some(next) = self.shared.queue.try_pop()
            {
                self.group.push_back(next);
            }
        }
        false
    }

    fn commit(&mut self, connection: &mut WriteConnection) {
        let mut done: Vec<Acknowledge> = Vec::new();
        let mut failed: Option<Cause> = None;
        let begun = Instant::now();
        #[cfg(any(test, feature = "testing"))]
        connection.probe.begin_group();
        let mut writes = 0;
        let mut writer = None;
        while writes < GROUP
            && let Some(write) = self.next_of_group(begun, failed.is_none())
        {
            writes += 1;
            writer = write
                .session()
                .filter(|_| writes == 1 || writer == write.session());
            #[cfg(any(test, feature = "testing"))]
            if connection.probe.is_crashed() {
                continue;
            }
            if let Some(cause) = &failed {
                write.refuse(cause.clone());
                continue;
            }
            let is_first = writes == 1;
            match one(connection, write, is_first) {
                Ok(acknowledge) => done.extend(acknowledge),
                Err((cause, acknowledge)) => {
                    done.extend(acknowledge);
                    failed = Some(Arc::new(cause));
                }
            }
            if is_first && failed.is_none() && connection.connection().is_autocommit() {
                // The transaction was undone with the write, and the others have one of their own.
                return done.into_iter().for_each(|acknowledge| acknowledge(None));
            }
        }
        connection.note_group(writer, begun);
        if failed.is_none() {
            failed = connection.commit().err().map(Arc::new);
        }
        match &failed {
            None => connection.succeeded(),
            Some(cause) => {
                connection.note(cause);
                connection.roll_back();
            }
        }
        for acknowledge in done {
            acknowledge(failed.clone());
        }
    }
}

/// Runs one write. The first of a transaction needs no savepoint: what undoes it is the end of the
/// transaction. Returns `None` for the acknowledgement if the write panicked: its changes are undone, and its
/// caller is told that the store is closed. An error concerns the whole group.
fn one(
    connection: &WriteConnection,
    write: Box<dyn Write>,
    is_first: bool,
) -> Result<Option<Acknowledge>, (rusqlite::Error, Option<Acknowledge>)> {
    let run = |sql: &str| {
        if is_first {
            return Ok(());
        }
        connection.run(sql)
    };
    if let Err(cause) = run("SAVEPOINT one") {
        let error = Arc::new(clone_error(&cause));
        write.refuse(error);
        return Err((cause, None));
    }
    let inner = connection.connection();
    // The closure shares nothing of ours but the connection, and that is rolled back.
    let outcome = catch_unwind(AssertUnwindSafe(|| write.run(inner)));
    let done = outcome.ok();
    let undone = match done.as_ref().filter(|done| !done.succeeded) {
        // When it lacks space, memory or a working disk, SQLite rolls back the whole transaction.
        Some(UncommittedWrite {
            code: Some(code), ..
        }) if inner.is_autocommit() || passes(*code) => {
            Err(rusqlite::Error::SqliteFailure(*code, None))
        }
        // Nor is there anything of it that could be committed.
        None if done.is_some() && inner.is_autocommit() => {
            let aborted = ffi::Error::new(ffi::SQLITE_ABORT);
            Err(rusqlite::Error::SqliteFailure(aborted, None))
        }
        None if done.is_some() => Ok(()),
        _ if is_first => connection.run("ROLLBACK"),
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
