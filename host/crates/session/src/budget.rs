//! A session's limits: model calls per task, tokens and cost for the whole session.
//!
//! # Invariants
//! - A remaining amount never goes below zero.
//! - A limit that is reached refuses the next model call and never stops one in progress, so the
//!   task ends cleanly and the session stays usable.
//! - Time is not a budget of this kind. A task that runs too long may be hanging in a tool or a
//!   model, with nobody watching, so the actor ends the whole session, whatever is running. The
//!   policy is told in time how much is left.

use lucid_types::log::{SessionConfig, SessionCounters};
use lucid_types::plural;

/// The limits of a session.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Budget {
    /// Model calls allowed per task.
    pub iterations: u32,
    pub tokens: Option<u64>,
    pub cost: Option<u64>,
}

impl Budget {
    /// Creates the budget of a session that was created with these limits.
    pub(crate) fn new(fixed: &SessionConfig, iterations: u32) -> Self {
        Self {
            iterations,
            tokens: fixed.token_limit,
            cost: fixed.cost_limit,
        }
    }

    /// Returns how many model calls the open task may still make.
    pub(crate) fn iterations_left(&self, counters: &SessionCounters) -> u32 {
        self.iterations.saturating_sub(counters.iterations)
    }

    /// Returns how many tokens the session may still use, or `None` if there is no limit.
    pub(crate) fn tokens_left(&self, counters: &SessionCounters) -> Option<u64> {
        let used = counters.totals.tokens();
        self.tokens.map(|limit| limit.saturating_sub(used))
    }

    /// Returns what the session may still cost, in millionths of a US dollar, or `None` if there is
    /// no limit.
    pub(crate) fn cost_left(&self, counters: &SessionCounters) -> Option<u64> {
        let used = counters.totals.cost;
        self.cost.map(|limit| limit.saturating_sub(used))
    }

    /// Returns why no further model call is allowed, or `None` if one is.
    pub(crate) fn refusal(&self, counters: &SessionCounters) -> Option<String> {
        if self.iterations_left(counters) == 0 {
            return Some(format!(
                "The task used up its {}.",
                plural::count(self.iterations, "model call")
            ));
        }
        if let Some(limit) = self.tokens
            && self.tokens_left(counters) == Some(0)
        {
            return Some(format!(
                "The session used up its {}.",
                plural::count(limit, "token")
            ));
        }
        if let Some(limit) = self.cost
            && self.cost_left(counters) == Some(0)
        {
            return Some(format!(
                "The session used up its ${} for models.",
                dollars(limit)
            ));
        }
        None
    }
}

/// Formats an amount without trailing zeros, such as `0.5`.
fn dollars(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Returns the lower of two optional limits.
pub(crate) fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::log::UsageTotals;

    fn used(tokens: u64, cost: u64, iterations: u32) -> SessionCounters {
        SessionCounters {
            iterations,
            totals: UsageTotals {
                input_tokens: tokens,
                cost,
                ..UsageTotals::default()
            },
            ..SessionCounters::default()
        }
    }

    #[test]
    fn a_budget_that_is_used_up_says_which_it_was() {
        let budget = Budget {
            iterations: 2,
            tokens: Some(100),
            cost: Some(1_500_000),
        };
        assert_eq!(budget.refusal(&used(99, 1_499_999, 1)), None);
        for (counters, word) in [
            (used(0, 0, 2), "2 model calls"),
            (used(100, 0, 0), "100 tokens"),
            (used(0, 1_500_001, 0), "$1.5 "),
        ] {
            let refusal = budget.refusal(&counters).unwrap();
            assert!(refusal.contains(word), "{refusal}");
        }
        let over = used(500, 2_000_000, 0);
        assert_eq!(
            (budget.tokens_left(&over), budget.cost_left(&over)),
            (Some(0), Some(0))
        );
    }

    #[test]
    fn without_a_limit_nothing_is_left_out_and_of_two_the_lower_holds() {
        let budget = Budget {
            iterations: 1,
            ..Budget::default()
        };
        assert_eq!(budget.refusal(&used(u64::MAX, u64::MAX, 0)), None);
        assert_eq!(budget.tokens_left(&used(1, 1, 0)), None);
        assert_eq!(lower(Some(3), Some(2)), Some(2));
        assert_eq!(
            (lower(None, Some(2)), lower(Some(3), None)),
            (Some(2), Some(3))
        );
        assert_eq!(lower(None, None), None);
    }
}
