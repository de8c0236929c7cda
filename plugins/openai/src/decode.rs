//! Decodes a response, streamed or whole, to a completion.
//!
//! # Invariants
//!
//! - How a body was split into frames makes no difference to the completion.
//! - A delta is never taken back.
//! - A response is complete only if the server said so, with a finish reason or `[DONE]`.

mod calls;
mod said;

use lucid_plugin::NO_USAGE;
use lucid_plugin::llm::json::ResponsePiece;
use lucid_plugin::llm::refusal::{Begun, Report};
use lucid_plugin::llm::{Completion, Decoder, Delta, Frame, Sse, text_at, whole_json};
use lucid_plugin::types::{Error, Message, Role, StopReason, Usage};
use serde_json::Value;

use crate::classify;
use crate::kept::{Members, Place, text_of_parts};
use calls::Calls;
use said::Said;

/// Members of which every piece of a response has at least one. One that has none may be an error.
const MEMBERS: [&str; 3] = ["choices", "usage", "object"];

/// Decodes one response.
pub struct ChunkDecoder {
    said: Said,
    members: Members,
    calls: Calls,
    begun: Begun,
    stop: Option<StopReason>,
    refused: bool,
    done: bool,
    usage: Usage,
    /// The body of a response that is not streamed, until it is complete.
    body: Vec<u8>,
}

impl Decoder for ChunkDecoder {
    fn new(_: String) -> Self {
        Self {
            said: Said::default(),
            members: Members::default(),
            calls: Calls::default(),
            begun: Begun::default(),
            stop: None,
            refused: false,
            done: false,
            usage: NO_USAGE,
            body: Vec::new(),
        }
    }

    fn push(&mut self, frame: Frame, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        match frame {
            Frame::Sse(event) => self.event(&event, deltas),
            Frame::Line(data) => {
                let (event, id) = (None, None);
                self.event(&Sse { event, data, id }, deltas)
            }
            Frame::Body(bytes) => {
                self.body.extend_from_slice(&bytes);
                Ok(())
            }
        }
    }

    fn finish(mut self) -> Result<Completion, Error> {
        if !self.body.is_empty() {
            let body = std::mem::take(&mut self.body);
            self.whole(&body)?;
        }
        self.said.end(&mut Vec::new());
        let stop = match self.stop {
            Some(_) if self.refused => StopReason::Refusal,
            Some(stop) => stop,
            None if self.done && self.refused => StopReason::Refusal,
            None if self.done => StopReason::EndTurn,
            None => return Err(self.begun.broke_off()),
        };
        // Some servers say `stop` where they wait for tools.
        let stop = match stop {
            StopReason::EndTurn if !self.calls.is_empty() => StopReason::ToolUse,
            other => other,
        };
        let mut content = Vec::new();
        content.extend(self.members.piece());
        content.extend(self.said.into_content());
        content.extend(self.calls.into_content());
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
    fn event(&mut self, event: &Sse, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        if event.data.trim() == "[DONE]" {
            self.done = true;
            self.said.end(deltas);
            return Ok(());
        }
        let Some(piece) = event.piece()? else {
            return Ok(());
        };
        if event.is_error() {
            return Err(classify::midway(&Report::of(&piece.value)));
        }
        self.chunk(&piece, deltas)
    }

    /// Decodes a response in one piece. Some servers send a stream although none was requested.
    fn whole(&mut self, body: &[u8]) -> Result<(), Error> {
        let text = String::from_utf8_lossy(body);
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let is_object = |line: &str| line.starts_with('{') && line.ends_with('}');
        let data = |line: &str| match is_object(line) {
            true => Some(line.to_owned()),
            false => line.strip_prefix("data:").map(str::to_owned),
        };
        let is_streamed = text.trim_start().starts_with("data:");
        if is_streamed || lines.clone().count() > 1 && lines.all(is_object) {
            for data in text.lines().map(str::trim).filter_map(data) {
                let (event, id) = (None, None);
                self.event(&Sse { event, data, id }, &mut Vec::new())?;
            }
            return Ok(());
        }
        let piece = ResponsePiece {
            value: whole_json(body)?,
            marked: false,
        };
        self.chunk(&piece, &mut Vec::new())
    }

    /// Decodes a chunk of a stream, or a whole response: they differ only in `delta` and `message`.
    fn chunk(&mut self, piece: &ResponsePiece, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        let chunk = &piece.value;
        if let Some(report) = Report::within(chunk, &MEMBERS) {
            return Err(classify::midway(&report));
        }
        self.begun.take(chunk, &MEMBERS);
        if let Some(id) = text_at(chunk, "id") {
            self.calls.name_response(id);
        }
        // One choice was requested, so there is at most one. The last chunk of a stream has none.
        if let Some(choice) = chunk.get("choices").and_then(|c| c.get(0)) {
            self.choice(choice, piece.marked, deltas)?;
        }
        if let Some(usage) = chunk.get("usage").filter(|u| u.is_object()) {
            self.usage = read_usage(usage);
            deltas.push(Delta::Usage(self.usage));
        }
        Ok(())
    }

    fn choice(
        &mut self,
        choice: &Value,
        marked: bool,
        deltas: &mut Vec<Delta>,
    ) -> Result<(), Error> {
        if let Some(report) = Report::within(
            choice,
            &["delta", "message", "finish_reason", "index", "text"],
        ) {
            return Err(classify::midway(&report));
        }
        let part = |name: &str| choice.get(name).filter(|part| part.is_object());
        if let Some(delta) = part("delta") {
            self.members.take_piece(delta, marked);
            self.said(delta, marked, deltas);
            for (place, fragment) in calls_in(delta).enumerate() {
                self.calls.take(place, fragment, marked, deltas);
            }
        } else if let Some(message) = part("message") {
            self.members.take_whole(message);
            self.said(message, marked, deltas);
            for call in calls_in(message) {
                self.calls.take_whole(call, marked, deltas);
            }
        }
        if text_at(choice, "finish_reason").is_some() {
            self.said.end(deltas);
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

    fn said(&mut self, said: &Value, marked: bool, deltas: &mut Vec<Delta>) {
        // Not OpenAI's own, but sent by most servers with reasoning models.
        let member = ["reasoning_content", "reasoning"]
            .into_iter()
            .find_map(|name| Some((name, text_at(said, name)?)));
        match member {
            Some((name, thought)) => {
                let place = Some(Place::Member(name.into()));
                self.said.think(thought, marked, place, deltas);
            }
            None => self.said.think(&text_of_parts(said), marked, None, deltas),
        }
        match said.get("content") {
            Some(Value::String(text)) => self.said.say(text, marked, deltas),
            // Some servers send the content in parts.
            Some(Value::Array(parts)) => {
                for part in parts {
                    self.part(part, marked, deltas);
                }
            }
            _ => {}
        }
        if let Some(refusal) = text_at(said, "refusal") {
            self.refused = true;
            self.said.say(refusal, marked, deltas);
        }
    }

    fn part(&mut self, part: &Value, marked: bool, deltas: &mut Vec<Delta>) {
        match part.get("thinking") {
            Some(Value::String(thought)) => {
                self.said.think(thought, marked, Some(Place::Parts), deltas);
            }
            Some(Value::Array(thoughts)) => {
                for thought in thoughts
                    .iter()
                    .filter_map(|thought| text_at(thought, "text"))
                {
                    self.said.think(thought, marked, Some(Place::Parts), deltas);
                }
            }
            _ => {
                if let Some(text) = text_at(part, "text") {
                    self.said.say(text, marked, deltas);
                }
            }
        }
    }
}

/// The calls in a message. From a server with the older form, the single `function_call`.
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
