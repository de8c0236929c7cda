//! Tool calls that a model wrote as text.
//!
//! A server that does not know its model's own markup passes a call on as part of the answer. Then nobody carries
//! it out, and an answer without calls ends a task. What is unambiguous becomes the call that was meant. What is
//! not is reported to the policy as an answer that waits for tools and has none.
//!
//! # Invariants
//!
//! - A call is made only from markup that stands outside of code, is not quoted, neither behind other words of
//!   its line nor as Markdown quotes, and continues to the end of the answer.
//! - It is made only for a tool that was offered, and only if the answer has no call of its own.
//! - Every other text stays as it is.

mod code;
mod harmony;
mod json;
mod markup;
mod watch;

use std::ops::Range;

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use lucid_types::wit::llm::Completion;
use lucid_types::wit::types::{Content, StopReason, Thinking, ToolCall, ToolDefinition};

pub(super) use watch::LeakWatcher;

/// A call as it was written.
#[derive(Debug, Clone, PartialEq)]
struct WrittenCall {
    name: String,
    arguments: Arguments,
}

/// Its arguments.
#[derive(Debug, Clone, PartialEq)]
enum Arguments {
    /// As JSON, good or bad.
    Json(String),
    /// As texts by name, of which only the tool's schema says what they are.
    Texts(Vec<(String, String)>),
}

/// What an answer's text turned out to be.
enum Finding {
    /// No call.
    Nothing,
    /// Calls that cannot be told, or of tools that there are none of.
    Unclear,
    /// These, behind this much of the text.
    Calls(usize, Vec<WrittenCall>),
}

/// Makes calls of those that an answer holds as text.
pub(super) fn take(completion: &mut Completion, tools: &[ToolDefinition]) {
    let content = &mut completion.message.content;
    let calls = |piece: &Content| matches!(piece, Content::ToolCall(_));
    let open = matches!(
        completion.stop,
        StopReason::EndTurn | StopReason::ToolUse | StopReason::Other
    );
    if !open || tools.is_empty() || content.iter().any(calls) {
        return;
    }
    let Some(at) = content
        .iter()
        .rposition(|piece| matches!(piece, Content::Text(_)))
    else {
        return;
    };
    let Content::Text(text) = &content[at] else {
        return;
    };
    let (pieces, found) = match harmony::read(text) {
        Some(read) => read,
        None => {
            let found = find(text);
            let kept = match &found {
                Finding::Calls(end, _) => text[..*end].trim_end(),
                _ => text.as_str(),
            };
            (vec![Content::Text(kept.to_owned())], found)
        }
    };
    let digest = Sha256::digest(text);
    let calls = match found {
        Finding::Nothing => Some(Vec::new()),
        Finding::Unclear => None,
        Finding::Calls(_, written) => {
            let made = written.into_iter().enumerate();
            made.map(|(number, written)| call(written, number, &digest, tools))
                .collect()
        }
    };
    let Some(calls) = calls else {
        if completion.stop == StopReason::EndTurn {
            completion.stop = StopReason::ToolUse;
        }
        return;
    };
    if !calls.is_empty() {
        completion.stop = StopReason::ToolUse;
    }
    let remaining = pieces.into_iter().filter(|piece| !is_blank(piece));
    let all: Vec<Content> = remaining
        .chain(calls.into_iter().map(Content::ToolCall))
        .collect();
    content.splice(at..=at, all);
}

fn is_blank(piece: &Content) -> bool {
    match piece {
        Content::Text(text) | Content::Thinking(Thinking { text, .. }) => text.trim().is_empty(),
        _ => false,
    }
}

/// Looks for calls at an answer's end.
fn find(text: &str) -> Finding {
    let code = code::ranges(text);
    let mut unclear = false;
    for at in markup::openings(text) {
        if code::contains(&code, at) || markup::is_quoted(text, at) {
            continue;
        }
        match markup::read(&text[at..]) {
            Some(calls) if !calls.is_empty() => {
                let is_meant = markup::stands_alone(text, at) && !code::is_open(&text[..at]);
                return match is_meant {
                    true => Finding::Calls(at, calls),
                    false => Finding::Unclear,
                };
            }
            _ => unclear |= markup::is_open_to_its_end(text, at),
        }
    }
    match json::at_end(text, &code) {
        Finding::Nothing if unclear || is_action(text, &code) => Finding::Unclear,
        found => found,
    }
}

/// Whether an answer ends in a step of a format that older agents had: `Action:`, and `Action Input:`.
/// `code` are its parts that are code.
fn is_action(text: &str, code: &[Range<usize>]) -> bool {
    let has = |word: &str, from: usize| {
        let mut at = from;
        text[from..].split_inclusive('\n').any(|line| {
            let trimmed = line.trim_start();
            let start = at + line.len() - trimmed.len();
            at += line.len();
            trimmed.starts_with(word) && !code::contains(code, start)
        })
    };
    let last = text.trim_end().rfind("\n\n").unwrap_or_default();
    has("Action:", 0) && has("Action Input:", last) && !text.contains("Final Answer:")
}

/// The call, if there is such a tool.
fn call(
    written: WrittenCall,
    number: usize,
    digest: &[u8],
    tools: &[ToolDefinition],
) -> Option<ToolCall> {
    let tool = offered(&written.name, tools)?;
    let arguments = match written.arguments {
        Arguments::Json(text) if text.trim().is_empty() => "{}".to_owned(),
        Arguments::Json(text) => text,
        Arguments::Texts(texts) => typed(texts, &tool.input_schema).to_string(),
    };
    // The same answer gives the same ids, also where it is read again.
    let id = hex::encode(&digest[..8]);
    Some(ToolCall {
        id: format!("call_{id}_{number}"),
        name: tool.name.clone(),
        arguments,
    })
}

/// The tool that a name means: models write `functions.terminal:0` for `terminal`.
fn offered<'a>(name: &str, tools: &'a [ToolDefinition]) -> Option<&'a ToolDefinition> {
    let name = name.trim();
    let exact = |name: &str| tools.iter().find(|tool| tool.name == name);
    let short = name.strip_prefix("functions.").unwrap_or(name);
    let plain = match short.rsplit_once(':') {
        Some((before, number)) if number.bytes().all(|b| b.is_ascii_digit()) => before,
        _ => short,
    };
    let known = exact(name)
        .or_else(|| exact(short))
        .or_else(|| exact(plain));
    known.or_else(|| {
        let mut alike = tools
            .iter()
            .filter(|tool| tool.name.eq_ignore_ascii_case(plain));
        alike.next().filter(|_| alike.next().is_none())
    })
}

/// Texts as the values that the schema says they are.
fn typed(texts: Vec<(String, String)>, schema: &str) -> Value {
    let schema: Value = serde_json::from_str(schema).unwrap_or_default();
    let all = texts.into_iter().map(|(name, text)| {
        let kind = &schema["properties"][&name]["type"];
        let may_be = |word: &str| match kind {
            Value::String(kind) => kind == word,
            Value::Array(kinds) => kinds.iter().any(|kind| kind == word),
            _ => false,
        };
        let value = match () {
            () if may_be("string") => None,
            // Nobody says what it is: a text, unless it can be nothing else.
            () if kind.is_null() => serde_json::from_str(&text)
                .ok()
                .filter(|v: &Value| v.is_object() || v.is_array()),
            () => match text.trim() {
                "True" => Some(Value::Bool(true)),
                "False" => Some(Value::Bool(false)),
                "None" => Some(Value::Null),
                plain => serde_json::from_str(plain).ok(),
            },
        };
        (name, value.unwrap_or(Value::String(text)))
    });
    Value::Object(all.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests;
