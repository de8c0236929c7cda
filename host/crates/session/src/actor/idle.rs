//! The idle policy: what happens to a session that nobody is attached to.
//!
//! # Invariants
//! - A session with an open task continues without a client; its own limits end the task.
//! - An idle session gets the grace period, counted from when it became idle or from when its last
//!   client left, whichever is later.
//! - A session that waits for its user's answer is kept longer: the user was asked and may come
//!   back tomorrow, and the work done before the question would be lost. The sandbox is the
//!   expensive part, so it is released after the grace period, and the next tool gets a new one.
//!   What remains costs a row in the log, the workspace and one of the user's session slots.
//! - That wait ends a week after the last activity: longer than a weekend, and shorter than a
//!   secret should be kept for a session that nobody wants. The week is counted in the host's
//!   uptime, which is stored in the database, so it also ends on a host that restarts every day,
//!   and setting the clock forward does not end it. It is not configurable: a user who wants less
//!   can stop the session.

use std::sync::Weak;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::task_clock;
use crate::handle::{IdleState, Session};
use crate::ports::EnvironmentSpec;
use crate::shared::SessionsShared;
use crate::types::CloseReason;
use lucid_types::log::{EffectKind, SessionCounters};

/// How long a question waits for its answer with nobody attached.
const ANSWER: Duration = Duration::from_hours(7 * 24);

/// The message shown when the sandbox is released.
pub(super) const SANDBOX_RELEASED: &str = "Nobody was connected while the agent waits for an answer, so its sandbox was given back, and what ran in it has ended. The files are there, and the next command gets a new one.";

#[derive(Debug, PartialEq, Eq)]
enum IdleAction {
    Keep,
    ReleaseSandbox,
    End,
}

/// Decides what happens to the session. `alone` is how long nobody has been attached; `uptime` is
/// the host's uptime in milliseconds.
fn idle_action(
    idle_state: IdleState,
    alone: Option<Duration>,
    (now, uptime): (Instant, u64),
    grace: Duration,
) -> IdleAction {
    let Some(alone) = alone.filter(|alone| *alone >= grace) else {
        return IdleAction::Keep;
    };
    match idle_state {
        IdleState::Working | IdleState::Held => IdleAction::Keep,
        IdleState::Asking(since) => {
            if Duration::from_millis(uptime.saturating_sub(since)) < ANSWER {
                IdleAction::ReleaseSandbox
            } else {
                IdleAction::End
            }
        }
        IdleState::Idle(since) => {
            if alone.min(now.saturating_duration_since(since)) < grace {
                IdleAction::Keep
            } else {
                IdleAction::End
            }
        }
    }
}

/// When a session would be ended that nobody comes back to, as of now; `None` if its work goes on.
pub(super) fn ends_at(
    idle_state: IdleState,
    unattended_since: Instant,
    (now, uptime): (Instant, u64),
    grace: Duration,
) -> Option<Instant> {
    let alone = unattended_since + grace;
    match idle_state {
        IdleState::Working | IdleState::Held => None,
        IdleState::Asking(since) => {
            let waited = Duration::from_millis(uptime.saturating_sub(since));
            Some(alone.max(now + ANSWER.saturating_sub(waited)))
        }
        IdleState::Idle(since) => Some(alone.max(since + grace)),
    }
}

/// The state of a session with these open effects, as of now.
pub(super) fn idle_state(
    counters: &SessionCounters,
    open: impl Iterator<Item = EffectKind>,
) -> IdleState {
    if task_clock::waits_for_user(counters, open) {
        IdleState::Asking(counters.uptime_ms)
    } else if counters.task_open {
        IdleState::Working
    } else {
        IdleState::Idle(Instant::now())
    }
}

impl Session {
    /// The key of the session's files.
    fn spec(&self) -> EnvironmentSpec {
        EnvironmentSpec::of(self.info.id, self.info.user.clone())
    }

    /// Sets the current state. A session that was already idle keeps the time at which it became
    /// so.
    pub(crate) fn set_idle_state(&self, idle_state: IdleState) {
        let mut known = self.idle_state.lock();
        if !matches!(
            (*known, idle_state),
            (IdleState::Idle(_), IdleState::Idle(_))
        ) {
            *known = idle_state;
        }
    }
}

/// Why a session ends that nobody is attached to.
pub(crate) const ALONE: &str = "Nobody was connected any more, so the session was ended.";

/// Watches over unattended sessions until the host halts or drops its sessions.
pub(crate) async fn sweep(
    shared: Weak<SessionsShared>,
    halt: CancellationToken,
    grace: Duration,
    retention: Duration,
) {
    let pause = (grace / 10).clamp(Duration::from_millis(20), Duration::from_secs(5));
    let ended = CloseReason::done(ALONE);
    let keeps_workspace = !retention.is_zero();
    let kept = CloseReason::expired(ALONE, Some(retention));
    while halt
        .run_until_cancelled(tokio::time::sleep(pause))
        .await
        .is_some()
    {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let now = (Instant::now(), shared.deps.log.uptime());
        let sessions: Vec<_> = shared.registry.lock().live().cloned().collect();
        for session in sessions {
            let idle_state = *session.idle_state.lock();
            match idle_action(idle_state, session.unattended_for(), now, grace) {
                IdleAction::Keep => {}
                // The actor checks again: somebody may have answered just now.
                IdleAction::ReleaseSandbox => session.unattended.notify_one(),
                IdleAction::End
                    if keeps_workspace
                        && shared.deps.environments.has_workspace(&session.spec()) =>
                {
                    session.stop(kept.clone());
                }
                IdleAction::End => session.stop(ended.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_waits_a_week_an_idle_session_the_grace_time_and_work_goes_on() {
        let grace = Duration::from_secs(300);
        let now = Instant::now() + Duration::from_hours(2000);
        let uptime = 1 << 50;
        let hours = |hours| Some(Duration::from_hours(hours));
        let short = Some(Duration::from_secs(299));
        let idle = |alone: Option<Duration>| IdleState::Idle(now - alone.unwrap_or_default());
        let asks = |hours: u64| IdleState::Asking(uptime - hours * 3_600_000);
        for (alone, idle_state, expected) in [
            (None, idle(hours(1000)), IdleAction::Keep),
            (None, asks(1000), IdleAction::Keep),
            (short, idle(hours(1000)), IdleAction::Keep),
            (hours(1000), idle(short), IdleAction::Keep),
            (hours(1000), IdleState::Working, IdleAction::Keep),
            (hours(1000), IdleState::Held, IdleAction::Keep),
            (short, asks(1000), IdleAction::Keep),
            (Some(grace), idle(Some(grace)), IdleAction::End),
            (Some(grace), asks(0), IdleAction::ReleaseSandbox),
            (hours(90), asks(7 * 24 - 1), IdleAction::ReleaseSandbox),
            (Some(grace), asks(7 * 24), IdleAction::End),
        ] {
            let found = idle_action(idle_state, alone, (now, uptime), grace);
            assert_eq!(found, expected, "alone {alone:?}, {idle_state:?}");
            let Some(alone) = alone else {
                continue;
            };
            let ends_at = ends_at(idle_state, now - alone, (now, uptime), grace);
            let ends = ends_at.is_some_and(|at| at <= now);
            assert_eq!(
                ends,
                expected == IdleAction::End,
                "alone {alone:?}, {idle_state:?}"
            );
        }
    }
}
