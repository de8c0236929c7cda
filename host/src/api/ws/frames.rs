//! The frames that belong to one connection rather than to its session, and the names of the
//! requests a client may make.
//!
//! # Invariants
//!
//! - A frame made here is in no log and has no number.

use serde::Serialize;

use lucid_session::Features;

/// Reads `features`. Unknown names are ignored. A client that wants numbers gets every row of the
/// log, since a hole would look like a loss.
pub(super) fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Features {
    let mut features = Features::default();
    for name in names {
        match name {
            "seq" => (features.seq, features.usage) = (true, true),
            "deltas" => features.deltas = true,
            "diffs" => features.diffs = true,
            "usage" => features.usage = true,
            _ => {}
        }
    }
    features
}

/// A frame of this connection alone.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum ServerMessage<'a> {
    /// The reply to a ping.
    Pong,
    /// The frames from one number to another, inclusive, are unavailable.
    Gap {
        /// The first number.
        from: u64,
        /// The last number.
        to: u64,
    },
    /// An error.
    Error {
        /// The message.
        message: &'a str,
    },
}

impl ServerMessage<'_> {
    /// Its JSON.
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self)
            .unwrap_or_else(|_| r#"{"type":"error","message":"internal"}"#.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn features_that_are_not_known_are_passed_over() {
        let none = Features::default();
        assert_eq!(
            named(["later", "deltas", "usage"]),
            Features {
                deltas: true,
                usage: true,
                ..none
            }
        );
        assert_eq!(named([]), none);
    }

    #[test]
    fn numbers_come_without_a_hole() {
        assert!(named(["seq"]).usage);
    }

    #[test]
    fn own_frames_are_the_contracts() {
        assert_eq!(ServerMessage::Pong.text(), r#"{"type":"pong"}"#);
        let error: Value = serde_json::from_str(
            &ServerMessage::Error {
                message: "Empty content",
            }
            .text(),
        )
        .unwrap();
        assert_eq!(error, json!({"type": "error", "message": "Empty content"}));
    }
}
