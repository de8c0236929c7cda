//! Puts tool calls together from the fragments that servers send them in.
//!
//! Always holds: a call keeps the id it was first shown with; ids within a response differ; the
//! same response gives the same ids, also where the server sends none.

use lucid_plugin::llm::{Delta, ToolCallArguments, ToolCallStart, text_at};
use lucid_plugin::types::ToolCall;
use serde_json::Value;

/// The calls of one response.
#[derive(Default)]
pub(super) struct Calls {
    calls: Vec<Call>,
    /// The server's name for the response, from which missing ids are made.
    response: String,
}

struct Call {
    index: Option<u64>,
    /// What the server calls it, if it does.
    given: Option<String>,
    call: ToolCall,
}

impl Calls {
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub(super) fn into_calls(self) -> impl Iterator<Item = ToolCall> {
        self.calls.into_iter().map(|c| c.call)
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

    /// Takes a fragment of a stream; `place` is where it stood in its chunk.
    pub(super) fn take(&mut self, place: usize, fragment: &Value, deltas: &mut Vec<Delta>) {
        let fragment = Fragment::read(fragment);
        let at = match self.goes_on_with(place, &fragment) {
            Some(at) => at,
            None => self.begin(&fragment, deltas),
        };
        self.add(at, fragment, deltas);
    }

    /// Takes a call of a response that is not streamed: always a whole one.
    pub(super) fn take_whole(&mut self, call: &Value, deltas: &mut Vec<Delta>) {
        let call = Fragment::read(call);
        let at = self.begin(&call, deltas);
        self.add(at, call, deltas);
    }

    fn add(&mut self, at: usize, fragment: Fragment<'_>, deltas: &mut Vec<Delta>) {
        let call = &mut self.calls[at].call;
        if let (true, Some(name)) = (call.name.is_empty(), fragment.name) {
            call.name = name.into();
        }
        if fragment.arguments.is_empty() {
            return;
        }
        call.arguments.push_str(&fragment.arguments);
        deltas.push(Delta::ToolCallArguments(ToolCallArguments {
            id: call.id.clone(),
            fragment: fragment.arguments,
        }));
    }

    /// Which call a fragment goes on with; none where it begins one.
    fn goes_on_with(&self, place: usize, fragment: &Fragment<'_>) -> Option<usize> {
        let named = self
            .calls
            .iter()
            .rposition(|c| fragment.id.is_some() && c.given.as_deref() == fragment.id);
        if let Some(at) = named {
            return Some(at);
        }
        let at = match fragment.index {
            Some(_) => self.calls.iter().rposition(|c| c.index == fragment.index)?,
            None if place > 0 && place < self.calls.len() => place,
            None => self.calls.len().checked_sub(1)?,
        };
        // What has no name cannot begin a call. What has one mostly does, but some servers repeat
        // the name in every fragment, and some give every call the index 0 or none.
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
        });
        at
    }
}

/// What a server sends of a call at once.
struct Fragment<'a> {
    index: Option<u64>,
    id: Option<&'a str>,
    name: Option<&'a str>,
    arguments: String,
}

impl<'a> Fragment<'a> {
    fn read(value: &'a Value) -> Self {
        // In the older form a call is nothing but its function.
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
