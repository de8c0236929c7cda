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

use lucid_types::log::Status;
use lucid_types::plural;

use super::super::ports::{ActorMessage, CallCost};
use super::super::{CloseReason, SessionsShared};
use super::budget::Budget;
use super::task_clock::now;
use super::{Actor, ActorEnd};
use crate::handle::SessionHandle;
use crate::round::inputs::change_event;
use crate::round::{CHANGE, RoundBuilder, RoundContext};
use crate::stream::frames::{self, EventDraft};

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
    session: Arc<SessionHandle>,
}

impl ActorGuard {
    pub(super) fn new(shared: &Arc<SessionsShared>, session: &Arc<SessionHandle>) -> Self {
        Self {
            shared: shared.clone(),
            session: session.clone(),
        }
    }
}

impl Drop for ActorGuard {
    fn drop(&mut self) {
        if !self.session.feed.head().ended {
            tracing::error!(session = %self.session.id(), "a session came to grief; it pauses until the next start");
            self.shared.forget(&self.session);
            self.session.pause(CloseReason::failed(
                "The session came to grief inside the server.",
            ));
        }
    }
}

impl Actor {
    /// Ends the session, or pauses it, and gives back what it held.
    pub(super) async fn end(mut self, end: ActorEnd, status: Status) {
        // A wish that came while the host went down holds, where there is time to write it.
        let end = match end {
            ActorEnd::Halted if self.session.stop.is_cancelled() => ActorEnd::Stopped,
            end => end,
        };
        let change = match end {
            ActorEnd::Stopped => self.last_change().await,
            _ => None,
        };
        let not_begun = self.effects.not_begun(&self.open);
        let running = self.effects.running_tool();
        let spent = self.unheard();
        let held = self.effects.holds_place() || self.shared.deps.places.refusal().is_none();
        let (close, frame) = match &end {
            ActorEnd::Halted => {
                let used = self.counters.task_used_ms;
                self.count_time();
                let used = self.counters.task_used_ms != used;
                if !spent.is_empty() || !not_begun.is_empty() || used {
                    self.note(spent, not_begun).await;
                }
                self.shared.paused(&self.session, running);
                self.effects.close_place().await;
                return self.pause(CloseReason::restarting());
            }
            ActorEnd::Broken(_) => {
                self.effects.close_place().await;
                return self.pause(unwritten(&end));
            }
            ActorEnd::Stopped => {
                let reason = self.session.closing.get().cloned().unwrap_or_default();
                let frame = frames::status("stopping", reason.recorded(), None);
                (reason, (status != Status::Stopping).then_some(frame))
            }
            ActorEnd::TimedOut => {
                let limits = &self.shared.deps.limits;
                let keeps = held && !limits.retention.is_zero();
                let retention = keeps.then_some(limits.retention);
                let close = CloseReason::expired(&took_longer(limits.task_time), retention);
                let frame = frames::error(close.recorded());
                (close, Some(frame))
            }
            ActorEnd::NoPlace(reason) => (CloseReason::done(reason), Some(frames::error(reason))),
        };
        // In this order: whoever looks now is told why, and what happens below cannot be undone.
        let _ = self.session.closing.set(close.clone());
        // Somebody's wish may have come first.
        let wish = self
            .session
            .closing
            .get()
            .is_some_and(|first| !first.keeps_files);
        if held && close.keeps_files && !wish && !self.shared.deps.limits.retention.is_zero() {
            return self
                .expire(spent, FinalFrames { frame, change }, close)
                .await;
        }
        let status = if held {
            Status::Stopping
        } else {
            Status::Ended
        };
        let shown = FinalFrames { frame, change };
        let written = self.last_round(spent, shown, (status, false), &close).await;
        self.effects.close_place().await;
        if let Err(end) = written {
            // It goes on at the next start, and needs its workspace.
            return self.pause(unwritten(&end));
        }
        if held {
            match self.effects.wipe().await {
                Ok(()) => {
                    let ended = (Status::Ended, false);
                    // Where that cannot be written the next start ends it once more.
                    let _ = self
                        .last_round(Vec::new(), FinalFrames::default(), ended, &close)
                        .await;
                }
                // Still `stopping` in the log: the next start tries again.
                Err(cause) => {
                    tracing::error!(session = %self.id, cause, "what a session left could not be removed")
                }
            }
        }
        self.leave(close);
    }

    /// Ends the session, and leaves its files for the retention time.
    async fn expire(
        mut self,
        spent: Vec<(String, CallCost)>,
        shown: FinalFrames,
        close: CloseReason,
    ) {
        // Before the log says that it ended: from then on its files may be removed at any time.
        self.effects.close_place().await;
        self.counters.uptime_ms = self.shared.deps.log.uptime();
        let written = self
            .last_round(spent, shown, (Status::Ended, true), &close)
            .await;
        match written {
            Ok(()) => {
                self.effects.release().await;
                self.leave(close);
            }
            Err(end) => self.pause(unwritten(&end)),
        }
    }

    /// What came of a change that is being opened: the work is done, and its user waits for the link.
    async fn last_change(&mut self) -> Option<EventDraft> {
        if !self.open.contains_key(CHANGE) {
            return None;
        }
        let news = &mut self.news;
        let queue = &mut self.queue;
        let told = async {
            loop {
                if let Some(at) = queue
                    .iter()
                    .position(|n| matches!(n, ActorMessage::Change(_)))
                {
                    return queue.remove(at);
                }
                queue.push_back(*news.recv().await?);
            }
        };
        let told = tokio::select! {
            told = tokio::time::timeout(LAST_CHANGE, told) => told.ok()?,
            () = self.shared.halt.cancelled() => None,
        };
        match told {
            Some(ActorMessage::Change(result)) => Some(change_event(result)),
            _ => None,
        }
    }

    async fn last_round(
        &mut self,
        spent: Vec<(String, CallCost)>,
        shown: FinalFrames,
        (status, retains_workspace): (Status, bool),
        close: &CloseReason,
    ) -> Result<(), ActorEnd> {
        let (policy, fixed) = (self.policy.clone(), self.fixed.clone());
        let names = (self.id.clone(), self.chat.clone());
        let nothing = Budget::default();
        let scene = RoundContext::new(&names, &fixed, policy.info(), nothing, &|_| {
            EventDraft::default()
        });
        let mut draft = RoundBuilder::new(&scene, self.counters, BTreeMap::new(), now());
        for (effect, spent) in spent {
            draft.spend(&effect, spent);
        }
        if let Some(change) = shown.change {
            draft.event(change);
        }
        if let Some(frame) = shown.frame {
            draft.frame(frame);
        }
        draft.counters.task_open = false;
        draft.retains_workspace = retains_workspace;
        let round = draft.close_round(status, Some(close.recorded().to_owned()));
        self.commit(round).await
    }

    /// Ends all effects, and returns what model calls took that no round has counted: those that are
    /// given up here, and those whose answer nobody will read.
    fn unheard(&mut self) -> Vec<(String, CallCost)> {
        let mut all = self.effects.cancel_all();
        let waiting = std::iter::from_fn(|| self.news.try_recv().ok());
        for news in self.queue.drain(..).chain(waiting.map(|news| *news)) {
            match news {
                ActorMessage::Spent(effect, spent) => all.push((effect, spent)),
                ActorMessage::Model(effect, Ok(answer)) => all.push((effect, answer.spent)),
                ActorMessage::Model(effect, Err(failure)) => {
                    all.extend(failure.spent.map(|spent| (effect, *spent)));
                }
                _ => {}
            }
        }
        all
    }

    /// Counts what is paid for before a pause. The calls stay open: the next start calls them lost, and
    /// begins those that are not begun.
    async fn note(&mut self, spent: Vec<(String, CallCost)>, not_begun: Vec<String>) {
        let (policy, fixed) = (self.policy.clone(), self.fixed.clone());
        let names = (self.id.clone(), self.chat.clone());
        let nothing = Budget::default();
        let scene = RoundContext::new(&names, &fixed, policy.info(), nothing, &|_| {
            EventDraft::default()
        });
        let mut draft = RoundBuilder::new(&scene, self.counters, self.open.clone(), now());
        for (effect, spent) in spent {
            draft.spend(&effect, spent);
        }
        draft.not_begun = not_begun;
        let round = draft.close_round(Status::Running, None);
        // What fails is in the host's log.
        let _ = self.commit(round).await;
    }

    fn leave(self, reason: CloseReason) {
        self.shared.forget(&self.session);
        self.session.end(reason);
    }

    fn pause(self, reason: CloseReason) {
        self.shared.forget(&self.session);
        self.session.pause(reason);
    }
}

/// Why a session ends whose task took longer than it may.
pub(crate) fn took_longer(limit: Duration) -> String {
    let limit = plural::count(limit.as_secs(), "second");
    format!("The task took longer than {limit}, and was ended.")
}

/// With which words a session is closed whose last round could not be written.
fn unwritten(end: &ActorEnd) -> CloseReason {
    match end {
        ActorEnd::Broken(cause) => {
            CloseReason::failed(&format!("The session's log cannot be written: {cause}."))
        }
        _ => CloseReason::restarting(),
    }
}
