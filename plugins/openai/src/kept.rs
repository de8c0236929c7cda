//! Members that a server wants back, as they are kept in a conversation.
//!
//! Servers have members of their own in a response, and refuse the next request, or lose their
//! reasoning, if those do not come back. Each is kept as a vendor-specific piece beside what it
//! belongs to, and so are those of a call (`lucid_plugin::llm::extra`).
//!
//! # Invariants
//!
//! - A kept member is not interpreted, and goes back unmodified under the name it came with.
//! - The host removes such pieces from a conversation that goes to another server or model.

use lucid_plugin::llm::extra::{custom, kept, take_members};
use lucid_plugin::llm::json;
use lucid_plugin::types::{Content, Custom};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The kind of the piece before a message's content: its members.
const MESSAGE: &str = "openai.message";
/// The kind of the piece after reasoning: its position in the message.
const THINKING: &str = "openai.thinking";

/// Members of a message whose value is a list of parts, which a stream sends in fragments.
const LISTS: [&str; 2] = ["reasoning_details", "thinking_blocks"];
/// The members of a part that grow.
const GROWING: [&str; 5] = ["text", "summary", "data", "thinking", "signature"];
/// OpenAI's own limit, for ids that are not its own.
pub(crate) const LONGEST_ID: usize = 40;

/// The position of reasoning in a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Place {
    /// In a member of this name.
    Member(String),
    /// In the content, as a part of its own.
    Parts,
}

impl Place {
    pub(crate) fn piece(&self) -> Content {
        custom(THINKING, self)
    }

    pub(crate) fn of(custom: &Custom) -> Option<Self> {
        kept(THINKING, custom)
    }
}

/// Whether only its own server accepts this id.
pub(crate) fn is_special(id: &str) -> bool {
    id.len() > LONGEST_ID || !id.chars().all(|c| c.is_ascii_graphic())
}

/// Whether a piece is one of these.
pub(crate) fn is_kept(custom: &Custom) -> bool {
    [MESSAGE, THINKING].contains(&custom.kind.as_str())
}

/// The collected members of one message.
#[derive(Debug, Default)]
pub(crate) struct Members {
    all: Map<String, Value>,
    /// Whether surrogate halves are marked in them.
    marked: bool,
}

impl Members {
    /// Takes the members of one fragment of a stream.
    pub(crate) fn take_piece(&mut self, delta: &Value, marked: bool) {
        self.marked |= marked;
        for name in LISTS {
            for part in parts(delta, name) {
                let all = self
                    .all
                    .entry(name)
                    .or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(all) = all {
                    add(all, part);
                }
            }
        }
        take_members(delta, &mut self.all);
    }

    /// Takes the members of a whole message.
    pub(crate) fn take_whole(&mut self, message: &Value) {
        for name in LISTS {
            if !parts(message, name).is_empty() {
                self.all.insert(name.into(), message[name].clone());
            }
        }
        take_members(message, &mut self.all);
    }

    /// The piece that keeps them.
    pub(crate) fn piece(self) -> Option<Content> {
        if self.all.is_empty() {
            return None;
        }
        // Surrogate halves were joined along with the fragments.
        let members = json::mended(Value::Object(self.all), self.marked);
        Some(custom(MESSAGE, &members))
    }

    /// The members that a piece keeps.
    pub(crate) fn of(custom: &Custom) -> Option<Map<String, Value>> {
        kept(MESSAGE, custom)
    }
}

/// Readable reasoning, if a message has it in parts only.
pub(crate) fn text_of_parts(said: &Value) -> String {
    let parts = LISTS.iter().flat_map(|name| parts(said, name));
    let texts = parts.filter_map(|part| {
        let text = ["text", "summary", "thinking"]
            .iter()
            .find_map(|name| part.get(*name)?.as_str());
        text.filter(|text| !text.is_empty())
    });
    texts.collect()
}

fn parts<'a>(said: &'a Value, name: &str) -> &'a [Value] {
    said.get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Extends the part that a fragment belongs to, or begins one.
fn add(all: &mut Vec<Value>, piece: &Value) {
    let same = |part: &&mut Value| {
        let agree = |name: &str| {
            let (a, b) = (part.get(name), piece.get(name));
            a.is_none_or(Value::is_null) || b.is_none_or(Value::is_null) || a == b
        };
        part.get("type") == piece.get("type") && agree("id") && agree("index")
    };
    let numbered = piece.get("index").is_some_and(Value::is_number);
    let found = match numbered {
        true => all.iter_mut().rev().find(same),
        // A part with hidden text arrives whole, and a signature ends the part that it signs.
        false => all.last_mut().filter(same).filter(|part| {
            let whole = |part: &Value| part.get("data").is_some_and(Value::is_string);
            let signed = part
                .get("signature")
                .and_then(Value::as_str)
                .is_some_and(|s| !s.is_empty());
            !(whole(part) || whole(piece) || signed)
        }),
    };
    let (Some(Value::Object(part)), Value::Object(piece)) = (found, piece) else {
        all.push(piece.clone());
        return;
    };
    for (name, value) in piece {
        match (part.get_mut(name), value) {
            (_, Value::Null) => {}
            (Some(Value::String(before)), Value::String(more))
                if GROWING.contains(&name.as_str()) =>
            {
                before.push_str(more);
            }
            _ => drop(part.insert(name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(pieces: &[Value]) -> Value {
        let mut members = Members::default();
        for piece in pieces {
            members.take_piece(&json!({ "reasoning_details": [piece] }), false);
        }
        let Some(Content::Other(custom)) = members.piece() else {
            return Value::Null;
        };
        Members::of(&custom).unwrap()["reasoning_details"].clone()
    }

    #[test]
    fn pieces_of_a_part_are_one_part_and_parts_stay_apart() {
        let text = |index: u64, text: &str| json!({"type": "reasoning.text", "index": index, "text": text, "format": "f"});
        assert_eq!(
            merged(&[
                text(0, "Let "),
                text(0, "me"),
                json!({"type": "reasoning.text", "index": 0, "signature": "c2ln", "text": null}),
                text(1, "And"),
                json!({"type": "reasoning.encrypted", "index": 1, "id": "rs_1", "data": "QUJD", "format": "f"}),
                json!({"type": "reasoning.encrypted", "index": 1, "id": "rs_1", "data": "REVG"}),
                json!({"type": "reasoning.encrypted", "index": 2, "id": "rs_2", "data": "R0hJ"}),
            ]),
            json!([
                {"type": "reasoning.text", "index": 0, "text": "Let me", "format": "f", "signature": "c2ln"},
                {"type": "reasoning.text", "index": 1, "text": "And", "format": "f"},
                {"type": "reasoning.encrypted", "index": 1, "id": "rs_1", "data": "QUJDREVG", "format": "f"},
                {"type": "reasoning.encrypted", "index": 2, "id": "rs_2", "data": "R0hJ"},
            ])
        );
    }

    #[test]
    fn without_numbers_what_follows_goes_on_unless_it_is_whole_or_signed() {
        let part = |kind: &str, name: &str, text: &str| json!({"type": kind, name: text});
        assert_eq!(
            merged(&[
                part("reasoning.summary", "summary", "a"),
                part("reasoning.summary", "summary", "b"),
                part("reasoning.encrypted", "data", "QQ=="),
                part("reasoning.encrypted", "data", "QQ=="),
                part("reasoning.text", "text", "c"),
                part("reasoning.text", "signature", "s"),
                part("reasoning.text", "text", "d"),
            ]),
            json!([
                {"type": "reasoning.summary", "summary": "ab"},
                {"type": "reasoning.encrypted", "data": "QQ=="},
                {"type": "reasoning.encrypted", "data": "QQ=="},
                {"type": "reasoning.text", "text": "c", "signature": "s"},
                {"type": "reasoning.text", "text": "d"},
            ])
        );
    }
}
