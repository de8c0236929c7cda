//! Encodes the shared vocabulary to a `generateContent` request.
//!
//! # Invariants
//!
//! - The turn after one with calls begins with as many results, in the calls' order.
//! - The provider's safety filters are turned off as far as possible, because an agent that reads a
//!   security report must not fall silent.

use lucid_plugin::llm::conversation::{
    Conversation, ConversationTurn, Rules, UserContent, UserTurn,
};
use lucid_plugin::llm::extra::kept;
use lucid_plugin::llm::files::{Files, Shown, encoded};
use lucid_plugin::llm::{
    CompletionRequest, Effort, Encoded, Framing, Params, Thinking, arguments, post, schema,
};
use lucid_plugin::types::{BlobRef, Content, Custom, Error, ToolCall, ToolResult};
use serde_json::{Map, Value, json};

use crate::models::{Reasons, Ways, ways};
use crate::schema::parameters;
use crate::{LONGEST_ID, OWN_ID, SIGNATURE};

const RULES: Rules = Rules {
    sent_back: |piece| matches!(piece, Content::Other(custom) if custom.kind == SIGNATURE),
    in_ids: |c| c.is_ascii_graphic(),
    longest_id: LONGEST_ID,
};
const FILTERS: [&str; 4] = [
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
];
/// The documented placeholder for the signature of a call that this API did not make.
const UNPROVEN: &str = "skip_thought_signature_validator";

pub(crate) fn encode(request: &CompletionRequest) -> Result<Encoded, Error> {
    let params = Params::parse(&request.params)?;
    let conversation = Conversation::new(&request.messages, &RULES);
    let name = request
        .model
        .strip_prefix("models/")
        .unwrap_or(&request.model);
    let (method, framing) = if request.streaming {
        ("streamGenerateContent", Framing::ServerSentEvents)
    } else {
        ("generateContent", Framing::WholeBody)
    };
    let mut to = post(format!("/v1beta/models/{name}:{method}"));
    if request.streaming {
        to.query = vec![("alt".into(), "sse".into())];
    }
    encoded(to, framing, |files| {
        body(request, &params, &conversation, files)
    })
}

fn body(
    request: &CompletionRequest,
    params: &Params,
    conversation: &Conversation,
    files: &mut Files,
) -> Result<Value, Error> {
    let ways = ways(&request.model);
    let mut contents: Vec<Value> = Vec::new();
    let mut calls: Vec<&ToolCall> = Vec::new();
    for turn in &conversation.turns {
        contents.push(match turn {
            ConversationTurn::Model(pieces) => {
                calls = pieces.iter().filter_map(call).collect();
                json!({ "role": "model", "parts": model(pieces, ways) })
            }
            ConversationTurn::User(turn) => {
                json!({ "role": "user", "parts": user(turn, &calls, files) })
            }
        });
    }
    let mut body = Map::new();
    body.insert("contents".into(), contents.into());
    if !conversation.system.is_empty() {
        let text = conversation.system.join("\n\n");
        body.insert(
            "systemInstruction".into(),
            json!({ "parts": [{ "text": text }] }),
        );
    }
    if !request.tools.is_empty() {
        let mut functions = Vec::new();
        for tool in schema::tools(&request.tools, schema::any_name) {
            let mut function = json!({ "name": tool.name, "description": tool.description });
            if let Some(parameters) = parameters(&tool.schema) {
                function["parameters"] = parameters;
            }
            functions.push(function);
        }
        body.insert(
            "tools".into(),
            json!([{ "functionDeclarations": functions }]),
        );
    }
    let filters = FILTERS.map(|of| json!({ "category": of, "threshold": "BLOCK_NONE" }));
    body.insert("safetySettings".into(), filters.to_vec().into());
    let config = config(request, params, ways);
    if !config.is_empty() {
        body.insert("generationConfig".into(), config.into());
    }
    Ok(Value::Object(body))
}

fn config(request: &CompletionRequest, params: &Params, ways: Option<Ways>) -> Map<String, Value> {
    let mut config = Map::new();
    if let Some(limit) = request.max_output_tokens {
        config.insert("maxOutputTokens".into(), limit.max(1).into());
    }
    if ways.is_none_or(|ways| ways.sampling) {
        for (name, value) in [("temperature", params.temperature), ("topP", params.top_p)] {
            if let Some(value) = value {
                config.insert(name.into(), value.into());
            }
        }
    }
    if !params.stop.is_empty() {
        // The API accepts five.
        let stop: Vec<_> = params.stop.iter().take(5).cloned().collect();
        config.insert("stopSequences".into(), stop.into());
    }
    if let Some(ways) = ways {
        config.insert("thinkingConfig".into(), thinking(params.thinking, ways));
    }
    config
}

fn thinking(wanted: Option<Thinking>, ways: Ways) -> Value {
    let mut config = json!({ "includeThoughts": wanted != Some(Thinking::Off) });
    let Some(wanted) = wanted else {
        return config;
    };
    match ways.reasons {
        Reasons::Budget { least } => {
            config["thinkingBudget"] = wanted.as_budget().clamp(least, 24_576).into();
        }
        Reasons::Level { minimal } => {
            config["thinkingLevel"] = match wanted.as_effort() {
                None | Some(Effort::Minimal) if minimal => "minimal",
                None | Some(Effort::Minimal | Effort::Low) => "low",
                Some(Effort::Medium) => "medium",
                Some(Effort::High | Effort::Max) => "high",
            }
            .into();
        }
    }
    config
}

fn call(piece: &Content) -> Option<&ToolCall> {
    match piece {
        Content::ToolCall(call) => Some(call),
        _ => None,
    }
}

/// Encodes a model turn. Each signature goes to the piece after it.
fn model(pieces: &[Content], ways: Option<Ways>) -> Vec<Value> {
    let mut parts: Vec<Value> = Vec::new();
    let mut proof: Option<String> = None;
    let mut called = false;
    for piece in pieces {
        let mut part = match piece {
            Content::Text(text) => json!({ "text": text }),
            Content::ToolCall(call) => {
                let mut call_part = json!({ "name": call.name, "args": arguments(call) });
                if !call.id.starts_with(OWN_ID) {
                    call_part["id"] = call.id.clone().into();
                }
                // Only the first of several calls has one.
                if !called && proof.is_none() && ways.is_some_and(|ways| ways.signed) {
                    proof = Some(UNPROVEN.into());
                }
                called = true;
                json!({ "functionCall": call_part })
            }
            Content::Other(custom) => {
                let Some((signature, alone)) = signature(custom) else {
                    continue;
                };
                if alone {
                    parts.push(json!({ "text": "", "thoughtSignature": signature }));
                } else {
                    proof = Some(signature);
                }
                continue;
            }
            _ => continue,
        };
        if let Some(signature) = proof.take() {
            part["thoughtSignature"] = signature.into();
        }
        parts.push(part);
    }
    parts
}

fn signature(custom: &Custom) -> Option<(String, bool)> {
    let body: Value = kept(SIGNATURE, custom)?;
    let signature = body.get("signature")?.as_str().filter(|s| !s.is_empty())?;
    let alone = body.get("alone").and_then(Value::as_bool) == Some(true);
    Some((signature.into(), alone))
}

fn user(turn: &UserTurn, calls: &[&ToolCall], files: &mut Files) -> Vec<Value> {
    let mut parts: Vec<Value> = turn
        .results
        .iter()
        .map(|result| answer(result, calls))
        .collect();
    for blob in turn.results.iter().flat_map(|result| &result.blobs) {
        parts.push(picture(blob, files));
    }
    for said in &turn.said {
        parts.push(match said {
            UserContent::Text(text) => json!({ "text": text }),
            UserContent::Image(blob) => picture(blob, files),
        });
    }
    parts
}

fn answer(result: &ToolResult, calls: &[&ToolCall]) -> Value {
    let call = calls.iter().find(|call| call.id == result.call_id);
    let name = call.map_or("unknown", |call| call.name.as_str());
    // The two names that the API documents to the model.
    let said = if result.is_error { "error" } else { "output" };
    let mut answer = json!({ "name": name, "response": { said: result.text } });
    if !result.call_id.starts_with(OWN_ID) {
        answer["id"] = result.call_id.clone().into();
    }
    json!({ "functionResponse": answer })
}

fn picture(blob: &BlobRef, files: &mut Files) -> Value {
    match files.show(blob) {
        Shown::Told(text) => json!({ "text": text }),
        Shown::Marked(marker) => {
            json!({ "inlineData": { "mimeType": blob.media_type, "data": marker } })
        }
    }
}
