//! What follows an error of `accept`.
//!
//! # Invariants
//!
//! - A client that is gone before it was accepted costs no time.
//! - Any other error (no descriptor or no memory is left) will come again at once, so there is a pause
//!   before the next attempt, which grows and stays short.
//! - The log tells of it once in a while, however often it happens.

use std::io;
use std::time::{Duration, Instant};

/// The first pause.
const SHORTEST: Duration = Duration::from_millis(10);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);
/// The least time between two lines of the log about the same.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

/// The pauses of one listener.
#[derive(Debug)]
pub(super) struct AcceptBackoff {
    next: Duration,
    line: OccasionalLine,
}

impl Default for AcceptBackoff {
    fn default() -> Self {
        Self {
            next: SHORTEST,
            line: OccasionalLine::default(),
        }
    }
}

impl AcceptBackoff {
    /// A connection was accepted.
    pub(super) fn reset(&mut self) {
        self.next = SHORTEST;
    }

    /// How long to wait after this error. `None` if it concerned one connection only.
    pub(super) fn pause(&mut self, error: &io::Error) -> Option<Duration> {
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
        ) {
            return None;
        }
        if let Some(times) = self.line.is_due(Instant::now()) {
            tracing::warn!(
                times,
                "no connection can be accepted at the moment, and clients wait: {error}"
            );
        }
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        Some(pause)
    }
}

/// Whether something that happens again and again is told in the log.
#[derive(Debug, Default)]
pub(super) struct OccasionalLine {
    last: Option<Instant>,
    times: u64,
}

impl OccasionalLine {
    /// Counts an occurrence. Returns how many there were since the last line, if another is due.
    pub(super) fn is_due(&mut self, now: Instant) -> Option<u64> {
        self.times += 1;
        if self.last.is_some_and(|last| now - last < BETWEEN_LINES) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn pauses_grow_while_no_descriptor_is_left_and_begin_anew_after_a_success() {
        let mut backoff = AcceptBackoff::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            pauses.push(backoff.pause(&Errno::MFILE.into()).unwrap());
        }
        assert_eq!(pauses[0], SHORTEST);
        assert!(pauses.is_sorted() && pauses[9] == LONGEST, "{pauses:?}");
        backoff.reset();
        for errno in [Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::INVAL] {
            assert!(backoff.pause(&errno.into()).is_some(), "{errno}");
        }
        backoff.reset();
        assert_eq!(backoff.pause(&Errno::NFILE.into()), Some(SHORTEST));
    }

    #[test]
    fn a_client_that_is_gone_costs_no_pause() {
        let mut backoff = AcceptBackoff::default();
        for errno in [Errno::CONNABORTED, Errno::CONNRESET, Errno::INTR] {
            assert_eq!(backoff.pause(&errno.into()), None, "{errno}");
        }
    }

    #[test]
    fn what_happens_all_the_time_is_told_once_in_a_while_with_its_count() {
        let mut line = OccasionalLine::default();
        let begun = Instant::now();
        assert_eq!(line.is_due(begun), Some(1));
        for _ in 0..99 {
            assert_eq!(line.is_due(begun + BETWEEN_LINES / 2), None);
        }
        assert_eq!(line.is_due(begun + BETWEEN_LINES), Some(100));
    }
}
