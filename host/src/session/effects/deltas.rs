//! Owns what is shown of one effect while it goes on, and who has the last word of it: the effect
//! itself, or whoever gives it up.
//!
//! What always holds: the last word is given once, so an effect has one result, also where it is done
//! at the moment it is given up. After the last word nothing of the effect is shown, and where no frame
//! of the log will stand for what was shown, that is made void first.

use std::sync::{Arc, Mutex};

use crate::session::handle::{Session, held};
use crate::session::ports::DeltaKind;
use crate::session::stream::feed::Item;
use crate::session::stream::frames;

pub(crate) struct Stream {
    session: Arc<Session>,
    effect: Arc<str>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    over: bool,
    /// Of the next piece.
    number: u64,
    again: bool,
}

impl Stream {
    pub(crate) fn new(session: Arc<Session>, effect: &str) -> Arc<Self> {
        Arc::new(Self {
            session,
            effect: effect.into(),
            state: Mutex::default(),
        })
    }

    /// Shows a piece. It is made only where somebody looks, and counted in any case: who comes later
    /// must know that it missed something.
    pub(crate) fn show(&self, kind: DeltaKind, text: &str) {
        let mut state = held(&self.state);
        if state.over {
            return;
        }
        if kind == DeltaKind::Reset {
            (state.number, state.again) = (0, true);
            return self.tell(Item::Void);
        }
        let (number, again) = (state.number, state.again);
        state.number += 1;
        self.session.feed.tell(|| Item::Piece {
            effect: self.effect.clone(),
            number,
            again,
            frame: frames::delta(kind, &self.effect, text).into(),
        });
    }

    /// Takes the last word. False where it was taken before. `stands`: a frame of the log will stand
    /// for what was shown.
    pub(crate) fn finish(&self, stands: bool) -> bool {
        let mut state = held(&self.state);
        if std::mem::replace(&mut state.over, true) {
            return false;
        }
        if state.number > 0 && !stands {
            self.tell(Item::Void);
        }
        if state.number > 0 || state.again {
            self.tell(Item::Done);
        }
        true
    }

    fn tell(&self, item: fn(Arc<str>) -> Item) {
        self.session.feed.tell(|| item(self.effect.clone()));
    }
}
