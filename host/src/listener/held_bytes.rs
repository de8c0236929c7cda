//! The memory that requests take for as long as their clients take time: bodies that have not arrived
//! whole, and answers that have not been taken.
//!
//! # Invariants
//!
//! - What is held for one user has a limit, whatever the number of their connections: any one answer, or as
//!   many as fit.
//! - What is held for all users has a limit too. It takes as many users to reach it as have all that one
//!   may, and whoever has little is never refused for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use lucid_types::plural::size;
use lucid_types::user::UserId;

/// What may be held for one user, in bytes.
const EACH: u64 = 64 << 20;
/// What may be held for all users, in bytes, of which each counts with [`EACH`] at most.
const ALL: u64 = 1 << 30;
/// What a user may have however much the others have.
const LITTLE: u64 = 2 << 20;

/// Why something is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooManyBytes {
    /// The user has as much already as one may have.
    #[error(
        "your requests, and the answers that you have not taken yet, have as much memory as one user's may ({})",
        size(EACH)
    )]
    OfUser,
    /// All users have.
    #[error("the server holds as much for slow clients as it can")]
    OfAll,
}

/// What is held. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct HeldTotals(Arc<Mutex<Totals>>);

#[derive(Debug, Default)]
struct Totals {
    all: u64,
    users: HashMap<UserId, u64>,
}

impl HeldTotals {
    pub(super) fn hold(&self, user: &UserId, bytes: u64) -> Result<HeldBytes, TooManyBytes> {
        let mut totals = self.0.lock();
        let held = totals.users.get(user).copied().unwrap_or(0);
        let then = held.saturating_add(bytes);
        if held > 0 && then > EACH {
            return Err(TooManyBytes::OfUser);
        }
        let all = totals.all - held.min(EACH) + then.min(EACH);
        if all > ALL && then > LITTLE {
            return Err(TooManyBytes::OfAll);
        }
        totals.all = all;
        totals.users.insert(user.clone(), then);
        Ok(HeldBytes(Arc::new(Held {
            user: user.clone(),
            bytes,
            totals: self.clone(),
        })))
    }
}

/// So many bytes of a user's, until the last clone is dropped.
#[derive(Clone)]
pub struct HeldBytes(Arc<Held>);

struct Held {
    user: UserId,
    bytes: u64,
    totals: HeldTotals,
}

impl fmt::Debug for HeldBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeldBytes").field(&self.0.bytes).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut totals = self.totals.0.lock();
        let held = totals.users.get(&self.user).copied().unwrap_or(0);
        let then = held.saturating_sub(self.bytes);
        totals.all = totals.all - held.min(EACH) + then.min(EACH);
        if then == 0 {
            totals.users.remove(&self.user);
        } else {
            totals.users.insert(self.user.clone(), then);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_may_have_so_much_and_another_is_not_asked_about_it() {
        let totals = HeldTotals::default();
        let (flood, other) = (UserId::from("flood"), UserId::from("other"));
        let half = totals.hold(&flood, EACH / 2).unwrap();
        let rest = totals.hold(&flood, EACH / 2).unwrap();
        assert_eq!(totals.hold(&flood, 1).unwrap_err(), TooManyBytes::OfUser);
        let large = totals.hold(&other, EACH * 2);
        assert!(large.is_ok(), "the first is held, however large");
        drop(half);
        assert!(totals.hold(&flood, EACH / 2).is_ok());
        drop((rest, large));
        assert!(totals.0.lock().users.is_empty());
    }

    #[test]
    fn all_users_together_may_have_so_much() {
        let totals = HeldTotals::default();
        let number = ALL / EACH;
        let held: Vec<_> = (0..number)
            .map(|user| totals.hold(&format!("{user}").into(), EACH).unwrap())
            .collect();
        let one_more = totals.hold(&"one-more".into(), LITTLE + 1);
        assert_eq!(one_more.unwrap_err(), TooManyBytes::OfAll);
        let little = totals.hold(&"one-more".into(), LITTLE);
        drop(little.unwrap());
        drop(held);
        assert_eq!(totals.0.lock().all, 0);
        assert!(totals.hold(&"one-more".into(), EACH).is_ok());
    }

    #[test]
    fn one_user_with_the_largest_answer_keeps_nobody_from_theirs() {
        let totals = HeldTotals::default();
        let large = totals.hold(&"large".into(), ALL * 2).unwrap();
        assert!(totals.hold(&"other".into(), EACH).is_ok());
        drop(large);
        assert_eq!(totals.0.lock().all, 0);
    }
}
