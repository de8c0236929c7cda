//! A provider adapter: it encodes requests to a model and decodes the responses.
//!
//! It sends nothing itself. A request has a path but no host and no key: where the API is and which
//! key is used are the deployment's, so a key is never in here. This one speaks a small chat
//! completions API: replace `messages`, `chunk` and `refusal` with your provider's own fields.

use lucid_plugin::NO_USAGE;
use lucid_plugin::llm::conversation::{
    Conversation, ConversationTurn, Rules, UserContent, UserTurn,
};
use lucid_plugin::llm::files::{Files, encoded};
use lucid_plugin::llm::refusal::{kind_of_status, refusal};
use lucid_plugin::llm::{
    Adapter, Completion, CompletionRequest, Decoder, Delta, Descriptor, Encoded, Frame, Framing,
    KeyPlace, ModelInfo, NO_SETTINGS, Params, ToolCallArguments, ToolCallStart, arguments, get,
    post, prices, schema, text_at, whole_json,
};
use lucid_plugin::types::{
    Content, Error, Header, HttpRequest, Message, Role, StopReason, ToolCall, Usage,
};
use serde_json::{Value, json};

/// The adapter.
pub struct MyAgent;

impl Adapter for MyAgent {
    type Decoder = Answer;

    fn describe() -> Descriptor {
        Descriptor {
            name: "my-agent".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "Speaks with the models of Example.".into(),
            default_base_url: "https://api.example.org/v1".into(),
            default_model: "small-1".into(),
            small_model: "small-1".into(),
            key: KeyPlace::Bearer,
            settings_schema: Some(NO_SETTINGS.into()),
        }
    }

    fn models(_: &str) -> Vec<ModelInfo> {
        vec![ModelInfo {
            id: "small-1".into(),
            display_name: "Small 1".into(),
            context_tokens: 128_000,
            output_tokens: 8_000,
            tools: true,
            images: false,
            thinking: false,
            // Millionths of a dollar per million tokens: input, output, cache read, cache write.
            prices: Some(prices(200_000, 800_000, 20_000, 0)),
        }]
    }

    fn probe(_: &str) -> Option<HttpRequest> {
        Some(get("/models"))
    }

    fn encode(_: &str, request: CompletionRequest) -> Result<Encoded, Error> {
        let params = Params::parse(&request.params)?;
        // Whatever a session went through, this is a conversation that a provider accepts: turns
        // alternate, and each call has exactly one result.
        let conversation = Conversation::new(
            &request.messages,
            &Rules {
                sent_back: |_| false,
                in_ids: |c| c.is_ascii_alphanumeric() || c == '_' || c == '-',
                longest_id: 40,
            },
        );
        let framing = if request.streaming {
            Framing::ServerSentEvents
        } else {
            Framing::WholeBody
        };
        encoded(post("/chat/completions"), framing, |_| {
            let mut body = json!({
                "model": request.model,
                "messages": messages(&conversation),
                "stream": request.streaming,
            });
            if !request.tools.is_empty() {
                // Schemas that any provider accepts: one that it refuses would end the session.
                let tools = schema::tools(&request.tools, schema::any_name);
                let tools = tools.into_iter().map(|tool| {
                    json!({ "type": "function", "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.schema,
                    }})
                });
                body["tools"] = tools.collect::<Vec<Value>>().into();
            }
            if let Some(most) = request.max_output_tokens {
                body["max_tokens"] = most.into();
            }
            if let Some(temperature) = params.temperature {
                body["temperature"] = temperature.into();
            }
            Ok(body)
        })
    }

    fn classify(status: u16, headers: &[Header], body: &[u8]) -> Error {
        let text = String::from_utf8_lossy(body);
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        let said = text_at(&value["error"], "message").unwrap_or_default();
        let code = text_at(&value["error"], "code").map(str::to_owned);
        // The kind decides whether the host retries.
        refusal(status, headers, &text, kind_of_status(status), code, said)
    }
}

fn messages(conversation: &Conversation) -> Vec<Value> {
    let mut messages = Vec::new();
    if !conversation.system.is_empty() {
        let text = conversation.system.join("\n\n");
        messages.push(json!({ "role": "system", "content": text }));
    }
    for turn in &conversation.turns {
        match turn {
            ConversationTurn::User(turn) => user(turn, &mut messages),
            ConversationTurn::Model(pieces) => messages.push(model(pieces)),
        }
    }
    messages
}

fn user(turn: &UserTurn, messages: &mut Vec<Value>) {
    for result in &turn.results {
        messages.push(json!({
            "role": "tool",
            "tool_call_id": result.call_id,
            "content": result.text,
        }));
    }
    let said = turn.said.iter().map(|said| match said {
        UserContent::Text(text) => text.clone(),
        // For models that see images, `Files::show` returns a placeholder that the host replaces.
        UserContent::Image(picture) => Files::tell(picture),
    });
    let said: Vec<String> = said.collect();
    if !said.is_empty() {
        messages.push(json!({ "role": "user", "content": said.join("\n") }));
    }
}

fn model(pieces: &[Content]) -> Value {
    let mut message = json!({ "role": "assistant", "content": lucid_plugin::joined_text(pieces) });
    let calls = pieces.iter().filter_map(|piece| match piece {
        Content::ToolCall(call) => Some(json!({
            "id": call.id,
            "type": "function",
            "function": { "name": call.name, "arguments": arguments(call).to_string() },
        })),
        _ => None,
    });
    let calls: Vec<Value> = calls.collect();
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// The decoder of one response, streamed or whole.
pub struct Answer {
    text: String,
    calls: Vec<ToolCall>,
    stop: Option<StopReason>,
    usage: Usage,
    /// The body of a response that is not streamed, until it is complete.
    body: Vec<u8>,
}

impl Decoder for Answer {
    fn new(_model: String) -> Self {
        Self {
            text: String::new(),
            calls: Vec::new(),
            stop: None,
            usage: NO_USAGE,
            body: Vec::new(),
        }
    }

    fn push(&mut self, frame: Frame, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        match frame {
            Frame::Sse(event) => match event.json()? {
                Some(chunk) => self.chunk(&chunk, "delta", deltas),
                None => Ok(()),
            },
            Frame::Body(bytes) => {
                self.body.extend_from_slice(&bytes);
                Ok(())
            }
            Frame::Line(_) => Err(Error::internal("No lines were asked for.")),
        }
    }

    fn finish(mut self) -> Result<Completion, Error> {
        if !self.body.is_empty() {
            let whole = whole_json(&std::mem::take(&mut self.body))?;
            self.chunk(&whole, "message", &mut Vec::new())?;
        }
        // Only a complete response counts: one that broke off is requested again.
        let stop = self
            .stop
            .ok_or_else(|| Error::upstream("The answer broke off before its end."))?;
        let mut content = Vec::new();
        if !self.text.is_empty() {
            content.push(Content::Text(self.text));
        }
        content.extend(self.calls.into_iter().map(Content::ToolCall));
        Ok(Completion {
            message: Message {
                role: Role::Assistant,
                content,
            },
            stop,
            usage: self.usage,
        })
    }
}

impl Answer {
    fn chunk(&mut self, chunk: &Value, part: &str, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        if let Some(said) = text_at(&chunk["error"], "message") {
            return Err(Error::upstream(said));
        }
        let choice = &chunk["choices"][0];
        if let Some(text) = text_at(&choice[part], "content") {
            self.text.push_str(text);
            deltas.push(Delta::Text(text.into()));
        }
        for call in choice[part]["tool_calls"].as_array().into_iter().flatten() {
            self.call(call, deltas);
        }
        if let Some(reason) = text_at(choice, "finish_reason") {
            self.stop = Some(match reason {
                "stop" => StopReason::EndTurn,
                "tool_calls" => StopReason::ToolUse,
                "length" => StopReason::MaxTokens,
                "content_filter" => StopReason::Refusal,
                _ => StopReason::Other,
            });
        }
        if chunk["usage"].is_object() {
            let count = |name: &str| chunk["usage"][name].as_u64().unwrap_or_default();
            self.usage = Usage {
                input_tokens: count("prompt_tokens"),
                output_tokens: count("completion_tokens"),
                ..NO_USAGE
            };
            deltas.push(Delta::Usage(self.usage));
        }
        Ok(())
    }

    /// A call begins with an id and a name, and its arguments follow in fragments.
    fn call(&mut self, call: &Value, deltas: &mut Vec<Delta>) {
        let function = &call["function"];
        if let Some(name) = text_at(function, "name") {
            let id = text_at(call, "id")
                .map_or_else(|| format!("call_{}", self.calls.len()), str::to_owned);
            deltas.push(Delta::ToolCallStarted(ToolCallStart {
                id: id.clone(),
                name: name.into(),
            }));
            self.calls.push(ToolCall {
                id,
                name: name.into(),
                arguments: String::new(),
            });
        }
        let fragment = text_at(function, "arguments");
        if let (Some(fragment), Some(open)) = (fragment, self.calls.last_mut()) {
            open.arguments.push_str(fragment);
            deltas.push(Delta::ToolCallArguments(ToolCallArguments {
                id: open.id.clone(),
                fragment: fragment.into(),
            }));
        }
    }
}

lucid_plugin::export_llm!(MyAgent);
