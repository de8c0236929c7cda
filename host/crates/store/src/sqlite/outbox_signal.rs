//! The signal that the writer gives the outbox after a commit.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The number of messages that triggers sending.
pub(crate) const BATCH: usize = 20;

/// Signals that something was written that is to be sent.
#[derive(Debug, Default)]
pub(crate) struct OutboxSignal {
    pub(crate) lines: AtomicUsize,
    pub(crate) wake: Notify,
}

impl OutboxSignal {
    /// A step wrote this many messages of a chat.
    pub(crate) fn lines(&self, lines: usize) {
        if self.lines.fetch_add(lines, Ordering::Relaxed) + lines >= BATCH {
            self.wake();
        }
    }

    /// A chat was created, which users look for at once.
    pub(crate) fn chat(&self) {
        self.wake();
    }

    /// Has what is there sent now.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until there is something to send at once.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Counts messages anew, since what was written so far is about to be sent.
    pub(crate) fn reset(&self) {
        self.lines.store(0, Ordering::Relaxed);
    }
}
