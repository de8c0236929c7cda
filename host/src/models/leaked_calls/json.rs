//! Calls that are written as JSON: as the whole answer, or in a fence at its end.

use std::ops::Range;

use serde_json::Value;

use super::{Arguments, Finding, WrittenCall, code, markup};
use crate::models::argument_repair;

/// So much of an answer's end may be calls behind other words.
const LONGEST: usize = 1 << 20;
/// So many bytes of it are parsed, from all of its lines together.
const MOST_PARSED: usize = 4 * LONGEST;

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
const OTHER_FIELDS: [&str; 5] = ["id", "type", "call_id", "index", "thought"];
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

/// The calls that a JSON value is.
pub(super) fn calls(value: &Value) -> Option<Vec<WrittenCall>> {
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
                NAMES.contains(&member)
                    || ARGUMENTS.contains(&member)
                    || OTHER_FIELDS.contains(&member)
            };
            let given = ARGUMENTS.iter().find_map(|name| members.get(*name))?;
            let arguments = match given {
                Value::Object(_) => given.to_string(),
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                _ => return None,
            };
            let written = WrittenCall {
                name: name.to_owned(),
                arguments: Arguments::Json(arguments),
            };
            members.keys().all(known).then(|| vec![written])
        }
        _ => None,
    }
}

/// Looks for such a call at an answer's end. `code` are its parts that are code.
pub(super) fn at_end(text: &str, code: &[Range<usize>]) -> Finding {
    if let Some(written) = parsed(text) {
        return Finding::Calls(0, written);
    }
    let end = text.trim_end().len();
    let fence = code
        .iter()
        .find(|range| range.contains(&end.saturating_sub(1)));
    match fence {
        Some(fence) => in_fence(text, fence.start),
        None if ends_in_calls(text, code) || is_pythons(text) => Finding::Unclear,
        None => Finding::Nothing,
    }
}

/// Whether the answer ends in calls behind other words: they may be meant, or shown.
fn ends_in_calls(text: &str, code: &[Range<usize>]) -> bool {
    starts(text, code).any(|start| parsed(&text[start..]).is_some())
}

/// Where calls at an answer's end may begin, as far as there is time to look.
fn starts(text: &str, code: &[Range<usize>]) -> impl Iterator<Item = usize> {
    let mut at = end_of(text);
    let starts = text[at..].split_inclusive('\n').filter_map(move |line| {
        let start = at;
        at += line.len();
        line.trim_start().starts_with(['{', '[']).then_some(start)
    });
    let mut parsed = 0;
    starts
        .filter(|start| !code::contains(code, *start))
        .take(markup::MOST)
        .take_while(move |start| {
            parsed += text.len() - start;
            parsed <= MOST_PARSED
        })
}

/// Where the last lines of a text begin.
fn end_of(text: &str) -> usize {
    let from = text.len().saturating_sub(LONGEST);
    if from == 0 {
        return 0;
    }
    let rest = &text.as_bytes()[from..];
    let line = rest.iter().position(|byte| *byte == b'\n');
    line.map_or(text.len(), |line| from + line + 1)
}

/// Whether all of an answer is calls in Python's words: `[terminal(command="ls")]`.
fn is_pythons(text: &str) -> bool {
    let text = text.trim();
    let Some(inner) = text.strip_prefix('[') else {
        return false;
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let rest = inner.trim_start_matches(is_name);
    rest.len() < inner.len() && rest.starts_with('(') && text.ends_with(")]")
}

/// A call in the fence that ends the answer.
fn in_fence(text: &str, start: usize) -> Finding {
    let inner = text[start..].trim();
    let Some((label, rest)) = inner.trim_start_matches(['`', '~']).split_once('\n') else {
        return Finding::Nothing;
    };
    if !inner.starts_with(['`', '~']) {
        return Finding::Nothing;
    }
    let label = label.trim().to_ascii_lowercase();
    let is_tool = label.contains("tool") || label.contains("function");
    let is_all = text[..start].trim().is_empty();
    let value = rest.trim_end_matches(['`', '~']).trim();
    match parsed(value).filter(|_| LABELS.contains(&label.as_str())) {
        Some(written) if is_all => Finding::Calls(start, written),
        // Behind other words it may be meant to be shown, whatever the fence is called: nobody knows.
        Some(_) => Finding::Unclear,
        None if is_tool => Finding::Unclear,
        None if is_all && markup::read(value).is_some_and(|calls| !calls.is_empty()) => {
            Finding::Unclear
        }
        None => Finding::Nothing,
    }
}

/// The calls that a text consists of: one JSON value, or several behind each other.
fn parsed(text: &str) -> Option<Vec<WrittenCall>> {
    let mut rest = text.trim();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (value, behind) = first(rest).filter(|_| rest.starts_with(['{', '[']))?;
        all.extend(calls(&value)?);
        rest = behind
            .trim_start()
            .trim_start_matches([';', ','])
            .trim_start();
    }
    (!all.is_empty()).then_some(all)
}

/// The value at a text's beginning, and what is behind it.
pub(super) fn first(text: &str) -> Option<(Value, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next()? {
        Ok(value) => Some((value, &text[values.byte_offset()..])),
        Err(_) => argument_repair::first_value(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_not_parsed_from_each_of_its_lines_to_its_end() {
        let text = "[1\n".repeat(LONGEST);
        let all: Vec<usize> = starts(&text, &[]).collect();
        let parsed: usize = all.iter().map(|start| text.len() - start).sum();
        assert!(!all.is_empty() && parsed <= MOST_PARSED, "{parsed}");
        assert!(all.iter().all(|start| text[*start..].starts_with("[1")));
        assert!(all[0] >= text.len() - LONGEST, "{}", all[0]);
    }
}
