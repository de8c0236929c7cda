//! Owns how a client reads a session.
//!
//! What always holds: frames come in order, each once, none left out; where the log cannot give one,
//! a [`Batch::Gap`] says so. A reader goes at its own pace: what it has not taken is read from the
//! log when it is ready, so nothing is kept for it. Only deltas may be lost.
//!
//! A reader of deltas takes frames and deltas in the one order of the session's feed, so no delta
//! comes behind the frame that stands for it. It is shown an effect's text from its beginning and
//! without a hole, or not at all: one that fell behind is told to forget what it has, goes on at the
//! feed's end, and sees the next effect, or the next try, again from its beginning.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use crate::store;

use super::feed::{Head, Item};
use super::frames;
use crate::session::CloseReason;
use crate::session::handle::Session;
use crate::session::ports::DeltaKind;

/// How much is read from the log at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// What a subscription gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// The next frames, with their sequence numbers.
    Frames(Vec<(u64, Arc<str>)>),
    /// A piece of what is going on, or that pieces are void. Not in the log, and may be lost.
    Delta(Arc<str>),
    /// That the session pauses, or goes on. Not in the log, and without a number.
    Notice(Arc<str>),
    /// The frames from the first to the last number, both taken, cannot be had.
    Gap(u64, u64),
    /// That was all.
    Ended(CloseReason),
}

/// A client's place in a session.
#[derive(Debug)]
pub struct Subscription {
    session: Arc<Session>,
    seen: u64,
    source: Source,
    pauses: watch::Receiver<Option<Arc<str>>>,
    /// The client was told of a pause, and not yet of its end.
    paused: bool,
}

/// How a reader hears of what is new.
#[derive(Debug)]
enum Source {
    /// Of frames only.
    Frames(watch::Receiver<Head>),
    /// Of frames, and of what goes on between them.
    All(Follower),
}

#[derive(Debug)]
struct Follower {
    items: broadcast::Receiver<Item>,
    /// The last one there was an item of: what the log has beyond it comes later.
    head: Head,
    screen: Screen,
}

/// What the client has of effects that go on, and what it is to be told.
#[derive(Debug, Default)]
struct Screen {
    /// For each effect that is shown, the number of its next piece.
    next: HashMap<Arc<str>, u64>,
    due: VecDeque<Arc<str>>,
}

impl Screen {
    fn piece(&mut self, effect: Arc<str>, number: u64, again: bool, frame: Arc<str>) {
        let next = self.next.get(&effect).copied();
        if next != Some(number) {
            if number > 0 {
                // What is before it was never given.
                return;
            }
            if again || next.is_some() {
                self.void(&effect);
            }
        }
        self.next.insert(effect, number + 1);
        self.due.push_back(frame);
    }

    /// Also where nothing is shown: the client may have it from an earlier connection.
    fn void(&mut self, effect: &Arc<str>) {
        let frame = frames::delta(DeltaKind::Reset, effect, "");
        self.due.push_back(frame.into());
    }

    /// Items were lost, and nobody knows of which effects.
    fn lost(&mut self) {
        for (effect, next) in std::mem::take(&mut self.next) {
            if next > 0 {
                self.void(&effect);
            }
        }
    }
}

impl Follower {
    fn new(session: &Session) -> Self {
        let (items, head) = session.feed.follow();
        Self {
            items,
            head,
            screen: Screen::default(),
        }
    }

    /// Takes the next item. May be dropped while it waits.
    async fn advance(&mut self, session: &Session) {
        match self.items.recv().await {
            Ok(Item::Head(head)) => self.head = head,
            Ok(Item::Piece {
                effect,
                number,
                again,
                frame,
            }) => self.screen.piece(effect, number, again, frame),
            Ok(Item::Void(effect)) => {
                self.screen.void(&effect);
                self.screen.next.insert(effect, 0);
            }
            Ok(Item::Done(effect)) => {
                self.screen.next.remove(&effect);
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.screen.lost();
                (self.items, self.head) = session.feed.follow();
            }
            // The feed lives as long as its session, and that is held here.
            Err(broadcast::error::RecvError::Closed) => self.head.ended = true,
        }
    }
}

impl Subscription {
    pub(crate) fn new(session: Arc<Session>, last_seq: u64) -> Self {
        let source = Source::Frames(session.feed.watch());
        let pauses = session.feed.watch_pauses();
        Self {
            session,
            seen: last_seq,
            source,
            pauses,
            paused: false,
        }
    }

    /// Gives deltas as well.
    #[must_use]
    pub fn with_deltas(mut self) -> Self {
        self.source = Source::All(Follower::new(&self.session));
        self
    }

    /// The number of the last frame that was given.
    pub fn last_seq(&self) -> u64 {
        self.seen
    }

    /// What comes next. May be dropped while it waits; nothing is lost by that.
    pub async fn next(&mut self) -> Batch {
        loop {
            let head = match &mut self.source {
                Source::Frames(head) => *head.borrow_and_update(),
                Source::All(follower) => {
                    if let Some(frame) = follower.screen.due.pop_front() {
                        return Batch::Delta(frame);
                    }
                    follower.head
                }
            };
            if self.seen > head.seq {
                // The client has seen more than there is: its numbers are of another log.
                let from = self.seen;
                self.seen = head.seq;
                return Batch::Gap(head.seq + 1, from);
            }
            if self.seen < head.seq {
                return self.behind(head.seq).await;
            }
            if head.ended {
                return Batch::Ended(self.session.close_reason());
            }
            if let Some(notice) = self.notice() {
                return Batch::Notice(notice);
            }
            let pause = self.pauses.changed();
            match &mut self.source {
                // Neither sender goes before the session, and that is held here.
                Source::Frames(head) => tokio::select! {
                    _ = head.changed() => {}
                    _ = pause => {}
                },
                Source::All(follower) => tokio::select! {
                    () = follower.advance(&self.session) => {}
                    _ = pause => {}
                },
            }
        }
    }

    /// That the session pauses, or goes on, where the client does not know it.
    fn notice(&mut self) -> Option<Arc<str>> {
        let pause = self.pauses.borrow_and_update().clone();
        if pause.is_some() == self.paused {
            return None;
        }
        self.paused = pause.is_some();
        let goes_on = || frames::status("resumed", "The session goes on.", None).into();
        Some(pause.unwrap_or_else(goes_on))
    }

    async fn behind(&mut self, head: u64) -> Batch {
        let mut frames = match self.session.feed.recent(self.seen) {
            Some(frames) => frames,
            None => {
                let (id, seen) = (self.session.id().to_string(), self.seen);
                let read = move |connection: &rusqlite::Connection| {
                    store::frames_after(connection, &id, seen, CHUNK_BYTES)
                };
                match self.session.store.read_when_possible(read).await {
                    Ok(chunk) => chunk.frames,
                    Err(cause) => {
                        tracing::error!(session = %self.session.id(), %cause, "frames could not be read");
                        // The client comes back and asks for the same again.
                        return Batch::Ended(CloseReason::failed(
                            "The session's log could not be read.",
                        ));
                    }
                }
            }
        };
        // What is committed and not yet published comes with the next head.
        frames.retain(|(seq, _)| *seq <= head);
        let expected = self.seen + 1;
        match (frames.first(), frames.last()) {
            (Some((first, _)), Some(_)) if *first > expected => {
                self.seen = *first - 1;
                Batch::Gap(expected, *first - 1)
            }
            (Some(_), Some((last, _))) => {
                self.seen = *last;
                Batch::Frames(frames)
            }
            _ => {
                self.seen = head;
                Batch::Gap(expected, head)
            }
        }
    }
}
