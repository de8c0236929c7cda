//! Decodes a response, streamed or whole, to a completion.
//!
//! # Invariants
//!
//! - Blocks stay in the order they began.
//! - How a body was split into frames makes no difference.
//! - A response is complete only when the API said that it stopped.

use lucid_plugin::NO_USAGE;
use lucid_plugin::llm::extra::{CallExtra, custom};
use lucid_plugin::llm::json::{Joiner, arguments, mended};
use lucid_plugin::llm::refusal::{Begun, Report};
use lucid_plugin::llm::spoken::Spoken;
use lucid_plugin::llm::{
    Completion, Decoder, Delta, Frame, Sse, ToolCallArguments, ToolCallStart, text_at, whole_json,
};
use lucid_plugin::types::{Content, Error, Message, Role, StopReason, Thinking, ToolCall, Usage};
use serde_json::{Value, json};

use crate::{LONGEST_ID, REDACTED, UNSIGNED, Unsigned, classify, is_in_id};

/// Members of which every event and response has at least one. One that has none may be an error.
const MEMBERS: [&str; 8] = [
    "type",
    "content",
    "delta",
    "content_block",
    "role",
    "usage",
    "index",
    "stop_reason",
];

/// Decodes one response.
pub struct EventDecoder {
    /// Blocks by the API's index.
    blocks: Vec<(u64, Open)>,
    begun: Begun,
    stop: Option<StopReason>,
    usage: Usage,
    /// The body of a response that is not streamed, until it is complete.
    body: Vec<u8>,
}

/// A block, and the end of its text, which may continue within a character.
struct Open {
    block: Block,
    joiner: Joiner,
}

enum Block {
    Text(Spoken),
    Thinking {
        text: String,
        /// `None` if the server has no member for it.
        signature: Option<String>,
    },
    Redacted(String),
    Call {
        call: ToolCall,
        given: String,
        extra: CallExtra,
    },
    Unknown,
}

impl Decoder for EventDecoder {
    fn new(_: String) -> Self {
        Self {
            blocks: Vec::new(),
            begun: Begun::default(),
            stop: None,
            usage: NO_USAGE,
            body: Vec::new(),
        }
    }

    fn push(&mut self, frame: Frame, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        match frame {
            Frame::Sse(event) => self.data(&event, deltas),
            Frame::Line(data) => {
                let (event, id) = (None, None);
                self.data(&Sse { event, data, id }, deltas)
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
            self.whole(&whole_json(&body)?)?;
        }
        let Some(stop) = self.stop else {
            return Err(self.begun.broke_off());
        };
        let content: Vec<Content> = self
            .blocks
            .into_iter()
            .flat_map(|(_, open)| open.into_content())
            .collect();
        let calls = content.iter().any(|c| matches!(c, Content::ToolCall(_)));
        Ok(Completion {
            message: Message {
                role: Role::Assistant,
                content,
            },
            // Imitating servers do not always say that they wait for tools.
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
    fn data(&mut self, event: &Sse, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        let Some(piece) = event.piece()? else {
            return Ok(());
        };
        if event.is_error() {
            return Err(classify::midway(&Report::of(&piece.value)));
        }
        self.event(&piece.value, piece.marked, deltas)
    }

    fn event(&mut self, event: &Value, marked: bool, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        if let Some(report) = Report::within(event, &MEMBERS) {
            return Err(classify::midway(&report));
        }
        self.begun.take(event, &MEMBERS);
        match text_at(event, "type").unwrap_or_default() {
            "message_start" => {
                let message = event.get("message").unwrap_or(&Value::Null);
                self.count(message, deltas);
            }
            "content_block_start" => {
                let block = event.get("content_block").unwrap_or(&Value::Null);
                self.begin(index(event), block, marked, deltas);
            }
            "content_block_stop" => self.end(index(event), deltas),
            "content_block_delta" => {
                let delta = event.get("delta").unwrap_or(&Value::Null);
                self.grow(index(event), delta, marked, deltas);
            }
            "message_delta" => {
                self.stopped(event.get("delta").unwrap_or(&Value::Null));
                self.count(event, deltas);
            }
            // Imitating servers do not always say why.
            "message_stop" => self.stop = self.stop.or(Some(StopReason::EndTurn)),
            // A whole message as the only event of a stream.
            "message" => self.whole(event)?,
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, message: &Value) -> Result<(), Error> {
        if let Some(report) = Report::within(message, &MEMBERS) {
            return Err(classify::midway(&report));
        }
        self.begun.take(message, &MEMBERS);
        let text =
            text_at(message, "content").map(|text| json!([{ "type": "text", "text": text }]));
        let blocks = text.as_ref().or_else(|| message.get("content"));
        let blocks = blocks.and_then(Value::as_array);
        for (at, block) in blocks.into_iter().flatten().enumerate() {
            self.begin(at as u64, block, false, &mut Vec::new());
        }
        self.stopped(message);
        self.count(message, &mut Vec::new());
        Ok(())
    }

    fn begin(&mut self, index: u64, block: &Value, marked: bool, deltas: &mut Vec<Delta>) {
        let mut joiner = Joiner::default();
        let mut text = |name| joiner.push(text_at(block, name).unwrap_or_default(), marked);
        let block = match text_at(block, "type").unwrap_or_default() {
            "text" => {
                let mut spoken = Spoken::default();
                spoken.push(text_at(block, "text").unwrap_or_default(), marked, deltas);
                Block::Text(spoken)
            }
            "thinking" => {
                let text = text("thinking");
                show(&text, Delta::Thinking, deltas);
                let signature = block.get("signature").and_then(Value::as_str);
                Block::Thinking {
                    text,
                    signature: signature.map(Into::into),
                }
            }
            "redacted_thinking" => Block::Redacted(text("data")),
            "tool_use" => self.call(index, block, marked, deltas),
            _ => Block::Unknown,
        };
        self.blocks.push((index, Open { block, joiner }));
    }

    fn call(&self, index: u64, block: &Value, marked: bool, deltas: &mut Vec<Delta>) -> Block {
        let given = text_at(block, "id").filter(|id| !self.has_call(id));
        let mut extra = CallExtra {
            own_id: given.is_some_and(|id| id.len() > LONGEST_ID || !id.chars().all(is_in_id)),
            ..CallExtra::default()
        };
        extra.take(block);
        let id = match given {
            Some(id) => id.to_owned(),
            None => format!("call_{index}_{}", self.blocks.len()),
        };
        let call = ToolCall {
            id,
            name: text_at(block, "name").unwrap_or_default().into(),
            arguments: String::new(),
        };
        deltas.push(Delta::ToolCallStarted(ToolCallStart {
            id: call.id.clone(),
            name: call.name.clone(),
        }));
        // The API begins with an empty object and sends the text of the real one after it. A whole
        // response has the real one here.
        let given = match block.get("input") {
            Some(input @ Value::Object(members)) if !members.is_empty() => {
                mended(input.clone(), marked).to_string()
            }
            Some(Value::String(text)) => text.clone(),
            _ => String::new(),
        };
        Block::Call { call, given, extra }
    }

    fn has_call(&self, id: &str) -> bool {
        self.blocks
            .iter()
            .any(|(_, open)| matches!(&open.block, Block::Call { call, .. } if call.id == id))
    }

    fn open(&mut self, index: u64) -> Option<&mut Open> {
        let mut blocks = self.blocks.iter_mut().rev();
        let found = blocks.find(|(at, _)| *at == index);
        found.map(|(_, open)| open)
    }

    fn end(&mut self, index: u64, deltas: &mut Vec<Delta>) {
        if let Some(Open {
            block: Block::Text(spoken),
            ..
        }) = self.open(index)
        {
            spoken.end(deltas);
        }
    }

    fn grow(&mut self, index: u64, delta: &Value, marked: bool, deltas: &mut Vec<Delta>) {
        let kind = text_at(delta, "type").unwrap_or_default();
        // Some servers do not announce a block.
        if self.open(index).is_none()
            && let Some(kind) = ["text", "thinking"]
                .into_iter()
                .find(|name| kind.strip_suffix("_delta") == Some(*name))
        {
            self.begin(index, &json!({ "type": kind }), false, deltas);
        }
        let Some(Open { block, joiner }) = self.open(index) else {
            return;
        };
        let mut text = |name| joiner.push(text_at(delta, name).unwrap_or_default(), marked);
        match (block, kind) {
            (Block::Text(spoken), "text_delta") => {
                spoken.push(text_at(delta, "text").unwrap_or_default(), marked, deltas);
            }
            (Block::Thinking { text: all, .. }, "thinking_delta") => {
                let text = text("thinking");
                all.push_str(&text);
                show(&text, Delta::Thinking, deltas);
            }
            (Block::Thinking { signature, .. }, "signature_delta") => {
                let more = text_at(delta, "signature").unwrap_or_default();
                signature.get_or_insert_default().push_str(more);
            }
            (Block::Call { call, .. }, "input_json_delta") => {
                let fragment = text("partial_json");
                if !fragment.is_empty() {
                    call.arguments.push_str(&fragment);
                    deltas.push(Delta::ToolCallArguments(ToolCallArguments {
                        id: call.id.clone(),
                        fragment,
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

    /// Reads token counts. They cover the whole response so far, and a later event does not repeat
    /// all of them.
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

impl Open {
    fn into_content(self) -> Vec<Content> {
        let Self { block, mut joiner } = self;
        let rest = joiner.rest();
        match block {
            Block::Text(spoken) => spoken.into_content(),
            // Newer models hide the text, and only their signature must come back.
            Block::Thinking { text, signature } => thinking(text + rest, signature),
            Block::Redacted(data) => vec![custom(REDACTED, &data)],
            Block::Call {
                mut call,
                given,
                extra,
            } => {
                call.arguments = arguments(call.arguments + rest);
                if call.arguments.is_empty() {
                    call.arguments = if given.is_empty() { "{}".into() } else { given };
                }
                let extra = extra.piece().into_iter();
                extra.chain([Content::ToolCall(call)]).collect()
            }
            Block::Unknown => Vec::new(),
        }
    }
}

fn thinking(text: String, signature: Option<String>) -> Vec<Content> {
    let blank = signature.is_some();
    let signature = signature.filter(|signature| !signature.is_empty());
    if signature.is_none() && text.is_empty() {
        return Vec::new();
    }
    let unsigned = signature
        .is_none()
        .then(|| custom(UNSIGNED, &Unsigned { blank }));
    let thinking = Content::Thinking(Thinking { text, signature });
    [thinking].into_iter().chain(unsigned).collect()
}

fn index(event: &Value) -> u64 {
    event.get("index").and_then(Value::as_u64).unwrap_or(0)
}

fn show(text: &str, delta: fn(String) -> Delta, deltas: &mut Vec<Delta>) {
    if !text.is_empty() {
        deltas.push(delta(text.into()));
    }
}
