//! How long a model call is retried after transient failures, and what users are told meanwhile.
//!
//! # Invariants
//!
//! - No pause reaches past the end of the retry budget.
//! - Time is monotonic, so setting the clock changes nothing.
//! - An outage is announced once, and whoever was told that it began is told that it ended.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use lucid_types::plural;
use lucid_types::wit::types::{Error, ErrorKind};

/// The first pause, before jitter. Each further one is about twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause, unless the provider asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The minimum length of an outage before it is announced.
const UNANNOUNCED: Duration = Duration::from_secs(1);
/// How often a request is repeated after a response that no adapter can read, which hardly ever
/// passes.
const UNREADABLE: u32 = 3;
/// How often a request is repeated after a response that broke off: what was generated of it is
/// billed each time.
const BROKEN_OFF: u32 = 3;

/// The retries of one model call.
pub(super) struct Retries {
    patience: Duration,
    pauses: ExponentialBackoff,
    /// When the first failed try began.
    since: Option<Instant>,
    /// When it was known to have failed: the retry budget counts from here.
    failed_at: Option<Instant>,
    unreadable: u32,
    broken_off: u32,
    announced: bool,
}

impl Retries {
    pub(super) fn new(patience: Duration) -> Self {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .without_max_times()
            .with_jitter()
            .build();
        Self {
            patience,
            pauses,
            since: None,
            failed_at: None,
            unreadable: 0,
            broken_off: 0,
            announced: false,
        }
    }

    /// Records that a response broke off after it had begun. Returns whether it may be requested
    /// again.
    pub(super) fn may_repeat_broken_off(&mut self) -> bool {
        self.broken_off += 1;
        self.broken_off <= BROKEN_OFF
    }

    /// The pause before the next try, after one that began at that time and failed now. `None` if
    /// there is to be none.
    pub(super) fn pause(
        &mut self,
        error: &Error,
        began: Instant,
        now: Instant,
    ) -> Option<Duration> {
        if !passes(error) {
            return None;
        }
        self.since.get_or_insert(began);
        let failed_at = *self.failed_at.get_or_insert(now);
        let left = self.patience.saturating_sub(now - failed_at);
        let wanted = Duration::from_millis(error.retry_after_ms.unwrap_or(0));
        // There is no point in a retry before the time that the provider names.
        if left.is_zero() || wanted > left {
            return None;
        }
        if is(error, "unreadable") {
            self.unreadable += 1;
            if self.unreadable > UNREADABLE {
                return None;
            }
        }
        let pause = self.pauses.next().unwrap_or(LONGEST_PAUSE);
        // The last try is at the end of the retry budget.
        Some(pause.min(LONGEST_PAUSE).max(wanted).min(left))
    }

    /// The error as users see it: if the provider wants a longer wait than the retry budget allows,
    /// it says so.
    pub(super) fn explain(&self, mut error: Error) -> Error {
        let wanted = Duration::from_millis(error.retry_after_ms.unwrap_or(0));
        if passes(&error) && wanted > self.patience {
            let message = error.message.trim_end_matches(['.', ' ']);
            error.message = format!(
                "{message}. It asks to be left alone for {}.",
                spell_duration(wanted)
            );
        }
        error
    }

    /// The announcement before this pause. `None` if users know already, or need not know.
    pub(super) fn announcement(
        &mut self,
        error: &Error,
        pause: Duration,
        now: Instant,
    ) -> Option<String> {
        let lasts = now - self.since? + pause;
        if self.announced || lasts <= UNANNOUNCED {
            return None;
        }
        self.announced = true;
        let reason = error.message.trim().trim_end_matches('.');
        Some(format!(
            "The model cannot be asked at the moment: {reason}. It is tried again for up to {}.",
            spell_duration(self.patience)
        ))
    }

    /// The announcement at the end of the call. `None` if no outage was announced.
    pub(super) fn end_announcement(&mut self, answered: bool, now: Instant) -> Option<String> {
        if !std::mem::take(&mut self.announced) {
            return None;
        }
        let lasted = spell_duration(now - self.since?);
        Some(if answered {
            format!("The model answers again, after {lasted}.")
        } else {
            format!("The model could not be asked for {lasted}, and is not tried again.")
        })
    }
}

/// Whether repeating the request may succeed.
fn passes(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::RateLimited | ErrorKind::Overloaded | ErrorKind::Upstream
    ) || is(error, "first-byte")
}

fn is(error: &Error, code: &str) -> bool {
    error.code.as_deref() == Some(code)
}

/// A duration in words.
fn spell_duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    let (amount, unit) = match seconds {
        0..120 => (seconds.max(1), "second"),
        _ if seconds.is_multiple_of(60) || seconds >= 600 => ((seconds + 30) / 60, "minute"),
        _ => (seconds, "second"),
    };
    plural::count(amount, unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: ErrorKind, code: Option<&str>, retry_after_ms: Option<u64>) -> Error {
        Error {
            kind,
            code: code.map(str::to_owned),
            message: "The server is down.".to_owned(),
            retry_after_ms,
        }
    }

    fn overloaded() -> Error {
        error(ErrorKind::Overloaded, None, None)
    }

    const QUARTER: Duration = Duration::from_secs(900);

    #[test]
    fn pauses_grow_up_to_half_a_minute_and_the_last_try_is_at_the_end_of_the_patience() {
        let mut retries = Retries::new(QUARTER);
        let begun = Instant::now();
        let mut now = begun;
        let mut pauses = Vec::new();
        while let Some(pause) = retries.pause(&overloaded(), begun, now) {
            pauses.push(pause);
            now += pause;
        }
        assert_eq!(now - begun, QUARTER, "{pauses:?}");
        assert!(pauses[0] <= Duration::from_secs(1), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert!((30..50).contains(&pauses.len()), "{pauses:?}");
    }

    #[test]
    fn a_pause_that_the_provider_asks_for_is_kept_within_the_patience_and_not_beyond() {
        let mut retries = Retries::new(Duration::from_secs(300));
        let asks = |ms| error(ErrorKind::RateLimited, None, Some(ms));
        let now = Instant::now();
        let pause = Duration::from_secs(200);
        assert_eq!(retries.pause(&asks(200_000), now, now), Some(pause));
        assert_eq!(
            retries.pause(&asks(200_000), now + pause, now + pause),
            None
        );
    }

    #[test]
    fn a_wait_that_is_longer_than_the_patience_is_said() {
        let asks = |ms| error(ErrorKind::RateLimited, None, Some(ms));
        let retries = Retries::new(QUARTER);
        assert_eq!(
            retries.explain(asks(3_600_000)).message,
            "The server is down. It asks to be left alone for 60 minutes."
        );
        assert_eq!(retries.explain(asks(60_000)), asks(60_000));
    }

    #[test]
    fn an_answer_that_broke_off_is_asked_for_again_three_times_whatever_patience_there_is() {
        let mut retries = Retries::new(QUARTER);
        let asked: Vec<bool> = (0..5).map(|_| retries.may_repeat_broken_off()).collect();
        assert_eq!(asked, [true, true, true, false, false]);
        let now = Instant::now();
        assert!(
            retries.pause(&overloaded(), now, now).is_some(),
            "what never began costs nothing, and is asked for as long as there is patience"
        );
    }

    #[test]
    fn what_does_not_pass_is_not_tried_again() {
        let now = Instant::now();
        for kind in [
            ErrorKind::InvalidInput,
            ErrorKind::Unauthenticated,
            ErrorKind::Forbidden,
            ErrorKind::NotFound,
            ErrorKind::ContextTooLong,
            ErrorKind::Refused,
            ErrorKind::Unsupported,
        ] {
            let pause = Retries::new(QUARTER).pause(&error(kind, None, None), now, now);
            assert_eq!(pause, None, "{kind:?}");
        }
        let late = error(ErrorKind::Deadline, Some("first-byte"), None);
        assert!(Retries::new(QUARTER).pause(&late, now, now).is_some());
        let none = Retries::new(Duration::ZERO).pause(&overloaded(), now, now);
        assert_eq!(none, None);
        // An unreadable response is not retried for long.
        let mut retries = Retries::new(QUARTER);
        let page = error(ErrorKind::Upstream, Some("unreadable"), None);
        let tries = std::iter::from_fn(|| retries.pause(&page, now, now)).count();
        assert_eq!(tries, 3);
    }

    #[test]
    fn an_outage_is_announced_once_when_it_begins_and_once_when_it_ends() {
        let mut retries = Retries::new(QUARTER);
        let began = Instant::now();
        let mut now = began;
        let mut message = Vec::new();
        for _ in 0..5 {
            let pause = retries.pause(&overloaded(), began, now).unwrap();
            message.extend(retries.announcement(&overloaded(), pause, now));
            now += pause;
        }
        message.extend(retries.end_announcement(true, now));
        message.extend(retries.end_announcement(true, now));
        let [begins, ends] = &message[..] else {
            panic!("{message:?}")
        };
        assert_eq!(
            begins,
            "The model cannot be asked at the moment: The server is down. It is tried again for up to 15 minutes."
        );
        assert!(
            ends.starts_with("The model answers again, after "),
            "{ends}"
        );
        // A momentary failure is not announced.
        let mut retries = Retries::new(QUARTER);
        let shortly = Duration::from_millis(500);
        retries.pause(&overloaded(), began, began).unwrap();
        assert_eq!(retries.announcement(&overloaded(), shortly, began), None);
        assert_eq!(retries.end_announcement(true, began + shortly), None);
    }

    #[test]
    fn a_duration_is_said_in_seconds_or_minutes() {
        for (seconds, message) in [
            (0.2, "1 second"),
            (42.4, "42 seconds"),
            (90.0, "90 seconds"),
            (120.0, "2 minutes"),
            (130.0, "130 seconds"),
            (900.0, "15 minutes"),
            (1234.0, "21 minutes"),
        ] {
            assert_eq!(spell_duration(Duration::from_secs_f64(seconds)), message);
        }
    }
}
