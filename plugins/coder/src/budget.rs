//! The remaining budgets: model calls, tokens, money and time.
//!
//! # Invariants
//!
//! - An exhausted budget ends the task with a sentence that names it, and the model is warned
//!   before, while it can still finish.

use lucid_plugin::policy::Context;
use lucid_plugin::types::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// The remaining budgets at the last model call: the difference is the cost of a turn.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Spent {
    tokens_left: Option<u64>,
    cost_left: Option<u64>,
    millis_left: Option<u64>,
}

impl Spent {
    /// Records the budgets at a model call.
    pub(crate) fn note(&mut self, ctx: &Context) {
        self.tokens_left = ctx.tokens_left;
        self.cost_left = ctx.cost_left;
        self.millis_left = ctx.millis_left;
    }

    /// The number of further model calls, if each costs as much as the last turn.
    pub(crate) fn calls_left(&self, ctx: &Context) -> u64 {
        let calls = |before: Option<u64>, left: Option<u64>| {
            let left = left?;
            let turn = before?.saturating_sub(left);
            // A remainder is enough for one more call.
            left.checked_div(turn)
                .map(|calls| calls.max(u64::from(left > 0)))
        };
        [
            Some(u64::from(ctx.iterations_left)),
            calls(self.tokens_left, ctx.tokens_left),
            calls(self.cost_left, ctx.cost_left),
            calls(self.millis_left, ctx.millis_left),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(u64::MAX)
    }
}

/// The message to the model when the end is near.
pub(crate) fn wrap_up(calls_left: u64) -> Option<&'static str> {
    match calls_left {
        1 => Some(
            "[Budget: this is your last answer for this task. Call `finish` now, and say honestly \
             what is done and what is not.]",
        ),
        2 => Some(
            "[Budget: two answers are left for this task, this one included. Wrap up: make the \
             last necessary step now, then call `finish`.]",
        ),
        _ => None,
    }
}

/// The exhausted budget, as the error that ends the task.
pub(crate) fn used_up(ctx: &Context) -> Option<Error> {
    let (code, what) = if ctx.iterations_left == 0 {
        ("iterations", "task's budget of model calls")
    } else if ctx.tokens_left == Some(0) {
        ("tokens", "session's budget of tokens")
    } else if ctx.cost_left == Some(0) {
        ("cost", "session's budget of money")
    } else if ctx.millis_left == Some(0) {
        ("time", "task's budget of time")
    } else {
        return None;
    };
    // Another message starts a task with its own call budget, but the session's budgets remain. A
    // task that takes too long ends its session: the host closes it.
    let then = match code {
        "iterations" => "a further message goes on from there",
        "time" => "the session ends with it",
        _ => "a new session can go on from there",
    };
    let text = format!("The {what} is used up. What was done so far is in the workspace; {then}.");
    Some(Error::new(ErrorKind::Deadline, text).with_code(code))
}
