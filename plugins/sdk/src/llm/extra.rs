//! Members that a server adds to a response, and wants back with the next request.
//!
//! # Invariants
//!
//! - They are not interpreted, and go back unmodified.
//! - The host removes such pieces from a conversation that goes to another server or model.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::types::{Content, Custom};

/// Stands before a call.
const CALL: &str = "server.call";
/// Members that gateways add to a message or a call, whose value goes back as it is.
const MEMBERS: [&str; 2] = ["extra_content", "provider_specific_fields"];

/// What a call has beside its name and arguments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CallExtra {
    /// Its id goes back whole, whatever it is made of: the server may keep something in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_id: bool,
    /// Members of the server's own.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub members: Map<String, Value>,
}

impl CallExtra {
    /// Takes what a call has, or one piece of it.
    pub fn take(&mut self, call: &Value) {
        take_members(call, &mut self.members);
    }

    /// The piece that stands before the call; none where there is nothing to keep.
    pub fn piece(&self) -> Option<Content> {
        (*self != Self::default()).then(|| custom(CALL, self))
    }

    /// What such a piece keeps.
    pub fn of(piece: &Custom) -> Option<Self> {
        kept(CALL, piece)
    }

    /// Gives a call its members back.
    pub fn put(self, call: &mut Value) {
        for (name, value) in self.members {
            call[name] = value;
        }
    }
}

/// Takes the members that gateways add to a message or a call. What comes later is said beside what came
/// before.
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

/// What a piece keeps, if it is of this kind.
pub fn kept<T: serde::de::DeserializeOwned>(kind: &str, piece: &Custom) -> Option<T> {
    (piece.kind == kind).then(|| serde_json::from_str(&piece.body).ok())?
}
