//! The task timer, and the clocks that it uses.
//!
//! # Invariants
//! - Work is limited by the monotonic clock, which neither an operator nor a time server adjusts
//!   and which stops while the machine sleeps. Time during which this process was itself suspended
//!   (a paused container, SIGSTOP) is subtracted, because it did no work then.
//! - The time a task has used is a number in the log, so it survives a restart, and the host's
//!   downtime is not part of it.
//! - While a task waits for its user's answer and none of its model calls or tools is running, its
//!   timer is stopped. A running timer effect does not count as work: a policy may have one beside
//!   its question.
//! - The wall clock only dates what is shown and written. A jump of it is reported in the host's
//!   log.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::shared::SessionsShared;
use lucid_types::ids::EffectId;
use lucid_types::log::{EffectKind, SessionCounters};

/// Interval at which the wall clock is compared with the monotonic one.
const LOOK: Duration = Duration::from_secs(2);
/// Smallest difference that counts as a jump, in milliseconds: more than a busy machine or a time
/// server causes.
const JUMP: i128 = 2_000;
/// Interval at which the process is checked for suspension, and the smallest gap between two checks
/// that a busy machine does not explain.
const TICK: Duration = Duration::from_secs(1);
const STOOD_STILL: Duration = Duration::from_secs(5);
/// Interval at which the host's uptime is stored.
const NOTE: Duration = Duration::from_secs(60);

/// Milliseconds since 1970, by the wall clock.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns whether an open task waits for its user and for nothing else that takes time.
pub(super) fn waits_for_user(
    counters: &SessionCounters,
    mut open: impl Iterator<Item = EffectKind>,
) -> bool {
    let mut asked = false;
    let works = open.any(|kind| {
        asked |= kind == EffectKind::Ask;
        matches!(kind, EffectKind::Model | EffectKind::Tool)
    });
    counters.task_open && asked && !works
}

/// Returns the kinds of the open effects.
pub(super) fn kinds(open: &BTreeMap<EffectId, EffectKind>) -> impl Iterator<Item = EffectKind> {
    open.values().copied()
}

/// Detects that the process was suspended, from a check of the clock that came late.
#[derive(Debug)]
struct SuspendDetector {
    looked: Instant,
    suspended: Duration,
}

/// Checked by a dedicated thread, so that a busy executor is not mistaken for a suspended process;
/// and by every reader, since it is unknown which thread runs first after a suspension.
static AWAKE: LazyLock<Mutex<SuspendDetector>> = LazyLock::new(|| {
    let look = || {
        loop {
            std::thread::sleep(TICK);
            suspended_time();
        }
    };
    let thread = std::thread::Builder::new().name("lucid-clock".to_owned());
    if let Err(cause) = thread.spawn(look) {
        tracing::warn!(%cause, "it is not noticed whether this process stands still");
    }
    Mutex::new(SuspendDetector {
        looked: Instant::now(),
        suspended: Duration::ZERO,
    })
});

impl SuspendDetector {
    /// Returns how long the process was suspended in total, and since the last check if it was.
    fn check(&mut self, now: Instant) -> (Duration, Option<Duration>) {
        let gap = now.saturating_duration_since(self.looked);
        self.looked = self.looked.max(now);
        let still = (gap >= STOOD_STILL).then(|| gap.saturating_sub(TICK));
        self.suspended += still.unwrap_or_default();
        (self.suspended, still)
    }
}

/// Returns how long the process was suspended in total.
fn suspended_time() -> Duration {
    let (all, now) = AWAKE.lock().check(Instant::now());
    if let Some(still) = now {
        tracing::warn!(
            seconds = still.as_secs_f64(),
            "this process stood still; the time of tasks goes on as if it had not"
        );
    }
    all
}

/// Counts a task's time.
pub(super) struct TaskClock {
    /// Excludes the time that the process was suspended.
    counted: Instant,
}

impl TaskClock {
    /// Starts a clock that counts from now on.
    pub(super) fn start() -> Self {
        Self {
            counted: Self::now(),
        }
    }

    /// Goes on with a clock that has counted up to this time.
    pub(super) fn since(counted: Instant) -> Self {
        Self { counted }
    }

    /// Up to when the time is counted.
    pub(super) fn counted(&self) -> Instant {
        self.counted
    }

    fn now() -> Instant {
        let now = Instant::now();
        now.checked_sub(suspended_time()).unwrap_or(now)
    }

    /// Adds the time since the last call, unless the task waited for its user.
    pub(super) fn count(&mut self, counters: &mut SessionCounters, waited: bool) {
        self.count_until(Self::now(), counters, waited);
    }

    fn count_until(&mut self, now: Instant, counters: &mut SessionCounters, waited: bool) {
        // Whole milliseconds now, the remainder next time: many short rounds add up.
        let passed = now.saturating_duration_since(self.counted).as_millis();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        self.counted += Duration::from_millis(passed);
        if counters.task_open && !waited {
            counters.task_used_ms = counters.task_used_ms.saturating_add(passed);
        }
    }

    /// Returns when the open task's time is up, as counted so far: later if the process is
    /// suspended.
    pub(super) fn deadline(&self, counters: &SessionCounters, limit: Duration) -> Instant {
        self.counted + suspended_time() + left(counters, limit)
    }
}

/// Up to when a clock that starts now has counted.
pub(crate) fn counted_now() -> Instant {
    TaskClock::start().counted
}

/// Returns the time left for the open task, or the whole limit if none is open.
pub(super) fn left(counters: &SessionCounters, limit: Duration) -> Duration {
    if counters.task_open {
        limit.saturating_sub(Duration::from_millis(counters.task_used_ms))
    } else {
        limit
    }
}

/// A simultaneous reading of the wall clock and the monotonic one.
struct ClockReading {
    wall: u64,
    monotonic: Instant,
}

impl ClockReading {
    fn read() -> Self {
        Self {
            wall: now(),
            monotonic: Instant::now(),
        }
    }

    /// Returns by how many milliseconds the wall clock jumped between two readings, forward or
    /// back.
    fn jump(&self, later: &Self) -> Option<i128> {
        let by_wall = i128::from(later.wall) - i128::from(self.wall);
        let passed = later.monotonic.saturating_duration_since(self.monotonic);
        let by_both = by_wall - i128::try_from(passed.as_millis()).unwrap_or(i128::MAX);
        (by_both.abs() >= JUMP).then_some(by_both)
    }
}

/// Reports each jump of the wall clock once, with its size, and stores the host's uptime.
pub(crate) async fn watch(shared: Weak<SessionsShared>, halt: CancellationToken) {
    let (mut clocks, mut noted) = (ClockReading::read(), Instant::now());
    while halt
        .run_until_cancelled(tokio::time::sleep(LOOK))
        .await
        .is_some()
    {
        let later = ClockReading::read();
        if let Some(millis) = clocks.jump(&later) {
            let seconds = millis as f64 / 1000.0;
            let direction = if millis < 0 { "back" } else { "forward" };
            tracing::warn!(
                seconds,
                "the wall clock jumped {direction}, or this machine slept; the time of tasks and every other limit goes on as if it had not"
            );
        }
        clocks = later;
        if noted.elapsed() < NOTE {
            continue;
        }
        noted = Instant::now();
        let Some(log) = shared.upgrade().map(|shared| shared.deps.log.clone()) else {
            return;
        };
        if let Err(cause) = log.note_uptime().await {
            tracing::debug!(%cause, "the host's uptime was not noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_task_waits_for_its_user_where_a_question_is_open_and_nothing_works() {
        use EffectKind::{Ask, Model, Orphan, Timer, Tool};
        let open = SessionCounters {
            task_open: true,
            ..SessionCounters::default()
        };
        for (kinds, waits) in [
            (&[Ask][..], true),
            (&[Timer, Ask, Orphan], true),
            (&[Ask, Tool], false),
            (&[Model, Ask], false),
            (&[Timer], false),
            (&[], false),
        ] {
            assert_eq!(
                waits_for_user(&open, kinds.iter().copied()),
                waits,
                "{kinds:?}"
            );
            let closed = SessionCounters::default();
            assert!(!waits_for_user(&closed, kinds.iter().copied()), "{kinds:?}");
        }
    }

    #[test]
    fn a_jump_of_the_wall_clock_is_told_from_time_that_passes() {
        let start = ClockReading::read();
        let after = |wall: i128, seconds: u64| ClockReading {
            wall: u64::try_from(i128::from(start.wall) + wall).unwrap(),
            monotonic: start.monotonic + Duration::from_secs(seconds),
        };
        assert_eq!(start.jump(&after(60_000, 60)), None);
        assert_eq!(start.jump(&after(61_900, 60)), None);
        assert_eq!(start.jump(&after(3_660_000, 60)), Some(3_600_000));
        assert_eq!(start.jump(&after(-3_540_000, 60)), Some(-3_600_000));
        assert_eq!(start.jump(&after(0, 60)), Some(-60_000));
    }

    #[test]
    fn a_process_that_stood_still_is_told_from_a_busy_one() {
        let start = Instant::now();
        let mut awake = SuspendDetector {
            looked: start,
            suspended: Duration::ZERO,
        };
        let mut look = |seconds| awake.check(start + Duration::from_secs(seconds));
        let second = Duration::from_secs(1);
        assert_eq!(look(1), (Duration::ZERO, None));
        assert_eq!(look(5), (Duration::ZERO, None));
        assert_eq!(look(66), (60 * second, Some(60 * second)));
        assert_eq!(look(67), (60 * second, None));
        // A check that was made earlier and is reported later.
        assert_eq!(look(66), (60 * second, None));
        assert_eq!(look(78), (70 * second, Some(10 * second)));
    }

    proptest! {
        /// Rounds at any interval, some of which end a wait, on hosts that are restarted between
        /// some: waiting time is not counted, and all other time is, to the millisecond.
        #[test]
        fn a_task_has_used_what_it_did_not_wait(
            rounds in prop::collection::vec((0_u64..100_000_000, any::<bool>(), any::<bool>()), 0..20),
        ) {
            let limit = Duration::from_secs(10_000);
            let mut counters = SessionCounters { task_open: true, ..SessionCounters::default() };
            let mut at = Instant::now();
            let mut clock = TaskClock { counted: at };
            let mut used = Duration::ZERO;
            for (micros, waited, restarted) in rounds {
                let passed = Duration::from_micros(micros);
                at += passed;
                clock.count_until(at, &mut counters, waited);
                if restarted {
                    // A year later, by the wall clock.
                    at += Duration::from_hours(365 * 24);
                    clock = TaskClock { counted: at };
                }
                if !waited {
                    used += passed;
                }
                let counted = Duration::from_millis(counters.task_used_ms);
                let rest = Duration::from_millis(21);
                prop_assert!(counted <= used + rest && used <= counted + rest, "{used:?}, {counted:?}");
                prop_assert_eq!(left(&counters, limit), limit.saturating_sub(counted));
            }
        }
    }
}
