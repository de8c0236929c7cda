//! Tokens that were verified, so that a caller's next request with the same one costs a digest in place of a
//! signature.
//!
//! # Invariants
//! - A token counts as verified only until it expires, and only with the keys that are in use when it is
//!   presented: where these were fetched anew, or grew too old, it is verified again.
//! - Tokens are known by their digests; none is kept here.
//! - What is kept is bounded, whatever callers send.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jsonwebtoken::get_current_timestamp;
use parking_lot::Mutex;

use super::keys::KeySet;
use lucid_types::digest::Digest;
use lucid_types::identity::Identity;
use lucid_types::secret::Secret;

/// How many tokens are known at once.
const MOST: usize = 4096;
/// The length of the longest token that is, in bytes. Its claims are no longer.
const LONGEST: usize = 4096;

/// The keys that a token was verified with: `None` for the shared secret, which never changes.
pub(super) type UsedKeys = Option<Arc<KeySet>>;

/// The tokens that were verified lately.
#[derive(Default)]
pub(super) struct VerifiedTokens(Mutex<TokenQueue>);

#[derive(Default)]
struct TokenQueue {
    tokens: HashMap<Digest, VerifiedToken>,
    /// In the order in which they were verified.
    order: VecDeque<Digest>,
}

struct VerifiedToken {
    /// Without the token itself.
    who: Identity,
    /// In seconds since 1970.
    expires: u64,
    keys: UsedKeys,
}

impl VerifiedTokens {
    /// Whose token this is, if it was verified and would be again. `current` are the provider's keys that
    /// are in use now.
    pub(super) fn find(&self, token: &str, current: &UsedKeys) -> Option<Identity> {
        if token.len() > LONGEST {
            return None;
        }
        let digest = Digest::of(token);
        let known = self.0.lock();
        let found = known.tokens.get(&digest)?;
        let has_same_keys = match (&found.keys, current) {
            (None, _) => true,
            (Some(used), Some(current)) => Arc::ptr_eq(used, current),
            (Some(_), None) => false,
        };
        (has_same_keys && get_current_timestamp() < found.expires).then(|| Identity {
            token: Some(Secret::new(token)),
            ..found.who.clone()
        })
    }

    /// Remembers a token that was just verified with these keys.
    pub(super) fn add(&self, token: &str, who: &Identity, expires: u64, keys: UsedKeys) {
        if token.len() > LONGEST {
            return;
        }
        let digest = Digest::of(token);
        let who = Identity {
            token: None,
            ..who.clone()
        };
        let verified = VerifiedToken { who, expires, keys };
        let mut known = self.0.lock();
        if known.tokens.insert(digest, verified).is_some() {
            return;
        }
        known.order.push_back(digest);
        if known.order.len() > MOST
            && let Some(oldest) = known.order.pop_front()
        {
            known.tokens.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: &str) -> Identity {
        Identity {
            user: user.into(),
            token: Some(Secret::new("a token")),
            project: Some("p".to_owned()),
            session: None,
            admin: false,
        }
    }

    fn keys() -> UsedKeys {
        let set = KeySet::read(br#"{"keys":[]}"#).unwrap();
        Some(Arc::new(set))
    }

    #[test]
    fn a_token_is_known_until_it_expires_and_while_the_keys_are_the_same() {
        let (tokens, soon) = (VerifiedTokens::default(), get_current_timestamp() + 60);
        let (used, others) = (keys(), keys());
        tokens.add("secret", &who("a"), soon, None);
        tokens.add("expired", &who("b"), get_current_timestamp(), None);
        tokens.add("public", &who("c"), soon, used.clone());
        let user = |token: &str, current: &UsedKeys| {
            let found = tokens.find(token, current)?;
            assert_eq!(found.token.unwrap().expose(), token);
            assert_eq!(found.project.as_deref(), Some("p"));
            Some(found.user.to_string())
        };
        for (token, current, expected) in [
            ("secret", &None, Some("a")),
            ("secret", &used, Some("a")),
            ("secreT", &None, None),
            ("expired", &None, None),
            ("public", &used, Some("c")),
            ("public", &others, None),
            ("public", &None, None),
        ] {
            assert_eq!(user(token, current).as_deref(), expected, "{token}");
        }
        tokens.add("public", &who("c"), soon, others.clone());
        assert_eq!(user("public", &others).as_deref(), Some("c"));
    }

    #[test]
    fn no_more_are_kept_than_so_many_and_no_long_ones() {
        let (tokens, soon) = (VerifiedTokens::default(), get_current_timestamp() + 60);
        for number in 0..MOST + 10 {
            tokens.add(&number.to_string(), &who("a"), soon, None);
            tokens.add(&number.to_string(), &who("a"), soon, None);
        }
        let known = tokens.0.lock();
        assert_eq!((known.tokens.len(), known.order.len()), (MOST, MOST));
        drop(known);
        assert!(tokens.find("9", &None).is_none());
        assert!(tokens.find("10", &None).is_some());
        let long = "x".repeat(LONGEST + 1);
        tokens.add(&long, &who("a"), soon, None);
        assert!(tokens.find(&long, &None).is_none());
    }
}
