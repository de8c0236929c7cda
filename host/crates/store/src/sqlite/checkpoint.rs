//! The thread that copies SQLite's own log (the WAL) into the database file.
//!
//! SQLite would have the commit that crosses a threshold do it, and then one session's write, and all
//! that are committed with it, wait for 16 MB to be copied and synced. Here that is done beside the
//! writer; only what was committed meanwhile is copied while the writer waits.
//!
//! # Invariants
//! - No write waits for a reader longer than [`READERS`], or [`READERS_OF_A_LONG_LOG`] where SQLite's log
//!   would grow without end.
//! - What was deleted for good is gone from SQLite's log too, as soon as no reader needs it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rusqlite::Connection;

use crate::error::StoreError;

/// How many pages SQLite's log has when they are copied: 16 MB. More make fewer, longer stretches.
const PAGES: i32 = 4000;
/// How long to wait, and writes with it, for readers that still need SQLite's log.
const READERS: Duration = Duration::from_millis(5);
/// The same once it has become [`LONG`]. Readers that begin meanwhile no longer need it, so a wait as long
/// as the longest read comes to an end.
const READERS_OF_A_LONG_LOG: Duration = Duration::from_millis(500);
/// How many pages are too many: 256 MB.
const LONG: i64 = 64_000;
/// How long to leave readers alone that were in the way.
const PAUSE: Duration = Duration::from_millis(500);

/// Asks the thread for its work. Cheap to clone.
#[derive(Clone)]
pub(super) struct Checkpoints(Arc<CheckpointState>);

struct CheckpointState {
    wanted: Mutex<CheckpointRequest>,
    changed: Condvar,
    /// Held by whoever uses the database alone: the writer for a transaction, this thread to empty
    /// SQLite's log. A lock of ours is passed on at once; SQLite's would be polled for.
    turn: Mutex<()>,
}

#[derive(Default)]
struct CheckpointRequest {
    /// To copy what there is.
    copy: bool,
    /// To leave nothing in SQLite's log.
    empty: bool,
    is_closed: bool,
}

/// The thread; ends when dropped.
pub(super) struct CheckpointThread {
    shared: Arc<CheckpointState>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoints {
    pub(super) fn new() -> Self {
        Self(Arc::new(CheckpointState {
            wanted: Mutex::default(),
            changed: Condvar::new(),
            turn: Mutex::default(),
        }))
    }

    /// Runs something while SQLite's log is not being emptied.
    pub(super) fn exclusively<T>(&self, run: impl FnOnce() -> T) -> T {
        let _turn = self.0.turn.lock();
        run()
    }

    /// The turn to use the database alone, if nobody has it.
    pub(super) fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.0.turn.try_lock()
    }

    /// Has SQLite's log copied once it has become long. Takes its length in pages.
    pub(super) fn grown(&self, pages: i32) {
        if pages >= PAGES {
            self.want(|wanted| wanted.copy = true);
        }
    }

    /// Has SQLite's log copied.
    pub(super) fn copy(&self) {
        self.want(|wanted| wanted.copy = true);
    }

    /// Has SQLite's log emptied, so that what was deleted before is gone from the disk.
    pub(super) fn empty(&self) {
        self.want(|wanted| wanted.empty = true);
    }

    fn want(&self, change: impl FnOnce(&mut CheckpointRequest)) {
        change(&mut self.0.wanted.lock());
        self.0.changed.notify_one();
    }

    /// Starts the thread, on a connection of its own.
    pub(super) fn start(&self, connection: Connection) -> Result<CheckpointThread, StoreError> {
        let shared = self.0.clone();
        let thread = std::thread::Builder::new()
            .name("lucid-checkpoint".to_owned())
            .spawn({
                let shared = shared.clone();
                move || shared.work(&connection)
            })
            .map_err(|cause| StoreError::Folder {
                path: "the checkpoints' thread".into(),
                cause,
            })?;
        Ok(CheckpointThread {
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for CheckpointThread {
    fn drop(&mut self) {
        self.shared.wanted.lock().is_closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl CheckpointState {
    /// Works until the end.
    fn work(&self, connection: &Connection) {
        let mut wanted = self.wanted.lock();
        while !wanted.is_closed {
            if !wanted.copy && !wanted.empty {
                self.changed.wait(&mut wanted);
                continue;
            }
            let (copy, must_empty) = (wanted.copy, wanted.empty);
            (wanted.copy, wanted.empty) = (false, false);
            drop(wanted);
            let done = self.checkpoint(connection, must_empty);
            wanted = self.wanted.lock();
            if !done {
                wanted.copy |= copy;
                wanted.empty |= must_empty;
                self.pause(&mut wanted);
            }
        }
    }

    /// Copies all there is, so that SQLite's log begins anew; empties its file if it must. Returns
    /// `false` if something is in the way: a reader, or a disk that takes nothing.
    fn checkpoint(&self, connection: &Connection, must_empty: bool) -> bool {
        // Most of it, while others read and write.
        let pages = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            row.get::<_, i64>(1)
        });
        let patience = match pages {
            Ok(pages) if pages >= LONG => READERS_OF_A_LONG_LOG,
            Ok(_) => READERS,
            Err(_) => return false,
        };
        if connection.busy_timeout(patience).is_err() {
            return false;
        }
        let rest = if must_empty {
            "PRAGMA wal_checkpoint(TRUNCATE)"
        } else {
            "PRAGMA wal_checkpoint(RESTART)"
        };
        let _turn = self.turn.lock();
        let is_busy = connection.query_row(rest, [], |row| row.get::<_, bool>(0));
        is_busy == Ok(false)
    }

    /// Waits a while, less if the end comes.
    fn pause(&self, wanted: &mut parking_lot::MutexGuard<'_, CheckpointRequest>) {
        let until = Instant::now() + PAUSE;
        while !wanted.is_closed {
            if self.changed.wait_until(wanted, until).timed_out() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use lucid_types::log::{ChatLine, SessionLog as _};

    use super::*;
    use crate::log::session_log::tests::{new_session, round};
    use crate::sqlite::Store;

    const CONFIDENTIAL: &str = "a confidential text";

    /// Whether any file in a folder has the text.
    fn is_in_a_file(folder: &Path) -> bool {
        std::fs::read_dir(folder).unwrap().any(|entry| {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let mut windows = bytes.windows(CONFIDENTIAL.len());
            windows.any(|window| window == CONFIDENTIAL.as_bytes())
        })
    }

    /// Opens the store in a new folder, and waits until the start has emptied SQLite's log: what is
    /// written from then on stays there until something asks for it.
    async fn opened(folder: &Path) -> Store {
        let store = Store::open(folder).unwrap();
        let log = folder.join("lucid.db-wal");
        let emptied = async {
            while log.metadata().unwrap().len() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let emptied = tokio::time::timeout(Duration::from_secs(60), emptied).await;
        assert!(emptied.is_ok(), "a start does not empty SQLite's log");
        store
    }

    /// Asserts that soon no file in a folder has the text.
    async fn is_gone(folder: &Path) {
        let soon = async {
            while is_in_a_file(folder) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let soon = tokio::time::timeout(Duration::from_secs(60), soon).await;
        assert!(soon.is_ok(), "it is still there");
    }

    fn add(connection: &Connection, message: &str) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO transcript SELECT 's', coalesce(max(entry), 0) + 1, ?1 FROM transcript";
        connection.execute(sql, [message])?;
        Ok(())
    }

    fn delete(connection: &Connection) -> Result<(), StoreError> {
        connection.execute("DELETE FROM transcript", [])?;
        Ok(())
    }

    #[tokio::test]
    async fn what_was_erased_is_soon_in_no_file_and_no_write_waits_for_a_reader() {
        let folder = tempfile::tempdir().unwrap();
        let store = opened(folder.path()).await;
        store
            .write(|connection| add(connection, CONFIDENTIAL))
            .await
            .unwrap();
        assert!(is_in_a_file(folder.path()));
        // A reader that sees it still.
        let (entered, inside) = mpsc::channel::<()>();
        let (go, wait) = mpsc::channel::<()>();
        let reading = tokio::spawn({
            let store = store.clone();
            async move {
                let read = move |connection: &Connection| {
                    let mut select = connection.prepare("SELECT message FROM transcript")?;
                    let mut rows = select.query([])?;
                    rows.next()?;
                    entered.send(()).unwrap();
                    let _ = wait.recv();
                    Ok(())
                };
                store.read(read).await
            }
        });
        tokio::task::spawn_blocking(move || inside.recv())
            .await
            .unwrap()
            .unwrap();
        store.erase(delete).await.unwrap();
        for _ in 0..100 {
            let write = store.write_within(Duration::ZERO, |connection| add(connection, "another"));
            write.await.unwrap();
        }
        assert!(is_in_a_file(folder.path()));
        go.send(()).unwrap();
        reading.await.unwrap().unwrap();
        is_gone(folder.path()).await;
    }

    #[tokio::test]
    async fn a_start_empties_what_a_crash_left_of_something_erased() {
        let folder = tempfile::tempdir().unwrap();
        let store = opened(folder.path()).await;
        store
            .write(|connection| add(connection, CONFIDENTIAL))
            .await
            .unwrap();
        // As if there was no time left to empty it.
        store.write(delete).await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        for name in ["lucid.db", "lucid.db-wal"] {
            std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
        }
        assert!(is_in_a_file(copy.path()));
        let _store = Store::open(copy.path()).unwrap();
        is_gone(copy.path()).await;
    }

    #[tokio::test]
    async fn the_lines_of_a_deleted_chat_are_in_no_file_even_if_its_session_lives() {
        let folder = tempfile::tempdir().unwrap();
        let store = opened(folder.path()).await;
        store.create(new_session(), round(0, None)).await.unwrap();
        let mut said = round(1, None);
        said.chat_lines.push(ChatLine {
            role: "user",
            content: CONFIDENTIAL.to_owned(),
            event_type: "UserMessage".to_owned(),
            metadata: None,
        });
        store.append(Arc::new(said)).await.unwrap();
        assert!(is_in_a_file(folder.path()));
        // As the host does it.
        let delete = |connection: &Connection| {
            connection.execute("DELETE FROM chat_messages", [])?;
            Ok(())
        };
        store.write(delete).await.unwrap();
        let over = store.discard_chat("u".into(), "c".to_owned()).await;
        assert_eq!(over.unwrap(), [], "it lives");
        is_gone(folder.path()).await;
    }

    #[tokio::test]
    async fn sqlites_log_stays_bounded_while_writes_follow_one_another() {
        let folder = tempfile::tempdir().unwrap();
        let store = opened(folder.path()).await;
        let megabyte = "x".repeat(1 << 20);
        for _ in 0..200 {
            let megabyte = megabyte.clone();
            store
                .write(move |connection| {
                    delete(connection)?;
                    add(connection, &megabyte)
                })
                .await
                .unwrap();
        }
        let log = folder.path().join("lucid.db-wal");
        let length = log.metadata().unwrap().len();
        // Had it never begun anew, it would have 200 MB and more.
        assert!(length < 150 << 20, "{length} bytes");
    }
}
