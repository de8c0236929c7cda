//! The values of the engine's interface: close reasons, limits, and what lookups return.

use std::sync::OnceLock;
use std::time::Duration;

use crate::user_logs::UserLogExceeded;
use lucid_types::ids::SessionId;
use lucid_types::plural;
use lucid_types::sentence::with_advice;
use lucid_types::user::UserId;

/// The close code of a host that stops.
const RESTARTING: u16 = 1012;

/// The code and text with which a connection is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// The WebSocket close code: 1000 if the session is over, any other if the client may
    /// reconnect.
    pub code: u16,
    /// The explanation, a sentence.
    pub reason: String,
    /// The same with what a close has no room for, if there is more to say.
    recorded: Option<String>,
    /// Nobody asked for the end, so the session's files are kept for the retention period.
    pub(crate) keeps_files: bool,
}

impl Default for CloseReason {
    fn default() -> Self {
        Self::done("The session has ended.")
    }
}

impl CloseReason {
    /// The session is over.
    pub fn done(reason: &str) -> Self {
        Self::new(1000, reason, false)
    }

    fn new(code: u16, reason: &str, keeps_files: bool) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            recorded: None,
            keeps_files,
        }
    }

    /// The session is over although nobody asked for it. Its files, if it has any, are kept for that long.
    pub(crate) fn expired(reason: &str, retention: Option<Duration>) -> Self {
        let ended = Self::new(1000, reason, true);
        let Some(kept) = retention.map(kept_for) else {
            return ended;
        };
        Self {
            reason: format!("{reason} {kept}."),
            recorded: Some(format!("{reason} {kept}{}.", KEPT_WHILE)),
            ..ended
        }
    }

    /// The sentence for the log, and for frames that have room for it.
    pub(crate) fn recorded(&self) -> &str {
        self.recorded.as_deref().unwrap_or(&self.reason)
    }

    /// The user stopped the session.
    pub fn stopped() -> Self {
        Self::done("Stopping the session.")
    }

    /// The host stops, and the session goes on when it is back.
    pub fn restarting() -> Self {
        let reason = "The server restarts; the session goes on afterwards.";
        Self::new(RESTARTING, reason, true)
    }

    /// The session goes no further in this host, which failed.
    pub fn failed(reason: &str) -> Self {
        Self::new(1011, reason, true)
    }

    /// Whether it is over in this host because that stops.
    pub fn is_restart(&self) -> bool {
        self.code == RESTARTING
    }
}

/// Why the connections of a session's clients are closed, as far as that is known. The first reason
/// of each kind counts.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    /// The session ends.
    end: OnceLock<CloseReason>,
    /// This host stops running the session although it is not over.
    pause: OnceLock<CloseReason>,
}

impl Closing {
    /// The session ends for this reason.
    pub(crate) fn end(&self, reason: CloseReason) {
        let _ = self.end.set(reason);
    }

    /// This host stops running the session for this reason.
    pub(crate) fn pause(&self, reason: CloseReason) {
        let _ = self.pause.set(reason);
    }

    /// Why the session ends, if it does.
    pub(crate) fn wish(&self) -> Option<&CloseReason> {
        self.end.get()
    }

    /// Returns whether this host stops running the session although it is not over.
    pub(crate) fn is_paused(&self) -> bool {
        self.pause.get().is_some()
    }

    /// The reason for the clients.
    pub(crate) fn reason(&self) -> CloseReason {
        let reason = self.pause.get().or_else(|| self.end.get());
        reason.cloned().unwrap_or_default()
    }
}

/// Why a message was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageRejected {
    /// The session is over.
    #[error("the session has ended")]
    Over,
    /// Too many messages are waiting already.
    #[error("the session has not yet taken the messages before this one")]
    Busy,
    /// The user has written as much as one may.
    #[error(transparent)]
    UserLog(#[from] UserLogExceeded),
    /// The log could not be written.
    #[error("the server could not write the message down")]
    Unwritten,
}

impl MessageRejected {
    /// The text for the message's sender: a sentence, and what to do.
    pub fn sentence(self) -> String {
        let advice = match self {
            Self::Over => None,
            Self::UserLog(exceeded) => Some(exceeded.advice()),
            Self::Busy | Self::Unwritten => Some("Try again in a moment."),
        };
        with_advice(self, advice)
    }
}

/// Why a session was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No live session has this id.
    #[error("session not found")]
    NotFound,
    /// The session belongs to another user.
    #[error("the session belongs to another user")]
    NotYours,
}

/// The limits of sessions.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Model calls per task.
    pub iterations: u32,
    /// Tokens per session, if limited.
    pub session_tokens: Option<u64>,
    /// Cost per session in millionths of a US dollar, if limited.
    pub session_cost: Option<u64>,
    /// Maximum duration of one task.
    pub task_time: Duration,
    /// How long an idle session lives with nobody attached. A session that waits for its user's
    /// answer loses only its sandbox after this time.
    pub grace: Duration,
    /// How long everybody has left a session that waits, and nothing has come for it, before nothing of it
    /// stays in memory but an entry; and for how long that must be so.
    pub sleep_after: Duration,
    /// How long the workspace of a session is kept that ended without its user's request.
    pub retention: Duration,
    /// Live sessions per user.
    pub sessions_per_user: usize,
}

/// A session in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    /// The session's id.
    pub session_id: SessionId,
    /// The user that owns the session.
    pub user_id: UserId,
    /// The full text of the task.
    pub task: String,
    /// Whether the session can still continue.
    pub is_alive: bool,
    /// Creation time (RFC 3339).
    pub created_at: String,
}

/// What a stopping host left for the next start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PausedSessions {
    /// The number of sessions that resume then.
    pub sessions: usize,
    /// The commands that were interrupted, each with its session.
    pub commands: Vec<(SessionId, String)>,
}

/// Whether a pull request is opened for what a session pushes, once its task succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OpenChange {
    /// Yes, ready for review.
    Ready,
    /// Yes, as a draft.
    Draft,
}

impl OpenChange {
    /// The value as stored in the log.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draft => "draft",
        }
    }
}

/// What is said of how long files stay where there is room for all of it.
const KEPT_WHILE: &str = ", while the disk has room";

/// A sentence, but for its full stop, that says how long files stay.
fn kept_for(retention: Duration) -> String {
    format!("Its files can be read for another {}", spelled(retention))
}

/// In the largest unit that fits.
fn spelled(time: Duration) -> String {
    let seconds = time.as_secs().max(1);
    let (count, unit) = [
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
        (1, "second"),
    ]
    .into_iter()
    .find_map(|(size, unit)| {
        seconds
            .is_multiple_of(size)
            .then_some((seconds / size, unit))
    })
    .unwrap_or((seconds, "second"));
    plural::count(count, unit)
}

#[cfg(test)]
mod tests {
    use super::super::actor::idle;
    use super::super::{CloseReason, actor};
    use super::*;

    /// How many bytes a WebSocket's close has room for.
    const ROOM: usize = 123;

    #[test]
    fn whatever_the_retention_time_a_close_has_room_for_all_of_its_reason_and_the_record_says_more()
    {
        let days = |days: u64| Duration::from_secs(86_400 * days);
        let odd = [1, 59, 61, 3_601, 86_399, 5_400].map(Duration::from_secs);
        let odd = odd.into_iter().chain([days(999) - Duration::from_secs(1)]);
        for time in odd.chain((1..=999).map(days)) {
            for reason in [idle::ALONE.to_owned(), actor::time_limit_message(time)] {
                let close = CloseReason::expired(&reason, Some(time));
                assert!(close.reason.len() <= ROOM, "{}", close.reason);
                assert!(close.reason.ends_with('.') && close.reason.starts_with(&reason));
                let recorded = close.recorded();
                assert!(
                    recorded.ends_with(", while the disk has room."),
                    "{recorded}"
                );
            }
        }
    }

    #[test]
    fn a_time_is_spelt_in_the_largest_unit_that_fits() {
        for (seconds, text) in [
            (86_400, "1 day"),
            (172_800, "2 days"),
            (5_400, "90 minutes"),
            (61, "61 seconds"),
            (1, "1 second"),
        ] {
            assert_eq!(spelled(Duration::from_secs(seconds)), text);
        }
    }
}
