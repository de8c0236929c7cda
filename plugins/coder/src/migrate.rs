//! Migrates a session's state from an older build.
//!
//! # Invariants
//!
//! - An older layout is read by its own field names. What it did not know is set so that nothing
//!   happens that its user was not told of: such a session does not push, and condenses only when
//!   its model refuses the prompt.

use lucid_plugin::types::Error;
use serde_json::{Value, json};

use crate::state::State;

/// The assumed size of a turn, in bytes.
const TURN: u64 = 4096;

/// Migrates schema 1, which was one flat object. It goes through JSON, since a second set of
/// deserializers for the same types would be a quarter of the component.
pub(crate) fn from_first(mut old: Value) -> Result<State, Error> {
    let unreadable = |why: String| {
        Error::internal(format!(
            "The session's state of schema 1 cannot be read: {why}."
        ))
    };
    let mut new = serde_json::to_vec(&State::default())
        .and_then(|fresh| serde_json::from_slice::<Value>(&fresh))
        .map_err(|e| unreadable(e.to_string()))?;
    let mut take = |name: &str| {
        let value = old.get_mut(name).map(Value::take);
        value.ok_or_else(|| unreadable(format!("it has no `{name}`")))
    };
    for same in ["system", "settings", "host_tools", "plan", "open"] {
        new[same] = take(same)?;
    }
    for same in ["ending", "unread", "idle"] {
        new["task"][same] = take(same)?;
    }
    let mut next = 0;
    for (before, now) in [("users", "users"), ("replies", "turns")] {
        let entries = take(before)?;
        let entries = entries.as_array().into_iter().flatten();
        let entries: Vec<u64> = entries.filter_map(Value::as_u64).collect();
        next = entries.iter().fold(next, |next, entry| next.max(entry + 1));
        let stretches = entries
            .iter()
            .map(|entry| json!({ "entry": entry, "bytes": TURN }));
        new["conversation"][now] = stretches.collect();
    }
    new["conversation"]["next"] = next.into();
    let from = take("whole_from")?;
    new["conversation"]["left_out"] = (!from.is_null()).into();
    new["conversation"]["whole_from"] = from;
    if let asking @ Value::String(_) = take("asking")? {
        new["task"]["waits"] = json!({ "Reply": asking });
    }
    let mut runs = take("runs")?;
    for run in runs.as_array_mut().into_iter().flatten() {
        run["touches"] = "Nothing".into();
    }
    new["task"]["runs"] = runs;
    serde_json::from_slice(new.to_string().as_bytes()).map_err(|e| unreadable(e.to_string()))
}
