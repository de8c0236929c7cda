//! Assembles tool calls from the fragments that servers send.
//!
//! # Invariants
//!
//! - A call keeps the id it was first shown with.
//! - Ids within a response differ, and the same response gives the same ids, even if the server
//!   sends none.

use lucid_plugin::llm::extra::CallExtra;
use lucid_plugin::llm::json::{self, Joiner};
use lucid_plugin::llm::{Delta, ToolCallArguments, ToolCallStart, text_at};
use lucid_plugin::types::{Content, ToolCall};
use serde_json::Value;

use crate::kept::is_special;

/// The calls of one response.
#[derive(Default)]
pub(super) struct Calls {
    calls: Vec<Call>,
    /// The server's id of the response, from which missing ids are derived.
    response: String,
}

struct Call {
    index: Option<u64>,
    /// The server's id of the call, if there is one.
    given: Option<String>,
    call: ToolCall,
    joiner: Joiner,
    extra: CallExtra,
}

impl Calls {
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// The message's pieces, each with what its server wants back.
    pub(super) fn into_content(self) -> impl Iterator<Item = Content> {
        self.calls.into_iter().flat_map(|c| {
            let Call {
                mut call,
                mut joiner,
                mut extra,
                given,
                ..
            } = c;
            call.arguments.push_str(joiner.rest());
            call.arguments = json::arguments(call.arguments);
            extra.own_id = is_special(&call.id) && given.as_deref() == Some(call.id.as_str());
            extra.piece().into_iter().chain([Content::ToolCall(call)])
        })
    }

    pub(super) fn name_response(&mut self, id: &str) {
        if self.response.is_empty() {
            self.response = id
                .chars()
                .filter(char::is_ascii_alphanumeric)
                .take(40)
                .collect();
        }
    }

    /// Takes a fragment of a stream. `place` is its position in the chunk.
    pub(super) fn take(
        &mut self,
        place: usize,
        value: &Value,
        marked: bool,
        deltas: &mut Vec<Delta>,
    ) {
        let fragment = Fragment::read(value);
        let at = match self.goes_on_with(place, &fragment) {
            Some(at) => at,
            None => self.begin(&fragment, deltas),
        };
        self.calls[at].extra.take(value);
        self.add(at, &fragment, marked, deltas);
    }

    /// Takes a call of a response that is not streamed, which is always complete.
    pub(super) fn take_whole(&mut self, value: &Value, marked: bool, deltas: &mut Vec<Delta>) {
        let call = Fragment::read(value);
        let at = self.begin(&call, deltas);
        self.calls[at].extra.take(value);
        self.add(at, &call, marked, deltas);
    }

    fn add(&mut self, at: usize, fragment: &Fragment<'_>, marked: bool, deltas: &mut Vec<Delta>) {
        let Call { call, joiner, .. } = &mut self.calls[at];
        if let (true, Some(name)) = (call.name.is_empty(), fragment.name) {
            call.name = name.into();
        }
        let fragment = joiner.push(&fragment.arguments, marked);
        if fragment.is_empty() {
            return;
        }
        call.arguments.push_str(&fragment);
        deltas.push(Delta::ToolCallArguments(ToolCallArguments {
            id: call.id.clone(),
            fragment,
        }));
    }

    /// The call that a fragment continues. `None` if it begins one.
    fn goes_on_with(&self, place: usize, fragment: &Fragment<'_>) -> Option<usize> {
        // Some servers give several calls one id, and only their positions distinguish them.
        let elsewhere = |c: &Call| match (c.index, fragment.index) {
            (Some(one), Some(other)) => one != other && fragment.name.is_some(),
            _ => false,
        };
        let named = self.calls.iter().rposition(|c| {
            fragment.id.is_some() && c.given.as_deref() == fragment.id && !elsewhere(c)
        });
        if let Some(at) = named {
            return Some(at);
        }
        let at = match fragment.index {
            Some(_) => self.calls.iter().rposition(|c| c.index == fragment.index)?,
            None if place > 0 && place < self.calls.len() => place,
            None => self.calls.len().checked_sub(1)?,
        };
        // A fragment without a name cannot begin a call. One with a name mostly does, but some
        // servers repeat the name in every fragment, and some give every call the index 0 or none.
        let known = &self.calls[at];
        let begins = match (fragment.name, fragment.id, &known.given) {
            (None, ..) => false,
            (Some(_), Some(_), Some(_)) => true,
            (Some(name), ..) => {
                let another = !known.call.name.is_empty() && known.call.name != name;
                another || (!fragment.arguments.is_empty() && is_whole(&known.call.arguments))
            }
        };
        (!begins).then_some(at)
    }

    fn begin(&mut self, fragment: &Fragment<'_>, deltas: &mut Vec<Delta>) -> usize {
        let at = self.calls.len();
        let free = |id: &&str| self.calls.iter().all(|c| c.call.id != *id);
        let id = match fragment.id.filter(free) {
            Some(id) => id.to_string(),
            None if self.response.is_empty() => format!("call_{at}"),
            None => format!("call_{}_{at}", self.response),
        };
        let name = fragment.name.unwrap_or_default().to_string();
        deltas.push(Delta::ToolCallStarted(ToolCallStart {
            id: id.clone(),
            name: name.clone(),
        }));
        self.calls.push(Call {
            index: fragment.index,
            given: fragment.id.map(Into::into),
            call: ToolCall {
                id,
                name,
                arguments: String::new(),
            },
            joiner: Joiner::default(),
            extra: CallExtra::default(),
        });
        at
    }
}

/// A fragment of a call.
struct Fragment<'a> {
    index: Option<u64>,
    id: Option<&'a str>,
    name: Option<&'a str>,
    arguments: String,
}

impl<'a> Fragment<'a> {
    fn read(value: &'a Value) -> Self {
        // In the older form a call consists of its function only.
        let function = value.get("function").unwrap_or(value);
        Self {
            index: value.get("index").and_then(Value::as_u64),
            id: text_at(value, "id"),
            name: text_at(function, "name"),
            arguments: match function.get("arguments") {
                Some(Value::String(text)) => text.clone(),
                // Some servers send the object itself.
                Some(object @ Value::Object(_)) => object.to_string(),
                _ => String::new(),
            },
        }
    }
}

fn is_whole(arguments: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(arguments).is_ok()
}
