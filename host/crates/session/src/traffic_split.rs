//! The split of new sessions between a policy's active build and a candidate.
//!
//! # Invariants
//! - Of the first n sessions that are created, the candidate has exactly ⌊n · share ÷ 100⌋: its
//!   exact share of each hundred, evenly spread and without randomness.
//! - A session that was refused does not use up a slot.

use std::sync::Arc;

use parking_lot::Mutex;

/// The traffic split of one candidate.
#[derive(Debug)]
pub struct TrafficSplit {
    /// The candidate's share, in percent.
    percent: u8,
    slots: Mutex<SlotQueue>,
}

#[derive(Debug, Default)]
struct SlotQueue {
    all: u64,
    candidates: u64,
}

impl TrafficSplit {
    /// Creates a split in which no slot has been assigned.
    pub fn new(percent: u8) -> Self {
        Self {
            percent,
            slots: Mutex::default(),
        }
    }

    /// Assigns the next slot.
    pub fn assign(self: &Arc<Self>) -> SplitSlot {
        let mut turns = self.slots.lock();
        turns.all += 1;
        // The candidate gets this slot if it is owed more than it has had.
        let owed = turns.all * u64::from(self.percent) / 100;
        let is_candidates = turns.candidates < owed;
        turns.candidates += u64::from(is_candidates);
        drop(turns);
        SplitSlot {
            share: self.clone(),
            is_candidates,
            is_kept: false,
        }
    }
}

/// A slot; released if it is dropped before it is kept.
#[derive(Debug)]
pub struct SplitSlot {
    share: Arc<TrafficSplit>,
    is_candidates: bool,
    is_kept: bool,
}

impl SplitSlot {
    /// Returns whether the slot is the candidate's.
    pub fn is_candidates(&self) -> bool {
        self.is_candidates
    }

    /// Keeps the slot: a session was created for it.
    pub fn commit(mut self) {
        self.is_kept = true;
    }
}

impl Drop for SplitSlot {
    fn drop(&mut self) {
        if !self.is_kept {
            let mut turns = self.share.slots.lock();
            turns.all -= 1;
            turns.candidates -= u64::from(self.is_candidates);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_a_hundred_sessions_a_candidate_gets_exactly_its_share_wherever_one_begins_to_count() {
        for percent in 1..=99 {
            let share = Arc::new(TrafficSplit::new(percent));
            let turns: Vec<bool> = (0..300)
                .map(|_| {
                    let turn = share.assign();
                    let is_candidates = turn.is_candidates();
                    turn.commit();
                    is_candidates
                })
                .collect();
            for (from, window) in turns.windows(100).enumerate() {
                let count = window.iter().filter(|turn| **turn).count();
                assert_eq!(count, usize::from(percent), "{percent} % from {from} on");
            }
        }
    }

    proptest! {
        #[test]
        fn a_session_that_was_refused_takes_nobodys_turn(
            percent in 1..=99_u8,
            made in proptest::collection::vec(any::<bool>(), 0..400),
        ) {
            let share = Arc::new(TrafficSplit::new(percent));
            let (mut all, mut candidates) = (0_u64, 0_u64);
            for made in made {
                let turn = share.assign();
                if made {
                    all += 1;
                    candidates += u64::from(turn.is_candidates());
                    turn.commit();
                }
                prop_assert_eq!(candidates, all * u64::from(percent) / 100);
            }
        }

        /// However many slots are taken at once, none is assigned twice, and the split is exact in
        /// the end.
        #[test]
        fn turns_at_once_come_out_even(
            percent in 1..=99_u8,
            steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..200),
        ) {
            let share = Arc::new(TrafficSplit::new(percent));
            let (mut open, mut kept) = (Vec::new(), Vec::new());
            for (take, which) in steps {
                if take || open.is_empty() {
                    open.push(share.assign());
                } else {
                    let turn: SplitSlot = open.swap_remove(which.index(open.len()));
                    kept.push(turn.is_candidates());
                    turn.commit();
                }
            }
            for turn in open {
                kept.push(turn.is_candidates());
                turn.commit();
            }
            let candidates = kept.iter().filter(|turn| **turn).count();
            prop_assert_eq!(candidates, kept.len() * usize::from(percent) / 100);
        }
    }
}
