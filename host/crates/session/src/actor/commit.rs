//! Commits rounds, shows what they say, and starts what they begin.
//!
//! # Invariants
//! - A round that leads to the next one at once is written together with it: to that one, it makes no difference whether
//!   it is in the log.
//! - What is not written yet has started nothing and is shown to nobody. If the host ends before, it never happened.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Actor, ActorEnd};
use crate::message::ActorMessage;
use crate::round::{CommittedRound, StartedWork};
use lucid_types::ids::EffectId;
use lucid_types::log::RoundRow;
use lucid_types::metrics;

/// The most rounds that are written together: clients see nothing of them before.
const ROUNDS: usize = 16;

/// The most bytes of rounds that wait for the next one: half of what a session writes without the log's thread.
const BYTES: u64 = 32 << 10;

/// How long rounds wait for the next one, whose step may take much longer.
const LONGEST: Duration = Duration::from_millis(50);

/// Rounds that are to be written with the one that they led to.
#[derive(Default)]
pub(super) struct UnwrittenRounds {
    pub(super) rows: Vec<Arc<RoundRow>>,
    /// When the first of them was decided.
    since: Option<Instant>,
    bytes: u64,
    /// One of them begins work of its own.
    begin_work: bool,
    /// Calls and tools of theirs that did not begin, since the host stops and they could not be written.
    pub(super) not_begun: Vec<EffectId>,
}

impl Actor {
    /// Commits a round. If it leads to another one at once, it only becomes the session's state, and is written with
    /// that one.
    pub(super) async fn commit(&mut self, round: CommittedRound) -> Result<(), ActorEnd> {
        let CommittedRound {
            row,
            open,
            state,
            shown_tree,
            last_message,
            started,
            pushed,
        } = round;
        self.counters = row.counters;
        self.open = open;
        self.shown_tree = shown_tree;
        self.last_message = last_message;
        if let Some(pushed) = pushed {
            self.pushed = pushed;
        }
        if state.is_some() {
            self.state = state;
        }
        self.unwritten.since.get_or_insert_with(Instant::now);
        self.unwritten.bytes += row.size();
        self.unwritten.begin_work |= started.iter().any(StartedWork::is_new);
        self.unwritten.rows.push(Arc::new(row));
        if self.leads_on(&started) {
            self.queue
                .extend(started.into_iter().filter_map(StartedWork::result));
            return Ok(());
        }
        match self.write_rounds().await {
            Ok(true) => self.begin(started),
            Ok(false) => {}
            Err(end) => {
                // They may be written with the last that is written before the host stops.
                let not_begun = started.iter().filter_map(StartedWork::waiting_effect);
                self.unwritten.not_begun.extend(not_begun);
                return Err(end);
            }
        }
        Ok(())
    }

    /// Returns whether the last round leads to the next one at once, and they may be written together.
    fn leads_on(&self, started: &[StartedWork]) -> bool {
        let ends = self.session.stop.is_cancelled() || self.shared.halt.is_cancelled();
        !started.is_empty()
            && started.iter().all(StartedWork::ends_at_once)
            && self.unwritten.rows.len() < ROUNDS
            && self.unwritten.bytes <= BYTES
            && self
                .unwritten
                .since
                .is_none_or(|since| since.elapsed() < LONGEST)
            && !ends
    }

    /// Writes the rounds that are not written, and shows them. Returns whether what they began may begin.
    pub(super) async fn write_rounds(&mut self) -> Result<bool, ActorEnd> {
        let Some(last) = self.unwritten.rows.last() else {
            return Ok(true);
        };
        let (stays_pending, rows) = (last.may_stay_pending, self.unwritten.rows.clone());
        let begun = Instant::now();
        let waited = self
            .persist(move |log| log.append_all(rows.clone()))
            .await?;
        let UnwrittenRounds {
            rows,
            bytes,
            begin_work,
            ..
        } = std::mem::take(&mut self.unwritten);
        metrics::append(rows.len(), begun.elapsed());
        rows.iter()
            .flat_map(|row| &row.calls)
            .for_each(metrics::model_usage);
        self.shared.user_logs.wrote(&self.fixed.user, bytes);
        self.pending_since = match stays_pending {
            true => self.pending_since.or_else(|| Some(Instant::now())),
            false => None,
        };
        if waited {
            // Time during which the log could not be written is not charged to the task.
            self.clock.count(&mut self.counters, true);
        }
        self.publish_state();
        for row in rows {
            self.session.feed.publish(row.first_seq, &row.frames);
        }
        if waited && self.session.stop.is_cancelled() {
            // Everything it held has already been released.
            return Ok(false);
        }
        // What was done is written, and what goes on ends as it would; only what would begin now does not.
        if begin_work && let Some(limit) = self.shared.user_logs.exceeded(&self.fixed.user).await {
            return Err(ActorEnd::LogFull(limit));
        }
        Ok(true)
    }

    /// Starts what the last round began.
    fn begin(&mut self, started: Vec<StartedWork>) {
        self.effects.at_step(self.counters.step.saturating_sub(1));
        for begin in started {
            match begin {
                StartedWork::Model(call) => self
                    .effects
                    .model(call, self.counters.next_entry.saturating_sub(1)),
                StartedWork::Tool(run) => self.effects.tool(run),
                StartedWork::Timer(effect, delay) => {
                    self.effects.timer(effect, Duration::from_millis(delay));
                }
                StartedWork::PullRequest(branch, last_message) => {
                    self.open_change(Some(branch), last_message)
                }
                StartedWork::Cancel(effect) => self.cancel(effect),
                StartedWork::CancelAll => {
                    let cost = self.effects.cancel_all().into_iter();
                    self.queue
                        .extend(cost.map(|(effect, cost)| ActorMessage::CallCost(effect, cost)));
                }
                // The tool may be gone meanwhile.
                StartedWork::Confirm(confirm) => drop(confirm.send(())),
                StartedWork::Requeue(message) => self.queue.push_back(message),
            }
        }
        self.effects.prune_finished(&self.open);
    }
}
