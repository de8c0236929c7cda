//! What waits for the writer.
//!
//! # Invariants
//! - Those on whose behalf something is written have their turns, however much each has queued;
//!   within one, what came first is written first.
//! - The queue is bounded, so that sessions slow down before memory fills, and no user has all of it.
//!   Who waits for a place in it gets one in their turn.
//! - What is queued when the queue is closed is still handed out, unless the writer is gone.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::queue_key::QueueKey;
use super::writer::Write;
use crate::error::StoreError;
use lucid_types::fair::{FairLimits, FairQueue, Ticket};

/// How many writes may wait, of one user and in all. One user's are enough for some transactions.
const PLACES: FairLimits = FairLimits {
    each: 1024,
    all: 16 * 1024,
};
/// One thread writes, so there is nothing to share but the turns.
const LIMITS: FairLimits = FairLimits {
    each: usize::MAX,
    all: usize::MAX,
};

pub(super) struct WriteQueue {
    waiting: Mutex<QueuedWrites>,
    /// Notified of a write, and of the end.
    changed: Condvar,
}

struct QueuedWrites {
    turns: FairQueue<QueueKey, Box<dyn Write>>,
    /// The places, and who waits for one.
    places: FairQueue<QueueKey, oneshot::Sender<Place>>,
    is_closed: bool,
}

/// A place in the queue that nothing has taken yet; given back when dropped.
struct Place {
    queue: Arc<WriteQueue>,
    key: QueueKey,
    is_taken: bool,
}

impl Place {
    fn new(queue: &Arc<WriteQueue>, key: QueueKey) -> Self {
        Self {
            queue: queue.clone(),
            key,
            is_taken: false,
        }
    }

    /// Puts a write there. The place comes back when the write is handed out.
    fn fill(mut self, write: Box<dyn Write>) -> Result<(), StoreError> {
        let mut waiting = self.queue.waiting.lock();
        if waiting.is_closed {
            return Err(StoreError::Closed);
        }
        waiting.turns.push(self.key.clone(), write);
        drop(waiting);
        self.is_taken = true;
        self.queue.changed.notify_one();
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_taken {
            self.queue.waiting.lock().places.release(&self.key);
            self.queue.grant();
        }
    }
}

/// Somebody who waits for a place; gives up when dropped.
struct PlaceWaiter {
    queue: Arc<WriteQueue>,
    key: QueueKey,
    ticket: Ticket,
    granted: oneshot::Receiver<Place>,
}

impl Drop for PlaceWaiter {
    fn drop(&mut self) {
        // A place that was granted meanwhile comes back with the receiver.
        let mut waiting = self.queue.waiting.lock();
        waiting.places.remove(&self.key, self.ticket);
    }
}

impl WriteQueue {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::new(QueuedWrites {
                turns: FairQueue::new(LIMITS),
                places: FairQueue::new(PLACES),
                is_closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Queues a write, once there is a place for it.
    pub(super) async fn push(
        self: &Arc<Self>,
        key: QueueKey,
        write: Box<dyn Write>,
    ) -> Result<(), StoreError> {
        self.place(key).await?.fill(write)
    }

    /// Waits for a place.
    async fn place(self: &Arc<Self>, key: QueueKey) -> Result<Place, StoreError> {
        let mut waiter = {
            let mut waiting = self.waiting.lock();
            if waiting.is_closed {
                return Err(StoreError::Closed);
            }
            if waiting.places.take(&key) {
                return Ok(Place::new(self, key));
            }
            let (sender, granted) = oneshot::channel();
            PlaceWaiter {
                queue: self.clone(),
                ticket: waiting.places.push(key.clone(), sender),
                key,
                granted,
            }
        };
        let place = (&mut waiter.granted).await;
        place.map_err(|_| StoreError::Closed)
    }

    /// Gives the free places to those whose turn it is.
    fn grant(self: &Arc<Self>) {
        loop {
            // The lock is not held while a place is sent: one that nobody takes comes back here.
            let next = self.waiting.lock().places.pop();
            let Some((key, sender)) = next else { return };
            let _ = sender.send(Place::new(self, key));
        }
    }

    /// The write whose turn it is, if any waits.
    pub(super) fn try_pop(self: &Arc<Self>) -> Option<Box<dyn Write>> {
        let write = self.waiting.lock().take();
        if write.is_some() {
            self.grant();
        }
        write
    }

    /// Waits for a write. `None` at the end.
    pub(super) fn pop(self: &Arc<Self>) -> Option<Box<dyn Write>> {
        {
            let mut waiting = self.waiting.lock();
            while !waiting.turns.has_turns() && !waiting.is_closed {
                self.changed.wait(&mut waiting);
            }
        }
        self.try_pop()
    }

    /// Whether nothing waits, and it would take a write.
    pub(super) fn is_idle(&self) -> bool {
        let waiting = self.waiting.lock();
        !waiting.turns.has_turns() && !waiting.is_closed
    }

    /// Whether it takes no more writes.
    pub(super) fn is_closed(&self) -> bool {
        self.waiting.lock().is_closed
    }

    /// Takes no more writes.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.is_closed = true;
        // Those that wait learn it when what they wait for is dropped.
        let refused = std::mem::replace(&mut waiting.places, FairQueue::new(PLACES));
        drop(waiting);
        drop(refused);
        self.changed.notify_one();
    }

    /// Drops what waits, so that its callers learn that nobody will write it.
    pub(super) fn abandon(&self) {
        self.close();
        let left = std::mem::replace(&mut self.waiting.lock().turns, FairQueue::new(LIMITS));
        drop(left);
    }
}

impl QueuedWrites {
    /// Takes the write whose turn it is, and gives its place back.
    fn take(&mut self) -> Option<Box<dyn Write>> {
        let (key, write) = self.turns.pop()?;
        self.turns.release(&key);
        self.places.release(&key);
        Some(write)
    }
}
