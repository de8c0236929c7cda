//! Owns calls that are written as JSON: as the whole answer, or in a fence at its end.

use std::ops::Range;

use serde_json::Value;

use super::{Arguments, Found, Written};

const NAMES: [&str; 5] = ["name", "tool", "tool_name", "function", "recipient_name"];
const ARGUMENTS: [&str; 6] = [
    "arguments",
    "parameters",
    "args",
    "input",
    "tool_input",
    "params",
];
/// What else such an object may have.
const BESIDE: [&str; 5] = ["id", "type", "call_id", "index", "thought"];
/// What a fence may be called that holds a call.
const LABELS: [&str; 8] = [
    "",
    "json",
    "tool_call",
    "tool_calls",
    "tool_code",
    "tool",
    "function_call",
    "tool_use",
];
/// Words before a fence with which it only shows something.
const SHOWS: [&str; 14] = [
    "example",
    "e.g.",
    "for instance",
    "such as",
    "looks like",
    "look like",
    "would be",
    "format",
    "schema",
    "documentation",
    "response",
    "returns",
    "output",
    "sample",
];

/// The calls that a JSON value is.
pub(super) fn calls(value: &Value) -> Option<Vec<Written>> {
    match value {
        Value::Array(items) if !items.is_empty() => {
            let all: Option<Vec<_>> = items.iter().map(calls).collect();
            Some(all?.concat())
        }
        Value::Object(members) => {
            for name in ["tool_calls", "function_call"] {
                if let (Some(inner), 1) = (members.get(name), members.len()) {
                    return calls(inner);
                }
            }
            if let Some(function @ Value::Object(_)) = members.get("function") {
                return calls(function);
            }
            let name = NAMES.iter().find_map(|name| members.get(*name)?.as_str())?;
            let known = |member: &String| {
                let member = member.as_str();
                NAMES.contains(&member) || ARGUMENTS.contains(&member) || BESIDE.contains(&member)
            };
            let given = ARGUMENTS.iter().find_map(|name| members.get(*name))?;
            let arguments = match given {
                Value::Object(_) => given.to_string(),
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                _ => return None,
            };
            let written = Written {
                name: name.to_owned(),
                arguments: Arguments::Json(arguments),
            };
            members.keys().all(known).then(|| vec![written])
        }
        _ => None,
    }
}

/// Looks for such a call at an answer's end. `code` are its parts that are code.
pub(super) fn at_end(text: &str, code: &[Range<usize>]) -> Found {
    let whole = text.trim();
    if whole.starts_with(['{', '['])
        && let Some(written) = parsed(whole)
    {
        return Found::Calls(0, written);
    }
    let end = text.trim_end().len();
    let Some(fence) = code
        .iter()
        .find(|range| range.contains(&end.saturating_sub(1)))
    else {
        return Found::Nothing;
    };
    let inner = text[fence.clone()].trim();
    let Some((label, rest)) = inner.trim_start_matches(['`', '~']).split_once('\n') else {
        return Found::Nothing;
    };
    let label = label.trim().to_ascii_lowercase();
    let value = rest.trim_end_matches(['`', '~']).trim();
    if !inner.starts_with(['`', '~']) || !LABELS.contains(&label.as_str()) {
        return Found::Nothing;
    }
    let Some(written) = parsed(value) else {
        return Found::Nothing;
    };
    let before = text[..fence.start].to_lowercase();
    if !label.contains("tool") && SHOWS.iter().any(|word| before.contains(word)) {
        // It may be meant to be shown: nobody knows.
        return Found::Unclear;
    }
    Found::Calls(fence.start, written)
}

fn parsed(text: &str) -> Option<Vec<Written>> {
    calls(&serde_json::from_str(text).ok()?)
}
