//! When a session goes to sleep, and what it leaves in memory.
//!
//! # Invariants
//! - A session sleeps only where nothing is lost by it: nothing runs or is held but timers, all that its
//!   rounds changed is in the log, nobody is attached or may come back to a lost connection, and it has
//!   the current generation of the deployment.
//! - It does not go to sleep for a moment only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Actor;
use super::idle::{ends_at, idle_state};
use super::resume::{ResumeState, TimerClock};
use super::task_clock::{self, TaskClock};
use crate::handle::{IdleState, SessionPlugins};
use crate::ports::{EnvironmentSpec, Generation};
use crate::registry::{SleepingClocks, SleepingSession};
use crate::shared::SessionsShared;
use lucid_types::log::{EffectKind, SessionCounters, SessionStatus};

/// Whether nothing is open that needs a session in memory.
fn only_waits(mut open: impl Iterator<Item = EffectKind>) -> bool {
    open.all(|kind| {
        matches!(
            kind,
            EffectKind::Ask | EffectKind::Timer | EffectKind::Orphan
        )
    })
}

/// Tells sleeps apart.
static SLEEPS: AtomicU64 = AtomicU64::new(0);

/// What is known of a session that goes to sleep.
struct RestingSession<'a> {
    counters: &'a SessionCounters,
    idle_state: IdleState,
    unattended_since: Instant,
    next_timer: Option<Instant>,
    clock: &'a TaskClock,
}

impl RestingSession<'_> {
    /// What stays of it in memory.
    fn entry(
        self,
        shared: &SessionsShared,
        generation: Arc<Generation>,
        plugins: SessionPlugins,
        has_workspace: bool,
    ) -> SleepingSession {
        let (counters, limits) = (self.counters, &shared.deps.limits);
        let is_held = self.idle_state == IdleState::Held;
        let runs = self.idle_state == IdleState::Working;
        let deadline = runs.then(|| self.clock.deadline(counters, limits.task_time));
        // One that is held is not woken by time.
        let next_timer = self.next_timer.filter(|_| !is_held);
        let ends = ends_at(
            self.idle_state,
            self.unattended_since,
            (Instant::now(), shared.deps.log.uptime()),
            limits.grace,
        );
        SleepingSession {
            number: SLEEPS.fetch_add(1, Ordering::Relaxed),
            generation,
            plugins: shared.registry.lock().shared_plugins(plugins),
            idle_state: self.idle_state,
            unattended_since: self.unattended_since,
            wakes_at: [ends, next_timer, deadline].into_iter().flatten().min(),
            clocks: SleepingClocks {
                next_timer,
                task: (runs || is_held).then(|| (self.clock.counted(), counters.task_used_ms)),
            },
            has_workspace,
        }
    }
}

/// Counts the time that went by in the last run while a session of it slept, whose task has no question open.
pub(crate) fn count_slept_time(shared: &SessionsShared, found: &mut ResumeState) {
    let kinds = || found.open.iter().map(|effect| effect.kind);
    if only_waits(kinds()) && idle_state(&found.counters, kinds()) == IdleState::Working {
        let uptime = shared.deps.log.uptime();
        let slept = uptime.saturating_sub(found.counters.uptime_ms);
        let counters = &mut found.counters;
        counters.task_used_ms = counters.task_used_ms.saturating_add(slept);
    }
}

/// What is in memory of a session of the last run that sleeps on; `None` if it has something to do.
pub(crate) fn after_restart(
    shared: &SessionsShared,
    found: &ResumeState,
) -> Option<SleepingSession> {
    let kinds = || found.open.iter().map(|effect| effect.kind);
    let fixed = &found.fixed;
    let spec = EnvironmentSpec::of(fixed.id, fixed.user.clone());
    let environments = &shared.deps.environments;
    let waits = found.status == SessionStatus::Running
        && found.counters.step > 0
        && found.inbox.is_empty()
        && found.previous_build.is_none()
        && only_waits(kinds())
        && !environments.is_alive(&spec);
    if !waits && !found.waits_for_user {
        return None;
    }
    let state = match found.waits_for_user {
        true => IdleState::Held,
        false => idle_state(&found.counters, kinds()),
    };
    let timers = TimerClock::new(&found.open, None);
    let due = found
        .open
        .iter()
        .filter(|effect| effect.kind == EffectKind::Timer);
    let now = Instant::now();
    let resting = RestingSession {
        counters: &found.counters,
        idle_state: state,
        unattended_since: now,
        next_timer: due
            .filter_map(|timer| now.checked_add(timers.left(timer)))
            .min(),
        clock: &TaskClock::start(),
    };
    let plugins = SessionPlugins::of(found.policy.info(), &fixed.provider);
    let has_workspace = environments.has_workspace(&spec);
    Some(resting.entry(shared, found.generation.clone(), plugins, has_workspace))
}

impl Actor {
    /// When the session may go to sleep as things are, if it may at all.
    pub(super) fn sleeps_at(&self) -> Option<Instant> {
        let unattended_since = self.session.unattended_since()?;
        let may_sleep = self.counters.step > 0
            && self.queue.is_empty()
            && self.paused.is_empty()
            && self.previous_build.is_none()
            && self.skipped_generation.is_none()
            && only_waits(task_clock::kinds(&self.open))
            && self.effects.are_at_rest();
        may_sleep
            .then(|| unattended_since.max(self.quiet_since) + self.shared.deps.limits.sleep_after)
    }

    /// Goes to sleep if it still may. Returns whether it sleeps; if not, it is asked again a while later.
    pub(super) async fn falls_asleep(&mut self) -> bool {
        self.settle().await;
        self.quiet_since = Instant::now();
        self.count_time();
        let Some(unattended_since) = self.session.unattended_since() else {
            return false;
        };
        let may_return = !self.session.positions.acknowledged().is_empty();
        // Woken by another build than it has, it would be asked to move to what it has left.
        let own = self.policy.info().digest;
        let policies = &self.generation.policies;
        let woken = policies.successor(&self.fixed.policy, Some(own));
        let keeps_build = woken.is_some_and(|policy| policy.info().digest == own);
        if self.pending_since.is_some() || may_return || !keeps_build {
            return false;
        }
        let resting = RestingSession {
            counters: &self.counters,
            idle_state: *self.session.idle_state.lock(),
            unattended_since,
            next_timer: self.effects.next_timer(),
            clock: &self.clock,
        };
        let (generation, plugins) = (self.generation.clone(), self.session.plugins());
        let has_workspace = self.session.has_workspace();
        let entry = resting.entry(&self.shared, generation, plugins, has_workspace);
        let soon = Instant::now() + self.shared.deps.limits.sleep_after;
        if entry.wakes_at.is_some_and(|at| at < soon) {
            return false;
        }
        let (session, shared, messages) = (&self.session, &self.shared, &self.messages);
        let (number, deployment) = (self.generation.number, &self.deployment);
        let has_news = || {
            deployment.borrow().number != number
                || !messages.is_empty()
                || session.stop.is_cancelled()
                || session.unattended_since().is_none()
                || shared.halt.is_cancelled()
        };
        let sleeps = shared.put_to_sleep(session, has_news, entry);
        if sleeps {
            tracing::debug!(session = %self.id, "a session sleeps");
        }
        sleeps
    }
}
