//! How much may happen in a time.

use std::time::{Duration, Instant};

/// Gives a number of tokens each second, and keeps as many as it has room for.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// The time that one token takes to come back.
    interval: Duration,
    /// The time that all of them take.
    window: Duration,
    /// When the bucket is full again.
    full: Instant,
}

impl TokenBucket {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second;
        Self {
            interval,
            window: interval * burst,
            full: Instant::now(),
        }
    }

    /// Takes a token. Returns whether there was one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let full = self.full.max(now) + self.interval;
        let has_one = full.duration_since(now) <= self.window;
        if has_one {
            self.full = full;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_followed_by_what_comes_back_in_time() {
        let mut bucket = TokenBucket::new(10, 3);
        let begun = Instant::now();
        let mut taken = |after| {
            let now = begun + Duration::from_millis(after);
            (0..100).filter(|_| bucket.take(now)).count()
        };
        assert_eq!(taken(0), 3);
        assert_eq!(taken(99), 0);
        assert_eq!(taken(100), 1);
        assert_eq!(taken(350), 2);
        assert_eq!(taken(60_000), 3, "no more than there is room for");
    }
}
