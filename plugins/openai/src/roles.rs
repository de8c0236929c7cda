//! The order of roles that a server accepts.
//!
//! OpenAI and most others accept a user message after a tool message. Mistral, and the chat
//! templates of many local models, want a reply of the model between them. A server cannot be asked
//! about this: it is recognised by the model's name, or the host learned it from a refusal and says
//! so in `params`. A reply is inserted only where it is required, since a model reads it as its own
//! words.
//!
//! # Invariants
//!
//! - For a strict server the message that follows the last tool message is not the user's.

use serde_json::{Map, Value, json};

/// The inserted model reply between a tool message and a user message.
const BETWEEN: &str = "I have read the results.";
/// Mistral's models, whose servers and templates are strict.
const STRICT: [&str; 10] = [
    "mistral",
    "ministral",
    "magistral",
    "mixtral",
    "codestral",
    "devstral",
    "pixtral",
    "voxtral",
    "mathstral",
    "leanstral",
];
/// The length of their ids, which consist of letters and digits.
const ID: usize = 9;

/// A server's requirements for roles and ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Roles {
    /// Whether a model reply is required between a tool message and a user message.
    between: bool,
    /// Whether it does not know system messages.
    no_system: bool,
    /// Whether ids must have nine letters and digits.
    short_ids: bool,
}

impl Roles {
    /// The requirements by the model's name, and by what the host has learned: `roles` is
    /// `alternate` or `no-system`.
    pub(crate) fn of(model: &str, params: &str) -> Self {
        let params: Map<String, Value> = serde_json::from_str(params).unwrap_or_default();
        let learned = params.get("roles").and_then(Value::as_str);
        let model = model.to_ascii_lowercase();
        let name = model.rsplit('/').next().unwrap_or(&model);
        let mistral = STRICT.iter().any(|family| name.contains(family));
        Self {
            between: mistral || learned.is_some(),
            no_system: learned == Some("no-system"),
            short_ids: mistral,
        }
    }

    /// Converts the messages to the order that such a server accepts.
    pub(crate) fn order(self, messages: Vec<Value>) -> Vec<Value> {
        let mut out: Vec<Value> = Vec::with_capacity(messages.len());
        let mut system = None;
        for mut message in messages {
            if self.short_ids {
                shorten(&mut message);
            }
            if self.no_system && message["role"] == "system" {
                system = message["content"].as_str().map(str::to_owned);
                continue;
            }
            let user = message["role"] == "user";
            if self.between && user && out.last().is_some_and(|before| before["role"] == "tool") {
                out.push(json!({ "role": "assistant", "content": BETWEEN }));
            }
            if user && let Some(system) = system.take() {
                before(&mut message["content"], &system);
            }
            out.push(message);
        }
        out
    }
}

/// Prepends text to a message's own.
fn before(content: &mut Value, words: &str) {
    match content {
        Value::Array(parts) => parts.insert(0, json!({ "type": "text", "text": words })),
        Value::String(text) => *text = format!("{words}\n\n{text}"),
        _ => {}
    }
}

fn shorten(message: &mut Value) {
    if let Some(id) = message.get_mut("tool_call_id") {
        short(id);
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        short(&mut call["id"]);
    }
}

/// Converts another server's id to one that this server could have made, deterministically.
fn short(id: &mut Value) {
    let Some(given) = id.as_str() else { return };
    if given.len() == ID && given.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return;
    }
    // FNV-1a.
    let mut hash = given.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut short = String::with_capacity(ID);
    for _ in 0..ID {
        let digit = u32::try_from(hash % 36).ok();
        short.extend(digit.and_then(|digit| char::from_digit(digit, 36)));
        hash /= 36;
    }
    *id = short.into();
}
