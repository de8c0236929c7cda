//! Truncates a command's output: keeps the first bytes as they come, the last bytes in a ring, and
//! a count of the bytes between.
//!
//! # Invariants
//! - Head + omitted + tail is all that was pushed, in that order.
//! - Memory never grows beyond the tail's limit.

use std::collections::VecDeque;

/// Bounds one command's output.
#[derive(Debug)]
pub struct Capped {
    head_left: usize,
    tail_limit: usize,
    tail: VecDeque<u8>,
    omitted: u64,
}

impl Capped {
    /// The first `head` bytes pass straight through; of those after them the last `tail` bytes are
    /// kept.
    #[must_use]
    pub fn new(head: usize, tail: usize) -> Self {
        Self {
            head_left: head,
            tail_limit: tail,
            tail: VecDeque::new(),
            omitted: 0,
        }
    }

    /// Pushes bytes, and returns the part that is to be sent at once.
    pub fn push<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (live, rest) = bytes.split_at(self.head_left.min(bytes.len()));
        self.head_left -= live.len();
        // Only the last `tail_limit` bytes of `rest` can survive, so the others are never copied.
        let kept = &rest[rest.len().saturating_sub(self.tail_limit)..];
        self.omitted += (rest.len() - kept.len()) as u64;
        let over = (self.tail.len() + kept.len()).saturating_sub(self.tail_limit);
        self.tail.drain(..over);
        self.omitted += over as u64;
        self.tail.extend(kept);
        live
    }

    /// Returns the last bytes, and how many were omitted between the first and the last.
    #[must_use]
    pub fn finish(self) -> (Vec<u8>, u64) {
        (self.tail.into(), self.omitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small deterministic generator of many test cases.
    struct Dice(u64);
    impl Dice {
        fn roll(&mut self, below: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) as usize) % below.max(1)
        }
    }

    #[test]
    fn head_omitted_and_tail_are_always_the_whole_output_in_order() {
        let mut dice = Dice(7);
        for case in 0..2_000 {
            let (head, tail) = (dice.roll(40), dice.roll(40));
            let input: Vec<u8> = (0..dice.roll(200)).map(|n| n as u8).collect();
            let mut capped = Capped::new(head, tail);
            let mut live = Vec::new();
            let mut rest = input.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(1 + dice.roll(rest.len()));
                live.extend_from_slice(capped.push(now));
                assert!(
                    capped.tail.len() <= tail,
                    "case {case}: the ring outgrew its limit"
                );
                rest = later;
            }
            let (end, omitted) = capped.finish();
            assert_eq!(live, input[..head.min(input.len())], "case {case}");
            assert!(input.ends_with(&end), "case {case}");
            assert_eq!(
                live.len() + end.len() + omitted as usize,
                input.len(),
                "case {case}"
            );
            assert_eq!(end.len(), tail.min(input.len() - live.len()), "case {case}");
        }
    }

    #[test]
    fn output_that_fits_leaves_nothing_out() {
        let mut capped = Capped::new(4, 4);
        assert_eq!(capped.push(b"abcdef"), b"abcd");
        assert_eq!(capped.push(b"gh"), b"");
        assert_eq!(capped.finish(), (b"efgh".to_vec(), 0));
    }
}
