//! The memory that requests take for as long as their clients take time: bodies that have not arrived
//! whole, and answers that have not been taken.
//!
//! # Invariants
//!
//! - What is held for one user has a limit, whatever the number of their connections, and so has what is
//!   held for all users together.
//! - A user for whom nothing is held is never refused for their own sake, however large one answer is.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use lucid_types::plural::size;
use lucid_types::user::UserId;

/// What may be held for one user, in bytes.
const EACH: u64 = 64 << 20;
/// What may be held for all users, in bytes.
const ALL: u64 = 1 << 30;

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
        if held > 0 && held.saturating_add(bytes) > EACH {
            return Err(TooManyBytes::OfUser);
        }
        if totals.all > 0 && totals.all.saturating_add(bytes) > ALL {
            return Err(TooManyBytes::OfAll);
        }
        totals.all += bytes;
        totals.users.insert(user.clone(), held + bytes);
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
        totals.all -= self.bytes;
        if let Some(held) = totals.users.get_mut(&self.user) {
            *held -= self.bytes;
            if *held == 0 {
                totals.users.remove(&self.user);
            }
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
        let one_more = totals.hold(&"one-more".into(), 1);
        assert_eq!(one_more.unwrap_err(), TooManyBytes::OfAll);
        drop(held);
        assert_eq!(totals.0.lock().all, 0);
        assert!(totals.hold(&"one-more".into(), 1).is_ok());
    }
}
