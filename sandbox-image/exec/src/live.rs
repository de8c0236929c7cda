//! The data flow between the host and a command that stays open.
//!
//! # Invariants
//! - Nothing here blocks the thread that reads from the host.
//! - Pending standard input is bounded, and output that the host has not granted is not read from
//!   the command.

use std::io::{PipeWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The most bytes that wait for a command to read them.
const WAITING: usize = 8 << 20;

/// How long the remaining output of a command that is over waits to be granted.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

/// A command that stays open, as the host's frames reach it.
pub(crate) struct Live {
    input: Sender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    credit: Mutex<Credit>,
    changed: Condvar,
}

struct Credit {
    left: usize,
    over: bool,
}

/// A command's pending standard input.
pub(crate) struct PendingInput {
    parts: Receiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
}

impl Live {
    /// Creates a command that may write `left` bytes at first.
    pub(crate) fn new(left: usize) -> (Arc<Self>, PendingInput) {
        let (input, parts) = mpsc::channel();
        let waiting = Arc::<AtomicUsize>::default();
        let live = Self {
            input,
            waiting: Arc::clone(&waiting),
            credit: Mutex::new(Credit { left, over: false }),
            changed: Condvar::new(),
        };
        (Arc::new(live), PendingInput { parts, waiting })
    }

    /// Queues input. False if the command reads too little of what it is given.
    pub(crate) fn feed(&self, bytes: Vec<u8>) -> bool {
        let length = bytes.len();
        let before = self.waiting.fetch_add(length, Ordering::Relaxed);
        // A command that reads no more is sent nothing, and needs no queue space.
        if self.input.send(bytes).is_err() {
            return true;
        }
        before + length <= WAITING
    }

    /// Grants the command `bytes` more of output.
    pub(crate) fn grant(&self, bytes: usize) {
        let mut credit = self.credit.lock();
        credit.left = credit.left.saturating_add(bytes);
        self.changed.notify_all();
    }

    /// Waits until output is granted; `None` if the command is over and nothing was granted for a
    /// while.
    pub(crate) fn wait(&self) -> Option<usize> {
        let mut credit = self.credit.lock();
        self.changed
            .wait_while(&mut credit, |credit| credit.left == 0 && !credit.over);
        // A host that still reads grants the remaining output soon.
        self.changed
            .wait_while_for(&mut credit, |credit| credit.left == 0, LAST_WORDS);
        (credit.left > 0).then_some(credit.left)
    }

    /// Uses up a grant of `bytes`.
    pub(crate) fn spend(&self, bytes: usize) {
        let mut credit = self.credit.lock();
        credit.left = credit.left.saturating_sub(bytes);
    }

    /// Marks the command as over, which wakes all waiting threads.
    pub(crate) fn end(&self) {
        let mut credit = self.credit.lock();
        credit.over = true;
        self.changed.notify_all();
    }
}

impl PendingInput {
    /// Writes all input, until the host ends it, the command stops reading, or it is over.
    pub(crate) fn write_to(self, mut output: PipeWriter) {
        for bytes in self.parts {
            if bytes.is_empty() || output.write_all(&bytes).is_err() {
                return;
            }
            self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
    }
}
