//! Tool names in a form that every provider accepts.
//!
//! # Invariants
//!
//! - A sent name depends on the tool's own name and on nothing else, and a plain one stays as it
//!   is.
//! - A policy only sees its own name for a tool, never the one that was sent.

use std::borrow::Cow;

use lucid_types::digest::sha256_hex;
use lucid_types::wit::llm::CompletionRequest;
use lucid_types::wit::types::{Content, Message, ToolDefinition};

/// The maximum length of a name that providers accept, in characters.
pub(crate) const LONGEST: usize = 64;
/// The number of digest digits appended to a name that had to be changed.
const DIGITS: usize = 8;

/// Converts a name to at most `room` letters, digits, `-` and `_`. `None` if there is no room for
/// one.
pub(crate) fn plain(name: &str, room: usize) -> Option<Cow<'_, str>> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.len() <= room && name.chars().all(is_plain) {
        return Some(Cow::Borrowed(name));
    }
    let digits = sha256_hex(name);
    let left = room.checked_sub(DIGITS + 1)?;
    let kept = name.chars().take(left);
    let kept: String = kept.map(|c| if is_plain(c) { c } else { '_' }).collect();
    Some(Cow::Owned(format!("{kept}_{}", &digits[..DIGITS])))
}

/// A tool's name as it is sent. Some providers require a letter first.
fn sent(name: &str) -> Cow<'_, str> {
    match name.chars().next() {
        Some(first) if first.is_ascii_alphabetic() || first == '_' => {
            plain(name, LONGEST).unwrap_or(Cow::Borrowed(name))
        }
        _ => {
            let rest = plain(name, LONGEST - 1).unwrap_or(Cow::Borrowed(name));
            Cow::Owned(format!("_{rest}"))
        }
    }
}

/// The request with names that every provider accepts. A policy's own tools may have any.
pub(super) fn send(request: &CompletionRequest) -> Cow<'_, CompletionRequest> {
    let is_odd = |tool: &ToolDefinition| sent(&tool.name) != tool.name;
    if !request.tools.iter().any(is_odd) {
        return Cow::Borrowed(request);
    }
    let mut renamed = request.clone();
    for tool in &mut renamed.tools {
        tool.name = sent(&tool.name).into_owned();
    }
    let content = renamed
        .messages
        .iter_mut()
        .flat_map(|message| &mut message.content);
    for piece in content {
        if let Content::ToolCall(call) = piece
            && request.tools.iter().any(|tool| tool.name == call.name)
        {
            call.name = sent(&call.name).into_owned();
        }
    }
    Cow::Owned(renamed)
}

/// Restores the tools' own names in the calls of a response.
pub(super) fn receive(message: &mut Message, tools: &[ToolDefinition]) {
    for piece in &mut message.content {
        let Content::ToolCall(call) = piece else {
            continue;
        };
        let is_offered = |tool: &&ToolDefinition| tool.name == call.name;
        if tools.iter().any(|tool| is_offered(&tool)) {
            continue;
        }
        if let Some(tool) = tools.iter().find(|tool| sent(&tool.name) == call.name) {
            call.name.clone_from(&tool.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::wit::types::{Role, ToolCall};

    fn call(name: &str) -> Content {
        Content::ToolCall(ToolCall {
            id: "c".to_owned(),
            name: name.to_owned(),
            arguments: "{}".to_owned(),
        })
    }

    fn answer(content: Vec<Content>) -> Message {
        Message {
            role: Role::Assistant,
            content,
        }
    }

    #[test]
    fn a_policys_own_names_are_sent_as_providers_take_them_and_come_back_as_they_are() {
        let long = "a_tool_with_a_name_that_says_all_that_it_does_".repeat(3);
        let names = [
            "plan",
            "plan.next",
            "plan next",
            "prüfen",
            &long,
            "7zip",
            "",
        ];
        let request = CompletionRequest {
            model: "m".to_owned(),
            messages: vec![answer(names.map(call).to_vec())],
            tools: names
                .map(|name| ToolDefinition {
                    name: name.to_owned(),
                    description: String::new(),
                    input_schema: "{}".to_owned(),
                })
                .to_vec(),
            max_output_tokens: None,
            params: "{}".to_owned(),
            streaming: true,
        };
        let sent = send(&request);
        let told: Vec<&str> = sent.tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(told[0], "plan", "a plain name stays");
        for (number, name) in told.iter().enumerate() {
            let is_taken = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            assert!(
                name.len() <= LONGEST && name.chars().all(is_taken),
                "{name}"
            );
            assert!(!name.starts_with(|c: char| c.is_ascii_digit()), "{name}");
            assert!(!told[..number].contains(name), "{name} is two tools");
        }
        assert_eq!(
            sent.messages[0],
            answer(told.iter().map(|name| call(name)).collect()),
            "what was called before is called so as well"
        );
        let mut answered = sent.messages[0].clone();
        receive(&mut answered, &request.tools);
        assert_eq!(answered, request.messages[0]);

        let plain = CompletionRequest {
            tools: request.tools[..1].to_vec(),
            ..request.clone()
        };
        assert!(matches!(send(&plain), Cow::Borrowed(_)));
    }
}
