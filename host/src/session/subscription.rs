//! Owns how a client reads a session.
//!
//! What always holds: frames come in order, each once, none left out; where the log cannot give one,
//! a [`Batch::Gap`] says so. A reader goes at its own pace: what it has not taken is read from the
//! log when it is ready, so nothing is kept for it. Only deltas may be lost.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use crate::store;

use super::CloseReason;
use super::live::{Head, Session};

/// How much is read from the log at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// What a subscription gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// The next frames, with their sequence numbers.
    Frames(Vec<(u64, Arc<str>)>),
    /// A piece of what is going on. Not in the log, and may be lost.
    Delta(Arc<str>),
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
    head: watch::Receiver<Head>,
    deltas: Option<broadcast::Receiver<Arc<str>>>,
}

impl Subscription {
    pub(super) fn new(session: Arc<Session>, last_seq: u64) -> Self {
        let head = session.head.subscribe();
        Self {
            session,
            seen: last_seq,
            head,
            deltas: None,
        }
    }

    /// Gives deltas as well.
    #[must_use]
    pub fn with_deltas(mut self) -> Self {
        self.deltas = Some(self.session.deltas());
        self
    }

    /// The number of the last frame that was given.
    pub fn last_seq(&self) -> u64 {
        self.seen
    }

    /// What comes next. May be dropped while it waits; nothing is lost by that.
    pub async fn next(&mut self) -> Batch {
        loop {
            let head = *self.head.borrow_and_update();
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
                return Batch::Ended(self.session.closing.get().cloned().unwrap_or_default());
            }
            let delta = async {
                match &mut self.deltas {
                    Some(deltas) => deltas.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // A frame stands for the deltas before it, so deltas go first.
                biased;
                delta = delta => match delta {
                    Ok(delta) => return Batch::Delta(delta),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => self.deltas = None,
                },
                changed = self.head.changed() => if changed.is_err() {
                    return Batch::Ended(self.session.closing.get().cloned().unwrap_or_default());
                },
            }
        }
    }

    async fn behind(&mut self, head: u64) -> Batch {
        let mut frames = match self.session.recent(self.seen) {
            Some(frames) => frames,
            None => {
                let (id, seen) = (self.session.id().to_string(), self.seen);
                let read = move |connection: &rusqlite::Connection| {
                    store::frames_after(connection, &id, seen, CHUNK_BYTES)
                };
                match self.session.store.read(read).await {
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
