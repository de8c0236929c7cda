//! What waits for the writer.
//!
//! # Invariants
//! - Those on whose behalf something is written have their turns, however much each has queued;
//!   within one, what came first is written first.
//! - The queue is bounded, so that sessions slow down before memory fills. Places in it are given first
//!   come, first served.
//! - What is queued when the queue is closed is still handed out, unless the writer is gone.

use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;

use super::queue_key::QueueKey;
use super::writer::Write;
use crate::error::StoreError;
use lucid_types::fair::{FairLimits, FairQueue};

/// How many writes may wait. More than one user can have at a time, who has a part of all connections.
const LONGEST: usize = 16 * 1024;
/// One thread writes, so there is nothing to share but the turns.
const LIMITS: FairLimits = FairLimits {
    each: usize::MAX,
    all: usize::MAX,
};

pub(super) struct WriteQueue {
    waiting: Mutex<QueuedWrites>,
    /// Notified of a write, and of the end.
    changed: Condvar,
    room: Semaphore,
}

struct QueuedWrites {
    turns: FairQueue<QueueKey, Box<dyn Write>>,
    is_closed: bool,
}

impl WriteQueue {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::new(QueuedWrites {
                turns: FairQueue::new(LIMITS),
                is_closed: false,
            }),
            changed: Condvar::new(),
            room: Semaphore::new(LONGEST),
        }
    }

    /// Queues a write, once there is room.
    pub(super) async fn push(
        &self,
        key: QueueKey,
        write: Box<dyn Write>,
    ) -> Result<(), StoreError> {
        let room = self.room.acquire().await.map_err(|_| StoreError::Closed)?;
        let mut waiting = self.waiting.lock();
        if waiting.is_closed {
            return Err(StoreError::Closed);
        }
        waiting.turns.push(key, write);
        // It comes back when the write is handed out.
        room.forget();
        self.changed.notify_one();
        Ok(())
    }

    /// The write whose turn it is, if any waits.
    pub(super) fn try_pop(&self) -> Option<Box<dyn Write>> {
        self.take(&mut self.waiting.lock())
    }

    /// Waits for a write. `None` at the end.
    pub(super) fn pop(&self) -> Option<Box<dyn Write>> {
        let mut waiting = self.waiting.lock();
        loop {
            let next = self.take(&mut waiting);
            if next.is_some() || waiting.is_closed {
                return next;
            }
            self.changed.wait(&mut waiting);
        }
    }

    fn take(&self, waiting: &mut QueuedWrites) -> Option<Box<dyn Write>> {
        let (key, write) = waiting.turns.pop()?;
        waiting.turns.release(&key);
        self.room.add_permits(1);
        Some(write)
    }

    /// Whether it takes no more writes.
    pub(super) fn is_closed(&self) -> bool {
        self.waiting.lock().is_closed
    }

    /// Takes no more writes.
    pub(super) fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.room.close();
        self.changed.notify_one();
    }

    /// Drops what waits, so that its callers learn that nobody will write it.
    pub(super) fn abandon(&self) {
        self.close();
        let left = std::mem::replace(&mut self.waiting.lock().turns, FairQueue::new(LIMITS));
        drop(left);
    }
}
