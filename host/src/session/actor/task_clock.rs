//! A task's time, and the clocks that it is measured with.
//!
//! # Invariants
//! What limits work is measured with the monotonic clock, which neither an operator nor a time server
//! moves, and which stands still while the machine sleeps; without the time that this process stood still
//! itself (a container that is paused, SIGSTOP), in which it did no work. What a task used is a number in the log, so it
//! is still there after a restart, and the time that the host was down is not in it. While a task waits
//! for its user's answer, and no model call and no tool of it runs, its time stands still. Timers are no
//! work: a policy may have one beside its question. The wall clock dates what is shown and written, and a
//! jump of it is said in the log.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use crate::store::{Counters, EffectKind};

use crate::session::Shared;
use crate::session::handle::held;

/// How often the wall clock is set beside the other one.
const LOOK: Duration = Duration::from_secs(2);
/// From here on they differ by a jump, and not by what a busy machine or a time server adds.
const JUMP: i128 = 2_000;
/// How often it is looked whether the process runs, and how long a gap between two looks no busy machine makes.
const TICK: Duration = Duration::from_secs(1);
const STOOD_STILL: Duration = Duration::from_secs(5);
/// How often the host's uptime is written down.
const NOTE: Duration = Duration::from_secs(60);

/// Milliseconds since 1970, by the wall clock.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whether an open task waits for its user, and for nothing else that takes time.
pub(super) fn waits_for_user(
    counters: &Counters,
    mut open: impl Iterator<Item = EffectKind>,
) -> bool {
    let mut asked = false;
    let works = open.any(|kind| {
        asked |= kind == EffectKind::Ask;
        matches!(kind, EffectKind::Model | EffectKind::Tool)
    });
    counters.task_open && asked && !works
}

/// The kinds of open effects.
pub(super) fn kinds(open: &BTreeMap<String, EffectKind>) -> impl Iterator<Item = EffectKind> {
    open.values().copied()
}

/// Notices that the process stood still, by a look at the clock that came late.
#[derive(Debug)]
struct Awake {
    looked: Instant,
    stood_still: Duration,
}

/// Looked at by a thread of its own, so that an executor that is busy is not taken for a process that stands
/// still; and by whoever wants to know, since nobody knows who runs first afterwards.
static AWAKE: LazyLock<Mutex<Awake>> = LazyLock::new(|| {
    let look = || {
        loop {
            std::thread::sleep(TICK);
            stood_still();
        }
    };
    let thread = std::thread::Builder::new().name("lucid-clock".to_owned());
    if let Err(cause) = thread.spawn(look) {
        tracing::warn!(%cause, "it is not noticed whether this process stands still");
    }
    Mutex::new(Awake {
        looked: Instant::now(),
        stood_still: Duration::ZERO,
    })
});

impl Awake {
    /// For how long the process stood still in all, and since the last look.
    fn look(&mut self, now: Instant) -> (Duration, Option<Duration>) {
        let gap = now.saturating_duration_since(self.looked);
        self.looked = self.looked.max(now);
        let still = (gap >= STOOD_STILL).then(|| gap.saturating_sub(TICK));
        self.stood_still += still.unwrap_or_default();
        (self.stood_still, still)
    }
}

/// For how long the process stood still in all.
fn stood_still() -> Duration {
    let (all, now) = held(&AWAKE).look(Instant::now());
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
    /// Without the time that the process stood still.
    counted: Instant,
}

impl TaskClock {
    /// One that counts from now on.
    pub(super) fn start() -> Self {
        Self {
            counted: Self::now(),
        }
    }

    fn now() -> Instant {
        let now = Instant::now();
        now.checked_sub(stood_still()).unwrap_or(now)
    }

    /// Adds what passed since the last time, unless the task waited for its user.
    pub(super) fn count(&mut self, counters: &mut Counters, waited: bool) {
        self.count_until(Self::now(), counters, waited);
    }

    fn count_until(&mut self, now: Instant, counters: &mut Counters, waited: bool) {
        // In whole milliseconds, and the rest the next time: many short rounds add up.
        let passed = now.saturating_duration_since(self.counted).as_millis();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        self.counted += Duration::from_millis(passed);
        if counters.task_open && !waited {
            counters.task_used_ms = counters.task_used_ms.saturating_add(passed);
        }
    }

    /// When the open task's time is up, as counted so far: later, should the process stand still.
    pub(super) fn deadline(&self, counters: &Counters, limit: Duration) -> Instant {
        self.counted + stood_still() + left(counters, limit)
    }
}

/// What is left for the open task; all of it where none is open.
pub(super) fn left(counters: &Counters, limit: Duration) -> Duration {
    if counters.task_open {
        limit.saturating_sub(Duration::from_millis(counters.task_used_ms))
    } else {
        limit
    }
}

/// Sets the wall clock beside the monotonic one.
struct Clocks {
    wall: u64,
    monotonic: Instant,
}

impl Clocks {
    fn read() -> Self {
        Self {
            wall: now(),
            monotonic: Instant::now(),
        }
    }

    /// By how many milliseconds the wall clock jumped between two looks, forward or back.
    fn jump(&self, later: &Self) -> Option<i128> {
        let by_wall = i128::from(later.wall) - i128::from(self.wall);
        let passed = later.monotonic.saturating_duration_since(self.monotonic);
        let by_both = by_wall - i128::try_from(passed.as_millis()).unwrap_or(i128::MAX);
        (by_both.abs() >= JUMP).then_some(by_both)
    }
}

/// Says once of each jump of the wall clock how large it was, and notes the host's uptime.
pub(crate) async fn watch(shared: Weak<Shared>, halt: CancellationToken) {
    let (mut clocks, mut noted) = (Clocks::read(), Instant::now());
    while halt
        .run_until_cancelled(tokio::time::sleep(LOOK))
        .await
        .is_some()
    {
        let later = Clocks::read();
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
        let Some(store) = shared.upgrade().map(|shared| shared.deps.store.clone()) else {
            return;
        };
        if let Err(cause) = store.note_uptime().await {
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
        let open = Counters {
            task_open: true,
            ..Counters::default()
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
            let closed = Counters::default();
            assert!(!waits_for_user(&closed, kinds.iter().copied()), "{kinds:?}");
        }
    }

    #[test]
    fn a_jump_of_the_wall_clock_is_told_from_time_that_passes() {
        let start = Clocks::read();
        let after = |wall: i128, seconds: u64| Clocks {
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
        let mut awake = Awake {
            looked: start,
            stood_still: Duration::ZERO,
        };
        let mut look = |seconds| awake.look(start + Duration::from_secs(seconds));
        let second = Duration::from_secs(1);
        assert_eq!(look(1), (Duration::ZERO, None));
        assert_eq!(look(5), (Duration::ZERO, None));
        assert_eq!(look(66), (60 * second, Some(60 * second)));
        assert_eq!(look(67), (60 * second, None));
        // A look that was taken earlier, and is told of later.
        assert_eq!(look(66), (60 * second, None));
        assert_eq!(look(78), (70 * second, Some(10 * second)));
    }

    proptest! {
        /// Rounds at any distance, some of which end a wait, on hosts that are started anew between some:
        /// what was waited is not used, and all else is, to the millisecond.
        #[test]
        fn a_task_has_used_what_it_did_not_wait(
            rounds in prop::collection::vec((0_u64..100_000_000, any::<bool>(), any::<bool>()), 0..20),
        ) {
            let limit = Duration::from_secs(10_000);
            let mut counters = Counters { task_open: true, ..Counters::default() };
            let mut at = Instant::now();
            let mut clock = TaskClock { counted: at };
            let mut used = Duration::ZERO;
            for (micros, waited, restarted) in rounds {
                let passed = Duration::from_micros(micros);
                at += passed;
                clock.count_until(at, &mut counters, waited);
                if restarted {
                    // A year later, on the wall.
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
