//! Encodes the shared vocabulary to a chat completions request.
//!
//! # Invariants
//!
//! - System messages come first and are merged into one.
//! - Every tool call is sent with arguments that are an object, and is followed directly by its
//!   result, since some servers refuse the whole conversation otherwise.

use lucid_plugin::llm::conversation::{
    Conversation, ConversationTurn, Rules, UserContent, UserTurn,
};
use lucid_plugin::llm::extra::CallExtra;
use lucid_plugin::llm::files::{Files, Shown, encoded};
use lucid_plugin::llm::schema::{self, Tool};
use lucid_plugin::llm::{
    self, CompletionRequest, Encoded, Framing, Params, arguments, parse_settings, post,
};
use lucid_plugin::types::{BlobRef, Content, Error, ToolCall, ToolResult};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::kept::{LONGEST_ID, Members, Place, is_kept};
use crate::models::{Effort, Ways, ways};
use crate::roles::Roles;

/// The deployment's settings.
#[derive(Deserialize)]
#[serde(default)]
struct Settings {
    /// The field for the output limit, if the model's name does not determine it.
    max_tokens_field: Option<String>,
    /// Whether to request the token counts of a stream, which a few servers refuse.
    stream_usage: bool,
    /// Whether reasoning goes back as `reasoning_content` even if the server did not send it there.
    send_reasoning: bool,
}

/// The JSON schema of [`Settings`].
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
      "description": "Whether a model's reasoning goes back as reasoning_content also where its server did not give it there. What a server gives goes back without it."
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

/// Some servers' ids contain the tool's name, and their models read them, so only characters that
/// are not plain text are removed.
fn rules(settings: &Settings) -> Rules {
    Rules {
        sent_back: if settings.send_reasoning {
            |piece| goes_back(piece) || matches!(piece, Content::Thinking(_))
        } else {
            goes_back
        },
        in_ids: |c| c.is_ascii_graphic(),
        longest_id: LONGEST_ID,
    }
}

/// Reasoning goes back only if the piece after it says in which place.
fn goes_back(piece: &Content) -> bool {
    match piece {
        Content::Thinking(_) => true,
        Content::Other(custom) => is_kept(custom),
        _ => false,
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
    let reasoning = if learned(&request.params, "reasoning", "always") {
        Reasoning::Always
    } else if settings.send_reasoning {
        Reasoning::All
    } else {
        Reasoning::Given
    };
    let messages = messages(conversation, reasoning, files);
    let roles = Roles::of(&request.model, &request.params);
    body.insert("messages".into(), roles.order(messages).into());
    if !request.tools.is_empty() {
        let tools = schema::tools(&request.tools, schema::any_name);
        let tools: Vec<Value> = tools.iter().map(tool).collect();
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
        if settings.stream_usage && !learned(&request.params, "stream_usage", "never") {
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
            // The API accepts four.
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

fn tool(tool: &Tool) -> Value {
    json!({
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.schema,
        },
    })
}

/// Which reasoning goes back as a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reasoning {
    /// Reasoning that came in one.
    Given,
    /// Any reasoning.
    All,
    /// Any reasoning, and a placeholder where there was none.
    Always,
}

/// Whether the host learned this about the server: that it requires reasoning with each response
/// that has calls, even those from another model, or that it refuses a request for token counts.
fn learned(params: &str, name: &str, word: &str) -> bool {
    let params: Map<String, Value> = serde_json::from_str(params).unwrap_or_default();
    params.get(name).and_then(Value::as_str) == Some(word)
}

fn messages(conversation: &Conversation, reasoning: Reasoning, files: &mut Files) -> Vec<Value> {
    let mut out = Vec::new();
    if !conversation.system.is_empty() {
        let text = conversation.system.join("\n\n");
        out.push(json!({ "role": "system", "content": text }));
    }
    for turn in &conversation.turns {
        match turn {
            ConversationTurn::Model(pieces) => out.push(model(pieces, reasoning)),
            ConversationTurn::User(turn) => user(turn, files, &mut out),
        }
    }
    // A server that sends it with one response requires it with all that have calls.
    let given = out.iter().any(|message| message.get(REASONING).is_some());
    if given || reasoning == Reasoning::Always {
        let open = out
            .iter_mut()
            .filter(|message| message.get("tool_calls").is_some());
        for message in open.filter(|message| message.get(REASONING).is_none()) {
            message[REASONING] = "".into();
        }
    }
    out
}

/// DeepSeek's member, and Kimi's.
const REASONING: &str = "reasoning_content";

/// A model's message under construction.
#[derive(Default)]
struct Draft {
    text: String,
    /// The content in parts, if reasoning was one of them.
    parts: Vec<Value>,
    in_parts: bool,
    members: Map<String, Value>,
    reasoning: Vec<(String, String)>,
    calls: Vec<Value>,
}

fn model(pieces: &[Content], reasoning: Reasoning) -> Value {
    let mut draft = Draft::default();
    let mut extra = None;
    let mut pieces = pieces.iter().peekable();
    while let Some(piece) = pieces.next() {
        match piece {
            Content::Text(text) => draft.say(text),
            Content::Thinking(thinking) => {
                let behind = match pieces.peek() {
                    Some(Content::Other(custom)) => Place::of(custom),
                    _ => None,
                };
                match behind {
                    Some(place) => draft.think(place, &thinking.text),
                    None if reasoning == Reasoning::Given => {}
                    None => draft.think(Place::Member(REASONING.into()), &thinking.text),
                }
            }
            Content::ToolCall(call) => draft.calls.push(sent(call, extra.take())),
            Content::Other(custom) => {
                if let Some(members) = Members::of(custom) {
                    draft.members.extend(members);
                }
                extra = CallExtra::of(custom);
            }
            _ => {}
        }
    }
    draft.message(reasoning)
}

impl Draft {
    fn say(&mut self, text: &str) {
        paragraph(&mut self.text, text);
        self.parts.push(json!({ "type": "text", "text": text }));
    }

    fn think(&mut self, place: Place, text: &str) {
        match place {
            Place::Member(name) => self.reasoning.push((name, text.to_owned())),
            Place::Parts => {
                self.in_parts = true;
                let thought = json!([{ "type": "text", "text": text }]);
                self.parts
                    .push(json!({ "type": "thinking", "thinking": thought }));
            }
        }
    }

    fn message(self, reasoning: Reasoning) -> Value {
        let mut message = Value::Object(self.members);
        message["role"] = "assistant".into();
        message["content"] = match () {
            () if self.in_parts => self.parts.into(),
            () if self.text.is_empty() => Value::Null,
            () => self.text.into(),
        };
        // Without a call, servers ignore it, and some refuse it.
        if !self.calls.is_empty() || reasoning != Reasoning::Given {
            for (name, text) in self.reasoning {
                let before = message
                    .get(&name)
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let text = format!("{before}{text}");
                message[name] = text.into();
            }
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.into();
        }
        message
    }
}

fn sent(piece: &ToolCall, extra: Option<CallExtra>) -> Value {
    let mut sent = call(piece);
    if let Some(extra) = extra {
        extra.put(&mut sent);
    }
    sent
}

/// Encodes a user turn. Each result is a message of its own, with text only: its images follow in
/// the user message after all of them.
fn user(turn: &UserTurn, files: &mut Files, out: &mut Vec<Value>) {
    out.extend(turn.results.iter().map(result));
    let mut parts: Vec<Value> = turn
        .results
        .iter()
        .flat_map(|result| &result.blobs)
        .map(|blob| picture(blob, files))
        .collect();
    parts.extend(turn.said.iter().map(|said| match said {
        UserContent::Text(text) => json!({ "type": "text", "text": text }),
        UserContent::Image(blob) => picture(blob, files),
    }));
    if parts.is_empty() {
        return;
    }
    // Not every server accepts a list in place of a text.
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
    // An object goes back byte for byte.
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
