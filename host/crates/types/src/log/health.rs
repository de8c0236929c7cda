//! Tracks whether the log can be written at the moment, and wakes the tasks that wait for it.
//!
//! # Invariants
//!
//! - The host's log says once that the log cannot be written, and once that it can again, however
//!   many writes fail in between.
//! - The log counts as failing from the first write with a transient failure until a write
//!   succeeds and no task waits for another attempt any more.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::transient::TransientFailure;

/// The pause before the second attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between later attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Whether the log can be written. Clones are handles to the same state.
#[derive(Debug, Clone)]
pub struct LogHealth {
    state: Arc<Mutex<State>>,
    /// Counts how often a write succeeded after one that failed.
    recoveries: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct State {
    /// Why the last write failed, or `None` if it succeeded.
    failing: Option<TransientFailure>,
    /// The failure that the host's log and clients were told of.
    reported: Option<TransientFailure>,
    /// The number of tasks that wait to try again.
    waiting: usize,
}

impl Default for LogHealth {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            recoveries: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl LogHealth {
    /// Returns why the log cannot be written, or `None` if it can.
    pub fn failure(&self) -> Option<TransientFailure> {
        self.state.lock().reported
    }

    /// Records a failed write.
    pub fn failed(&self, reason: TransientFailure) {
        let mut state = self.state.lock();
        state.failing = Some(reason);
        let before = state.reported.replace(reason);
        if before.is_none() {
            tracing::error!(%reason, "the log cannot be written; sessions wait until it can");
        }
    }

    /// Records a successful write.
    pub fn succeeded(&self) {
        let mut state = self.state.lock();
        if state.failing.take().is_some() {
            self.recoveries.send_modify(|count| *count += 1);
        }
        settle(&mut state);
    }

    /// Starts waiting to retry a failed write.
    pub fn wait(&self) -> PausedWriter {
        self.state.lock().waiting += 1;
        PausedWriter {
            health: self.clone(),
            recoveries: self.recoveries.subscribe(),
            pauses: pauses(),
        }
    }
}

fn settle(state: &mut State) {
    if state.failing.is_none() && state.waiting == 0 && state.reported.take().is_some() {
        tracing::info!("the log is written again");
    }
}

/// The pauses between attempts, without end.
pub fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .with_jitter()
        .build()
}

/// A task that waits to write again. The log does not count as healthy before it is dropped.
#[derive(Debug)]
pub struct PausedWriter {
    health: LogHealth,
    recoveries: watch::Receiver<u64>,
    pauses: ExponentialBackoff,
}

impl PausedWriter {
    /// Waits for a pause, each longer than the previous one, or until another task's write has
    /// succeeded. Cancel safe.
    pub async fn pause(&mut self) {
        let pause = self.pauses.next().unwrap_or(LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The sender lives as long as this does.
            _ = self.recoveries.changed() => {}
        }
    }
}

impl Drop for PausedWriter {
    fn drop(&mut self) {
        let mut state = self.health.state.lock();
        state.waiting = state.waiting.saturating_sub(1);
        settle(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_log_is_well_again_when_a_write_succeeded_and_nobody_waits() {
        let health = LogHealth::default();
        assert_eq!(health.failure(), None);
        health.failed(TransientFailure::Locked);
        health.failed(TransientFailure::DiskFull);
        assert_eq!(health.failure(), Some(TransientFailure::DiskFull));
        let waiting = health.wait();
        health.succeeded();
        assert_eq!(health.failure(), Some(TransientFailure::DiskFull));
        drop(waiting);
        assert_eq!(health.failure(), None);
    }

    #[test]
    fn pauses_grow_up_to_some_seconds_and_have_no_end() {
        let lengths: Vec<_> = pauses().take(50).collect();
        assert_eq!(lengths.len(), 50);
        // Each has some jitter, so that sessions do not retry at the same time.
        assert!(lengths[0] < 3 * FIRST_PAUSE, "{lengths:?}");
        assert!(lengths[40] >= LONGEST_PAUSE, "{lengths:?}");
        assert!(lengths[40] <= 3 * LONGEST_PAUSE, "{lengths:?}");
    }

    #[tokio::test]
    async fn a_write_that_succeeds_ends_the_pauses_of_all_that_wait() {
        let health = LogHealth::default();
        health.failed(TransientFailure::DiskFull);
        let mut waiting = health.wait();
        for _ in 0..20 {
            waiting.pauses.next();
        }
        let long = waiting.pause();
        tokio::pin!(long);
        let soon = tokio::time::timeout(Duration::from_millis(50), &mut long);
        assert!(soon.await.is_err());
        health.succeeded();
        let woken = tokio::time::timeout(Duration::from_millis(1000), long);
        assert!(woken.await.is_ok());
    }
}
