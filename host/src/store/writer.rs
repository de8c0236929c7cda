//! Owns the one thread that writes.
//!
//! What always holds: writes are carried out in the order they arrive; those that wait together are
//! one transaction, each in a savepoint of its own; nobody hears of a write before its transaction is
//! committed. The queue is bounded, so that sessions slow down before memory fills.

use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(test)]
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::StoreError;

/// How many writes may wait.
const QUEUE: usize = 1024;
/// How many are committed together. At about 100 µs each a group is done in well under 50 ms.
const GROUP: usize = 256;

/// Tells the caller how it ended; called after the commit with why it failed, if it did.
type Acknowledge = Box<dyn FnOnce(Option<String>) + Send>;
/// Does the work and says what to tell; false where the savepoint must be undone.
type Write = Box<dyn FnOnce(&Connection) -> (bool, Acknowledge) + Send>;

pub(super) struct Writer {
    // None only while it is dropped.
    queue: Option<mpsc::Sender<Write>>,
    thread: Option<JoinHandle<()>>,
    #[cfg(test)]
    probe: Arc<Probe>,
}

/// What tests see and cut.
#[cfg(test)]
pub(super) struct Probe {
    left: AtomicU64,
    groups: AtomicU64,
    writes: AtomicU64,
}

impl Writer {
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        #[cfg(test)]
        let probe = Arc::new(Probe {
            left: AtomicU64::new(u64::MAX),
            groups: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        });
        #[cfg(test)]
        let seen = probe.clone();
        let body = move || {
            run(
                &connection,
                waiting,
                #[cfg(test)]
                &seen,
            )
        };
        let thread = std::thread::Builder::new()
            .name("lucid-store".to_owned())
            .spawn(body)
            .map_err(|cause| StoreError::Folder {
                path: "the writer's thread".into(),
                cause,
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            #[cfg(test)]
            probe,
        })
    }

    pub(super) async fn write<T, F>(&self, write: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (done, outcome) = oneshot::channel();
        let write: Write = Box::new(move |connection| {
            let result = write(connection);
            let good = result.is_ok();
            let acknowledge: Acknowledge = Box::new(move |failed| {
                // The caller may be gone; then nobody wants to know.
                let _ = done.send(match failed {
                    Some(reason) if good => Err(StoreError::Commit(reason)),
                    _ => result,
                });
            });
            (good, acknowledge)
        });
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.send(write).await.map_err(|_| StoreError::Closed)?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    #[cfg(test)]
    pub(super) fn crash_after(&self, writes: u64) {
        self.probe.left.store(writes, Ordering::SeqCst);
    }

    #[cfg(test)]
    pub(super) fn written(&self) -> (u64, u64) {
        (
            self.probe.groups.load(Ordering::SeqCst),
            self.probe.writes.load(Ordering::SeqCst),
        )
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // What is queued is still written. The thread has nothing else to do, so this is short.
            let _ = thread.join();
        }
    }
}

fn run(connection: &Connection, mut waiting: mpsc::Receiver<Write>, #[cfg(test)] probe: &Probe) {
    let mut group = Vec::with_capacity(GROUP);
    while let Some(first) = waiting.blocking_recv() {
        group.push(first);
        while group.len() < GROUP
            && let Ok(next) = waiting.try_recv()
        {
            group.push(next);
        }
        #[cfg(test)]
        {
            let left = probe.left.load(Ordering::SeqCst);
            let kept = usize::try_from(left).unwrap_or(usize::MAX).min(group.len());
            group.truncate(kept);
            if left != u64::MAX {
                probe.left.store(left - kept as u64, Ordering::SeqCst);
            }
            probe.groups.fetch_add(1, Ordering::SeqCst);
            probe.writes.fetch_add(kept as u64, Ordering::SeqCst);
        }
        commit(connection, &mut group);
    }
    // Leaves one file behind, not three.
    let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
}

fn commit(connection: &Connection, group: &mut Vec<Write>) {
    let mut done: Vec<Acknowledge> = Vec::with_capacity(group.len());
    let outcome = connection
        .prepare_cached("BEGIN IMMEDIATE")
        .and_then(|mut begin| begin.execute([]));
    let mut failed = outcome.err();
    for write in group.drain(..) {
        if failed.is_some() {
            // Dropped: its caller is told that the store is closed.
            continue;
        }
        match one(connection, write) {
            Ok(Some(acknowledge)) => done.push(acknowledge),
            Ok(None) => {}
            Err(cause) => failed = Some(cause),
        }
    }
    if failed.is_none() {
        failed = connection
            .prepare_cached("COMMIT")
            .and_then(|mut commit| commit.execute([]))
            .err();
    }
    let reason = failed.map(|cause| {
        tracing::error!(%cause, "the log could not be written");
        let _ = connection.execute_batch("ROLLBACK");
        cause.to_string()
    });
    for acknowledge in done {
        acknowledge(reason.clone());
    }
}

/// One write in its savepoint. None where it panicked: what it wrote is undone.
fn one(connection: &Connection, write: Write) -> rusqlite::Result<Option<Acknowledge>> {
    connection.prepare_cached("SAVEPOINT one")?.execute([])?;
    // Nothing of ours is shared with the closure but the connection, and that is rolled back.
    let outcome = catch_unwind(AssertUnwindSafe(|| write(connection)));
    if !matches!(outcome, Ok((true, _))) {
        connection.prepare_cached("ROLLBACK TO one")?.execute([])?;
    }
    connection.prepare_cached("RELEASE one")?.execute([])?;
    Ok(outcome.ok().map(|(_, acknowledge)| acknowledge))
}
