//! From an answer, streamed or whole, to a completion.
//!
//! Always holds: blocks stay in the order they began; how a body was cut into frames makes no
//! difference; an answer is whole only when the API said why it stopped.

use lucid_plugin::NO_USAGE;
use lucid_plugin::llm::{
    Completion, Decoder, Delta, Frame, ToolCallArguments, ToolCallStart, text_at, whole_json,
};
use lucid_plugin::types::{
    Content, Custom, Error, Message, Role, StopReason, Thinking, ToolCall, Usage,
};
use serde_json::Value;

use crate::{REDACTED, classify};

/// Reads one answer.
pub struct EventDecoder {
    /// By the API's index.
    blocks: Vec<(u64, Block)>,
    stop: Option<StopReason>,
    usage: Usage,
    /// An answer that is not streamed, until it is there as a whole.
    body: Vec<u8>,
}

enum Block {
    Text(String),
    Thinking { text: String, signature: String },
    Redacted(String),
    Call { call: ToolCall, given: String },
    Unknown,
}

impl Decoder for EventDecoder {
    fn new(_: String) -> Self {
        Self {
            blocks: Vec::new(),
            stop: None,
            usage: NO_USAGE,
            body: Vec::new(),
        }
    }

    fn push(&mut self, frame: Frame, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        match frame {
            Frame::Sse(event) => self.data(&event.data, deltas),
            Frame::Line(line) => self.data(&line, deltas),
            Frame::Body(bytes) => {
                self.body.extend_from_slice(&bytes);
                Ok(())
            }
        }
    }

    fn finish(mut self) -> Result<Completion, Error> {
        if !self.body.is_empty() {
            let body = std::mem::take(&mut self.body);
            self.whole(&whole_json(&body)?)?;
        }
        let Some(stop) = self.stop else {
            return Err(Error::upstream("The answer broke off before its end."));
        };
        let content: Vec<Content> = self
            .blocks
            .into_iter()
            .filter_map(|(_, b)| b.into_content())
            .collect();
        let calls = content.iter().any(|c| matches!(c, Content::ToolCall(_)));
        Ok(Completion {
            message: Message {
                role: Role::Assistant,
                content,
            },
            // Servers that stand in for the API do not always say that they wait for tools.
            stop: if calls && stop == StopReason::EndTurn {
                StopReason::ToolUse
            } else {
                stop
            },
            usage: self.usage,
        })
    }
}

impl EventDecoder {
    fn data(&mut self, data: &str, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        let data = data.trim();
        if data.is_empty() || data == "[DONE]" {
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).map_err(|e| {
            Error::upstream(format!("The provider sent an event that is not JSON: {e}."))
        })?;
        self.event(&event, deltas)
    }

    fn event(&mut self, event: &Value, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        match text_at(event, "type").unwrap_or_default() {
            "message_start" => {
                let message = event.get("message").unwrap_or(&Value::Null);
                self.count(message, deltas);
            }
            "content_block_start" => {
                let block = event.get("content_block").unwrap_or(&Value::Null);
                self.begin(index(event), block, deltas);
            }
            "content_block_delta" => {
                let delta = event.get("delta").unwrap_or(&Value::Null);
                self.grow(index(event), delta, deltas);
            }
            "message_delta" => {
                self.stopped(event.get("delta").unwrap_or(&Value::Null));
                self.count(event, deltas);
            }
            "error" => return Err(classify::midway(event.get("error").unwrap_or(event))),
            // A whole message as the one event of a stream.
            "message" => self.whole(event)?,
            _ if event.get("error").is_some_and(|e| !e.is_null()) => {
                return Err(classify::midway(&event["error"]));
            }
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, message: &Value) -> Result<(), Error> {
        if let Some(error) = message.get("error").filter(|e| !e.is_null()) {
            return Err(classify::midway(error));
        }
        let blocks = message.get("content").and_then(Value::as_array);
        for (at, block) in blocks.into_iter().flatten().enumerate() {
            self.begin(at as u64, block, &mut Vec::new());
        }
        self.stopped(message);
        self.count(message, &mut Vec::new());
        Ok(())
    }

    fn begin(&mut self, index: u64, block: &Value, deltas: &mut Vec<Delta>) {
        let text = |name| text_at(block, name).unwrap_or_default().to_string();
        let block = match text_at(block, "type").unwrap_or_default() {
            "text" => {
                let text = text("text");
                show(&text, Delta::Text, deltas);
                Block::Text(text)
            }
            "thinking" => {
                let (text, signature) = (text("thinking"), text("signature"));
                show(&text, Delta::Thinking, deltas);
                Block::Thinking { text, signature }
            }
            "redacted_thinking" => Block::Redacted(text("data")),
            "tool_use" => {
                let mut call = ToolCall {
                    id: text("id"),
                    name: text("name"),
                    arguments: String::new(),
                };
                if call.id.is_empty() || self.has_call(&call.id) {
                    call.id = format!("call_{index}_{}", self.blocks.len());
                }
                deltas.push(Delta::ToolCallStarted(ToolCallStart {
                    id: call.id.clone(),
                    name: call.name.clone(),
                }));
                // The API begins with an empty object and sends the text of the real one behind it;
                // a whole answer has the real one here.
                let given = match block.get("input") {
                    Some(Value::Object(input)) if !input.is_empty() => {
                        Value::Object(input.clone()).to_string()
                    }
                    _ => String::new(),
                };
                Block::Call { call, given }
            }
            _ => Block::Unknown,
        };
        self.blocks.push((index, block));
    }

    fn has_call(&self, id: &str) -> bool {
        self.blocks
            .iter()
            .any(|(_, block)| matches!(block, Block::Call { call, .. } if call.id == id))
    }

    fn grow(&mut self, index: u64, delta: &Value, deltas: &mut Vec<Delta>) {
        let found = self.blocks.iter_mut().rev().find(|(at, _)| *at == index);
        let Some((_, block)) = found else {
            return;
        };
        let text = |name| text_at(delta, name).unwrap_or_default();
        match (block, text("type")) {
            (Block::Text(all), "text_delta") => {
                all.push_str(text("text"));
                show(text("text"), Delta::Text, deltas);
            }
            (Block::Thinking { text: all, .. }, "thinking_delta") => {
                all.push_str(text("thinking"));
                show(text("thinking"), Delta::Thinking, deltas);
            }
            (Block::Thinking { signature, .. }, "signature_delta") => {
                signature.push_str(text("signature"));
            }
            (Block::Call { call, .. }, "input_json_delta") => {
                let fragment = text("partial_json");
                if !fragment.is_empty() {
                    call.arguments.push_str(fragment);
                    deltas.push(Delta::ToolCallArguments(ToolCallArguments {
                        id: call.id.clone(),
                        fragment: fragment.into(),
                    }));
                }
            }
            _ => {}
        }
    }

    fn stopped(&mut self, delta: &Value) {
        if let Some(reason) = text_at(delta, "stop_reason") {
            self.stop = Some(match reason {
                "end_turn" | "stop_sequence" => StopReason::EndTurn,
                "tool_use" => StopReason::ToolUse,
                "max_tokens" | "model_context_window_exceeded" => StopReason::MaxTokens,
                "refusal" => StopReason::Refusal,
                _ => StopReason::Other,
            });
        }
    }

    /// Counts are of the whole answer so far, and the later event does not repeat all of them.
    fn count(&mut self, holder: &Value, deltas: &mut Vec<Delta>) {
        let Some(usage) = holder.get("usage").filter(|usage| usage.is_object()) else {
            return;
        };
        for (name, count) in [
            ("input_tokens", &mut self.usage.input_tokens),
            ("output_tokens", &mut self.usage.output_tokens),
            ("cache_read_input_tokens", &mut self.usage.cache_read_tokens),
            (
                "cache_creation_input_tokens",
                &mut self.usage.cache_write_tokens,
            ),
        ] {
            if let Some(tokens) = usage.get(name).and_then(Value::as_u64) {
                *count = tokens;
            }
        }
        deltas.push(Delta::Usage(self.usage));
    }
}

impl Block {
    fn into_content(self) -> Option<Content> {
        match self {
            Self::Text(text) if text.is_empty() => None,
            Self::Text(text) => Some(Content::Text(text)),
            // Newer models hide the text, and their proof alone must come back.
            Self::Thinking { text, signature } => {
                let there = !(text.is_empty() && signature.is_empty());
                there.then(|| {
                    Content::Thinking(Thinking {
                        text,
                        signature: Some(signature).filter(|s| !s.is_empty()),
                    })
                })
            }
            Self::Redacted(data) => Some(Content::Other(Custom {
                kind: REDACTED.into(),
                body: Value::String(data).to_string(),
            })),
            Self::Call { mut call, given } => {
                if call.arguments.is_empty() {
                    call.arguments = if given.is_empty() { "{}".into() } else { given };
                }
                Some(Content::ToolCall(call))
            }
            Self::Unknown => None,
        }
    }
}

fn index(event: &Value) -> u64 {
    event.get("index").and_then(Value::as_u64).unwrap_or(0)
}

fn show(text: &str, delta: fn(String) -> Delta, deltas: &mut Vec<Delta>) {
    if !text.is_empty() {
        deltas.push(delta(text.into()));
    }
}
