//! The data flow between the host and a command that stays open.
//!
//! # Invariants
//! - Nothing here blocks the thread that reads from the host.
//! - Pending standard input is bounded, and output that the host has not granted is not read from
//!   the command.

use std::io::{PipeWriter, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The most bytes that wait for a command to read them.
const WAITING: usize = 8 << 20;

/// How long the last words of a command that is over wait to be granted.
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

/// What a command is to read.
pub(crate) struct Input {
    parts: Receiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
}

impl Live {
    /// One that may write so much at first.
    pub(crate) fn new(left: usize) -> (Arc<Self>, Input) {
        let (input, parts) = mpsc::channel();
        let waiting = Arc::<AtomicUsize>::default();
        let live = Self {
            input,
            waiting: Arc::clone(&waiting),
            credit: Mutex::new(Credit { left, over: false }),
            changed: Condvar::new(),
        };
        (Arc::new(live), Input { parts, waiting })
    }

    /// Hands bytes on. False where the command reads too little of what it is given.
    pub(crate) fn feed(&self, bytes: Vec<u8>) -> bool {
        let length = bytes.len();
        let before = self.waiting.fetch_add(length, Ordering::Relaxed);
        // One that reads no more is not sent anything, and needs no room.
        if self.input.send(bytes).is_err() {
            return true;
        }
        before + length <= WAITING
    }

    /// The host takes so many bytes more.
    pub(crate) fn grant(&self, bytes: usize) {
        let mut credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
        credit.left = credit.left.saturating_add(bytes);
        self.changed.notify_all();
    }

    /// Waits until something may be written; none where the command is over and nothing may for a while.
    pub(crate) fn wait(&self) -> Option<usize> {
        let credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
        let credit = self
            .changed
            .wait_while(credit, |credit| credit.left == 0 && !credit.over)
            .unwrap_or_else(PoisonError::into_inner);
        // A host that reads grants its last words soon.
        let (credit, _) = self
            .changed
            .wait_timeout_while(credit, LAST_WORDS, |credit| credit.left == 0)
            .unwrap_or_else(PoisonError::into_inner);
        (credit.left > 0).then_some(credit.left)
    }

    /// So much was written.
    pub(crate) fn spend(&self, bytes: usize) {
        let mut credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
        credit.left = credit.left.saturating_sub(bytes);
    }

    /// The command is over: nobody need wait any more.
    pub(crate) fn end(&self) {
        let mut credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
        credit.over = true;
        self.changed.notify_all();
    }
}

impl Input {
    /// Writes all of it, until the host ends it, the command reads no more, or is over.
    pub(crate) fn write_to(self, mut output: PipeWriter) {
        for bytes in self.parts {
            if bytes.is_empty() || output.write_all(&bytes).is_err() {
                return;
            }
            self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
    }
}
