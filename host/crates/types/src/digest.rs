//! The digest that names contents everywhere in the host: plugins, files, manifests.
//!
//! Its text is 64 hexadecimal digits. WIT types, registries and manifests name the algorithm before
//! them, as in `sha256:ba78…`: [`Digest::with_algorithm`] and [`Digest::parse_with_algorithm`] are
//! for those.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// The algorithm's name, as it precedes the digits.
const ALGORITHM: &str = "sha256:";

/// A SHA-256, written in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A text that is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 of 64 hexadecimal digits in lower case")]
pub struct DigestError;

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The text with the algorithm before it.
    pub fn with_algorithm(&self) -> String {
        format!("{ALGORITHM}{self}")
    }

    /// Reads the text that [`Digest::with_algorithm`] gives.
    ///
    /// # Errors
    ///
    /// Fails if the algorithm is another one, or if no digest follows it.
    pub fn parse_with_algorithm(text: &str) -> Result<Self, DigestError> {
        text.strip_prefix(ALGORITHM).ok_or(DigestError)?.parse()
    }
}

impl From<[u8; 32]> for Digest {
    /// The digest that a hasher gave.
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The decoder takes upper case too.
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(DigestError);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestError)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The SHA-256 of bytes, in lower-case hex, where a text is wanted that names nothing.
#[must_use]
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    Digest::of(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_digest_is_64_digits_in_lower_case() {
        let digest = Digest::of("abc");
        assert_eq!(digest.to_string(), ABC);
        assert_eq!(ABC.parse(), Ok(digest));
        assert_eq!(
            serde_json::to_string(&digest).unwrap(),
            format!("\"{ABC}\"")
        );
        let read: Digest = serde_json::from_str(&format!("\"{ABC}\"")).unwrap();
        assert_eq!(read, digest);
    }

    #[test]
    fn a_digest_has_its_algorithm_where_that_is_asked_for_and_only_there() {
        let digest = Digest::of("abc");
        let text = digest.with_algorithm();
        assert_eq!(text, format!("sha256:{ABC}"));
        assert_eq!(Digest::parse_with_algorithm(&text), Ok(digest));
        assert_eq!(Digest::parse_with_algorithm(ABC), Err(DigestError));
        assert_eq!(text.parse::<Digest>(), Err(DigestError));
    }

    #[test]
    fn another_text_is_no_digest() {
        for text in [
            "",
            "abc",
            &ABC[1..],
            &ABC.to_uppercase(),
            &ABC.replace('b', "g"),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(DigestError), "{text:?}");
        }
    }
}
