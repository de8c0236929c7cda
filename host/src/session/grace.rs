//! Owns what becomes of a session that nobody is attached to.
//!
//! What always holds: one that works, or waits for its next task, ends after the grace time, which
//! begins anew where it waited for its user's answer and goes on by itself (a timer). One that
//! waits for its user's answer does not: the user was asked, and may come back tomorrow, and what was
//! done until the question would be lost. What is dear is its sandbox, so that is given back after the
//! grace time, and the next tool gets another; what is left costs a row of the log, the workspace and
//! one of the user's places. That too has an end: a week after the last thing that happened, which is
//! longer than a weekend and shorter than a secret should lie about for a session that nobody wants.
//! It is counted from the log, so that a host that is restarted every day keeps it as well. It is no
//! setting: whoever wants less can stop the session, and nobody has to hold a container for it.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::live::held;
use super::{CloseReason, Shared, actor};

/// How long a question waits for its answer with nobody there.
const ANSWER: Duration = Duration::from_hours(7 * 24);

/// Said where the sandbox is given back.
pub(super) const PUT_AWAY: &str = "Nobody was connected while the agent waits for an answer, so its sandbox was given back, and what ran in it has ended. The files are there, and the next command gets a new one.";

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stays,
    GivesBack,
    Ends,
}

/// `alone`: how long nobody has been there. `asked`: how long ago something last happened, in a session
/// that waits for its user's answer.
fn verdict(alone: Option<Duration>, asked: Option<Duration>, grace: Duration) -> Verdict {
    match (alone, asked) {
        (Some(alone), _) if alone < grace => Verdict::Stays,
        (None, _) => Verdict::Stays,
        (Some(_), Some(asked)) if asked < ANSWER => Verdict::GivesBack,
        (Some(_), _) => Verdict::Ends,
    }
}

/// Looks after the sessions that nobody is attached to, as long as there are sessions.
pub(super) async fn sweep(shared: Weak<Shared>, halt: CancellationToken, grace: Duration) {
    let pause = (grace / 10).clamp(Duration::from_millis(20), Duration::from_secs(5));
    while halt
        .run_until_cancelled(tokio::time::sleep(pause))
        .await
        .is_some()
    {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let sessions: Vec<_> = held(&shared.registry).by_id.values().cloned().collect();
        for session in sessions {
            let asked_at = session.asked_at.load(Ordering::Relaxed);
            let asked = actor::now().saturating_sub(asked_at);
            let asked = (asked_at > 0).then_some(Duration::from_millis(asked));
            let waited = session.waited_until.load(Ordering::Relaxed);
            let since = Duration::from_millis(actor::now().saturating_sub(waited));
            let alone = session.alone_for().map(|alone| alone.min(since));
            match verdict(alone, asked, grace) {
                Verdict::Stays => {}
                // Its actor looks once more: somebody may have answered just now.
                Verdict::GivesBack => session.unattended.notify_one(),
                Verdict::Ends => session.stop(CloseReason::done(
                    "Nobody was connected any more, so the session was ended.",
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_waits_a_week_and_anything_else_the_grace_time() {
        let grace = Duration::from_secs(300);
        let hours = |hours| Some(Duration::from_hours(hours));
        let short = Some(Duration::from_secs(299));
        for (alone, asked, expected) in [
            (None, None, Verdict::Stays),
            (None, hours(1000), Verdict::Stays),
            (short, None, Verdict::Stays),
            (short, hours(1000), Verdict::Stays),
            (Some(grace), None, Verdict::Ends),
            (Some(grace), hours(0), Verdict::GivesBack),
            (hours(90), hours(7 * 24 - 1), Verdict::GivesBack),
            (Some(grace), hours(7 * 24), Verdict::Ends),
        ] {
            let found = verdict(alone, asked, grace);
            assert_eq!(found, expected, "alone {alone:?}, asked {asked:?}");
        }
    }
}
