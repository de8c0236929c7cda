//! Resolves a prompt's parts into the messages of a model call.
//!
//! # Invariants
//! - A tool result directly follows the message whose call it answers, whatever came between them
//!   in the transcript. A call that was never answered gets a placeholder that says so, because
//!   providers refuse a conversation with an open call.
//! - Messages otherwise keep their order.

use std::collections::HashMap;

use crate::retry::when_possible;
use lucid_types::ids::SessionId;
use lucid_types::log::{LogError, SessionLog};
use lucid_types::user::UserId;
use lucid_types::wit::policy::Part;
use lucid_types::wit::types::{Content, Message, Role, ToolResult};

/// The placeholder for a missing result.
const NO_RESULT: &str = "There is no result of this call: it was not run, or it was given up.";

/// Reads the ranges of the transcript that a prompt names. `last` is the newest entry.
pub(crate) async fn resolve(
    log: &dyn SessionLog,
    (session, user): (SessionId, &UserId),
    parts: Vec<Part>,
    last: u64,
) -> Result<Vec<Message>, LogError> {
    let mut messages = Vec::new();
    for part in parts {
        match part {
            Part::Inline(message) => messages.push(message),
            Part::History(span) => {
                let end = span.last.unwrap_or(last);
                let rows = when_possible(|| log.transcript(session, user, span.first, end)).await?;
                for row in rows {
                    let message = serde_json::from_str(&row)
                        .map_err(|cause| LogError::Content(cause.to_string()))?;
                    messages.push(message);
                }
            }
        }
    }
    Ok(arrange(messages))
}

/// Moves results behind their calls. A result goes to the nearest preceding call with its id that
/// has no result yet: some providers number calls from zero in each response. A result without such
/// a call (it is not in the prompt, or was answered already) is dropped.
pub(crate) fn arrange(messages: Vec<Message>) -> Vec<Message> {
    let mut kept: Vec<(Message, Vec<usize>)> = Vec::with_capacity(messages.len());
    let mut answers: Vec<ToolResult> = Vec::new();
    let mut open: HashMap<String, usize> = HashMap::new();
    for message in messages {
        let Message { role, content } = message;
        let mut rest = Vec::with_capacity(content.len());
        for content in content {
            match content {
                Content::ToolResult(result) => {
                    if let Some(answer) = open.remove(&result.call_id) {
                        answers[answer] = result;
                    }
                }
                other => rest.push(other),
            }
        }
        let mut calls = Vec::new();
        for content in &rest {
            if let Content::ToolCall(call) = content {
                open.insert(call.id.clone(), answers.len());
                calls.push(answers.len());
                answers.push(ToolResult {
                    call_id: call.id.clone(),
                    is_error: true,
                    text: NO_RESULT.to_owned(),
                    exit_code: None,
                    blobs: Vec::new(),
                });
            }
        }
        if !rest.is_empty() {
            let message = Message {
                role,
                content: rest,
            };
            kept.push((message, calls));
        }
    }
    let mut arranged = Vec::with_capacity(kept.len());
    for (message, calls) in kept {
        arranged.push(message);
        if !calls.is_empty() {
            let content = calls
                .into_iter()
                .map(|call| Content::ToolResult(answers[call].clone()));
            arranged.push(Message {
                role: Role::Tool,
                content: content.collect(),
            });
        }
    }
    arranged
}
