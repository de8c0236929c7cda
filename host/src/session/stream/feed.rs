//! Owns what a session shows, in one order: the frames of its log, and between them the pieces of what
//! goes on.
//!
//! What always holds: only what is committed is published. An effect's pieces come before the frame
//! that stands for them: they are sent before its result is written, and whoever begins to follow is
//! told, as of one moment, how far the log was. The last frames are kept, at most 32 and 16 KB,
//! however long the session lives; everything older is in the log. Pieces are kept for nobody.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::{broadcast, watch};

use crate::session::handle::held;

/// Frames that are kept in memory.
const RING_FRAMES: usize = 32;
/// Bytes that they may have together.
const RING_BYTES: usize = 16 * 1024;
/// Items that a slow follower may be behind before it loses some.
pub(crate) const BEHIND: usize = 128;

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// The last published frame.
    pub(super) seq: u64,
    /// Nothing more will come.
    pub(crate) ended: bool,
}

/// What a follower is told, in order.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// The log is so far.
    Head(Head),
    /// A piece of an effect.
    Piece {
        /// Whose.
        effect: Arc<str>,
        /// Counts an effect's pieces since it began, or began again.
        number: u64,
        /// The effect began again before.
        again: bool,
        /// For the client.
        frame: Arc<str>,
    },
    /// An effect's pieces so far are void. It may begin again.
    Void(Arc<str>),
    /// Of this effect there are no more.
    Done(Arc<str>),
}

#[derive(Debug)]
pub(crate) struct Feed {
    head: watch::Sender<Head>,
    /// A frame that says why nothing comes; none where something may.
    pause: watch::Sender<Option<Arc<str>>>,
    ring: Mutex<Ring>,
    items: OnceLock<broadcast::Sender<Item>>,
}

#[derive(Debug, Default)]
struct Ring {
    frames: VecDeque<(u64, Arc<str>)>,
    bytes: usize,
}

impl Feed {
    /// Of a session whose last frame so far is `seq`.
    pub(crate) fn new(seq: u64) -> Self {
        Self {
            head: watch::Sender::new(Head { seq, ended: false }),
            pause: watch::Sender::new(None),
            ring: Mutex::default(),
            items: OnceLock::new(),
        }
    }

    /// How far the session is.
    pub(crate) fn head(&self) -> Head {
        *self.head.borrow()
    }

    /// For whoever wants frames only.
    pub(crate) fn watch(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// For whoever wants pieces as well: all items from now on, and where the log is now. Frames up
    /// to there, and then the items, are the one order.
    pub(super) fn follow(&self) -> (broadcast::Receiver<Item>, Head) {
        let _now = held(&self.ring);
        let items = self.items.get_or_init(|| broadcast::Sender::new(BEHIND));
        (items.subscribe(), self.head())
    }

    /// Shows what was committed.
    pub(crate) fn publish(&self, first: u64, frames: &[Arc<str>]) {
        if frames.is_empty() {
            return;
        }
        let mut ring = held(&self.ring);
        for (seq, frame) in (first..).zip(frames) {
            ring.bytes += frame.len();
            ring.frames.push_back((seq, frame.clone()));
        }
        while ring.frames.len() > RING_FRAMES || ring.bytes > RING_BYTES {
            let Some((_, oldest)) = ring.frames.pop_front() else {
                break;
            };
            ring.bytes -= oldest.len();
        }
        ring.frames.shrink_to(RING_FRAMES);
        // With the ring held, so that nobody begins to follow between the two.
        self.goes_to(|head| head.seq = first + frames.len() as u64 - 1);
    }

    /// For a while nothing will come, as this frame says. It is in no log.
    pub(crate) fn pause(&self, frame: String) {
        self.pause.send_replace(Some(frame.into()));
    }

    /// The pause is over.
    pub(crate) fn resume(&self) {
        self.pause.send_replace(None);
    }

    /// For whoever wants to know of pauses.
    pub(super) fn watch_pauses(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.pause.subscribe()
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        let _now = held(&self.ring);
        self.goes_to(|head| head.ended = true);
    }

    fn goes_to(&self, change: impl FnOnce(&mut Head)) {
        self.head.send_modify(change);
        self.tell(|| Item::Head(self.head()));
    }

    /// Tells followers, where there are any.
    pub(crate) fn tell(&self, item: impl FnOnce() -> Item) {
        if let Some(items) = self.items.get().filter(|items| items.receiver_count() > 0) {
            // Fails where the last one left just now.
            let _ = items.send(item());
        }
    }

    /// The frames after a number, where all of them are in memory.
    pub(super) fn recent(&self, after: u64) -> Option<Vec<(u64, Arc<str>)>> {
        let ring = held(&self.ring);
        let (oldest, _) = ring.frames.front()?;
        (*oldest <= after + 1).then(|| {
            ring.frames
                .iter()
                .filter(|(seq, _)| *seq > after)
                .cloned()
                .collect()
        })
    }
}
