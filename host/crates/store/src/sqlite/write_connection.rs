//! The one connection that writes, and what a transaction on it comes to.
//!
//! A write that finds the connection free is carried out by its caller, which saves two hand-overs between
//! threads. Where many sessions write, that would cost more than it saves: then all wait for the [writer's
//! thread](super::writer), which commits many together and touches each page once.
//!
//! # Invariants
//! - A write is committed as a whole or not at all.
//! - At most one caller is held up by the disk, and none where the executor has one thread. Once that took
//!   [`LONG`], callers leave all writes to the thread for [`AVERSION`], so that a slow disk costs an executor a
//!   small part of its time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
#[cfg(any(test, feature = "testing"))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
#[cfg(any(test, feature = "testing"))]
use rusqlite::ffi;
use rusqlite::hooks::Wal;

use super::checkpoint::Checkpoints;
use super::connection::INCREMENTAL;
use super::failure::of_sqlite;
use crate::error::StoreError;
use lucid_types::ids::SessionId;
use lucid_types::log::LogHealth;
use lucid_types::transient::TransientFailure;

/// How long a caller's own transaction may take before callers leave them to the thread.
const LONG: Duration = Duration::from_millis(20);
/// For how long they do.
const AVERSION: Duration = Duration::from_secs(10);
/// How long after another session's write a session's own is carried out by its caller.
const QUIET: Duration = Duration::from_micros(250);
/// Free pages that the file keeps for what is written next: 4 MiB.
const SPARE_PAGES: i64 = 1024;
/// Pages that are given back at once, while no write waits: a few milliseconds.
const RECLAIMED_PAGES: i64 = 64;
/// How long another process's lock is waited for at once.
const LOCK_WAIT: Duration = Duration::from_millis(200);

/// The connection.
pub(super) struct WriteConnection {
    connection: Connection,
    health: LogHealth,
    /// Until when callers leave their writes to the thread.
    averse_until: Option<Instant>,
    /// Whether a caller that waits for the disk holds up everything else.
    has_one_processor: bool,
    last: Option<LastWrite>,
    #[cfg(any(test, feature = "testing"))]
    pub(super) probe: Arc<WriterProbe>,
}

/// Whose the last transaction was, and when it began.
#[derive(Debug, Clone, Copy)]
struct LastWrite {
    /// `None` if it was the host's, or of several sessions.
    session: Option<SessionId>,
    begun: Instant,
}

/// What became of a write that its caller wanted to carry out.
pub(super) enum AloneOutcome<T, F> {
    /// It was carried out, or failed.
    Done(Result<T, StoreError>),
    /// It was not begun, and is left to the thread.
    Left(F),
}

impl WriteConnection {
    pub(super) fn new(
        mut connection: Connection,
        checkpoints: Checkpoints,
        health: LogHealth,
    ) -> Result<Self, StoreError> {
        connection.busy_timeout(LOCK_WAIT)?;
        connection.wal_hook(Some(move |_: &mut Wal, pages| {
            checkpoints.grown(pages);
            Ok(())
        }))?;
        Ok(Self {
            connection,
            health,
            averse_until: None,
            has_one_processor: std::thread::available_parallelism().is_ok_and(|all| all.get() == 1),
            last: None,
            #[cfg(any(test, feature = "testing"))]
            probe: Arc::default(),
        })
    }

    /// Carries out one write of a session in a transaction of its own.
    pub(super) fn alone<T, F>(&mut self, session: SessionId, write: F) -> AloneOutcome<T, F>
    where
        F: FnOnce(&Connection) -> Result<T, StoreError>,
    {
        let begun = Instant::now();
        let is_another =
            |last: LastWrite| last.session != Some(session) && begun < last.begun + QUIET;
        let has_one_processor = self.has_one_processor;
        #[cfg(any(test, feature = "testing"))]
        let has_one_processor =
            has_one_processor && !self.probe.is_disk_trusted.load(Ordering::SeqCst);
        if has_one_processor
            || self.last.is_some_and(is_another)
            || self.averse_until.is_some_and(|until| begun < until)
        {
            return AloneOutcome::Left(write);
        }
        // Only the thread waits for another process's lock.
        let waits = |time| self.connection.busy_timeout(time).is_ok();
        let is_begun = waits(Duration::ZERO) && self.begin().is_ok();
        if !(waits(LOCK_WAIT) && is_begun) {
            if is_begun {
                self.roll_back();
            }
            return AloneOutcome::Left(write);
        }
        let done = AloneOutcome::Done(self.carry_out(write));
        self.note_group(Some(session), begun);
        let is_slow = begun.elapsed() > LONG;
        #[cfg(any(test, feature = "testing"))]
        let is_slow = is_slow && !self.probe.is_disk_trusted.load(Ordering::SeqCst);
        self.averse_until = is_slow.then(|| Instant::now() + AVERSION);
        done
    }

    /// Runs one write in the transaction that was begun for it, and ends that.
    fn carry_out<T>(
        &self,
        write: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        #[cfg(any(test, feature = "testing"))]
        {
            self.probe.begin_group();
            if self.probe.is_crashed() {
                self.roll_back();
                return Err(StoreError::Closed);
            }
        }
        // The closure shares nothing of ours but the connection, and that is rolled back.
        let written = catch_unwind(AssertUnwindSafe(|| write(&self.connection)));
        let written = written.unwrap_or(Err(StoreError::Closed));
        let outcome = written.and_then(|value| match self.commit() {
            Ok(()) => Ok(value),
            Err(cause) => Err(StoreError::Commit(Arc::new(cause))),
        });
        match &outcome {
            Ok(_) => self.health.succeeded(),
            Err(error) => {
                match error {
                    StoreError::Commit(cause) => self.note(cause),
                    StoreError::Database(cause) if of_sqlite(cause).is_some() => self.note(cause),
                    _ => {}
                }
                self.roll_back();
            }
        }
        outcome
    }

    /// Begins a transaction. Waits [`LOCK_WAIT`] for another process's lock.
    pub(super) fn begin(&self) -> rusqlite::Result<()> {
        // One whose end failed.
        self.roll_back();
        #[cfg(any(test, feature = "testing"))]
        if self.probe.finds_disk_full() {
            return Err(full());
        }
        self.run("BEGIN IMMEDIATE")
    }

    /// Commits the transaction.
    pub(super) fn commit(&self) -> rusqlite::Result<()> {
        self.run("COMMIT")
    }

    /// Ends the transaction, if there still is one, without a trace.
    pub(super) fn roll_back(&self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    /// Runs a statement without parameters and rows.
    pub(super) fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// The connection itself.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Records whose the writes were of a transaction that began at that time, if they were one session's.
    pub(super) fn note_group(&mut self, session: Option<SessionId>, begun: Instant) {
        self.last = Some(LastWrite { session, begun });
    }

    /// Records that the log can be written.
    pub(super) fn succeeded(&self) {
        self.health.succeeded();
    }

    /// Records why nothing was written.
    pub(super) fn note(&self, cause: &rusqlite::Error) {
        match of_sqlite(cause) {
            Some(reason) => self.health.failed(reason),
            None => tracing::error!(%cause, "the log could not be written"),
        }
    }

    /// Gives some free pages back. Returns `false` if there are none to spare.
    pub(super) fn reclaim(&self) -> rusqlite::Result<bool> {
        let mut select = self.connection.prepare_cached("PRAGMA freelist_count")?;
        let free: i64 = select.query_row([], |row| row.get(0))?;
        let surplus = (free - SPARE_PAGES).min(RECLAIMED_PAGES);
        if surplus <= 0 {
            return Ok(false);
        }
        let mut mode = self.connection.prepare_cached("PRAGMA auto_vacuum")?;
        if mode.query_row([], |row| row.get::<_, i64>(0))? != INCREMENTAL {
            return Ok(false);
        }
        let reclaim = format!("PRAGMA incremental_vacuum({surplus})");
        let mut reclaim = self.connection.prepare(&reclaim)?;
        // It gives back a page for each row.
        let mut pages = reclaim.query([])?;
        while pages.next()?.is_some() {}
        Ok(true)
    }

    /// Whether a transaction could not begin because another process holds the lock.
    pub(super) fn is_locked(cause: &rusqlite::Error) -> bool {
        of_sqlite(cause) == Some(TransientFailure::Locked)
    }
}

#[cfg(any(test, feature = "testing"))]
fn full() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None)
}

/// State that tests observe and manipulate.
#[cfg(any(test, feature = "testing"))]
pub(super) struct WriterProbe {
    pub(super) left: AtomicU64,
    pub(super) full: AtomicBool,
    /// How many more transactions find the disk full.
    pub(super) refused: AtomicU64,
    pub(super) groups: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) is_disk_trusted: AtomicBool,
}

#[cfg(any(test, feature = "testing"))]
impl Default for WriterProbe {
    fn default() -> Self {
        Self {
            left: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            groups: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            is_disk_trusted: AtomicBool::new(false),
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl WriterProbe {
    /// Whether a transaction finds the disk full.
    fn finds_disk_full(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        let refused = self
            .refused
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        refused.is_ok() || self.full.load(Ordering::SeqCst)
    }

    /// Counts a transaction.
    pub(super) fn begin_group(&self) {
        self.groups.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a write. Returns whether the writer has stopped before it.
    pub(super) fn is_crashed(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use futures::FutureExt;
    use rusqlite::OpenFlags;

    use super::*;
    use crate::sqlite::connection::connect;
    use crate::sqlite::{QueueKey, Store};

    fn add(connection: &Connection, entry: i64) -> Result<(), StoreError> {
        connection.execute("INSERT INTO transcript VALUES ('s', ?1, 'm')", [entry])?;
        Ok(())
    }

    fn entries(connection: &Connection) -> Result<Vec<i64>, StoreError> {
        let mut select = connection.prepare("SELECT entry FROM transcript ORDER BY entry")?;
        let entries = select.query_map([], |row| row.get(0))?;
        Ok(entries.collect::<Result<_, _>>()?)
    }

    fn session() -> SessionId {
        "0190163d-8694-739b-aea5-966c26f8ad91".parse().unwrap()
    }

    /// Writes an entry, and returns the name of the thread that did.
    async fn at_once(store: &Store, entry: i64) -> Result<Option<String>, StoreError> {
        let write = move |connection: &Connection| {
            add(connection, entry)?;
            Ok(thread::current().name().map(str::to_owned))
        };
        let (key, patience) = (QueueKey::Host, Duration::from_secs(60));
        store
            .write_at_once((key, session()), patience, write, || {})
            .await
    }

    #[tokio::test]
    async fn a_short_write_is_its_callers_own_unless_another_is_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.trust_the_disk();
        let own = thread::current().name().map(str::to_owned);
        // At first the thread may still look for free pages, and a start empties SQLite's log.
        let mut entry = 0;
        let first = async {
            while at_once(&store, entry).await.unwrap() != own {
                entry += 1;
            }
        };
        let first = tokio::time::timeout(Duration::from_secs(60), first).await;
        assert!(first.is_ok(), "no write was its caller's own");
        let (begun, is_begun) = tokio::sync::oneshot::channel();
        let (go, wait) = mpsc::channel::<()>();
        let held = tokio::spawn({
            let store = store.clone();
            async move {
                let hold = move |_: &Connection| {
                    begun.send(()).unwrap();
                    Ok(wait.recv().is_ok())
                };
                store.write(hold).await
            }
        });
        is_begun.await.unwrap();
        let mut beside = Box::pin(at_once(&store, -1));
        assert!((&mut beside).now_or_never().is_none(), "it did not wait");
        go.send(()).unwrap();
        assert_eq!(beside.await.unwrap().as_deref(), Some("lucid-store"));
        assert!(held.await.unwrap().unwrap());
        let written = store.read(entries).await.unwrap();
        assert_eq!(written, (-1..=entry).collect::<Vec<_>>());
    }

    fn alone(folder: &std::path::Path) -> WriteConnection {
        drop(Store::open(folder).unwrap());
        let database = folder.join("lucid.db");
        let connection = connect(&database, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        let checkpoints = Checkpoints::new();
        let mut alone =
            WriteConnection::new(connection, checkpoints, LogHealth::default()).unwrap();
        alone.has_one_processor = false;
        alone
    }

    fn done<T, F>(outcome: AloneOutcome<T, F>) -> Result<T, StoreError> {
        match outcome {
            AloneOutcome::Done(outcome) => outcome,
            AloneOutcome::Left(_) => panic!("it was left to the thread"),
        }
    }

    #[test]
    fn a_write_that_fails_or_panics_leaves_nothing_and_the_next_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut connection = alone(folder.path());
        let mut write = |fails: Option<fn() -> StoreError>| {
            connection.averse_until = None;
            done(connection.alone(session(), |connection| {
                add(connection, 1)?;
                fails.map_or(Ok(()), |fails| Err(fails()))
            }))
        };
        let failed = write(Some(|| StoreError::Content("a reason".to_owned())));
        assert!(matches!(failed, Err(StoreError::Content(_))), "{failed:?}");
        let panicked = write(Some(|| panic!("a test panics on purpose")));
        assert!(matches!(panicked, Err(StoreError::Closed)), "{panicked:?}");
        write(None).unwrap();
        // The row is there already.
        let twice = write(None);
        assert!(matches!(twice, Err(StoreError::Database(_))), "{twice:?}");
        assert_eq!(entries(&connection.connection).unwrap(), [1]);
    }

    #[test]
    fn a_caller_leaves_a_write_to_the_thread_where_it_would_wait() {
        let folder = tempfile::tempdir().unwrap();
        let mut connection = alone(folder.path());
        let other = Connection::open(folder.path().join("lucid.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let write = |connection: &Connection| add(connection, 1);
        let left = |outcome| matches!(outcome, AloneOutcome::Left(_));
        assert!(
            left(connection.alone(session(), write)),
            "another process has the lock"
        );
        other.execute_batch("ROLLBACK").unwrap();

        connection.probe.full.store(true, Ordering::SeqCst);
        assert!(left(connection.alone(session(), write)), "the disk is full");
        connection.probe.full.store(false, Ordering::SeqCst);

        let slow = |connection: &Connection| {
            thread::sleep(2 * LONG);
            add(connection, 1)
        };
        done(connection.alone(session(), slow)).unwrap();
        let until = connection.averse_until.expect("the disk is slow");
        connection.averse_until = Some(until + Duration::from_secs(3600));
        assert!(
            left(connection.alone(session(), write)),
            "the disk was slow just now"
        );
        connection.averse_until = Some(Instant::now());
        done(connection.alone(session(), |connection| add(connection, 2))).unwrap();
        assert_eq!(entries(&connection.connection).unwrap(), [1, 2]);
    }

    #[test]
    fn sessions_that_write_one_after_another_leave_it_to_the_thread_until_one_writes_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut connection = alone(folder.path());
        let later = Instant::now() + Duration::from_secs(3600);
        let mut is_left = |session: Option<SessionId>, begun| {
            connection.averse_until = None;
            connection.note_group(session, begun);
            let outcome = connection.alone(self::session(), |_| Ok(()));
            matches!(outcome, AloneOutcome::Left(_))
        };
        let other = Some(SessionId::new());
        assert!(is_left(other, later), "another wrote just now");
        assert!(is_left(None, later), "many wrote just now");
        assert!(!is_left(Some(session()), later), "it wrote just now itself");
        let before = Instant::now();
        thread::sleep(2 * QUIET);
        assert!(!is_left(other, before) && !is_left(None, before));
        connection.has_one_processor = true;
        let outcome = connection.alone(session(), |_| Ok(()));
        assert!(matches!(outcome, AloneOutcome::Left(_)), "all would wait");
    }
}
