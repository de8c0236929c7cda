//! What becomes of a session that nobody is attached to.
//!
//! # Invariants
//! A session whose task is open goes on without anybody: its own limits end the task. From when it is idle,
//! or from when the last client left it where that was later, it has the grace time. One that waits for its
//! user's answer keeps more: the user was asked, and may come back tomorrow, and what was done until the
//! question would be lost. The sandbox is the expensive part, so that is given back after the grace time, and
//! the next tool gets another; what is left costs a row of the log, the workspace and one of the user's
//! places. That too has an end: a week after the last thing that happened, longer than a weekend and shorter
//! than a secret should lie about for a session that nobody wants. The week is counted in the host's uptime,
//! which is in the database, so that it ends also on a host that is restarted every day, and no clock that is
//! set forward ends it. It is no setting: whoever wants less can stop the session.

use std::sync::Weak;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::live::{Session, held};
use super::{CloseReason, PlaceSpec, Shared};

/// How long a question waits for its answer with nobody there.
const ANSWER: Duration = Duration::from_hours(7 * 24);

/// Said where the sandbox is given back.
pub(super) const PUT_AWAY: &str = "Nobody was connected while the agent waits for an answer, so its sandbox was given back, and what ran in it has ended. The files are there, and the next command gets a new one.";

/// What a session does, as far as it matters when nobody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is being set up, or a task is open.
    Works,
    /// It waits for its user's answer, and for nothing else. Holds the host's uptime when something last
    /// happened, in milliseconds.
    Asks(u64),
    /// No task is open, since then.
    Idle(Instant),
    /// It is not started, until its user comes back or an operator wants it.
    Held,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stays,
    GivesBack,
    Ends,
}

/// `alone`: how long nobody has been there. `uptime`: the host's, in milliseconds.
fn verdict(
    standing: Standing,
    alone: Option<Duration>,
    (now, uptime): (Instant, u64),
    grace: Duration,
) -> Verdict {
    let Some(alone) = alone.filter(|alone| *alone >= grace) else {
        return Verdict::Stays;
    };
    match standing {
        Standing::Works | Standing::Held => Verdict::Stays,
        Standing::Asks(since) => {
            if Duration::from_millis(uptime.saturating_sub(since)) < ANSWER {
                Verdict::GivesBack
            } else {
                Verdict::Ends
            }
        }
        Standing::Idle(since) => {
            if alone.min(now.saturating_duration_since(since)) < grace {
                Verdict::Stays
            } else {
                Verdict::Ends
            }
        }
    }
}

impl Session {
    /// What its files are known by.
    fn spec(&self) -> PlaceSpec {
        PlaceSpec {
            session: self.about.id.to_string(),
            user: self.about.user.to_string(),
            ..PlaceSpec::default()
        }
    }

    /// What it does from here on. One that was idle before stays so since then.
    pub(super) fn stands(&self, standing: Standing) {
        let mut known = held(&self.standing);
        if !matches!((*known, standing), (Standing::Idle(_), Standing::Idle(_))) {
            *known = standing;
        }
    }
}

/// Why a session ends that nobody is attached to.
pub(super) const ALONE: &str = "Nobody was connected any more, so the session was ended.";

/// Looks after the sessions that nobody is attached to, as long as there are sessions.
pub(super) async fn sweep(
    shared: Weak<Shared>,
    halt: CancellationToken,
    grace: Duration,
    retention: Duration,
) {
    let pause = (grace / 10).clamp(Duration::from_millis(20), Duration::from_secs(5));
    let ended = CloseReason::done(ALONE);
    let keeps = !retention.is_zero();
    let kept = CloseReason::expired(ALONE, Some(retention));
    while halt
        .run_until_cancelled(tokio::time::sleep(pause))
        .await
        .is_some()
    {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let now = (Instant::now(), shared.deps.store.uptime());
        let sessions: Vec<_> = held(&shared.registry).by_id.values().cloned().collect();
        for session in sessions {
            let standing = *held(&session.standing);
            match verdict(standing, session.alone_for(), now, grace) {
                Verdict::Stays => {}
                // Its actor looks once more: somebody may have answered just now.
                Verdict::GivesBack => session.unattended.notify_one(),
                Verdict::Ends if keeps && shared.deps.places.has_workspace(&session.spec()) => {
                    session.stop(kept.clone());
                }
                Verdict::Ends => session.stop(ended.clone()),
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
        let idle = |alone: Option<Duration>| Standing::Idle(now - alone.unwrap_or_default());
        let asks = |hours: u64| Standing::Asks(uptime - hours * 3_600_000);
        for (alone, standing, expected) in [
            (None, idle(hours(1000)), Verdict::Stays),
            (None, asks(1000), Verdict::Stays),
            (short, idle(hours(1000)), Verdict::Stays),
            (hours(1000), idle(short), Verdict::Stays),
            (hours(1000), Standing::Works, Verdict::Stays),
            (hours(1000), Standing::Held, Verdict::Stays),
            (short, asks(1000), Verdict::Stays),
            (Some(grace), idle(Some(grace)), Verdict::Ends),
            (Some(grace), asks(0), Verdict::GivesBack),
            (hours(90), asks(7 * 24 - 1), Verdict::GivesBack),
            (Some(grace), asks(7 * 24), Verdict::Ends),
        ] {
            let found = verdict(standing, alone, (now, uptime), grace);
            assert_eq!(found, expected, "alone {alone:?}, {standing:?}");
        }
    }
}
