//! Undocumented requirements of a server, learned from its refusals.
//!
//! Servers that speak one API differ in which roles may follow each other and in what must, or must
//! not, be sent back with a response. There is no way to query this, and a setting for it would
//! have to be found by whoever sees the refusal. So a refusal that names such a requirement is
//! followed once by a request in the other form, and the lesson holds for that server and model as
//! long as the component is loaded.
//!
//! # Invariants
//!
//! - A request is sent in another form only if the refusal mentions that form, and each form is
//!   tried once.
//! - A provider adapter that does not know a form ignores it in `params`.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::provenance::{ResponseOrigin, strip_vendor_pieces};
use lucid_types::wit::llm::CompletionRequest;
use lucid_types::wit::types::{Error, ErrorKind};

/// The maximum number of remembered pairs of server and model.
const MOST: usize = 1_000;

/// The requirements of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Quirks {
    /// A model message is required between a tool message and a user message.
    alternate: bool,
    /// No system message is accepted.
    no_system: bool,
    /// Reasoning is required with each response that has calls, even if there was none.
    reasoning: bool,
    /// The token counts of a stream must not be requested.
    uncounted: bool,
    /// Only members of the API itself are accepted.
    bare: bool,
    /// As `strip_vendor_pieces`, but for this conversation only: something in it is no longer valid.
    bare_now: bool,
}

/// The learned requirements of all servers of one adapter.
#[derive(Debug, Default)]
pub(super) struct LearnedQuirks(Mutex<BTreeMap<String, Quirks>>);

impl LearnedQuirks {
    /// The requirements of this origin.
    pub(super) fn of(&self, origin: &ResponseOrigin) -> Quirks {
        self.0
            .lock()
            .get(origin.as_str())
            .copied()
            .unwrap_or_default()
    }

    /// Remembers the form in which a request was accepted.
    pub(super) fn remember(&self, origin: &ResponseOrigin, quirks: Quirks) {
        let quirks = Quirks {
            bare_now: false,
            ..quirks
        };
        let mut all = self.0.lock();
        if all.len() < MOST || all.contains_key(origin.as_str()) {
            all.insert(origin.as_str().to_owned(), quirks);
        }
    }
}

impl Quirks {
    /// The request in the required form.
    pub(super) fn applied(self, request: &CompletionRequest) -> CompletionRequest {
        let without = if self.bare || self.bare_now {
            strip_vendor_pieces(request)
        } else {
            None
        };
        let mut request = without.unwrap_or_else(|| request.clone());
        let requirements = [
            (
                "roles",
                self.alternate,
                if self.no_system {
                    "no-system"
                } else {
                    "alternate"
                },
            ),
            ("reasoning", self.reasoning, "always"),
            ("stream_usage", self.uncounted, "never"),
        ];
        if requirements.iter().any(|(_, is, _)| *is) {
            let mut params: Map<String, Value> =
                serde_json::from_str(&request.params).unwrap_or_default();
            for (name, _, word) in requirements.iter().filter(|(_, is, _)| *is) {
                params.insert((*name).to_owned(), Value::from(*word));
            }
            request.params = Value::Object(params).to_string();
        }
        request
    }

    /// Whether the request is sent unchanged.
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The additional requirement that a refusal names. `None` if nothing in it could be changed.
    pub(super) fn learn_from(self, error: &Error, request: &CompletionRequest) -> Option<Self> {
        let code = error.code.as_deref().unwrap_or_default();
        let refusal = format!("{code} {}", error.message).to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| refusal.contains(word));
        let mut wanted = self;
        let is_of_roles = has(&["role"]);
        if is_of_roles && has(&["system"]) && has(&REFUSED) {
            (wanted.alternate, wanted.no_system) = (true, true);
        } else if has(&[
            "invalid_request_message_order",
            "roles must alternate",
            "must alternate user",
            "unexpected role 'user' after",
            "unexpected role \"user\" after",
            "unexpected role `user` after",
            "after role 'tool'",
            "expected last role",
            "alternate between user and assistant",
            "alternate between 'user' and 'assistant'",
        ]) || is_of_roles
            && has(&["user"])
            && has(&["tool"])
            && has(&[" follow", " after "])
        {
            wanted.alternate = true;
        } else if has(&["reasoning_content", "reasoning content"])
            && has(&[
                "must be passed back",
                "missing",
                "is required",
                "must be provided",
            ])
        {
            // If reasoning was sent and is not enough, nothing more can be done.
            wanted.reasoning = true;
        } else if has(&["stream_options", "include_usage"]) && has(&FORBIDDEN) {
            wanted.uncounted = true;
        } else if error.kind == ErrorKind::InvalidInput
            && has(&VENDORS)
            && strip_vendor_pieces(request).is_some()
        {
            wanted.bare |= has(&FORBIDDEN);
            wanted.bare_now |= has(&["invalid", "expired", "corrupted", "could not be verified"]);
        }
        (wanted != self).then_some(wanted)
    }
}

/// Words for a role that a server does not have.
const REFUSED: [&str; 6] = [
    "not support",
    "unsupported",
    "not allowed",
    "only user",
    "invalid role",
    "unknown role",
];
/// Words for vendor-specific pieces.
const VENDORS: [&str; 6] = [
    "reasoning",
    "thinking",
    "thought",
    "extra_content",
    "provider_specific_fields",
    "signature",
];
/// Words for members that are not allowed.
const FORBIDDEN: [&str; 9] = [
    "not permitted",
    "extra_forbidden",
    "unsupported",
    "not supported",
    "not allowed",
    "unknown",
    "unrecognized",
    "unexpected",
    "additional propert",
];

/// Whether a refusal is about the form of the request, whatever its status: some servers report an
/// internal error, and repeating the request in the same form would not help.
pub(super) fn is_about_form(error: &Error, request: &CompletionRequest) -> bool {
    Quirks::default().learn_from(error, request).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::wit::types::{Content, Message, Role, Thinking};

    fn request() -> CompletionRequest {
        let thought = Content::Thinking(Thinking {
            text: "Hm".into(),
            signature: None,
        });
        CompletionRequest {
            model: "m".into(),
            messages: vec![Message {
                role: Role::Assistant,
                content: vec![thought, Content::Text("Yes".into())],
            }],
            tools: vec![],
            max_output_tokens: None,
            params: r#"{"temperature":0.5}"#.into(),
            streaming: true,
        }
    }

    fn error(message: &str) -> Error {
        Error::invalid(message)
    }

    #[test]
    fn a_refusal_is_answered_in_the_form_that_it_speaks_of_and_once() {
        for (refusal, params) in [
            (
                "Unexpected role 'user' after role 'tool'",
                r#"{"roles":"alternate","temperature":0.5}"#,
            ),
            (
                "Jinja Exception: After the optional system message, conversation roles must alternate user/assistant/",
                r#"{"roles":"alternate","temperature":0.5}"#,
            ),
            (
                "System role not supported",
                r#"{"roles":"no-system","temperature":0.5}"#,
            ),
            (
                "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
                r#"{"roles":"no-system","temperature":0.5}"#,
            ),
            (
                "Only user, assistant and tool roles are supported, got system.",
                r#"{"roles":"no-system","temperature":0.5}"#,
            ),
            (
                "messages with role 'user' must not follow messages with role 'tool'",
                r#"{"roles":"alternate","temperature":0.5}"#,
            ),
            (
                "body.stream_options: Extra inputs are not permitted",
                r#"{"stream_usage":"never","temperature":0.5}"#,
            ),
            (
                "The reasoning_content in the thinking mode must be passed back to the API.",
                r#"{"reasoning":"always","temperature":0.5}"#,
            ),
        ] {
            let wanted = Quirks::default().learn_from(&error(refusal), &request());
            let wanted = wanted.unwrap_or_else(|| panic!("{refusal}"));
            let sent: Value = serde_json::from_str(&wanted.applied(&request()).params).unwrap();
            assert_eq!(
                sent,
                serde_json::from_str::<Value>(params).unwrap(),
                "{refusal}"
            );
            assert_eq!(
                wanted.learn_from(&error(refusal), &request()),
                None,
                "{refusal}"
            );
        }
        let extra =
            error("body.messages.1.assistant.reasoning_content: Extra inputs are not permitted");
        let wanted = Quirks::default().learn_from(&extra, &request()).unwrap();
        assert_eq!(wanted.applied(&request()).messages[0].content.len(), 1);
        for other in [
            "maximum context length",
            "Unknown parameter: 'x'",
            "slow down",
            "An assistant message with 'tool_calls' must be followed by tool messages.",
            "Unsupported parameter: 'system'",
        ] {
            assert_eq!(
                Quirks::default().learn_from(&error(other), &request()),
                None,
                "{other}"
            );
        }
    }
}
