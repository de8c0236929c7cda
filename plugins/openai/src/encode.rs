//! From the shared vocabulary to a chat completions request.
//!
//! Always holds: system messages come first and are one; every tool call is sent with arguments that
//! are an object, and answered right behind, since some servers refuse the whole conversation for one
//! that is not.

use lucid_plugin::llm::conversation::{Conversation, Rules, Said, Turn, UserTurn};
use lucid_plugin::llm::files::{Files, Shown, encoded};
use lucid_plugin::llm::{
    self, CompletionRequest, Encoded, Framing, Params, arguments, parse_settings, post, schema,
};
use lucid_plugin::types::{BlobRef, Content, Error, ToolCall, ToolDefinition, ToolResult};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::models::{Effort, Ways, ways};

/// What a deployment may set.
#[derive(Deserialize)]
#[serde(default)]
struct Settings {
    /// The field for the output limit, where the model's name does not tell it.
    max_tokens_field: Option<String>,
    /// Whether to ask for token counts of a stream; a few servers refuse the question.
    stream_usage: bool,
    /// Whether a model's reasoning goes back as `reasoning_content`: OpenAI refuses it, some other
    /// servers want it.
    send_reasoning: bool,
}

/// What [`Settings`] takes, for whoever writes them.
pub(crate) const SETTINGS: &str = r#"{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "max_tokens_field": {
      "type": ["string", "null"],
      "minLength": 1,
      "description": "The field for the output limit. Without it that is max_completion_tokens for OpenAI's own models and max_tokens, which imitators want, for any other name."
    },
    "stream_usage": {
      "type": "boolean",
      "default": true,
      "description": "Whether to ask for token counts of a stream; a few servers refuse the question."
    },
    "send_reasoning": {
      "type": "boolean",
      "default": false,
      "description": "Whether a model's reasoning goes back to it as reasoning_content; OpenAI refuses it."
    }
  }
}"#;

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_tokens_field: None,
            stream_usage: true,
            send_reasoning: false,
        }
    }
}

/// Some servers' ids hold the tool's name, and their models read them: only what is not plain text
/// is left out.
fn rules(settings: &Settings) -> Rules {
    Rules {
        sent_back: if settings.send_reasoning {
            |piece| matches!(piece, Content::Thinking(_))
        } else {
            |_| false
        },
        in_ids: |c| c.is_ascii_graphic(),
        // OpenAI's own limit is 40, for ids that are not its own.
        longest_id: 40,
    }
}

pub(crate) fn encode(settings: &str, request: &CompletionRequest) -> Result<Encoded, Error> {
    let settings: Settings = parse_settings(settings)?;
    let params = Params::parse(&request.params)?;
    let conversation = Conversation::new(&request.messages, &rules(&settings));
    let framing = if request.streaming {
        Framing::ServerSentEvents
    } else {
        Framing::WholeBody
    };
    encoded(post("/chat/completions"), framing, |files| {
        body(&settings, request, &params, &conversation, files)
    })
}

fn body(
    settings: &Settings,
    request: &CompletionRequest,
    params: &Params,
    conversation: &Conversation,
    files: &mut Files,
) -> Result<Value, Error> {
    let ways = ways(&request.model);
    let mut body = Map::new();
    body.insert("model".into(), request.model.clone().into());
    body.insert("messages".into(), messages(conversation, files).into());
    if !request.tools.is_empty() {
        let tools = request
            .tools
            .iter()
            .map(tool)
            .collect::<Result<Vec<_>, _>>()?;
        body.insert("tools".into(), tools.into());
    }
    if let Some(limit) = request.max_output_tokens {
        let usual = if ways.own {
            "max_completion_tokens"
        } else {
            "max_tokens"
        };
        let field = settings.max_tokens_field.as_deref().unwrap_or(usual);
        body.insert(field.into(), limit.into());
    }
    if request.streaming {
        body.insert("stream".into(), true.into());
        if settings.stream_usage {
            body.insert("stream_options".into(), json!({ "include_usage": true }));
        }
    }
    if ways.sampling {
        for (name, value) in [("temperature", params.temperature), ("top_p", params.top_p)] {
            if let Some(value) = value {
                body.insert(name.into(), value.into());
            }
        }
        if !params.stop.is_empty() {
            // The API takes four.
            let stop: Vec<_> = params.stop.iter().take(4).cloned().collect();
            body.insert("stop".into(), stop.into());
        }
    }
    if let Some(effort) = effort(params, ways, !request.tools.is_empty()) {
        body.insert("reasoning_effort".into(), effort.into());
    }
    Ok(Value::Object(body))
}

fn effort(params: &Params, ways: Ways, tools: bool) -> Option<&'static str> {
    match ways.effort {
        Effort::Never => return None,
        Effort::Alone if tools => return None,
        Effort::NoneWithTools if tools => return Some("none"),
        _ => {}
    }
    Some(match params.thinking?.as_effort() {
        None | Some(llm::Effort::Minimal | llm::Effort::Low) => "low",
        Some(llm::Effort::Medium) => "medium",
        Some(llm::Effort::High | llm::Effort::Max) => "high",
    })
}

fn tool(tool: &ToolDefinition) -> Result<Value, Error> {
    Ok(json!({
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": schema(tool)?,
        },
    }))
}

fn messages(conversation: &Conversation, files: &mut Files) -> Vec<Value> {
    let mut out = Vec::new();
    if !conversation.system.is_empty() {
        let text = conversation.system.join("\n\n");
        out.push(json!({ "role": "system", "content": text }));
    }
    for turn in &conversation.turns {
        match turn {
            Turn::Model(pieces) => out.push(model(pieces)),
            Turn::User(turn) => user(turn, files, &mut out),
        }
    }
    out
}

fn model(pieces: &[Content]) -> Value {
    let mut text = String::new();
    let mut reasoning = String::new();
    let mut calls = Vec::new();
    for piece in pieces {
        match piece {
            Content::Text(piece) => paragraph(&mut text, piece),
            Content::Thinking(piece) => reasoning.push_str(&piece.text),
            Content::ToolCall(piece) => calls.push(call(piece)),
            _ => {}
        }
    }
    let mut message = json!({ "role": "assistant", "content": null });
    if !text.is_empty() {
        message["content"] = text.into();
    }
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// Each result is a message of its own, of text alone: its pictures come in the user's message
/// behind all of them.
fn user(turn: &UserTurn, files: &mut Files, out: &mut Vec<Value>) {
    out.extend(turn.results.iter().map(result));
    let mut parts: Vec<Value> = turn
        .results
        .iter()
        .flat_map(|result| &result.blobs)
        .map(|blob| picture(blob, files))
        .collect();
    parts.extend(turn.said.iter().map(|said| match said {
        Said::Text(text) => json!({ "type": "text", "text": text }),
        Said::Image(blob) => picture(blob, files),
    }));
    if parts.is_empty() {
        return;
    }
    // Not every server takes a list where a text does.
    let texts: Option<Vec<&str>> = parts.iter().map(|part| part["text"].as_str()).collect();
    let content = match texts {
        Some(texts) => texts.join("\n\n").into(),
        None => Value::Array(parts),
    };
    out.push(json!({ "role": "user", "content": content }));
}

fn picture(blob: &BlobRef, files: &mut Files) -> Value {
    match files.show(blob) {
        Shown::Told(text) => json!({ "type": "text", "text": text }),
        Shown::Marked(marker) => json!({
            "type": "image_url",
            "image_url": { "url": format!("data:{};base64,{marker}", blob.media_type) },
        }),
    }
}

fn paragraph(text: &mut String, piece: &str) {
    if !text.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(piece);
}

fn call(call: &ToolCall) -> Value {
    // What is an object already goes back letter by letter.
    let arguments = match arguments(call) {
        Value::Object(_)
            if call.arguments.trim_start().starts_with('{') && is_json(&call.arguments) =>
        {
            call.arguments.clone()
        }
        other => other.to_string(),
    };
    json!({
        "id": call.id,
        "type": "function",
        "function": { "name": call.name, "arguments": arguments },
    })
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn result(result: &ToolResult) -> Value {
    // This API has no flag for it.
    let mark = if result.is_error { "[error] " } else { "" };
    json!({
        "role": "tool",
        "tool_call_id": result.call_id,
        "content": format!("{mark}{}", result.text),
    })
}
