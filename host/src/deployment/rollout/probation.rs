//! Statistics of a policy's builds while one of them is on probation, and the rule by which it is
//! rolled back or confirmed.
//!
//! # Invariants
//!
//! - A step is counted once, for the build that completed it or was to blame for it.
//! - The same counts give the same decision.
//! - A decision is reported once, and again only if it could not be applied.
//! - Counts begin with the activation, or with the server's start.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use lucid_session::{StepVerdict, TrafficSplit};
use lucid_types::digest::Digest;
use lucid_types::ids::SessionId;
use lucid_types::plural;

/// Fewer failed steps may be coincidence.
const FEWEST_FAILED: u64 = 3;
/// In fewer sessions they may be due to one user's task.
const FEWEST_FAILED_IN: u64 = 2;
/// How many times as often as the previous build a build must fail to be rolled back: a slightly
/// higher rate may be due to the time of day.
const TIMES: u64 = 2;
/// A build with fewer steps is judged as if the missing ones had succeeded: one failed step out of
/// two says little.
const FEWEST_STEPS: u64 = 50;
/// The minimum number of steps before a build is confirmed.
const SETTLED_STEPS: u64 = 1_000;
/// The minimum number of sessions before a build is confirmed.
const SETTLED_SESSIONS: u64 = 5;
/// The maximum number of sessions that are distinguished.
const MOST_SESSIONS: usize = 10_000;

/// The counts of a build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProbationStats {
    /// All steps, including failed ones.
    pub(crate) steps: u64,
    /// Failed steps that were the build's fault.
    pub(crate) failed: u64,
    /// Sessions that took a step with it, up to 10,000. Zero for a build that is not on probation.
    pub(crate) sessions: u64,
    /// Those of them in which a step failed.
    pub(crate) failed_in: u64,
}

/// The decision about a build on probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbationVerdict {
    /// Undecided.
    Undecided,
    /// As good as the previous build.
    Confirmed,
    /// Worse.
    RolledBack,
}

/// Decides about a build on probation. It is rolled back when at least three of its steps failed,
/// in at least two sessions, and it fails more than twice as often as the previous build. It is
/// confirmed when it has taken a thousand steps in at least five sessions without that.
///
/// A step counts as failed only if the previous build handled the same inputs, or could not be run
/// on them: then one is enough to show that something is wrong, and three in two sessions that it
/// is no accident. No minimum rate of failed steps is required besides, since a bug in a rare place
/// is a bug. After a thousand steps the observation ends.
pub(crate) fn decide(new: &ProbationStats, before: &ProbationStats) -> ProbationVerdict {
    let enough = new.failed >= FEWEST_FAILED && new.failed_in >= FEWEST_FAILED_IN;
    // failed / steps > TIMES · before.failed / before.steps, without a division.
    let own = u128::from(new.failed) * u128::from(before.steps.max(FEWEST_STEPS));
    let befores = u128::from(before.failed) * u128::from(new.steps.max(1));
    if enough && own > befores.saturating_mul(TIMES.into()) {
        ProbationVerdict::RolledBack
    } else if new.steps >= SETTLED_STEPS && new.sessions >= SETTLED_SESSIONS {
        ProbationVerdict::Confirmed
    } else {
        ProbationVerdict::Undecided
    }
}

/// The counts of both builds, in a sentence.
pub(crate) fn sentence(new: &ProbationStats, before: &ProbationStats) -> String {
    format!(
        "It failed {} of {}, in {} of {}, and the build before it {} of {}.",
        new.failed,
        plural::count(new.steps, "step"),
        new.failed_in,
        plural::count(new.sessions, "session"),
        before.failed,
        plural::count(before.steps, "step")
    )
}

/// The counts of one build.
#[derive(Debug)]
pub(super) struct BuildCounts(Mutex<CountedSessions>);

#[derive(Debug)]
struct CountedSessions {
    steps: u64,
    failed: u64,
    /// Whether its sessions are distinguished: only those of a build on probation are.
    of_probation: bool,
    sessions: HashSet<SessionId>,
    failed_in: HashSet<SessionId>,
}

impl BuildCounts {
    fn new(of_probation: bool) -> Self {
        Self(Mutex::new(CountedSessions {
            steps: 0,
            failed: 0,
            of_probation,
            sessions: HashSet::new(),
            failed_in: HashSet::new(),
        }))
    }

    pub(super) fn count(&self, session: SessionId, verdict: StepVerdict) {
        let mut counted = self.0.lock();
        counted.steps += 1;
        counted.failed += u64::from(verdict == StepVerdict::Failed);
        if counted.of_probation {
            remember(&mut counted.sessions, session);
            if verdict == StepVerdict::Failed {
                remember(&mut counted.failed_in, session);
            }
        }
    }

    pub(super) fn stats(&self) -> ProbationStats {
        let counted = self.0.lock();
        let count = |set: &HashSet<SessionId>| u64::try_from(set.len()).unwrap_or(u64::MAX);
        ProbationStats {
            steps: counted.steps,
            failed: counted.failed,
            sessions: count(&counted.sessions),
            failed_in: count(&counted.failed_in),
        }
    }
}

fn remember(set: &mut HashSet<SessionId>, session: SessionId) {
    if set.len() < MOST_SESSIONS {
        set.insert(session);
    }
}

/// The key under which a policy's build is counted: its name, its digest, and the start of its
/// probation, if it is on probation.
pub(super) type ProbationKey = (String, Digest, Option<DateTime<Utc>>);

/// All counts, across the generations of the deployment.
#[derive(Debug)]
pub(crate) struct Probations {
    counts: Mutex<HashMap<ProbationKey, Weak<BuildCounts>>>,
    shares: Mutex<HashMap<(ProbationKey, u8), Weak<TrafficSplit>>>,
    decisions: mpsc::UnboundedSender<ProbationDecision>,
}

/// A decision to be applied.
#[derive(Debug)]
pub(crate) struct ProbationDecision {
    /// The policy.
    pub(crate) name: String,
    /// The build.
    pub(crate) digest: Digest,
    /// The start of its probation.
    pub(crate) since: DateTime<Utc>,
    /// Confirmed or rolled back.
    pub(crate) verdict: ProbationVerdict,
    /// The counts, in a sentence.
    pub(crate) why: String,
    reported: Arc<AtomicBool>,
}

impl ProbationDecision {
    /// Records that it could not be applied: it is reported again with the next step.
    pub(crate) fn reopen(&self) {
        self.reported.store(false, Ordering::Relaxed);
    }
}

impl Probations {
    /// Creates empty counts, and the receiver of decisions.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<ProbationDecision>) {
        let (decisions, receiver) = mpsc::unbounded_channel();
        let probations = Self {
            counts: Mutex::default(),
            shares: Mutex::default(),
            decisions,
        };
        (probations, receiver)
    }

    /// The counts of a build, which continue from one generation to the next.
    pub(super) fn counts(&self, of: &ProbationKey) -> Arc<BuildCounts> {
        recent(&self.counts, of.clone(), || {
            BuildCounts::new(of.2.is_some())
        })
    }

    /// The traffic split of a candidate, which continues in the same way.
    pub(super) fn traffic_split(&self, of: &ProbationKey, percent: u8) -> Arc<TrafficSplit> {
        recent(&self.shares, (of.clone(), percent), || {
            TrafficSplit::new(percent)
        })
    }

    /// A build on probation, with the previous one.
    pub(super) fn probation(
        &self,
        of: &ProbationKey,
        since: DateTime<Utc>,
        before: &Arc<BuildCounts>,
    ) -> Probation {
        Probation {
            key: of.clone(),
            since,
            counts: self.counts(of),
            previous_counts: before.clone(),
            decisions: self.decisions.clone(),
            reported: Arc::default(),
        }
    }
}

/// The existing entry, or a new one, kept for as long as anybody holds it.
fn recent<K: Eq + std::hash::Hash, T>(
    all: &Mutex<HashMap<K, Weak<T>>>,
    key: K,
    make: impl FnOnce() -> T,
) -> Arc<T> {
    let mut all = all.lock();
    all.retain(|_, one| one.strong_count() > 0);
    if let Some(known) = all.get(&key).and_then(Weak::upgrade) {
        return known;
    }
    let one = Arc::new(make());
    all.insert(key, Arc::downgrade(&one));
    one
}

/// A build on probation.
#[derive(Debug)]
pub(super) struct Probation {
    key: ProbationKey,
    since: DateTime<Utc>,
    counts: Arc<BuildCounts>,
    previous_counts: Arc<BuildCounts>,
    decisions: mpsc::UnboundedSender<ProbationDecision>,
    reported: Arc<AtomicBool>,
}

impl Probation {
    /// The counts of the build, and of the previous one.
    pub(super) fn stats(&self) -> (ProbationStats, ProbationStats) {
        (self.counts.stats(), self.previous_counts.stats())
    }

    /// Evaluates the counts, and reports a decision if there is one.
    pub(super) fn evaluate(&self) {
        let (new, before) = self.stats();
        let verdict = decide(&new, &before);
        if verdict == ProbationVerdict::Undecided || self.reported.swap(true, Ordering::Relaxed) {
            return;
        }
        let (name, digest, _) = self.key.clone();
        // Fails if nobody listens, as when a deployment is only inspected.
        let _ = self.decisions.send(ProbationDecision {
            name,
            digest,
            since: self.since,
            verdict,
            why: sentence(&new, &before),
            reported: self.reported.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tried(steps: u64, failed: u64, sessions: u64, failed_in: u64) -> ProbationStats {
        ProbationStats {
            steps,
            failed,
            sessions,
            failed_in,
        }
    }

    #[test]
    fn three_failed_steps_in_two_sessions_take_a_build_back_and_less_does_not() {
        let good = tried(500, 0, 20, 0);
        for (new, verdict) in [
            (tried(30, 3, 5, 2), ProbationVerdict::RolledBack),
            (tried(30, 2, 5, 2), ProbationVerdict::Undecided),
            (tried(30, 30, 5, 1), ProbationVerdict::Undecided),
            (tried(900, 3, 90, 2), ProbationVerdict::RolledBack),
            (tried(0, 0, 0, 0), ProbationVerdict::Undecided),
            (tried(999, 0, 90, 0), ProbationVerdict::Undecided),
            (tried(1_000, 2, 5, 2), ProbationVerdict::Confirmed),
            (tried(1_000, 0, 4, 0), ProbationVerdict::Undecided),
            (tried(1_000, 3, 9, 2), ProbationVerdict::RolledBack),
        ] {
            assert_eq!(decide(&new, &good), verdict, "{new:?}");
        }
        // Nothing is known about the previous build.
        let none = ProbationStats::default();
        assert_eq!(
            decide(&tried(3, 3, 2, 2), &none),
            ProbationVerdict::RolledBack
        );
    }

    #[test]
    fn a_build_that_is_no_worse_than_the_one_before_stays() {
        let bad = tried(1_000, 100, 50, 40);
        for (new, verdict) in [
            (tried(100, 10, 20, 8), ProbationVerdict::Undecided),
            (tried(100, 20, 20, 8), ProbationVerdict::Undecided),
            (tried(100, 21, 20, 8), ProbationVerdict::RolledBack),
            (tried(2_000, 200, 90, 80), ProbationVerdict::Confirmed),
        ] {
            assert_eq!(decide(&new, &bad), verdict, "{new:?}");
        }
        // One failed step of two is not a rate of a half.
        let unknown = tried(2, 1, 1, 1);
        assert_eq!(
            decide(&tried(30, 3, 5, 2), &unknown),
            ProbationVerdict::RolledBack
        );
    }

    #[test]
    fn a_verdict_is_told_once_and_again_only_where_nothing_came_of_it() {
        let (probations, mut decisions) = Probations::new();
        let since = DateTime::UNIX_EPOCH;
        let of = ("coder".to_owned(), Digest::of("b"), Some(since));
        let before = probations.counts(&("coder".to_owned(), Digest::of("a"), None));
        let probation = probations.probation(&of, since, &before);
        let sessions = [SessionId::new(), SessionId::new()];
        before.count(sessions[0], StepVerdict::Ok);
        for number in 0..4 {
            probations
                .counts(&of)
                .count(sessions[number % 2], StepVerdict::Failed);
            probation.evaluate();
        }
        let decision = decisions.try_recv().unwrap();
        assert_eq!(decision.verdict, ProbationVerdict::RolledBack);
        assert_eq!(
            decision.why,
            "It failed 3 of 3 steps, in 2 of 2 sessions, and the build before it 0 of 1 step."
        );
        assert!(decisions.try_recv().is_err(), "it was told twice");
        decision.reopen();
        probation.evaluate();
        assert!(decisions.try_recv().is_ok(), "it was not told again");
        // Another activation of the same build starts afresh.
        drop(probation);
        let later = DateTime::from_timestamp(1, 0).unwrap();
        let again = ("coder".to_owned(), Digest::of("b"), Some(later));
        assert_eq!(probations.counts(&again).stats(), ProbationStats::default());
    }

    #[test]
    fn counts_and_turns_go_on_for_as_long_as_anybody_has_them() {
        let (probations, _rulings) = Probations::new();
        let of = ("coder".to_owned(), Digest::of("b"), None);
        let (counts, share) = (probations.counts(&of), probations.traffic_split(&of, 10));
        counts.count(SessionId::new(), StepVerdict::Failed);
        assert!(Arc::ptr_eq(&counts, &probations.counts(&of)));
        assert!(Arc::ptr_eq(&share, &probations.traffic_split(&of, 10)));
        assert!(
            !Arc::ptr_eq(&share, &probations.traffic_split(&of, 11)),
            "another share begins anew"
        );
        drop(counts);
        assert_eq!(probations.counts(&of).stats(), ProbationStats::default());
    }

    prop_compose! {
        fn any_tried()(
            steps in 0..3_000_u64,
            failed in 0..3_000_u64,
            sessions in 0..60_u64,
            failed_in in 0..60_u64,
        ) -> ProbationStats {
            let failed = failed.min(steps);
            let sessions = sessions.min(steps);
            tried(steps, failed, sessions, failed_in.min(failed).min(sessions))
        }
    }

    proptest! {
        #[test]
        fn a_build_without_a_failed_step_is_never_taken_back(new in any_tried(), before in any_tried()) {
            let new = ProbationStats { failed: 0, failed_in: 0, ..new };
            prop_assert_ne!(decide(&new, &before), ProbationVerdict::RolledBack);
        }

        #[test]
        fn one_more_failed_step_never_saves_a_build(new in any_tried(), before in any_tried()) {
            let worse = ProbationStats { steps: new.steps + 1, failed: new.failed + 1, ..new };
            let taken_back = decide(&new, &before) == ProbationVerdict::RolledBack;
            prop_assert!(!taken_back || decide(&worse, &before) == ProbationVerdict::RolledBack);
        }

        #[test]
        fn a_better_build_before_never_saves_one(new in any_tried(), before in any_tried()) {
            let better = ProbationStats { failed: before.failed.saturating_sub(1), ..before };
            let taken_back = decide(&new, &before) == ProbationVerdict::RolledBack;
            prop_assert!(!taken_back || decide(&new, &better) == ProbationVerdict::RolledBack);
        }

        #[test]
        fn a_build_is_not_taken_back_for_failing_as_often_as_the_one_before(both in any_tried()) {
            let both = ProbationStats { steps: both.steps + FEWEST_STEPS, ..both };
            prop_assert_ne!(decide(&both, &both), ProbationVerdict::RolledBack);
        }

        #[test]
        fn no_figures_are_too_large(steps in any::<u64>(), failed in any::<u64>(), before in any::<u64>()) {
            decide(&tried(steps, failed, 9, 9), &tried(before, steps, 9, 9));
        }
    }
}
