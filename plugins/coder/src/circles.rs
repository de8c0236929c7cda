//! Detects a model that repeats the same calls with the same results.
//!
//! # Invariants
//!
//! - A repeated sequence is up to [`LONGEST`] turns long.
//! - The model is told once for as long as it stays in the same loop.

use serde::{Deserialize, Serialize};

/// The number of rounds after which the model is told.
pub(crate) const TELL_AT: usize = 3;
/// The number of rounds after which it counts as stuck.
pub(crate) const STUCK_AT: usize = 5;
/// The maximum length of a circle, in turns.
const LONGEST: usize = 4;

/// The hashes of the latest turns.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Circles {
    marks: Vec<u64>,
    told: bool,
    /// Whether the user was asked for help once.
    pub(crate) asked: bool,
}

/// What a turn reveals.
#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    /// Something new, or a circle that the model knows about.
    Nothing,
    /// A circle of this many turns that the model should be told about.
    Circle(usize),
    /// A circle of this many turns that the model does not leave.
    Stuck(usize),
}

impl Circles {
    /// Adds a turn's hash.
    pub(crate) fn turn(&mut self, mark: u64) -> Found {
        if self.marks.len() == LONGEST * STUCK_AT {
            self.marks.remove(0);
        }
        self.marks.push(mark);
        let found = (1..=LONGEST)
            .map(|length| (self.rounds(length), length))
            .filter(|(rounds, _)| *rounds >= TELL_AT)
            .max_by_key(|(rounds, length)| (*rounds, std::cmp::Reverse(*length)));
        match found {
            Some((rounds, length)) if rounds >= STUCK_AT => Found::Stuck(length),
            Some((_, length)) if !std::mem::replace(&mut self.told, true) => Found::Circle(length),
            Some(_) => Found::Nothing,
            None => {
                self.told = false;
                Found::Nothing
            }
        }
    }

    /// Something new is known, so earlier turns no longer form a circle.
    pub(crate) fn forget(&mut self) {
        self.marks.clear();
        self.told = false;
    }

    /// How often in a row the latest turns repeat, in circles of this length.
    fn rounds(&self, length: usize) -> usize {
        let mut rounds = self.marks.rchunks_exact(length);
        match rounds.next() {
            Some(last) => 1 + rounds.take_while(|round| *round == last).count(),
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(marks: &[u64]) -> Vec<Found> {
        let mut circles = Circles::default();
        marks.iter().map(|mark| circles.turn(*mark)).collect()
    }

    #[test]
    fn the_same_turn_is_told_the_third_time_and_stuck_the_fifth() {
        let found = found(&[7, 1, 1, 1, 1, 1]);
        assert_eq!(found[..3], [Found::Nothing, Found::Nothing, Found::Nothing]);
        assert_eq!(
            found[3..],
            [Found::Circle(1), Found::Nothing, Found::Stuck(1)]
        );
    }

    #[test]
    fn two_turns_in_turn_are_a_circle_too() {
        let all = [1, 2].repeat(5);
        let found = found(&all);
        assert_eq!(found.iter().position(|f| *f == Found::Circle(2)), Some(5));
        assert_eq!(found.iter().filter(|f| **f != Found::Nothing).count(), 2);
        assert_eq!(found[9], Found::Stuck(2));
    }

    #[test]
    fn what_changes_now_and_then_is_no_circle() {
        let marks: Vec<u64> = (0..40).map(|n| n / 2).collect();
        assert!(found(&marks).iter().all(|f| *f == Found::Nothing));
        // The same test result after each of several edits.
        let marks: Vec<u64> = (0..40)
            .map(|n| if n % 2 == 0 { 1 } else { 100 + n })
            .collect();
        assert!(found(&marks).iter().all(|f| *f == Found::Nothing));
    }
}
