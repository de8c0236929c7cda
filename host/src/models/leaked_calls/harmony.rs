//! Answers in OpenAI's harmony format, whose channels the server should have separated.

use super::{Arguments, Finding, WrittenCall, code};
use lucid_types::wit::types::{Content, Thinking};

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const START: &str = "<|start|>";
/// What ends a message.
const ENDS: [&str; 4] = ["<|end|>", "<|call|>", "<|return|>", START];

/// What an answer says in each channel, and whom it calls; none where it is not in this format.
pub(super) fn read(text: &str) -> Option<(Vec<Content>, Finding)> {
    let begins = [CHANNEL, START]
        .iter()
        .filter_map(|token| text.find(token))
        .min()?;
    let code = code::ranges(text);
    let message = text[begins..].find(MESSAGE)?;
    if code::contains(&code, begins) {
        return None;
    }
    // Between the two there is a line of words, no more.
    if text[begins..begins + message].len() > 200 {
        return None;
    }
    let mut pieces = Vec::new();
    let mut calls = Vec::new();
    text_of(&text[..begins], &mut pieces);
    let mut rest = &text[begins..];
    while let Some(at) = rest.find(MESSAGE) {
        let (head, body) = (&rest[..at], &rest[at + MESSAGE.len()..]);
        let end = ENDS
            .iter()
            .filter_map(|end| body.find(end))
            .min()
            .unwrap_or(body.len());
        let content = &body[..end];
        match recipient(head) {
            Some(name) => calls.push(WrittenCall {
                name,
                arguments: Arguments::Json(content.trim().to_owned()),
            }),
            None if channel(head) == "analysis" => pieces.push(Content::Thinking(Thinking {
                text: content.to_owned(),
                signature: None,
            })),
            None => text_of(content, &mut pieces),
        }
        rest = &body[end..];
    }
    let found = if calls.is_empty() {
        Finding::Nothing
    } else {
        Finding::Calls(0, calls)
    };
    Some((pieces, found))
}

fn text_of(text: &str, pieces: &mut Vec<Content>) {
    let text = text.trim();
    if text.is_empty() {
        return;
    }
    match pieces.last_mut() {
        Some(Content::Text(before)) => {
            before.push_str("\n\n");
            before.push_str(text);
        }
        _ => pieces.push(Content::Text(text.to_owned())),
    }
}

/// Such as `functions.terminal` of `<|channel|>commentary to=functions.terminal <|constrain|>json`.
fn recipient(head: &str) -> Option<String> {
    let (_, rest) = head.split_once("to=")?;
    let end = rest.find(|c: char| c.is_whitespace() || c == '<');
    Some(rest[..end.unwrap_or(rest.len())].to_owned())
}

fn channel(head: &str) -> &str {
    let Some((_, rest)) = head.split_once(CHANNEL) else {
        return "";
    };
    let end = rest.find(|c: char| c.is_whitespace() || c == '<');
    &rest[..end.unwrap_or(rest.len())]
}
