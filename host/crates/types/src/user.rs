//! User ids.
//!
//! # Invariants
//!
//! - An id from outside was validated once, where the caller's identity was established. Code that
//!   makes one from text inside the host vouches for it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The maximum length of a user id in bytes: it ends up in rows, labels and logs.
const LONGEST_USER: usize = 255;

/// A user's id, as assigned by the identity provider.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub String);

impl UserId {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Validates an id from outside: not empty, not too long, and without control characters.
    pub fn checked(text: &str) -> Option<Self> {
        let fits =
            !text.is_empty() && text.len() <= LONGEST_USER && !text.chars().any(char::is_control);
        fits.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for UserId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<String> for UserId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for UserId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
