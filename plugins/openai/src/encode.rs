//! From the shared vocabulary to a chat completions request.
//!
//! Always holds: what the adapter's decoder relies on (`stream`, `n` …) cannot be changed through
//! `params`; every tool call is sent with arguments that are JSON, since some servers refuse the
//! whole conversation for one that is not.

use lucid_plugin::llm::{CompletionRequest, Encoded, Framing, parse_settings};
use lucid_plugin::types::{
    Content, Error, Header, HttpRequest, Message, Role, ToolCall, ToolDefinition, ToolResult,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What a deployment may set.
#[derive(Deserialize)]
#[serde(default)]
struct Settings {
    /// Older models and most other servers want `max_tokens`.
    max_tokens_field: String,
    /// Whether to ask for token counts of a stream; a few servers refuse the question.
    stream_usage: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_tokens_field: "max_completion_tokens".into(),
            stream_usage: true,
        }
    }
}

/// What `params` may not set.
const OURS: [&str; 6] = [
    "model",
    "messages",
    "tools",
    "stream",
    "stream_options",
    "n",
];

pub(crate) fn encode(settings: &str, request: CompletionRequest) -> Result<Encoded, Error> {
    let settings: Settings = parse_settings(settings)?;
    let mut body = params(&request.params)?;
    body.insert("model".into(), request.model.into());
    body.insert("messages".into(), Value::Array(messages(&request.messages)));
    if !request.tools.is_empty() {
        let tools = request
            .tools
            .iter()
            .map(tool)
            .collect::<Result<Vec<_>, _>>()?;
        body.insert("tools".into(), Value::Array(tools));
    }
    if let Some(limit) = request.max_output_tokens {
        body.insert(settings.max_tokens_field, limit.into());
    }
    if request.streaming {
        body.insert("stream".into(), true.into());
        if settings.stream_usage {
            body.insert("stream_options".into(), json!({ "include_usage": true }));
        }
    }
    let (accept, framing) = if request.streaming {
        ("text/event-stream", Framing::ServerSentEvents)
    } else {
        ("application/json", Framing::WholeBody)
    };
    let header = |name: &str, value: &str| Header {
        name: name.into(),
        value: value.into(),
    };
    Ok(Encoded {
        request: HttpRequest {
            method: "POST".into(),
            path: "/chat/completions".into(),
            query: Vec::new(),
            headers: vec![
                header("content-type", "application/json"),
                header("accept", accept),
            ],
            body: Value::Object(body).to_string().into_bytes(),
        },
        framing,
    })
}

fn params(text: &str) -> Result<Map<String, Value>, Error> {
    let params: Map<String, Value> = parse_settings(text)?;
    match OURS.iter().find(|name| params.contains_key(**name)) {
        Some(name) => Err(Error::invalid(format!(
            "`{name}` cannot be set through params."
        ))),
        None => Ok(params),
    }
}

fn tool(tool: &ToolDefinition) -> Result<Value, Error> {
    let schema: Value = serde_json::from_str(&tool.input_schema).map_err(|e| {
        Error::invalid(format!(
            "The schema of the tool `{}` is not JSON: {e}.",
            tool.name
        ))
    })?;
    Ok(json!({
        "type": "function",
        "function": { "name": tool.name, "description": tool.description, "parameters": schema },
    }))
}

fn messages(messages: &[Message]) -> Vec<Value> {
    let mut out = Vec::new();
    for message in messages {
        one(message, &mut out);
    }
    out
}

/// A message of ours may become several: each tool result is a message of its own.
fn one(message: &Message, out: &mut Vec<Value>) {
    let mut text = String::new();
    let mut calls = Vec::new();
    for piece in &message.content {
        match piece {
            Content::Text(piece) => paragraph(&mut text, piece),
            Content::Image(blob) => {
                paragraph(
                    &mut text,
                    &format!("[a picture, {}, not shown]", blob.media_type),
                );
            }
            Content::ToolCall(c) => calls.push(call(c)),
            Content::ToolResult(r) => out.push(result(r)),
            // Chat completions take no reasoning back; what has no name here is not for this API.
            Content::Thinking(_) | Content::Other(_) => {}
        }
    }
    if text.is_empty() && calls.is_empty() {
        return;
    }
    let role = match message.role {
        Role::System => "system",
        Role::Assistant => "assistant",
        Role::User | Role::Tool => "user",
    };
    let mut value = Map::new();
    value.insert("role".into(), role.into());
    value.insert(
        "content".into(),
        if text.is_empty() {
            Value::Null
        } else {
            text.into()
        },
    );
    if !calls.is_empty() {
        value.insert("tool_calls".into(), Value::Array(calls));
    }
    out.push(Value::Object(value));
}

fn paragraph(text: &mut String, piece: &str) {
    if piece.is_empty() {
        return;
    }
    if !text.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(piece);
}

fn call(call: &ToolCall) -> Value {
    let arguments = match serde_json::from_str::<Value>(&call.arguments) {
        Ok(Value::Object(_)) => call.arguments.clone(),
        _ if call.arguments.trim().is_empty() => "{}".into(),
        // The model sees what it wrote, inside something every server can parse.
        _ => json!({ "not_an_object": call.arguments }).to_string(),
    };
    json!({
        "id": call.id,
        "type": "function",
        "function": { "name": call.name, "arguments": arguments },
    })
}

fn result(result: &ToolResult) -> Value {
    let mut text = String::new();
    // This API has no flag for it.
    if result.is_error {
        text.push_str("[error] ");
    }
    text.push_str(&result.text);
    for blob in &result.blobs {
        paragraph(
            &mut text,
            &format!("[a file, {}, not shown]", blob.media_type),
        );
    }
    json!({ "role": "tool", "tool_call_id": result.call_id, "content": text })
}
