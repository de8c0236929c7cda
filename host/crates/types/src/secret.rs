//! The one type for keys, tokens and passwords.
//!
//! # Invariants
//!
//! - A [`Secret`] cannot be printed, logged or serialised by accident: its `Debug` and `Display`
//!   are `[secret]`, and it has no `Serialize`.
//! - It is wiped when dropped.
//! - The text is reached only through [`Secret::expose`], a name that is easy to search for in a
//!   review.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// For buffers that hold a secret's bytes on their way into or out of a [`Secret`].
pub use secrecy::zeroize::{Zeroize, Zeroizing};

/// A text that must not be shown.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes ownership of a text. The caller keeps no other copy.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The text itself, for the place that needs it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The length of the text in bytes.
    pub fn len(&self) -> usize {
        self.expose().len()
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.expose().is_empty()
    }

    /// Compares with a caller's input. Digests are compared, in constant time, so the time taken
    /// reveals neither the text nor its length.
    pub fn matches(&self, given: &[u8]) -> bool {
        let ours = Sha256::digest(self.expose().as_bytes());
        let theirs = Sha256::digest(given);
        ours.as_slice().ct_eq(theirs.as_slice()).into()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_a_placeholder_however_it_is_printed() {
        let secret = Some(Secret::new("hunter2"));
        assert_eq!(format!("{secret:?}"), "Some([secret])");
        assert_eq!(Secret::new("hunter2").to_string(), "[secret]");
        assert!(!format!("{secret:#?}").contains("hunter2"));
    }

    #[test]
    fn a_secret_gives_its_text_when_it_is_asked_for_by_name() {
        let secret: Secret = serde_json::from_str("\"hunter2\"").unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(secret.len(), 7);
        assert!(!secret.is_empty());
    }

    #[test]
    fn a_secret_matches_only_the_same_bytes() {
        let secret = Secret::new("hunter2");
        assert!(secret.matches(b"hunter2"));
        assert!(!secret.matches(b"hunter"));
        assert!(!secret.matches(b"hunter3"));
        assert!(!secret.matches(b""));
    }
}
