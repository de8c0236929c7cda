//! From a response, streamed or whole, to a completion.
//!
//! Always holds: how a body was cut into frames makes no difference to the completion; a delta is
//! never taken back; an answer is whole only if the server said so, with a finish reason or `[DONE]`.

mod calls;

use lucid_plugin::NO_USAGE;
use lucid_plugin::llm::{Completion, Decoder, Delta, Frame, text_at, whole_json};
use lucid_plugin::types::{Content, Error, Message, Role, StopReason, Thinking, Usage};
use serde_json::Value;

use crate::classify;
use calls::Calls;

/// Reads one response.
pub struct ChunkDecoder {
    text: String,
    thinking: String,
    calls: Calls,
    stop: Option<StopReason>,
    refused: bool,
    done: bool,
    usage: Usage,
    /// A response that is not streamed, until it is there as a whole.
    body: Vec<u8>,
}

impl Decoder for ChunkDecoder {
    fn new(_: String) -> Self {
        Self {
            text: String::new(),
            thinking: String::new(),
            calls: Calls::default(),
            stop: None,
            refused: false,
            done: false,
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
            self.chunk(&whole_json(&body)?, &mut Vec::new())?;
        }
        let stop = match self.stop {
            Some(_) if self.refused => StopReason::Refusal,
            Some(stop) => stop,
            None if self.done && self.refused => StopReason::Refusal,
            None if self.done => StopReason::EndTurn,
            None => return Err(Error::upstream("The answer broke off before its end.")),
        };
        // Some servers say `stop` where they mean that they wait for tools.
        let stop = match stop {
            StopReason::EndTurn if !self.calls.is_empty() => StopReason::ToolUse,
            other => other,
        };
        let mut content = Vec::new();
        if !self.thinking.is_empty() {
            content.push(Content::Thinking(Thinking {
                text: self.thinking,
                signature: None,
            }));
        }
        if !self.text.is_empty() {
            content.push(Content::Text(self.text));
        }
        content.extend(self.calls.into_calls().map(Content::ToolCall));
        let message = Message {
            role: Role::Assistant,
            content,
        };
        Ok(Completion {
            message,
            stop,
            usage: self.usage,
        })
    }
}

impl ChunkDecoder {
    fn data(&mut self, data: &str, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        let data = data.trim();
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        if data.is_empty() {
            return Ok(());
        }
        let value: Value = serde_json::from_str(data).map_err(|e| {
            Error::upstream(format!("The provider sent a piece that is not JSON: {e}."))
        })?;
        self.chunk(&value, deltas)
    }

    /// A chunk of a stream, or a whole response: they differ in `delta` and `message` alone.
    fn chunk(&mut self, chunk: &Value, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        if let Some(error) = chunk.get("error").filter(|e| !e.is_null()) {
            return Err(classify::midway(error));
        }
        if let Some(id) = text_at(chunk, "id") {
            self.calls.name_response(id);
        }
        // With one choice asked for there is one at most; the last chunk of a stream has none.
        if let Some(choice) = chunk.get("choices").and_then(|c| c.get(0)) {
            self.choice(choice, deltas)?;
        }
        if let Some(usage) = chunk.get("usage").filter(|u| u.is_object()) {
            self.usage = read_usage(usage);
            deltas.push(Delta::Usage(self.usage));
        }
        Ok(())
    }

    fn choice(&mut self, choice: &Value, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        if let Some(error) = choice.get("error").filter(|e| !e.is_null()) {
            return Err(classify::midway(error));
        }
        let part = |name: &str| choice.get(name).filter(|part| part.is_object());
        if let Some(delta) = part("delta") {
            self.said(delta, deltas);
            for (place, fragment) in calls_in(delta).enumerate() {
                self.calls.take(place, fragment, deltas);
            }
        } else if let Some(message) = part("message") {
            self.said(message, deltas);
            for call in calls_in(message) {
                self.calls.take_whole(call, deltas);
            }
        }
        match text_at(choice, "finish_reason") {
            None => {}
            Some("error") => {
                return Err(Error::upstream(
                    "The provider broke the answer off with an error.",
                ));
            }
            Some(reason) => {
                self.stop = Some(match reason {
                    "stop" => StopReason::EndTurn,
                    "length" => StopReason::MaxTokens,
                    "tool_calls" | "function_call" => StopReason::ToolUse,
                    "content_filter" => StopReason::Refusal,
                    _ => StopReason::Other,
                });
            }
        }
        Ok(())
    }

    fn said(&mut self, said: &Value, deltas: &mut Vec<Delta>) {
        // Not OpenAI's own, but what most servers with reasoning models send.
        let thought = text_at(said, "reasoning_content").or_else(|| text_at(said, "reasoning"));
        if let Some(thought) = thought {
            self.thinking.push_str(thought);
            deltas.push(Delta::Thinking(thought.into()));
        }
        if let Some(text) = text_at(said, "content") {
            self.say(text, deltas);
        }
        // Some servers give the content in parts.
        for part in said
            .get("content")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            if let Some(text) = text_at(part, "text") {
                self.say(text, deltas);
            }
        }
        if let Some(refusal) = text_at(said, "refusal") {
            self.refused = true;
            self.say(refusal, deltas);
        }
    }

    fn say(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        self.text.push_str(text);
        deltas.push(Delta::Text(text.into()));
    }
}

/// The calls in what is said; of a server that has the older form, the one `function_call`.
fn calls_in(said: &Value) -> impl Iterator<Item = &Value> {
    let calls = said.get("tool_calls").and_then(Value::as_array);
    let calls = calls.filter(|calls| !calls.is_empty());
    let older = said.get("function_call").filter(|call| call.is_object());
    let older = older.filter(|_| calls.is_none());
    calls.into_iter().flatten().chain(older)
}

fn read_usage(usage: &Value) -> Usage {
    let number = |path: &str| usage.pointer(path).and_then(Value::as_u64);
    let read = number("/prompt_tokens").unwrap_or(0);
    let cached = number("/prompt_tokens_details/cached_tokens")
        .or_else(|| number("/prompt_cache_hit_tokens"))
        .unwrap_or(0)
        .min(read);
    let written = number("/prompt_tokens_details/cache_write_tokens")
        .or_else(|| number("/prompt_tokens_details/cache_creation_tokens"))
        .unwrap_or(0)
        .min(read - cached);
    Usage {
        input_tokens: read - cached - written,
        output_tokens: number("/completion_tokens").unwrap_or(0),
        cache_read_tokens: cached,
        cache_write_tokens: written,
    }
}
