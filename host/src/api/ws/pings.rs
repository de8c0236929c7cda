//! How many pings of the protocol a client may send.
//!
//! Each is answered with a pong as soon as it is read, and pongs wait in memory for a client that reads
//! nothing.

use std::time::{Duration, Instant};

/// How many pings may come at once.
const BURST: u32 = 60;
/// After how long another one may come. Clients that ping at all do so every few seconds.
const INTERVAL: Duration = Duration::from_secs(1);

/// The pings that one client may send.
#[derive(Debug)]
pub(super) struct PingAllowance {
    left: u32,
    /// Since when nothing was added to what is left.
    since: Instant,
}

impl PingAllowance {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
        }
    }

    /// Counts a ping. Returns whether it may come.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.duration_since(self.since).as_secs() / INTERVAL.as_secs();
        if passed > 0 {
            let more = u32::try_from(passed).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(more).min(BURST);
            // What is left of a second counts for the next one.
            self.since += INTERVAL * more;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_ping_every_second_for_ever_and_not_much_more_often() {
        let mut now = Instant::now();
        let mut pings = PingAllowance::new(now);
        for jitter in (0..1_000).map(|n| Duration::from_millis(n * 7 % 40)) {
            now += INTERVAL;
            assert!(pings.take(now + jitter));
        }
        now += INTERVAL;
        let at_once = (0..1_000).filter(|_| pings.take(now)).count();
        assert!(
            (BURST as usize - 2..=BURST as usize).contains(&at_once),
            "{at_once}"
        );
        now += INTERVAL * 5;
        let later = (0..1_000).filter(|_| pings.take(now)).count();
        assert_eq!(later, 5);
    }
}
