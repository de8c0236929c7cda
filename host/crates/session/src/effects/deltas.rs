//! The delta stream of one effect, and the decision of who closes it: the effect itself, or its
//! canceller.
//!
//! # Invariants
//! - An effect is closed once, so it has one result, even if it finishes at the moment it is
//!   cancelled.
//! - Nothing of an effect is shown after it is closed. If no frame of the log will replace the
//!   deltas that were shown, they are voided first.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::handle::Session;
use crate::stream::delta::DeltaKind;
use crate::stream::feed::FeedItem;
use crate::stream::frames;
use lucid_types::ids::EffectId;

pub(crate) struct DeltaStream {
    session: Arc<Session>,
    effect: EffectId,
    state: Mutex<DeltaState>,
}

#[derive(Default)]
struct DeltaState {
    finished: bool,
    /// The number of the next delta.
    number: u64,
    restarted: bool,
}

impl DeltaStream {
    pub(crate) fn new(session: Arc<Session>, effect: EffectId) -> Arc<Self> {
        Arc::new(Self {
            session,
            effect,
            state: Mutex::default(),
        })
    }

    /// Shows a delta. It is built only if a client follows deltas, and counted in any case: a later
    /// follower must be able to see that it missed something.
    pub(crate) fn push(&self, kind: DeltaKind, text: &str) {
        let mut state = self.state.lock();
        if state.finished {
            return;
        }
        if kind == DeltaKind::Reset {
            (state.number, state.restarted) = (0, true);
            return self.send(FeedItem::Void);
        }
        let (number, again) = (state.number, state.restarted);
        state.number += 1;
        self.session.feed.send(|| FeedItem::Delta {
            effect: self.effect.clone(),
            number,
            restarted: again,
            frame: frames::delta(kind, &self.effect, text).into(),
        });
    }

    /// Closes the stream. Returns `false` if it was closed already. `stands` says whether a frame
    /// of the log will replace the deltas that were shown.
    pub(crate) fn finish(&self, stands: bool) -> bool {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.finished, true) {
            return false;
        }
        if state.number > 0 && !stands {
            self.send(FeedItem::Void);
        }
        if state.number > 0 || state.restarted {
            self.send(FeedItem::Done);
        }
        true
    }

    fn send(&self, item: fn(EffectId) -> FeedItem) {
        self.session.feed.send(|| item(self.effect.clone()));
    }
}
