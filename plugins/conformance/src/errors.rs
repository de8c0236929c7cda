//! Errors sent with a success status.
//!
//! The forms checked here are used by servers and the proxies before them, whatever API they speak.

use lucid_plugin::llm::{Adapter, Frame};
use lucid_plugin::types::ErrorKind;
use serde_json::{Value, json};

use crate::{Suite, cut, decode};

const SAID: &str = "The server had a hiccup.";

/// Errors that each contain [`SAID`] somewhere.
fn errors() -> Vec<Value> {
    vec![
        json!({"object": "error", "message": SAID, "type": "ServerError", "param": null, "code": 500}),
        json!({"error": {"message": SAID, "type": "server_error", "code": null}}),
        json!({"error": {"message": "Provider returned error", "code": 500, "metadata": {"raw": format!("{{\"message\": \"{SAID}\"}}")}}}),
        json!({"error": SAID}),
        json!({"error": {"message": {"detail": [{"loc": ["body", 0], "msg": SAID}]}}}),
        json!({"code": 500, "message": SAID}),
        json!({"code": "1234", "msg": SAID, "success": false}),
        json!({"detail": SAID}),
        json!({"detail": [{"type": "x", "loc": ["body", "x"], "msg": SAID}]}),
        json!({"message": SAID}),
        json!({"errors": [{"message": SAID}]}),
        json!({"type": "error", "message": SAID}),
        json!({"error_code": 7, "error_msg": SAID}),
        json!({"base_resp": {"status_code": 1000, "status_msg": SAID}}),
        json!({"fault": {"faultstring": SAID, "detail": {"errorcode": "x"}}}),
        json!([{"error": {"code": 500, "message": SAID, "status": "INTERNAL"}}]),
    ]
}

impl<A: Adapter> Suite<A> {
    /// Checks that an error is reported as one, with its server's message, wherever it is in a
    /// response.
    pub(crate) fn errors_within(&self) {
        for error in errors() {
            self.told_everywhere(&error, SAID, None);
        }
        let long = "This model's maximum context length is 4096 tokens.";
        for error in [
            json!({"object": "error", "message": long, "code": 400}),
            json!({"code": 400, "message": long}),
            json!({"detail": long}),
            json!({"error": long}),
        ] {
            self.told_everywhere(&error, long, Some(ErrorKind::ContextTooLong));
        }
        for (said, kind) in [
            (
                "model \"m\" not found, try pulling it first",
                ErrorKind::InvalidInput,
            ),
            ("Insufficient balance", ErrorKind::InvalidInput),
            ("Invalid response from upstream", ErrorKind::Upstream),
            ("Rate limit quota violation", ErrorKind::Upstream),
            (
                "Quota check timed out, try again later",
                ErrorKind::Upstream,
            ),
        ] {
            self.told_everywhere(&json!({ "error": said }), said, Some(kind));
        }
        self.plain_words();
    }

    fn told_everywhere(&self, error: &Value, said: &str, kind: Option<ErrorKind>) {
        let text = error.to_string();
        let words = self.words();
        for body in [
            format!("data: {text}\n\n"),
            format!("event: error\ndata: {text}\n\n"),
            format!("{words}data: {text}\n\n"),
            format!("{words}event: error\ndata: {text}\n\n"),
        ] {
            let told = decode::<A>(cut(&[body.as_bytes()])).expect_err(&body);
            assert!(told.message.contains(said), "{body}: {told:?}");
            assert!(
                kind.is_none_or(|kind| told.kind == kind),
                "{body}: {told:?}"
            );
        }
        for at in 0..=text.len() {
            let Some((head, tail)) = text.split_at_checked(at) else {
                continue;
            };
            let frames = [head, tail].map(|piece| Frame::Body(piece.as_bytes().to_vec()));
            let told = decode::<A>(frames.to_vec()).expect_err(&text);
            assert!(told.message.contains(said), "{text}: {told:?}");
            assert!(
                kind.is_none_or(|kind| told.kind == kind),
                "{text}: {told:?}"
            );
        }
    }

    /// The beginning of a response, as it is streamed.
    fn words(&self) -> String {
        let body = self.read("text.sse");
        let ends = body.match_indices("\n\n").map(|(at, _)| at + 2);
        let ends: Vec<usize> = ends.take(2).collect();
        body[..ends[1]].to_owned()
    }

    fn plain_words(&self) {
        let whole = |body: &str| {
            let told = decode::<A>(vec![Frame::Body(body.as_bytes().to_vec())]);
            told.expect_err(body)
        };
        let page = whole(
            "<!DOCTYPE html><html><head><title>Sign in to the network</title></head><body>Hi</body></html>",
        );
        assert_eq!(page.kind, ErrorKind::InvalidInput, "{page:?}");
        assert!(page.message.contains("Sign in to the network"), "{page:?}");
        let page = whole("<html><h1>502 Bad Gateway</h1></html>");
        assert_eq!(page.kind, ErrorKind::Upstream, "{page:?}");
        assert!(!page.message.contains('<'), "{page:?}");
        for other in ["[]", "null", "\"no\"", "{}", "{\"state\":\"asleep\"}"] {
            let told = whole(other);
            assert_eq!(
                told.code.as_deref(),
                Some("unreadable"),
                "{other}: {told:?}"
            );
            assert!(told.message.contains(other), "{other}: {told:?}");
        }
        let nothing = whole("");
        assert_eq!(nothing.kind, ErrorKind::Upstream);
        assert!(nothing.message.contains("empty"), "{nothing:?}");
        assert_eq!(whole("upstream connect error").kind, ErrorKind::Upstream);
        let named = decode::<A>(cut(&[b"event: error\ndata: The server had a hiccup.\n\n"]));
        assert!(named.unwrap_err().message.contains(SAID));
    }
}
