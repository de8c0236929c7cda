//! A client's subscription to a session.
//!
//! A reader goes at its own pace: what it has not taken is read from the log when it is ready, so
//! nothing is buffered for it. A reader of deltas takes frames and deltas in the one order of the
//! session's feed.
//!
//! # Invariants
//! - Frames come in order, each once, with none left out; if the log cannot supply one, a
//!   [`SubscriptionItem::Gap`] says so. Only deltas may be lost.
//! - No delta comes after the frame that replaces it.
//! - A reader of deltas is shown an effect's text from its beginning and without a hole, or not at
//!   all. One that fell behind is told to discard what it has, continues at the end of the feed,
//!   and sees the next effect, or the next attempt, from its beginning again.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::delta::DeltaKind;
use super::feed::{Feed, FeedHead, FeedItem};
use super::frames;
use crate::retry::when_possible;
use crate::types::{CloseReason, Closing};
use lucid_types::ids::{EffectId, SessionId};
use lucid_types::log::SessionLog;
use lucid_types::user::UserId;

/// Maximum amount read from the log at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// The items of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriptionItem {
    /// The next frames, with their sequence numbers.
    Frames(Vec<(u64, Arc<str>)>),
    /// A delta, or a notice that deltas are void. Not in the log, and may be lost.
    Delta(Arc<str>),
    /// A notice that the session pauses or resumes. Not in the log, and without a number.
    Notice(Arc<str>),
    /// The frames from the first to the last number, inclusive, are not available.
    Gap(u64, u64),
    /// The end of the subscription.
    Ended(CloseReason),
}

/// A client's subscription to a session.
pub struct Subscription {
    /// Keeps the session in memory that supplies the feed.
    _handle: Arc<dyn Any + Send + Sync>,
    feed: Arc<Feed>,
    log: Arc<dyn SessionLog>,
    session: SessionId,
    /// Whose turn it is when something is read for it.
    user: UserId,
    closing: Arc<Closing>,
    last_seq: u64,
    source: Source,
    pauses: watch::Receiver<Option<Arc<str>>>,
    /// Whether the client was told of a pause and not yet of its end.
    paused: bool,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("session", &self.session)
            .field("seen", &self.last_seq)
            .finish_non_exhaustive()
    }
}

/// The source of new items.
enum Source {
    /// Frames only.
    Frames(watch::Receiver<FeedHead>),
    /// Frames, and the deltas between them.
    All(Follower),
}

struct Follower {
    items: broadcast::Receiver<FeedItem>,
    /// The position of the last item received: what the log has beyond it comes later.
    head: FeedHead,
    cursor: DeltaCursor,
}

/// What the client has of running effects, and what it is to be sent.
#[derive(Default)]
struct DeltaCursor {
    /// The index of the next delta of each effect that is shown.
    next: HashMap<EffectId, u64>,
    due: VecDeque<Arc<str>>,
}

impl DeltaCursor {
    fn delta(&mut self, effect: EffectId, number: u64, again: bool, frame: Arc<str>) {
        let next = self.next.get(&effect).copied();
        if next != Some(number) {
            if number > 0 {
                // The preceding deltas were never sent.
                return;
            }
            if again || next.is_some() {
                self.void(&effect);
            }
        }
        self.next.insert(effect, number + 1);
        self.due.push_back(frame);
    }

    /// Sent even if nothing is shown: the client may have deltas from an earlier connection.
    fn void(&mut self, effect: &EffectId) {
        let frame = frames::delta(DeltaKind::Reset, effect, "");
        self.due.push_back(frame.into());
    }

    /// Items were lost, and it is unknown of which effects.
    fn mark_lost(&mut self) {
        for (effect, next) in std::mem::take(&mut self.next) {
            if next > 0 {
                self.void(&effect);
            }
        }
    }
}

impl Follower {
    fn new(feed: &Feed) -> Self {
        let (items, head) = feed.follow();
        Self {
            items,
            head,
            cursor: DeltaCursor::default(),
        }
    }

    /// Takes the next item. Cancel safe.
    async fn advance(&mut self, feed: &Feed) {
        match self.items.recv().await {
            Ok(FeedItem::Head(head)) => self.head = head,
            Ok(FeedItem::Delta {
                effect,
                number,
                restarted: again,
                frame,
            }) => self.cursor.delta(effect, number, again, frame),
            Ok(FeedItem::Void(effect)) => {
                self.cursor.void(&effect);
                self.cursor.next.insert(effect, 0);
            }
            Ok(FeedItem::Done(effect)) => {
                self.cursor.next.remove(&effect);
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.cursor.mark_lost();
                (self.items, self.head) = feed.follow();
            }
            // The feed is held here, and with it the sender.
            Err(broadcast::error::RecvError::Closed) => self.head.ended = true,
        }
    }
}

impl Subscription {
    pub(crate) fn new(
        handle: Arc<dyn Any + Send + Sync>,
        feed: Arc<Feed>,
        log: Arc<dyn SessionLog>,
        (session, user): (SessionId, UserId),
        closing: Arc<Closing>,
        last_seq: u64,
    ) -> Self {
        let pauses = feed.watch_pauses();
        Self {
            _handle: handle,
            source: Source::Frames(feed.watch()),
            feed,
            log,
            session,
            user,
            closing,
            last_seq,
            pauses,
            paused: false,
        }
    }

    /// Includes deltas.
    #[must_use]
    pub fn with_deltas(mut self) -> Self {
        self.source = Source::All(Follower::new(&self.feed));
        self
    }

    /// The number of the last frame that was returned.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Returns the next item. Cancel safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> SubscriptionItem {
        loop {
            let head = match &mut self.source {
                Source::Frames(head) => *head.borrow_and_update(),
                Source::All(follower) => {
                    if let Some(frame) = follower.cursor.due.pop_front() {
                        return SubscriptionItem::Delta(frame);
                    }
                    follower.head
                }
            };
            if self.last_seq > head.seq {
                // The client claims more than there is: its numbers are from another log.
                let from = self.last_seq;
                self.last_seq = head.seq;
                return SubscriptionItem::Gap(head.seq + 1, from);
            }
            if self.last_seq < head.seq {
                return self.catch_up(head.seq).await;
            }
            if head.ended {
                return SubscriptionItem::Ended(self.closing.reason());
            }
            if let Some(notice) = self.notice() {
                return SubscriptionItem::Notice(notice);
            }
            let pause = self.pauses.changed();
            match &mut self.source {
                // Neither sender is dropped before the feed, which is held here.
                Source::Frames(head) => tokio::select! {
                    _ = head.changed() => {}
                    _ = pause => {}
                },
                Source::All(follower) => tokio::select! {
                    () = follower.advance(&self.feed) => {}
                    _ = pause => {}
                },
            }
        }
    }

    /// Returns a notice that the session pauses or resumes, if the client has not been told.
    fn notice(&mut self) -> Option<Arc<str>> {
        let pause = self.pauses.borrow_and_update().clone();
        if pause.is_some() == self.paused {
            return None;
        }
        self.paused = pause.is_some();
        let goes_on = || frames::status("resumed", "The session goes on.", None).into();
        Some(pause.unwrap_or_else(goes_on))
    }

    async fn catch_up(&mut self, head: u64) -> SubscriptionItem {
        let mut frames = match self.feed.recent(self.last_seq) {
            Some(frames) => frames,
            None => {
                let (id, user) = (self.session, &self.user);
                let read = || self.log.frames_after(id, user, self.last_seq, CHUNK_BYTES);
                match when_possible(read).await {
                    Ok(chunk) => chunk.frames,
                    Err(cause) => {
                        tracing::error!(session = %self.session, %cause, "frames could not be read");
                        // The client reconnects and asks for the same again.
                        return SubscriptionItem::Ended(CloseReason::failed(
                            "The session's log could not be read.",
                        ));
                    }
                }
            }
        };
        // What is committed and not yet published comes with the next head.
        frames.retain(|(seq, _)| *seq <= head);
        let expected = self.last_seq + 1;
        match (frames.first(), frames.last()) {
            (Some((first, _)), Some(_)) if *first > expected => {
                self.last_seq = *first - 1;
                SubscriptionItem::Gap(expected, *first - 1)
            }
            (Some(_), Some((last, _))) => {
                self.last_seq = *last;
                SubscriptionItem::Frames(frames)
            }
            _ => {
                self.last_seq = head;
                SubscriptionItem::Gap(expected, head)
            }
        }
    }
}
