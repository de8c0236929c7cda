//! Decodes a response, streamed or whole, to a completion.
//!
//! # Invariants
//!
//! - A part that came with a thought signature stays a separate piece, with the signature before
//!   it.
//! - A response is complete only when the API said why it ended, or why it did not begin.

use lucid_plugin::NO_USAGE;
use lucid_plugin::llm::extra::{CallExtra, custom};
use lucid_plugin::llm::json::{Joiner, mended};
use lucid_plugin::llm::refusal::{Begun, Report};
use lucid_plugin::llm::spoken::Spoken;
use lucid_plugin::llm::{
    Completion, Decoder, Delta, Frame, Sse, ToolCallArguments, ToolCallStart, text_at, whole_json,
};
use lucid_plugin::types::{Content, Error, Message, Role, StopReason, Thinking, ToolCall, Usage};
use serde_json::{Value, json};

use crate::{LONGEST_ID, OWN_ID, SIGNATURE, classify};

/// Members of which every piece of a response has at least one. One that has none may be an error.
const MEMBERS: [&str; 5] = [
    "candidates",
    "usageMetadata",
    "promptFeedback",
    "responseId",
    "modelVersion",
];

/// Decodes one response.
pub struct ChunkDecoder {
    content: Vec<Content>,
    begun: Begun,
    thought_joiner: Joiner,
    /// The text that continues.
    spoken: Spoken,
    calls: usize,
    /// The API's id of the response, from which missing ids are derived.
    response: String,
    stop: Option<StopReason>,
    usage: Usage,
    /// The body of a response that is not streamed, until it is complete.
    body: Vec<u8>,
}

impl Decoder for ChunkDecoder {
    fn new(_: String) -> Self {
        Self {
            content: Vec::new(),
            begun: Begun::default(),
            thought_joiner: Joiner::default(),
            spoken: Spoken::default(),
            calls: 0,
            response: String::new(),
            stop: None,
            usage: NO_USAGE,
            body: Vec::new(),
        }
    }

    fn push(&mut self, frame: Frame, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        let event = match frame {
            Frame::Sse(event) => event,
            Frame::Line(data) => {
                let (event, id) = (None, None);
                Sse { event, data, id }
            }
            Frame::Body(bytes) => {
                self.body.extend_from_slice(&bytes);
                return Ok(());
            }
        };
        let Some(piece) = event.piece()? else {
            return Ok(());
        };
        if event.is_error() {
            return Err(classify::midway(&piece.value));
        }
        self.chunk(&piece.value, piece.marked, deltas)
    }

    fn finish(mut self) -> Result<Completion, Error> {
        if !self.body.is_empty() {
            let body = std::mem::take(&mut self.body);
            // Without `alt=sse` a stream is a list of chunks.
            match whole_json(&body)? {
                Value::Array(chunks) if !chunks.is_empty() => {
                    for chunk in &chunks {
                        self.chunk(chunk, false, &mut Vec::new())?;
                    }
                }
                whole => self.chunk(&whole, false, &mut Vec::new())?,
            }
        }
        let Some(stop) = self.stop else {
            return Err(self.begun.broke_off());
        };
        let rest = self.thought_joiner.rest();
        if !rest.is_empty() {
            self.think(rest);
        }
        self.end_text(&mut Vec::new());
        Ok(Completion {
            message: Message {
                role: Role::Assistant,
                content: self.content,
            },
            // The API has no stop reason of its own for it.
            stop: if self.calls > 0 && stop == StopReason::EndTurn {
                StopReason::ToolUse
            } else {
                stop
            },
            usage: self.usage,
        })
    }
}

impl ChunkDecoder {
    fn chunk(&mut self, chunk: &Value, marked: bool, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        if Report::within(chunk, &MEMBERS).is_some() {
            return Err(classify::midway(chunk));
        }
        self.begun.take(chunk, &MEMBERS);
        if let (true, Some(id)) = (self.response.is_empty(), text_at(chunk, "responseId")) {
            let plain = id.chars().filter(char::is_ascii_alphanumeric);
            self.response = plain.take(24).collect();
        }
        let blocked = chunk
            .get("promptFeedback")
            .and_then(|f| text_at(f, "blockReason"));
        if blocked.is_some_and(|reason| reason != "BLOCK_REASON_UNSPECIFIED") {
            self.stop = Some(StopReason::Refusal);
        }
        if let Some(candidate) = chunk.get("candidates").and_then(|c| c.get(0)) {
            let parts = candidate
                .pointer("/content/parts")
                .and_then(Value::as_array);
            for part in parts.into_iter().flatten() {
                self.part(part, marked, deltas);
            }
            if let Some(reason) = text_at(candidate, "finishReason") {
                self.stop = stop(reason).or(self.stop);
                self.end_text(deltas);
            }
        }
        if let Some(usage) = chunk.get("usageMetadata").filter(|u| u.is_object()) {
            self.usage = read_usage(usage);
            deltas.push(Delta::Usage(self.usage));
        }
        Ok(())
    }

    fn part(&mut self, part: &Value, marked: bool, deltas: &mut Vec<Delta>) {
        let signature = text_at(part, "thoughtSignature");
        let thought = part.get("thought").and_then(Value::as_bool) == Some(true);
        let mut text = text_at(part, "text").unwrap_or_default();
        // A blank text is not sent back, and must not leave its signature to the piece after it.
        if signature.is_some() && text.trim().is_empty() {
            text = "";
        }
        let call = part.get("functionCall").filter(|call| call.is_object());
        if thought {
            let text = self.thought_joiner.push(text, marked);
            if !text.is_empty() {
                self.end_text(deltas);
                self.think(&text);
                deltas.push(Delta::Thinking(text));
            }
            return;
        }
        if let Some(signature) = signature {
            self.end_text(deltas);
            let alone = call.is_none() && text.is_empty();
            let proof = json!({ "signature": signature, "alone": alone });
            self.content.push(custom(SIGNATURE, &proof));
        }
        self.spoken.push(text, marked, deltas);
        // Text after a signed one is a separate piece.
        if signature.is_some() || call.is_some() {
            self.end_text(deltas);
        }
        if let Some(call) = call {
            self.call(call, marked, deltas);
        }
    }

    /// Ends the current text.
    fn end_text(&mut self, deltas: &mut Vec<Delta>) {
        let mut spoken = std::mem::take(&mut self.spoken);
        spoken.end(deltas);
        self.content.extend(spoken.into_content());
    }

    fn think(&mut self, text: &str) {
        if let Some(Content::Thinking(before)) = self.content.last_mut() {
            before.text.push_str(text);
            return;
        }
        self.content.push(Content::Thinking(Thinking {
            text: text.into(),
            signature: None,
        }));
    }

    /// Takes a call, which arrives whole.
    fn call(&mut self, call: &Value, marked: bool, deltas: &mut Vec<Delta>) {
        let taken = |id: &&str| {
            self.content
                .iter()
                .any(|piece| matches!(piece, Content::ToolCall(call) if call.id == **id))
        };
        let id = match text_at(call, "id").filter(|id| !taken(id)) {
            Some(id) => id.to_string(),
            None if self.response.is_empty() => format!("{OWN_ID}{}", self.calls),
            None => format!("{OWN_ID}{}_{}", self.response, self.calls),
        };
        self.calls += 1;
        let call = ToolCall {
            id,
            name: text_at(call, "name").unwrap_or_default().into(),
            arguments: match call.get("args") {
                Some(args @ Value::Object(_)) => mended(args.clone(), marked).to_string(),
                // Gateways pass on another API's arguments as a text.
                Some(Value::String(text)) if !text.is_empty() => text.clone(),
                _ => "{}".into(),
            },
        };
        deltas.push(Delta::ToolCallStarted(ToolCallStart {
            id: call.id.clone(),
            name: call.name.clone(),
        }));
        deltas.push(Delta::ToolCallArguments(ToolCallArguments {
            id: call.id.clone(),
            fragment: call.arguments.clone(),
        }));
        // A gateway may encode something in an id that it made this long.
        let extra = CallExtra {
            own_id: call.id.len() > LONGEST_ID,
            ..CallExtra::default()
        };
        self.content.extend(extra.piece());
        self.content.push(Content::ToolCall(call));
    }
}

fn stop(reason: &str) -> Option<StopReason> {
    Some(match reason {
        "FINISH_REASON_UNSPECIFIED" => return None,
        "STOP" => StopReason::EndTurn,
        "MAX_TOKENS" => StopReason::MaxTokens,
        "SAFETY"
        | "RECITATION"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "LANGUAGE"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT" => StopReason::Refusal,
        _ => StopReason::Other,
    })
}

/// Reads the token counts. The prompt's includes cached tokens, but the response's does not include
/// the thoughts.
fn read_usage(usage: &Value) -> Usage {
    let number = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
    let read = number("promptTokenCount") + number("toolUsePromptTokenCount");
    let cached = number("cachedContentTokenCount").min(read);
    Usage {
        input_tokens: read - cached,
        output_tokens: number("candidatesTokenCount") + number("thoughtsTokenCount"),
        cache_read_tokens: cached,
        cache_write_tokens: 0,
    }
}
