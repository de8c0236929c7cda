//! Hashes of tool calls and their results, for detecting a model that goes in circles.
//!
//! # Invariants
//!
//! - A hash is the same on every machine and in every build. It is kept in the state, so std's
//!   hasher, which may change, cannot be used.
//! - Arguments that differ only in how their JSON is written have the same hash.

use lucid_plugin::types::ToolResult;

/// The hash of a tool and its arguments.
pub(crate) fn of_call(name: &str, arguments: &str) -> u64 {
    let same =
        serde_json::from_slice::<serde_json::Value>(arguments.as_bytes()).map(|v| v.to_string());
    let arguments = same.as_deref().unwrap_or(arguments);
    hash(hash(START, name.as_bytes()), arguments.as_bytes())
}

/// The hash of a call with its result.
pub(crate) fn with_result(call: u64, result: &ToolResult) -> u64 {
    let ending = format!("{}{:?}", result.is_error, result.exit_code);
    hash(hash(call, result.text.as_bytes()), ending.as_bytes())
}

const START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, with a length prefix so that adjacent fields do not run into each other.
fn hash(start: u64, bytes: &[u8]) -> u64 {
    let length = (bytes.len() as u64).to_le_bytes();
    length.iter().chain(bytes).fold(start, |h, byte| {
        (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_say_the_same_have_the_same_mark() {
        let one = of_call("terminal", r#"{"command":"ls","timeout":5}"#);
        assert_eq!(
            one,
            of_call("terminal", r#"{ "timeout": 5, "command": "ls" }"#)
        );
        assert_ne!(one, of_call("terminal", r#"{"command":"ls"}"#));
        assert_ne!(one, of_call("other", r#"{"command":"ls","timeout":5}"#));
    }

    #[test]
    fn another_result_is_another_mark() {
        let call = of_call("t", "not json");
        let one = with_result(call, &ToolResult::ok("a", "x"));
        assert_eq!(one, with_result(call, &ToolResult::ok("b", "x")));
        assert_ne!(one, with_result(call, &ToolResult::ok("a", "y")));
        assert_ne!(one, with_result(call, &ToolResult::failed("a", "x")));
    }
}
