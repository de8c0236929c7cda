//! Members that a server adds to a response, and wants back with the next request.
//!
//! # Invariants
//!
//! - They are not interpreted, and go back unmodified.
//! - The host removes such pieces from a conversation that goes to another server or model.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::types::{Content, Custom};

/// The kind of the piece before a call.
const CALL: &str = "server.call";
/// Members that gateways add to a message or a call, and that go back unmodified.
const MEMBERS: [&str; 2] = ["extra_content", "provider_specific_fields"];

/// What a call has besides its name and arguments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CallExtra {
    /// Whether its id goes back unmodified, whatever its form: the server may encode something in
    /// it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_id: bool,
    /// Members of the server's own.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub members: Map<String, Value>,
}

impl CallExtra {
    /// Collects the members of a call, or of a fragment of it.
    pub fn take(&mut self, call: &Value) {
        take_members(call, &mut self.members);
    }

    /// The piece that precedes the call. `None` if there is nothing to keep.
    pub fn piece(&self) -> Option<Content> {
        (*self != Self::default()).then(|| custom(CALL, self))
    }

    /// Parses such a piece.
    pub fn of(piece: &Custom) -> Option<Self> {
        kept(CALL, piece)
    }

    /// Restores a call's members.
    pub fn put(self, call: &mut Value) {
        for (name, value) in self.members {
            call[name] = value;
        }
    }
}

/// Collects the members that gateways add to a message or a call. Later ones are added to the
/// earlier ones.
pub fn take_members(from: &Value, into: &mut Map<String, Value>) {
    for name in MEMBERS {
        match from.get(name) {
            None | Some(Value::Null) => {}
            Some(value) => deepen(into.entry(name).or_insert(Value::Null), value),
        }
    }
}

fn deepen(before: &mut Value, later: &Value) {
    match (before, later) {
        (Value::Object(before), Value::Object(later)) => {
            for (name, value) in later {
                deepen(before.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (before, later) => *before = later.clone(),
    }
}

/// A piece of this kind.
pub fn custom(kind: &str, body: &impl Serialize) -> Content {
    Content::Other(Custom {
        kind: kind.into(),
        body: serde_json::to_string(body).unwrap_or_else(|_| "{}".into()),
    })
}

/// The content of a piece, if it is of this kind.
pub fn kept<T: serde::de::DeserializeOwned>(kind: &str, piece: &Custom) -> Option<T> {
    (piece.kind == kind).then(|| serde_json::from_str(&piece.body).ok())?
}
