//! Parsing of a client's messages: the first one, and those that follow.
//!
//! # Invariants
//!
//! - Parsing a message decides nothing about who sent it.
//! - No message, however malformed, has a worse effect than a response that says what is wrong with
//!   it.

use serde::Deserialize;
use serde_json::Value;

use super::frames::named;
use crate::api::session_request::{SessionRequest, non_blank, non_empty};
use lucid_session::Features;
use lucid_types::secret::Secret;
use lucid_types::unicode::paired_text;

/// The first message.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectRequest {
    /// The requested session, if none is named.
    #[serde(flatten)]
    pub(super) request: SessionRequest,
    /// The token, unless it was in the URL.
    token: Option<Secret>,
    /// The id of an existing session.
    session_id: Option<String>,
    /// The number of the last frame that the client has. Everything after it is sent again.
    pub(super) last_seq: Option<u64>,
    features: Option<Vec<String>>,
}

impl ConnectRequest {
    /// The token in the message.
    pub(super) fn token(&self) -> Option<Secret> {
        non_empty(self.token.clone())
    }

    /// The id of the session.
    pub(super) fn session_id(&self) -> Option<String> {
        non_blank(self.session_id.clone())
    }

    /// The requested features.
    pub(super) fn features(&self) -> Features {
        named(self.features.iter().flatten().map(String::as_str))
    }
}

/// The first message after parsing.
#[derive(Debug)]
pub(super) enum Handshake {
    /// The handshake.
    Hello(Box<ConnectRequest>),
    /// A ping before the handshake.
    Ping,
    /// Not a handshake. The sentence says why.
    Wrong(String),
}

/// Parses the first message.
pub(super) fn parse_handshake(text: &str) -> Handshake {
    let value: Value = match serde_json::from_str(&paired_text(text)) {
        Ok(value @ Value::Object(_)) => value,
        Ok(_) => return Handshake::Wrong("The first message must be a JSON object.".to_owned()),
        Err(_) => return Handshake::Wrong("The first message is not JSON.".to_owned()),
    };
    if value.get("type").and_then(Value::as_str) == Some("ping") && value.get("task").is_none() {
        return Handshake::Ping;
    }
    match serde_json::from_value(value) {
        Ok(request) => Handshake::Hello(Box::new(request)),
        // The parser's own message repeats the input, which may contain a misplaced secret.
        Err(_) => Handshake::Wrong(
            "A member of the first message has a type that does not fit.".to_owned(),
        ),
    }
}

/// A later message after parsing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientMessage {
    /// A follow-up.
    Message(String),
    /// A blank follow-up.
    Empty,
    /// A request to end the session.
    Stop,
    /// A ping.
    Ping,
    /// A message of an unknown kind, which is ignored.
    Unknown,
    /// Not a JSON object.
    Wrong,
}

/// Parses a later message.
pub(super) fn parse_message(text: &str) -> ClientMessage {
    let Ok(Value::Object(mut message)) = serde_json::from_str(&paired_text(text)) else {
        return ClientMessage::Wrong;
    };
    let content = match message.remove("content") {
        Some(Value::String(content)) => content,
        _ => String::new(),
    };
    match message.get("type").and_then(Value::as_str) {
        Some("message") if content.trim().is_empty() => ClientMessage::Empty,
        Some("message") => ClientMessage::Message(content),
        Some("stop") => ClientMessage::Stop,
        Some("ping") => ClientMessage::Ping,
        _ => ClientMessage::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;

    use super::*;

    fn hello(text: &str) -> ConnectRequest {
        match parse_handshake(text) {
            Handshake::Hello(request) => *request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_message_of_an_old_client_is_read() {
        let read = hello(
            r#"{"task":"do it","repoUrl":"https://x/y.git","gitToken":"g","branch":"main","gitUserName":"n",
                "gitUserEmail":"e@x","projectId":"p","modelProvider":"openai","apiKey":"k","token":"t"}"#,
        );
        assert_eq!(read.request.task(), Some("do it"));
        assert_eq!(read.request.repo_url(), Some("https://x/y.git"));
        assert_eq!(read.token().unwrap().expose(), "t");
        assert_eq!(
            (read.session_id().as_deref(), read.last_seq, read.features()),
            (None, None, Features::default())
        );
    }

    #[test]
    fn the_newer_members_are_read_and_may_be_null() {
        let read = hello(r#"{"sessionId":"s","lastSeq":12,"features":["seq","deltas","unknown"]}"#);
        assert_eq!(
            (read.session_id().as_deref(), read.last_seq),
            (Some("s"), Some(12))
        );
        assert_eq!(
            read.features(),
            Features {
                seq: true,
                deltas: true,
                // Numbers have no holes.
                usage: true,
                ..Features::default()
            }
        );
        let read = hello(
            r#"{"task":null,"sessionId":"","lastSeq":null,"features":null,"token":null,"other":{}}"#,
        );
        assert!(read.session_id().is_none() && read.last_seq.is_none() && read.token().is_none());
        assert!(read.request.task().is_none());
    }

    #[test]
    fn what_is_no_handshake_is_told_so_without_being_repeated() {
        for text in [
            "",
            "{",
            "[]",
            "\"task\"",
            "7",
            r#"{"task":["hunter2"]}"#,
            r#"{"lastSeq":-1}"#,
        ] {
            let Handshake::Wrong(why) = parse_handshake(text) else {
                panic!("{text}")
            };
            assert!(why.ends_with('.') && !why.contains("hunter2"));
        }
    }

    #[test]
    fn a_ping_before_the_handshake_is_a_ping() {
        assert!(matches!(
            parse_handshake(r#"{"type":"ping"}"#),
            Handshake::Ping
        ));
        assert!(matches!(
            parse_handshake(r#"{"type":"start","task":"t"}"#),
            Handshake::Hello(_)
        ));
    }

    #[test]
    fn half_a_surrogate_pair_is_the_replacement_character() {
        let read = hello(r#"{"task":"fix \ud83d","projectId":"\udc00","\ud800":1}"#);
        assert_eq!(read.request.task(), Some("fix \u{fffd}"));
        assert_eq!(
            parse_message(r#"{"type":"message","content":"\ud83d\ude00 or \ud83d"}"#),
            ClientMessage::Message("😀 or \u{fffd}".into())
        );
    }

    #[test]
    fn later_messages_are_told_apart() {
        assert_eq!(
            parse_message(r#"{"type":"message","content":"go on"}"#),
            ClientMessage::Message("go on".into())
        );
        for empty in [
            r#"{"type":"message"}"#,
            r#"{"type":"message","content":" \n"}"#,
            r#"{"type":"message","content":3}"#,
        ] {
            assert_eq!(parse_message(empty), ClientMessage::Empty, "{empty}");
        }
        assert_eq!(
            parse_message(r#"{"type":"stop","content":"enough"}"#),
            ClientMessage::Stop
        );
        assert_eq!(parse_message(r#"{"type":"stop"}"#), ClientMessage::Stop);
        assert_eq!(parse_message(r#"{"type":"ping"}"#), ClientMessage::Ping);
        assert_eq!(parse_message(r#"{"type":"dance"}"#), ClientMessage::Unknown);
        assert_eq!(parse_message("{}"), ClientMessage::Unknown);
        for wrong in ["", "nonsense", "[1]", "{"] {
            assert_eq!(parse_message(wrong), ClientMessage::Wrong, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_mutated_message_is_a_request_or_a_sentence_that_repeats_none_of_it(
            text in mutated_text([
                r#"{"task":"do it","repoUrl":"https://x/y.git","gitToken":"hunter2-hunter2","branch":"main","apiKey":"hunter2-hunter2"}"#,
                r#"{"sessionId":"s","lastSeq":7,"token":"hunter2-hunter2","features":["seq","deltas"]}"#,
                r#"{"type":"message","content":"\ud83d\ude00 or \ud83d"}"#,
                r#"{"type":"ping"}"#,
            ]),
        ) {
            if let Handshake::Wrong(why) = parse_handshake(&text) {
                prop_assert!(why.len() < 200 && !why.contains("hunter2"), "{}", why);
            }
            if let ClientMessage::Message(content) = parse_message(&text) {
                prop_assert!(content.len() <= 3 * text.len());
            }
        }
    }
}
