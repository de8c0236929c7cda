//! Ids of sessions and effects. User ids are in [`crate::user`], digests in [`crate::digest`].
//!
//! # Invariants
//!
//! - An id's text is what the log's rows and clients have.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// A session's id, stable for its whole life and across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Uuid);

/// A text that is no session's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a session id: {0}")]
pub struct SessionIdError(#[from] uuid::Error);

impl SessionId {
    /// A new id. Later ids are greater, to the millisecond.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "each id is another, which is no default"
    )]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = SessionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Uuid::try_parse(text)?))
    }
}

/// The id of an effect, as its policy chose it; unique among a session's open effects. Cheap to
/// clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EffectId(Arc<str>);

impl EffectId {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// Ordered and hashed as its text, so maps can be searched with either.
impl Borrow<str> for EffectId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for EffectId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for EffectId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

impl From<String> for EffectId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for EffectId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<EffectId> for String {
    fn from(id: EffectId) -> Self {
        id.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_is_its_hyphenated_text_wherever_it_is_written() {
        let text = "0197f1c2-3a5b-7c6d-8e9f-a0b1c2d3e4f5";
        let id: SessionId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{text}\""));
        let read: SessionId = serde_json::from_str(&format!("\"{text}\"")).unwrap();
        assert_eq!(read, id);
        assert_eq!(text.to_uppercase().parse(), Ok(id));
    }

    #[test]
    fn a_text_that_is_no_uuid_is_no_session_id() {
        for text in ["", "session", "0197f1c2-3a5b-7c6d-8e9f"] {
            assert!(text.parse::<SessionId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn later_session_ids_are_greater() {
        let first = SessionId::new();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(first < SessionId::new());
    }

    #[test]
    fn an_effect_is_found_by_its_text() {
        let open = std::collections::BTreeMap::from([(EffectId::from("a"), 1)]);
        assert_eq!(open.get("a"), Some(&1));
    }
}
