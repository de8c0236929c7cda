//! What a session does first when it goes on after a restart.
//!
//! # Invariants
//! A session whose files are gone does not work on in an empty folder as if nothing had happened: its user
//! reads that they are gone, its policy is told with the input [`WORKSPACE_LOST`](crate::round::inputs::WORKSPACE_LOST), and its repository is
//! cloned again before its next command.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::task_clock::now;
use super::{Actor, ActorEnd};
use crate::message::ActorMessage;
use crate::ports::tools::SEPARATOR;
use crate::ports::{Generation, SessionPolicy};
use crate::registry::SleepingClocks;
use crate::stream::frames::EventDraft;
use lucid_types::digest::Digest;
use lucid_types::log::{
    EffectKind, EffectRow, InboxMessage, SessionConfig, SessionCounters, SessionStatus,
};
use lucid_types::secret::Secret;
use lucid_types::wit::policy::{Input, Snapshot};

impl Actor {
    /// Whatever waited for this start.
    pub(super) async fn restore(&mut self) -> Result<(), ActorEnd> {
        if self.session.stop.is_cancelled() || self.shared.halt.is_cancelled() {
            // Nothing begins for the moment that is left.
            return Ok(());
        }
        if self.was_held {
            let (id, user) = (self.id, self.fixed.user.clone());
            self.persist(move |log| log.release(id, &user)).await?;
        }
        if self.has_lost_workspace().await {
            tracing::warn!(session = %self.id, "the session's workspace is gone; it goes on in a new one");
            self.effects.renew_workspace();
            self.queue.push_front(ActorMessage::WorkspaceLost);
        }
        if self.counters.task_open {
            self.last_message = self.last_agent_message().await;
        }
        self.begin_paused().await
    }

    /// What the agent said last in its open task, as the chat has it. Where nobody knows any more, it is
    /// taken to have said nothing.
    async fn last_agent_message(&self) -> Option<Arc<str>> {
        let (log, since) = (&self.shared.deps.log, self.counters.task_started_at);
        // Once: it is not worth a session that stands still.
        let found = log.last_line(
            self.id,
            &self.fixed.user,
            &self.chat,
            since,
            EventDraft::says_type,
        );
        found.await.ok().flatten().map(Arc::from)
    }

    /// Whether it had files, and they are not there any more.
    async fn has_lost_workspace(&self) -> bool {
        let possible =
            self.shared.deps.environments.refusal().is_none() && !self.session.has_workspace();
        possible
            && matches!(
                self.first_input().await,
                Some(Input::Started(start)) if start.tools.iter().any(|tool| !tool.name.contains(SEPARATOR))
            )
    }
}

/// What is left of the timers of a session that goes on.
pub(super) struct TimerClock {
    /// When the first of them expires by the wall clock, and when by the monotonic one, if that is known.
    first: Option<(u64, Instant)>,
}

impl TimerClock {
    pub(super) fn new(open: &[EffectRow], next_timer: Option<Instant>) -> Self {
        let timers = open
            .iter()
            .filter(|effect| effect.kind == EffectKind::Timer);
        let first = timers.map(|effect| effect.due_at.unwrap_or(0)).min();
        Self {
            first: first.zip(next_timer),
        }
    }

    /// Returns how long a timer still runs. Only where the host was away, the wall clock has to say that, and
    /// it may be wrong.
    pub(super) fn left(&self, timer: &EffectRow) -> Duration {
        let due = timer.due_at.unwrap_or(0);
        let left = match self.first {
            Some((first, expires)) => {
                let left = expires.saturating_duration_since(Instant::now());
                left.saturating_add(Duration::from_millis(due.saturating_sub(first)))
            }
            None => Duration::from_millis(due.saturating_sub(now())),
        };
        left.min(Duration::from_millis(timer.delay_ms.unwrap_or(u64::MAX)))
    }
}

/// A session's logged state, and what it needs to run.
pub(crate) struct ResumeState {
    pub(crate) fixed: Arc<SessionConfig>,
    pub(crate) generation: Arc<Generation>,
    pub(crate) policy: Arc<dyn SessionPolicy>,
    /// The build of the policy that ran the session so far and left its state, if it is a different
    /// one.
    pub(crate) previous_build: Option<Digest>,
    pub(crate) api_key: Option<Secret>,
    pub(crate) git_token: Option<Secret>,
    pub(crate) counters: SessionCounters,
    pub(crate) state: Option<Snapshot>,
    /// The branch pushed by its open task, or by its last one.
    pub(crate) pushed: Option<String>,
    pub(crate) open: Vec<EffectRow>,
    /// Messages from the user that no round has processed.
    pub(crate) inbox: Vec<InboxMessage>,
    pub(crate) status: SessionStatus,
    /// Whether the session resumes only when its user comes back.
    pub(crate) waits_for_user: bool,
    /// What is known of its clocks beside the log, if it slept.
    pub(crate) clocks: SleepingClocks,
}
