//! How a session ends, or pauses until the host starts again, and releases what it held.
//!
//! # Invariants
//!
//! - A session is over for its clients however its actor ends, and they are told that it ended only once the log
//!   says so.
//! - What model calls used is counted before, as far as it is known.
//! - A workspace is removed only once the log says that its session is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::task_clock::now;
use super::{Actor, ActorEnd};
use crate::budget::Budget;
use crate::handle::Session;
use crate::message::ActorMessage;
use crate::ports::CallCost;
use crate::round::inputs::change_event;
use crate::round::{CHANGE, RoundBuilder, RoundContext};
use crate::shared::SessionsShared;
use crate::stream::frames::{self, EventDraft};
use crate::types::CloseReason;
use crate::user_logs::total_message;
use lucid_types::ids::EffectId;
use lucid_types::log::SessionStatus;
use lucid_types::metrics;
use lucid_types::plural;

/// How long a session that is stopped waits for a change that is being opened.
const LAST_CHANGE: Duration = Duration::from_secs(20);

/// What a client sees last.
#[derive(Default)]
struct FinalFrames {
    frame: Option<String>,
    change: Option<EventDraft>,
}

/// Lets nobody wait for a session whose actor came to grief. Its log is whole, so the next start goes
/// on with it.
pub(super) struct ActorGuard {
    shared: Arc<SessionsShared>,
    session: Arc<Session>,
}

impl ActorGuard {
    pub(super) fn new(shared: &Arc<SessionsShared>, session: &Arc<Session>) -> Self {
        Self {
            shared: shared.clone(),
            session: session.clone(),
        }
    }
}

impl Drop for ActorGuard {
    fn drop(&mut self) {
        let is_here = self.shared.registry.lock().has(&self.session);
        if is_here && !self.session.feed.head().ended {
            tracing::error!(session = %self.session.id(), "a session came to grief; it pauses until the next start");
            self.shared.unregister(&self.session);
            self.session.pause(CloseReason::failed(
                "The session came to grief inside the server.",
            ));
        }
    }
}

impl Actor {
    /// Ends the session, or pauses it, and gives back what it held.
    pub(super) async fn end(mut self, end: ActorEnd, status: SessionStatus) {
        // A wish that came while the host went down holds, where there is time to write it.
        let end = match end {
            ActorEnd::Halted if self.session.stop.is_cancelled() => ActorEnd::Stopped,
            end => end,
        };
        let change = match end {
            ActorEnd::Stopped => self.wait_for_pull_request().await,
            _ => None,
        };
        let mut not_begun = self.effects.not_begun(&self.open);
        not_begun.append(&mut self.unwritten.not_begun);
        let running = self.effects.running_tool();
        let cost = self.abandon_effects();
        let had_environment =
            self.effects.has_environment() || self.shared.deps.environments.refusal().is_none();
        let (close, frame) = match &end {
            // Nothing runs, nothing is held, and another life of it may have begun.
            ActorEnd::Asleep => return,
            ActorEnd::Halted => {
                let used = self.counters.task_used_ms;
                self.count_time();
                let used = self.counters.task_used_ms != used;
                if !cost.is_empty() || !not_begun.is_empty() || used {
                    self.record_costs(cost, not_begun).await;
                }
                // It may be long until the session goes on.
                self.settle().await;
                self.shared.paused(&self.session, running);
                self.effects.close_environment().await;
                return self.pause(CloseReason::restarting());
            }
            ActorEnd::Broken(_) => {
                self.effects.close_environment().await;
                return self.pause(unwritten_close_reason(&end));
            }
            ActorEnd::Stopped => {
                let reason = self.session.closing.wish().cloned().unwrap_or_default();
                let frame = frames::status("stopping", reason.recorded(), None);
                (reason, (status != SessionStatus::Stopping).then_some(frame))
            }
            ActorEnd::TimedOut | ActorEnd::LogFull(_) => {
                let limits = &self.shared.deps.limits;
                let keeps_workspace = had_environment && !limits.retention.is_zero();
                let retention = keeps_workspace.then_some(limits.retention);
                let why = match end {
                    ActorEnd::LogFull(limit) => total_message(limit),
                    _ => time_limit_message(limits.task_time),
                };
                let close = CloseReason::expired(&why, retention);
                let frame = frames::error(close.recorded());
                (close, Some(frame))
            }
            ActorEnd::NoEnvironment(reason) => {
                (CloseReason::done(reason), Some(frames::error(reason)))
            }
        };
        let reason = match end {
            ActorEnd::TimedOut => "time_limit",
            ActorEnd::LogFull(_) => "log_limit",
            ActorEnd::NoEnvironment(_) => "no_environment",
            _ => "stopped",
        };
        // In this order: whoever looks now is told why, and what happens below cannot be undone.
        self.session.closing.end(close.clone());
        // Somebody's wish may have come first.
        let wish = self
            .session
            .closing
            .wish()
            .is_some_and(|first| !first.keeps_files);
        if had_environment
            && close.keeps_files
            && !wish
            && !self.shared.deps.limits.retention.is_zero()
        {
            return self
                .expire(cost, FinalFrames { frame, change }, close, reason)
                .await;
        }
        let status = if had_environment {
            SessionStatus::Stopping
        } else {
            SessionStatus::Ended
        };
        let final_frames = FinalFrames { frame, change };
        let written = self
            .last_round(cost, final_frames, (status, false), &close)
            .await;
        self.effects.close_environment().await;
        if let Err(end) = written {
            // It goes on at the next start, and needs its workspace.
            return self.pause(unwritten_close_reason(&end));
        }
        if had_environment {
            match self.effects.remove_environment().await {
                Ok(()) => {
                    let ended = (SessionStatus::Ended, false);
                    // Where that cannot be written the next start ends it once more.
                    let _ = self
                        .last_round(Vec::new(), FinalFrames::default(), ended, &close)
                        .await;
                }
                // Still `stopping` in the log: the next start tries again.
                Err(cause) => {
                    tracing::error!(session = %self.id, %cause, "what a session left could not be removed")
                }
            }
        }
        self.leave(close, reason);
    }

    /// Ends the session, and leaves its files for the retention time.
    async fn expire(
        mut self,
        cost: Vec<(EffectId, CallCost)>,
        final_frames: FinalFrames,
        close: CloseReason,
        reason: &'static str,
    ) {
        // Before the log says that it ended: from then on its files may be removed at any time.
        self.effects.close_environment().await;
        self.counters.uptime_ms = self.shared.deps.log.uptime();
        let written = self
            .last_round(cost, final_frames, (SessionStatus::Ended, true), &close)
            .await;
        match written {
            Ok(()) => {
                self.effects.release().await;
                self.leave(close, reason);
            }
            Err(end) => self.pause(unwritten_close_reason(&end)),
        }
    }

    /// What came of a change that is being opened: the work is done, and its user waits for the link.
    async fn wait_for_pull_request(&mut self) -> Option<EventDraft> {
        if !self.open.contains_key(CHANGE) {
            return None;
        }
        let message = &mut self.messages;
        let queue = &mut self.queue;
        let outcome = async {
            loop {
                if let Some(at) = queue
                    .iter()
                    .position(|n| matches!(n, ActorMessage::PullRequest(_)))
                {
                    return queue.remove(at);
                }
                queue.push_back(*message.recv().await?);
            }
        };
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(LAST_CHANGE, outcome) => outcome.ok()?,
            () = self.shared.halt.cancelled() => None,
        };
        match outcome {
            Some(ActorMessage::PullRequest(result)) => Some(change_event(result)),
            _ => None,
        }
    }

    async fn last_round(
        &mut self,
        cost: Vec<(EffectId, CallCost)>,
        final_frames: FinalFrames,
        (status, retains_workspace): (SessionStatus, bool),
        close: &CloseReason,
    ) -> Result<(), ActorEnd> {
        let (policy, fixed) = (self.policy.clone(), self.fixed.clone());
        let names = (self.id, self.chat.clone());
        let nothing = Budget::default();
        let context = RoundContext::new(&names, &fixed, policy.info(), nothing, &|_| {
            EventDraft::default()
        });
        let mut builder = RoundBuilder::new(&context, self.counters, BTreeMap::new(), now());
        for (effect, cost) in cost {
            builder.add_cost(&effect, cost);
        }
        if let Some(change) = final_frames.change {
            builder.event(change);
        }
        if let Some(frame) = final_frames.frame {
            builder.frame(frame);
        }
        builder.counters.task_open = false;
        builder.retains_workspace = retains_workspace;
        let round = builder.close_round(status, Some(close.recorded().to_owned()));
        self.commit(round).await
    }

    /// Ends all effects, and returns what model calls took that no round has counted: those that are
    /// given up here, and those whose answer nobody will read.
    fn abandon_effects(&mut self) -> Vec<(EffectId, CallCost)> {
        let mut all = self.effects.cancel_all();
        let waiting = std::iter::from_fn(|| self.messages.try_recv().ok());
        for message in self.queue.drain(..).chain(waiting.map(|message| *message)) {
            match message {
                ActorMessage::CallCost(effect, cost) => all.push((effect, cost)),
                ActorMessage::Model(effect, Ok(answer)) => all.push((effect, answer.cost)),
                ActorMessage::Model(effect, Err(failure)) => {
                    all.extend(failure.cost.map(|cost| (effect, *cost)));
                }
                _ => {}
            }
        }
        all
    }

    /// Counts what is paid for before a pause. The calls stay open: the next start calls them lost, and
    /// begins those that are not begun.
    async fn record_costs(&mut self, cost: Vec<(EffectId, CallCost)>, not_begun: Vec<EffectId>) {
        let (policy, fixed) = (self.policy.clone(), self.fixed.clone());
        let names = (self.id, self.chat.clone());
        let nothing = Budget::default();
        let context = RoundContext::new(&names, &fixed, policy.info(), nothing, &|_| {
            EventDraft::default()
        });
        let mut counters = self.counters;
        if !self.waits_for_user() {
            // The time that the task used is counted up to now.
            counters.uptime_ms = self.shared.deps.log.uptime();
        }
        let mut builder = RoundBuilder::new(&context, counters, self.open.clone(), now());
        for (effect, cost) in cost {
            builder.add_cost(&effect, cost);
        }
        builder.not_begun = not_begun;
        let round = builder.close_round(SessionStatus::Running, None);
        // What fails is in the host's log.
        let _ = self.commit(round).await;
    }

    fn leave(self, close: CloseReason, reason: &'static str) {
        metrics::session_ended(&self.fixed.policy, reason);
        self.shared.unregister(&self.session);
        self.session.end(close);
    }

    fn pause(self, reason: CloseReason) {
        self.shared.unregister(&self.session);
        self.session.pause(reason);
    }
}

/// Why a session ends whose task took longer than it may.
pub(crate) fn time_limit_message(limit: Duration) -> String {
    let limit = plural::count(limit.as_secs(), "second");
    format!("The task took longer than {limit}, and was ended.")
}

/// With which words a session is closed whose last round could not be written.
fn unwritten_close_reason(end: &ActorEnd) -> CloseReason {
    match end {
        ActorEnd::Broken(cause) => {
            CloseReason::failed(&format!("The session's log cannot be written: {cause}."))
        }
        _ => CloseReason::restarting(),
    }
}
