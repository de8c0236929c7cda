//! The feed of a session: the frames of its log and, between them, the deltas of running effects,
//! in one order.
//!
//! # Invariants
//! - Only what is committed is published.
//! - An effect's deltas come before the frame that replaces them: they are sent before its result
//!   is written, and a new follower receives the log's position as of a single moment.
//! - The most recent frames are kept in memory, at most 32 and 16 KB, however long the session
//!   lives; everything older is in the log. Deltas are not kept.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use lucid_types::ids::EffectId;
/// Maximum number of frames kept in memory.
const RING_FRAMES: usize = 32;
/// Maximum total size of those frames, in bytes.
const RING_BYTES: usize = 16 * 1024;
/// The number of items that a slow follower may lag behind before it loses some.
pub(crate) const BEHIND: usize = 128;

/// A session's position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedHead {
    /// The number of the last published frame.
    pub(crate) seq: u64,
    /// Whether the feed has ended.
    pub ended: bool,
}

/// An item for followers, in order.
#[derive(Debug, Clone)]
pub enum FeedItem {
    /// The log's new position.
    Head(FeedHead),
    /// A delta of an effect.
    Delta {
        /// The effect.
        effect: EffectId,
        /// The delta's index since the effect began or restarted.
        number: u64,
        /// Whether the effect has restarted before.
        restarted: bool,
        /// The frame for the client.
        frame: Arc<str>,
    },
    /// The effect's deltas so far are void. It may restart.
    Void(EffectId),
    /// The effect has no more deltas.
    Done(EffectId),
}

#[derive(Debug)]
pub(crate) struct Feed {
    head: watch::Sender<FeedHead>,
    /// A frame that says why nothing is coming, or `None` if the session is not paused.
    pause: watch::Sender<Option<Arc<str>>>,
    ring: Mutex<Ring>,
    items: OnceLock<broadcast::Sender<FeedItem>>,
}

#[derive(Debug, Default)]
struct Ring {
    frames: VecDeque<(u64, Arc<str>)>,
    bytes: usize,
}

impl Feed {
    /// Creates the feed of a session whose last frame so far is `seq`.
    pub(crate) fn new(seq: u64) -> Self {
        Self {
            head: watch::Sender::new(FeedHead { seq, ended: false }),
            pause: watch::Sender::new(None),
            ring: Mutex::default(),
            items: OnceLock::new(),
        }
    }

    /// The session's position.
    pub(crate) fn head(&self) -> FeedHead {
        *self.head.borrow()
    }

    /// Subscribes to frames only.
    pub(crate) fn watch(&self) -> watch::Receiver<FeedHead> {
        self.head.subscribe()
    }

    /// Subscribes to deltas as well: returns all items from now on, and the log's current position.
    /// The frames up to that position followed by the items form the one order.
    pub(super) fn follow(&self) -> (broadcast::Receiver<FeedItem>, FeedHead) {
        let _now = self.ring.lock();
        let items = self.items.get_or_init(|| broadcast::Sender::new(BEHIND));
        (items.subscribe(), self.head())
    }

    /// Publishes frames that were committed.
    pub(crate) fn publish(&self, first: u64, frames: &[Arc<str>]) {
        if frames.is_empty() {
            return;
        }
        let mut ring = self.ring.lock();
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
        // While the ring is locked, so that no follower subscribes between the two.
        self.update_head(|head| head.seq = first + frames.len() as u64 - 1);
    }

    /// Announces with this frame that nothing will come for a while. The frame is not logged.
    pub(crate) fn pause(&self, frame: String) {
        self.pause.send_replace(Some(frame.into()));
    }

    /// Ends the pause.
    pub(crate) fn resume(&self) {
        self.pause.send_replace(None);
    }

    /// Subscribes to pauses.
    pub(super) fn watch_pauses(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.pause.subscribe()
    }

    /// Ends the feed.
    pub(crate) fn end(&self) {
        let _now = self.ring.lock();
        self.update_head(|head| head.ended = true);
    }

    fn update_head(&self, change: impl FnOnce(&mut FeedHead)) {
        self.head.send_modify(change);
        self.send(|| FeedItem::Head(self.head()));
    }

    /// Sends an item to followers, if there are any.
    pub(crate) fn send(&self, item: impl FnOnce() -> FeedItem) {
        if let Some(items) = self.items.get().filter(|items| items.receiver_count() > 0) {
            // Fails if the last follower has just left.
            let _ = items.send(item());
        }
    }

    /// Returns the frames after a number, if all of them are in memory.
    pub(super) fn recent(&self, after: u64) -> Option<Vec<(u64, Arc<str>)>> {
        let ring = self.ring.lock();
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
