//! Encodes the shared vocabulary to a Messages request.
//!
//! # Invariants
//!
//! - At most four blocks carry `cache_control`.
//! - A `thinking` setting that the model or the conversation does not allow is left out rather than
//!   refused.

use lucid_plugin::llm::conversation::{
    Conversation, ConversationTurn, Rules, UserContent, UserTurn,
};
use lucid_plugin::llm::extra::{CallExtra, kept};
use lucid_plugin::llm::files::{Files, Shown, encoded};
use lucid_plugin::llm::schema::{self, Tool};
use lucid_plugin::llm::{
    CompletionRequest, Effort, Encoded, Framing, Params, Thinking, arguments, post,
};
use lucid_plugin::types::{BlobRef, Content, Custom, Error, Header, ToolResult};
use serde_json::{Map, Value, json};

use crate::models::{Reasons, Ways, ways};
use crate::{LONGEST_ID, REDACTED, UNSIGNED, Unsigned, is_in_id, version};

const RULES: Rules = Rules {
    sent_back: goes_back,
    in_ids: is_in_id,
    longest_id: LONGEST_ID,
};
/// The rules for a model that accepts reasoning without a signature.
const LENIENT: Rules = Rules {
    sent_back: goes_back_unsigned,
    ..RULES
};
/// The output limit where the policy sets none: the API requires one.
const OUTPUT: u32 = 32_000;
/// The API's minimum.
const LEAST_BUDGET: u32 = 1_024;
/// The beta header that lets a request say what happens to reasoning that no longer fits the
/// conversation before it.
const BINDING: &str = "thinking-binding-controls-2026-08-01";

pub(crate) fn encode(request: &CompletionRequest) -> Result<Encoded, Error> {
    let params = Params::parse(&request.params)?;
    let ways = ways(&request.model);
    let unsigned = !ways.proves;
    let rules = if unsigned { LENIENT } else { RULES };
    let conversation = Conversation::new(&request.messages, &rules);
    let mut to = post("/v1/messages");
    to.headers.push(version());
    if ways.bound {
        to.headers.push(Header {
            name: "anthropic-beta".into(),
            value: BINDING.into(),
        });
    }
    let framing = if request.streaming {
        Framing::ServerSentEvents
    } else {
        Framing::WholeBody
    };
    encoded(to, framing, |files| {
        body(request, &params, ways, &conversation, files)
    })
}

fn body(
    request: &CompletionRequest,
    params: &Params,
    ways: Ways,
    conversation: &Conversation,
    files: &mut Files,
) -> Result<Value, Error> {
    let limit = request.max_output_tokens.unwrap_or(OUTPUT).min(ways.output);
    let mut body = Map::new();
    body.insert("model".into(), request.model.clone().into());
    body.insert("max_tokens".into(), limit.max(1).into());
    let mut messages: Vec<Value> = conversation
        .turns
        .iter()
        .map(|turn| message(turn, files))
        .collect();
    // The parts most likely to be the same next time: tools and system, and the last two user
    // turns, of which the earlier one was the last in the previous request.
    let users = messages.iter_mut().rev().filter(|m| m["role"] == "user");
    for message in users.take(2) {
        if let Some(last) = message["content"].as_array_mut().and_then(|c| c.last_mut()) {
            keep(last);
        }
    }
    body.insert("messages".into(), messages.into());
    let tools = schema::tools(&request.tools, is_member);
    let mut tools: Vec<Value> = tools.iter().map(tool).collect();
    if let Some(last) = tools.last_mut() {
        keep(last);
        body.insert("tools".into(), tools.into());
    }
    if !conversation.system.is_empty() {
        let mut text = json!({ "type": "text", "text": conversation.system.join("\n\n") });
        keep(&mut text);
        body.insert("system".into(), json!([text]));
    }
    if request.streaming {
        body.insert("stream".into(), true.into());
    }
    if !params.stop.is_empty() {
        body.insert("stop_sequences".into(), params.stop.clone().into());
    }
    thinking(params.thinking, ways, limit, conversation, &mut body);
    let reasons = body
        .get("thinking")
        .is_some_and(|t| t["type"] != "disabled");
    if ways.sampling() && !reasons {
        // Several models refuse the two together.
        match (params.temperature, params.top_p) {
            (Some(temperature), _) => {
                body.insert("temperature".into(), temperature.clamp(0.0, 1.0).into());
            }
            (None, Some(top_p)) => {
                body.insert("top_p".into(), top_p.clamp(0.0, 1.0).into());
            }
            (None, None) => {}
        }
    }
    Ok(Value::Object(body))
}

/// Sets a breakpoint of the provider's prompt cache: everything up to here is cached for some
/// minutes.
fn keep(block: &mut Value) {
    block["cache_control"] = json!({ "type": "ephemeral" });
}

fn tool(tool: &Tool) -> Value {
    json!({
        "name": tool.name,
        "description": tool.description,
        "input_schema": tool.schema,
    })
}

/// Whether the API accepts a name for a member of a tool's arguments.
fn is_member(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(fits)
}

fn message(turn: &ConversationTurn, files: &mut Files) -> Value {
    match turn {
        ConversationTurn::User(turn) => json!({ "role": "user", "content": user(turn, files) }),
        ConversationTurn::Model(pieces) => {
            // The API refuses a response that ends in reasoning.
            let ends = |piece: &Content| matches!(piece, Content::Text(_) | Content::ToolCall(_));
            let end = pieces.iter().rposition(ends).map_or(0, |last| last + 1);
            json!({ "role": "assistant", "content": model(&pieces[..end]) })
        }
    }
}

fn user(turn: &UserTurn, files: &mut Files) -> Vec<Value> {
    let results = turn
        .results
        .iter()
        .map(|r| result(r, files))
        .collect::<Vec<_>>();
    let said = turn.said.iter().map(|said| match said {
        UserContent::Text(text) => json!({ "type": "text", "text": text }),
        UserContent::Image(blob) => picture(blob, files),
    });
    results.into_iter().chain(said).collect()
}

fn result(result: &ToolResult, files: &mut Files) -> Value {
    let text = json!({ "type": "text", "text": result.text });
    let mut content = vec![text];
    // The API accepts only text with an error.
    content.extend(result.blobs.iter().map(|blob| {
        if result.is_error {
            json!({ "type": "text", "text": Files::tell(blob) })
        } else {
            picture(blob, files)
        }
    }));
    let mut block = json!({
        "type": "tool_result",
        "tool_use_id": result.call_id,
        "content": content,
    });
    if result.is_error {
        block["is_error"] = true.into();
    }
    block
}

fn picture(blob: &BlobRef, files: &mut Files) -> Value {
    match files.show(blob) {
        Shown::Told(text) => json!({ "type": "text", "text": text }),
        Shown::Marked(marker) => json!({
            "type": "image",
            "source": { "type": "base64", "media_type": blob.media_type, "data": marker },
        }),
    }
}

/// Reasoning without a signature is another provider's, or was truncated, and would be refused.
fn goes_back(piece: &Content) -> bool {
    match piece {
        Content::Thinking(thinking) => thinking.signature.is_some(),
        Content::Other(custom) => redacted(custom).is_some(),
        _ => false,
    }
}

/// A server that sends reasoning without a signature accepts it back in that form.
fn goes_back_unsigned(piece: &Content) -> bool {
    match piece {
        Content::Thinking(_) => true,
        Content::Other(custom) => unsigned(custom).is_some() || goes_back(piece),
        _ => false,
    }
}

fn redacted(custom: &Custom) -> Option<String> {
    kept(REDACTED, custom)
}

fn unsigned(custom: &Custom) -> Option<Unsigned> {
    kept(UNSIGNED, custom)
}

fn model(pieces: &[Content]) -> Vec<Value> {
    let mut content = Vec::new();
    let mut extra: Option<CallExtra> = None;
    let mut pieces = pieces.iter().peekable();
    while let Some(piece) = pieces.next() {
        match piece {
            Content::Text(text) => content.push(json!({ "type": "text", "text": text })),
            Content::ToolCall(call) => {
                let mut block = json!({
                    "type": "tool_use",
                    "id": call.id,
                    "name": call.name,
                    "input": arguments(call),
                });
                if let Some(extra) = extra.take() {
                    extra.put(&mut block);
                }
                content.push(block);
            }
            Content::Thinking(thinking) => {
                let mut block = json!({ "type": "thinking", "thinking": thinking.text });
                let behind = match pieces.peek() {
                    Some(Content::Other(custom)) => unsigned(custom),
                    _ => None,
                };
                match (&thinking.signature, behind) {
                    (Some(signature), _) => block["signature"] = signature.as_str().into(),
                    (None, Some(Unsigned { blank: true })) => block["signature"] = "".into(),
                    (None, Some(Unsigned { blank: false })) => {}
                    // Another provider's.
                    (None, None) => continue,
                }
                content.push(block);
            }
            Content::Other(custom) => {
                extra = CallExtra::of(custom);
                if let Some(data) = redacted(custom) {
                    content.push(json!({ "type": "redacted_thinking", "data": data }));
                }
            }
            _ => {}
        }
    }
    content
}

/// The `thinking` setting, in the form of the model's generation.
fn thinking(
    wanted: Option<Thinking>,
    ways: Ways,
    limit: u32,
    conversation: &Conversation,
    body: &mut Map<String, Value>,
) {
    let asked = wanted.is_some_and(|w| w != Thinking::Off);
    let by_budget = match ways.reasons {
        Reasons::Budget => true,
        Reasons::Either => matches!(wanted, Some(Thinking::Budget(_))),
        Reasons::Asked | Reasons::Unasked | Reasons::Always => false,
    };
    if by_budget {
        let budget = wanted.map_or(0, Thinking::as_budget).max(LEAST_BUDGET);
        // It must leave room for the answer, and cannot begin among calls that it did not lead to.
        if asked && limit > LEAST_BUDGET && led_by_reasoning(conversation) {
            let budget = budget.min(limit - 1);
            body.insert(
                "thinking".into(),
                json!({ "type": "enabled", "budget_tokens": budget }),
            );
        }
        return;
    }
    let mut thinking = match (ways.reasons, wanted) {
        (Reasons::Either | Reasons::Asked, None | Some(Thinking::Off)) => return,
        (Reasons::Unasked, Some(Thinking::Off)) => json!({ "type": "disabled" }),
        (Reasons::Either, _) => json!({ "type": "adaptive" }),
        // These hide their reasoning unless told to show it.
        _ => json!({ "type": "adaptive", "display": "summarized" }),
    };
    if ways.bound {
        thinking["block_binding"] = json!({ "prefix_mismatch_behavior": "drop_block" });
    }
    body.insert("thinking".into(), thinking);
    let effort = match wanted {
        None => None,
        // What cannot be turned off is turned down.
        Some(Thinking::Off) if ways.reasons == Reasons::Always => Some(Effort::Low),
        Some(wanted) => wanted.as_effort(),
    };
    if let Some(effort) = effort {
        let word = match effort {
            Effort::Minimal | Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
            Effort::Max => "max",
        };
        body.insert("output_config".into(), json!({ "effort": word }));
    }
}

/// Whether the response that waits for results began with reasoning. True if none waits.
fn led_by_reasoning(conversation: &Conversation) -> bool {
    let mut turns = conversation.turns.iter().rev();
    match (turns.next(), turns.next()) {
        (Some(ConversationTurn::User(user)), Some(ConversationTurn::Model(pieces)))
            if !user.results.is_empty() =>
        {
            let mut pieces = pieces.iter();
            let first = pieces.find(
                |piece| !matches!(piece, Content::Other(custom) if CallExtra::of(custom).is_some()),
            );
            first.is_some_and(goes_back)
        }
        _ => true,
    }
}
