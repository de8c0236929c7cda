//! How much each user may write into the log: by minute, and in all.
//!
//! The rate bounds what a user sends: new sessions, messages, titles. The total bounds what the log
//! holds of a user, which is mostly what agents did: a session that works when it is reached ends.
//!
//! # Invariants
//! - What a user sends is refused before anything of it is written, with a sentence.
//! - Nothing that an agent did is dropped.
//! - The total is estimated in memory, and nothing is refused because of the estimate alone: the
//!   log is asked first, since chats may have been deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use lucid_types::log::SessionLog;
use lucid_types::plural;
use lucid_types::sentence::with_advice;
use lucid_types::user::UserId;

/// What anything that a user sends counts for at least, in bytes: a message of one letter makes
/// rows too.
const LEAST: u64 = 4096;
/// The time in which a user may send as much as the rate says, in seconds.
const MINUTE: f64 = 60.0;

/// How many users are known before those are forgotten of whom nothing is to be remembered.
const MANY: usize = 10_000;

/// How much each user may write into the log, in bytes. Without a value there is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserLogLimits {
    /// What a user may send in a minute.
    pub rate: Option<u64>,
    /// What the log may hold of a user.
    pub total: Option<u64>,
}

/// Why something that a user sent is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UserLogExceeded {
    /// Too much in a minute. Holds the limit in bytes.
    #[error("you have sent more than {} within a minute, which is as much as you may", plural::size(*.0))]
    Rate(u64),
    /// Too much in all. Holds the limit in bytes.
    #[error("the record of your sessions takes {}, which is as much as it may", plural::size(*.0))]
    Total(u64),
}

impl UserLogExceeded {
    /// What the user can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Rate(_) => "Try again in a moment.",
            Self::Total(_) => "Delete chats first.",
        }
    }

    /// The text for the user: a sentence, and what to do.
    pub fn sentence(self) -> String {
        with_advice(self, Some(self.advice()))
    }
}

/// What is known of one user.
struct UserLog {
    /// What the user may still send now, in bytes. Below zero after something larger than the rate.
    allowance: f64,
    /// When the allowance was computed.
    at: Instant,
    /// About what the log holds; `None` until it was asked.
    stored: Option<u64>,
}

impl UserLog {
    /// What the user may send at a time, with so many bytes a minute.
    fn allowance_at(&self, now: Instant, full: f64) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.allowance + since * full / MINUTE).min(full)
    }
}

/// How much all users have written.
pub(crate) struct UserLogs {
    log: Arc<dyn SessionLog>,
    limits: UserLogLimits,
    users: Mutex<HashMap<UserId, UserLog>>,
}

impl UserLogs {
    pub(crate) fn new(log: Arc<dyn SessionLog>, limits: UserLogLimits) -> Self {
        Self {
            log,
            limits,
            users: Mutex::default(),
        }
    }

    /// Checks that a user may send so many bytes, and takes them from the user's allowance.
    pub(crate) async fn admit(&self, user: &UserId, bytes: usize) -> Result<(), UserLogExceeded> {
        // First, since asking the log takes longer.
        self.admit_change(user, bytes)?;
        match self.exceeded(user).await {
            Some(limit) => Err(UserLogExceeded::Total(limit)),
            None => Ok(()),
        }
    }

    /// The same for a change that leaves the log as large as it is.
    pub(crate) fn admit_change(&self, user: &UserId, bytes: usize) -> Result<(), UserLogExceeded> {
        self.admit_at(user, bytes as u64, Instant::now())
    }

    fn admit_at(&self, user: &UserId, bytes: u64, now: Instant) -> Result<(), UserLogExceeded> {
        let Some(rate) = self.limits.rate else {
            return Ok(());
        };
        let full = rate as f64;
        let mut users = self.users.lock();
        if users.len() >= MANY && !users.contains_key(user) {
            // What is stored of them is asked of the log again.
            users.retain(|_, known| known.allowance_at(now, full) < full);
        }
        let known = users.entry(user.clone()).or_insert_with(|| UserLog {
            allowance: full,
            at: now,
            stored: None,
        });
        known.allowance = known.allowance_at(now, full);
        known.at = now;
        let cost = bytes.max(LEAST) as f64;
        // Something that is larger than a minute's share passes after a quiet minute.
        if known.allowance < cost.min(full) {
            return Err(UserLogExceeded::Rate(rate));
        }
        known.allowance -= cost;
        Ok(())
    }

    /// Counts what was written for a user.
    pub(crate) fn wrote(&self, user: &UserId, bytes: u64) {
        if self.limits.total.is_none() {
            return;
        }
        if let Some(known) = self.users.lock().get_mut(user)
            && let Some(stored) = &mut known.stored
        {
            *stored = stored.saturating_add(bytes);
        }
    }

    /// The limit in bytes if the log holds as much of a user as it may. While the log cannot be
    /// read, that is not known, and a write will tell.
    pub(crate) async fn exceeded(&self, user: &UserId) -> Option<u64> {
        let limit = self.limits.total?;
        let stored = self.users.lock().get(user).and_then(|known| known.stored);
        if stored.is_some_and(|stored| stored < limit) {
            return None;
        }
        let stored = self.log.user_size(user).await.ok()?;
        let fresh = UserLog {
            allowance: self.limits.rate.unwrap_or_default() as f64,
            at: Instant::now(),
            stored: None,
        };
        self.users
            .lock()
            .entry(user.clone())
            .or_insert(fresh)
            .stored = Some(stored);
        (stored >= limit).then_some(limit)
    }
}

/// Why a session ends whose user's share of the log is used up.
pub(crate) fn total_message(limit: u64) -> String {
    format!(
        "The session was ended: the record of your sessions takes {}, which is as much as it may. Delete chats before the next one.",
        plural::size(limit)
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lucid_store::Store;

    use super::*;

    fn logs(folder: &std::path::Path, rate: u64) -> UserLogs {
        let limits = UserLogLimits {
            rate: Some(rate),
            total: None,
        };
        UserLogs::new(Arc::new(Store::open(folder).unwrap()), limits)
    }

    #[test]
    fn a_user_sends_a_minutes_share_at_once_and_then_as_it_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let logs = logs(folder.path(), 60 * LEAST);
        let (user, other) = (UserId::from("u"), UserId::from("v"));
        let begun = Instant::now();
        for number in 0..60 {
            assert_eq!(logs.admit_at(&user, 1, begun), Ok(()), "{number}");
        }
        let refused = Err(UserLogExceeded::Rate(60 * LEAST));
        assert_eq!(logs.admit_at(&user, 1, begun), refused);
        assert_eq!(logs.admit_at(&other, 1, begun), Ok(()));
        let later = begun + Duration::from_secs(2);
        assert_eq!(logs.admit_at(&user, 2 * LEAST, later), Ok(()));
        assert_eq!(logs.admit_at(&user, 1, later), refused);
    }

    #[test]
    fn users_who_have_their_whole_share_again_are_forgotten_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let logs = logs(folder.path(), 60 * LEAST);
        let begun = Instant::now();
        let debtor = UserId::from("debtor");
        assert_eq!(logs.admit_at(&debtor, 180 * LEAST, begun), Ok(()));
        for number in 1..MANY {
            let user = UserId::from(format!("user-{number}"));
            assert_eq!(logs.admit_at(&user, 1, begun), Ok(()));
        }
        let later = begun + Duration::from_secs(90);
        assert_eq!(logs.admit_at(&"new".into(), 1, later), Ok(()));
        assert_eq!(logs.users.lock().len(), 2);
        assert!(logs.admit_at(&debtor, 1, later).is_err(), "it has to pay");
    }

    #[test]
    fn what_is_larger_than_the_rate_passes_once_and_is_paid_for() {
        let folder = tempfile::tempdir().unwrap();
        let logs = logs(folder.path(), 60 * LEAST);
        let user = UserId::from("u");
        let begun = Instant::now();
        assert_eq!(logs.admit_at(&user, 120 * LEAST, begun), Ok(()));
        let minute = begun + Duration::from_secs(59);
        assert!(logs.admit_at(&user, 1, minute).is_err());
        let later = begun + Duration::from_secs(62);
        assert_eq!(logs.admit_at(&user, 1, later), Ok(()));
    }
}
