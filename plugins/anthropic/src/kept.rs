//! What a server that stands in for the API wants back, as it is kept in a conversation.
//!
//! Always holds: what is kept is not read, and goes back as it came. The host takes such pieces out of a
//! conversation that goes to another server or model.

use lucid_plugin::types::{Content, Custom};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Behind reasoning that came without a proof.
const UNSIGNED: &str = "anthropic.unsigned-thinking";
/// Before a call: what it has beside name and input.
const CALL: &str = "anthropic.call";
/// Members of a call that gateways add, and want back.
const MEMBERS: [&str; 2] = ["extra_content", "provider_specific_fields"];

/// Reasoning came without a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unsigned {
    /// There was a member for it, with nothing in it.
    pub(crate) blank: bool,
}

impl Unsigned {
    pub(crate) fn piece(self) -> Content {
        other(UNSIGNED, serde_json::to_string(&self))
    }

    pub(crate) fn of(custom: &Custom) -> Option<Self> {
        (custom.kind == UNSIGNED).then(|| serde_json::from_str(&custom.body).ok())?
    }
}

/// What a call has beside name and input.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CallExtra {
    /// Its id is the server's, and the API itself would not take one like it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) own_id: bool,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) members: Map<String, Value>,
}

impl CallExtra {
    /// What a block has; `id` is what it is called, if the server called it so.
    pub(crate) fn read(block: &Value, id: Option<&str>) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let there = |name: &&&str| block.get(**name).is_some_and(|value| !value.is_null());
        let members = MEMBERS.iter().filter(there);
        Self {
            own_id: id.is_some_and(|id| id.len() > 64 || !id.chars().all(plain)),
            members: members
                .map(|name| ((*name).to_owned(), block[*name].clone()))
                .collect(),
        }
    }

    pub(crate) fn piece(&self) -> Option<Content> {
        (*self != Self::default()).then(|| other(CALL, serde_json::to_string(self)))
    }

    pub(crate) fn of(custom: &Custom) -> Option<Self> {
        (custom.kind == CALL).then(|| serde_json::from_str(&custom.body).ok())?
    }
}

/// Whether a piece is what a call has.
pub(crate) fn is_of_call(custom: &Custom) -> bool {
    custom.kind == CALL
}

fn other(kind: &str, body: serde_json::Result<String>) -> Content {
    Content::Other(Custom {
        kind: kind.into(),
        body: body.unwrap_or_else(|_| "{}".into()),
    })
}
