//! Owns a task's time: when it runs, and what is left of it.
//!
//! What always holds: while a task waits for its user's answer, and no model call and no tool of it
//! runs, its time stands still, also while the host is down in between. Timers are no work: a policy
//! may have one beside its question. The time that a task used is what lies between `task_started_at`
//! and the last round, less what the round that is next passes over; so the log needs no further
//! column for it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::store::{Counters, EffectKind};

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

/// What lies between two moments, in milliseconds since 1970, is not the task's.
pub(super) fn pass_over(counters: &mut Counters, from: u64, to: u64) {
    let passed = to.saturating_sub(from);
    counters.task_started_at = counters.task_started_at.saturating_add(passed);
}

/// What is left for the open task; all of it where none is open.
pub(super) fn left(counters: &Counters, limit: Duration, at: u64) -> Duration {
    if !counters.task_open {
        return limit;
    }
    let used = at.saturating_sub(counters.task_started_at);
    limit.saturating_sub(Duration::from_millis(used))
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

    proptest! {
        /// Rounds at any distance, some of which end a wait: what was waited is not used, and all else is.
        #[test]
        fn a_task_has_used_what_it_did_not_wait(
            rounds in prop::collection::vec((0_u64..100_000, any::<bool>()), 0..20),
        ) {
            let limit = Duration::from_secs(1000);
            let mut counters = Counters { task_open: true, task_started_at: 5, ..Counters::default() };
            let (mut at, mut used) = (5, 0);
            for (millis, waited) in rounds {
                let from = at;
                at += millis;
                if waited {
                    pass_over(&mut counters, from, at);
                } else {
                    used += millis;
                }
                prop_assert_eq!(left(&counters, limit, at), limit.saturating_sub(Duration::from_millis(used)));
            }
        }
    }
}
