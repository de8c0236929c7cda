//! The tokens of recently seen users.
//!
//! # Invariants
//! - A token is in memory only, was verified before it came here, is used for its own user alone,
//!   and is never used after it has expired.
//! - The number of tokens is limited.

use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde::Deserialize;

use crate::chat_store::Principal;
use lucid_types::identity::Identity;
use lucid_types::secret::Secret;
use lucid_types::user::UserId;

/// Maximum number of users whose tokens are kept.
const MOST: usize = 4096;
/// A token that expires within this many seconds may do so in transit.
const MARGIN: u64 = 5;

#[derive(Default)]
pub(super) struct UserTokens {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tokens: HashMap<UserId, HeldToken>,
    /// Users whose rows wait for a token.
    waiting_users: HashSet<UserId>,
}

struct HeldToken {
    token: Secret,
    /// Expiry in seconds since 1970.
    expires: u64,
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Reads a token's expiry. Its signature was verified before.
fn expiry(token: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let payload = token.split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    // Out-of-range values saturate.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    Some(claims.exp as u64)
}

impl UserTokens {
    /// Stores the token of an active user. Returns whether something was waiting for it.
    pub(super) fn store_token(&self, who: &Identity) -> bool {
        let Some(token) = &who.token else {
            return false;
        };
        let Some(expires) = expiry(token.expose()) else {
            return false;
        };
        let mut inner = self.inner.lock();
        if inner.tokens.len() >= MOST && !inner.tokens.contains_key(&who.user) {
            let now = now();
            inner.tokens.retain(|_, held| held.expires > now);
            if inner.tokens.len() >= MOST {
                let first = inner.tokens.iter().min_by_key(|(_, held)| held.expires);
                if let Some(user) = first.map(|(user, _)| user.clone()) {
                    inner.tokens.remove(&user);
                }
            }
        }
        let token = token.clone();
        inner
            .tokens
            .insert(who.user.clone(), HeldToken { token, expires });
        inner.waiting_users.remove(&who.user)
    }

    /// Returns a caller with the user's token, if it is valid for a while.
    pub(super) fn caller(&self, user: &UserId) -> Option<Principal> {
        let inner = self.inner.lock();
        let held = inner.tokens.get(user)?;
        (held.expires > now() + MARGIN).then(|| Principal::User {
            id: user.clone(),
            token: held.token.clone(),
        })
    }

    /// Drops a user's token that was rejected, unless another one has arrived meanwhile.
    pub(super) fn remove_rejected(&self, caller: &Principal) {
        let Principal::User { id, token } = caller else {
            return;
        };
        let mut inner = self.inner.lock();
        let same = |held: &HeldToken| held.token.expose() == token.expose();
        if inner.tokens.get(id).is_some_and(same) {
            inner.tokens.remove(id);
        }
    }

    /// Records that a user's rows wait for a token.
    pub(super) fn mark_waiting(&self, user: &UserId) {
        let mut inner = self.inner.lock();
        inner.waiting_users.insert(user.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: &str, expires: u64) -> Identity {
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{expires}}}"#));
        Identity {
            user: user.into(),
            token: Some(Secret::new(format!("h.{claims}.{user}"))),
            project: None,
            session: None,
            admin: false,
        }
    }

    #[test]
    fn a_token_is_given_for_its_own_user_until_it_expires() {
        let tokens = UserTokens::default();
        tokens.store_token(&who("ann", now() + 100));
        tokens.store_token(&who("bob", now() + 2));
        let ann = tokens.caller(&"ann".into()).unwrap();
        let Principal::User { id, token } = &ann else {
            panic!("{ann:?}")
        };
        assert!(id.as_str() == "ann" && token.expose().ends_with(".ann"));
        assert!(tokens.caller(&"bob".into()).is_none(), "about to expire");
        assert!(tokens.caller(&"eve".into()).is_none());
        tokens.remove_rejected(&ann);
        assert!(tokens.caller(&"ann".into()).is_none(), "it was not taken");
    }

    #[test]
    fn a_newer_token_is_not_dropped_for_an_older_one() {
        let tokens = UserTokens::default();
        tokens.store_token(&who("ann", now() + 100));
        let old = tokens.caller(&"ann".into()).unwrap();
        tokens.store_token(&who("ann", now() + 200));
        tokens.remove_rejected(&old);
        assert!(tokens.caller(&"ann".into()).is_some());
    }

    #[test]
    fn a_token_that_was_missed_is_told_of_once() {
        let tokens = UserTokens::default();
        assert!(!tokens.store_token(&who("ann", now() + 100)));
        tokens.mark_waiting(&"ann".into());
        assert!(!tokens.store_token(&who("bob", now() + 100)));
        assert!(tokens.store_token(&who("ann", now() + 100)));
        assert!(!tokens.store_token(&who("ann", now() + 100)));
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let tokens = UserTokens::default();
        for number in 0..MOST as u64 + 10 {
            tokens.store_token(&who(&number.to_string(), now() + 100 + number));
        }
        assert_eq!(tokens.inner.lock().tokens.len(), MOST);
        assert!(tokens.caller(&"0".into()).is_none(), "expires first");
        let garbage = Identity {
            token: Some(Secret::new("no token")),
            ..who("eve", 0)
        };
        assert!(!tokens.store_token(&garbage) && tokens.caller(&"eve".into()).is_none());
    }
}
