//! Owns how a prompt's parts become the messages of a model call.
//!
//! What always holds: a tool result stands right behind the message whose call it answers, whatever
//! came between them in the transcript, and a call that was never answered gets an answer that says
//! so, since providers refuse a conversation with an open call. Messages keep their order otherwise.

use std::collections::HashMap;

use crate::plugins::policy_types::Part;
use crate::plugins::types::{Content, Message, Role, ToolResult};
use crate::store::{self, Store, StoreError};

/// What stands for a result that is not there.
const NO_RESULT: &str = "There is no result of this call: it was not run, or it was given up.";

/// Reads the stretches of the transcript that a prompt names. `last` is the newest entry.
pub(super) async fn resolve(
    store: &Store,
    session: &str,
    parts: Vec<Part>,
    last: u64,
) -> Result<Vec<Message>, StoreError> {
    let mut messages = Vec::new();
    for part in parts {
        match part {
            Part::Inline(message) => messages.push(message),
            Part::History(span) => {
                let session = session.to_owned();
                let end = span.last.unwrap_or(last);
                let rows = store
                    .read(move |connection| {
                        store::transcript(connection, &session, span.first, end)
                    })
                    .await?;
                for row in rows {
                    let message = serde_json::from_str(&row)
                        .map_err(|cause| StoreError::Content(cause.to_string()))?;
                    messages.push(message);
                }
            }
        }
    }
    Ok(arrange(messages))
}

/// Puts results behind their calls. A result whose call is not in the prompt is left out.
pub(super) fn arrange(messages: Vec<Message>) -> Vec<Message> {
    // A provider's id may come twice (some number calls from zero in each answer): the results of
    // one id are given out in order.
    let mut results: HashMap<String, Vec<ToolResult>> = HashMap::new();
    let mut others = Vec::with_capacity(messages.len());
    for mut message in messages {
        message.content.retain(|content| match content {
            Content::ToolResult(result) => {
                results
                    .entry(result.call_id.clone())
                    .or_default()
                    .push(result.clone());
                false
            }
            _ => true,
        });
        if !message.content.is_empty() {
            others.push(message);
        }
    }
    for waiting in results.values_mut() {
        waiting.reverse();
    }
    let mut arranged = Vec::with_capacity(others.len());
    for message in others {
        let calls: Vec<String> = message
            .content
            .iter()
            .filter_map(|content| match content {
                Content::ToolCall(call) => Some(call.id.clone()),
                _ => None,
            })
            .collect();
        arranged.push(message);
        if !calls.is_empty() {
            let answers = calls.into_iter().map(|id| {
                let found = results.get_mut(&id).and_then(Vec::pop);
                Content::ToolResult(found.unwrap_or_else(|| ToolResult {
                    call_id: id,
                    is_error: true,
                    text: NO_RESULT.to_owned(),
                    exit_code: None,
                    blobs: Vec::new(),
                }))
            });
            arranged.push(Message {
                role: Role::Tool,
                content: answers.collect(),
            });
        }
    }
    arranged
}
