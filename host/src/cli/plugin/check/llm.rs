//! The check of a provider adapter: conversations to encode, refusals to classify, and responses to
//! decode, both recorded and malformed.
//!
//! No provider is known here and none is contacted.
//!
//! # Invariants
//!
//! - A request must be one that the egress accepts.
//! - A recorded response is split at every byte, and must decode to the same result each time.

use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;
use futures::{StreamExt, stream};
use sse_stream::SseStream;

use super::super::report::CheckReport;
use super::violation::{Violation, violation};
use lucid_types::plural;
use lucid_types::wit::llm::{Completion, CompletionRequest, Delta, Frame, Sse};
use lucid_types::wit::types::{
    BlobRef, Content, Custom, ErrorKind, Header, Message, Role, StopReason, Thinking, ToolCall,
    ToolDefinition, ToolResult,
};
use lucid_wasm::{CallError, LlmPlugin};

/// Headers that only the host may set.
const HOSTS: [&str; 5] = [
    "authorization",
    "host",
    "cookie",
    "proxy-authorization",
    "content-length",
];
/// A key that a server repeats in its refusal.
const KEY: &str = "sk-the-key-of-the-check-0123456789";
/// The number of places at which a longer recorded response is split, instead of everywhere.
const MOST_CUTS: usize = 4_000;
/// The maximum size of a recorded response in bytes. A real one has a few kilobytes.
const LARGEST: u64 = 1 << 20;

/// Runs all checks.
pub(super) async fn check(
    report: &mut CheckReport,
    llm: &LlmPlugin,
    settings: &str,
    recorded: Option<&Path>,
) {
    report.result("models", models(llm));
    report.result("encode", encode(llm, settings).await);
    report.result("classify", classify(llm).await);
    report.result("decode", feed_garbage(llm).await);
    match recorded {
        Some(folder) => report.result("recorded", answers(llm, folder).await),
        None => report.note(
            "recorded",
            "no recorded answers were read; put some into tests/recorded (NAME.sse, NAME.whole.json), or name a folder with --recorded",
        ),
    }
}

fn models(llm: &LlmPlugin) -> Result<String, Violation> {
    let (descriptor, models) = (llm.descriptor(), llm.known_models());
    if !descriptor.default_base_url.starts_with("https://")
        && !descriptor.default_base_url.starts_with("http://")
    {
        return Err(violation!(
            "its base URL `{}` is no http or https URL",
            descriptor.default_base_url
        ));
    }
    for name in [&descriptor.default_model, &descriptor.small_model] {
        if !models.iter().any(|model| model.id == *name) {
            return Err(violation!(
                "it names the model `{name}`, and does not say what it is in `models`"
            ));
        }
    }
    let priced = models.iter().filter(|model| model.prices.is_some()).count();
    Ok(format!(
        "{}, {priced} with a price; {} by default",
        plural::count(models.len(), "model"),
        descriptor.default_model
    ))
}

fn text(role: Role, text: &str) -> Message {
    Message {
        role,
        content: vec![Content::Text(text.into())],
    }
}

fn called(id: &str, arguments: &str) -> Content {
    Content::ToolCall(ToolCall {
        id: id.into(),
        name: "terminal".into(),
        arguments: arguments.into(),
    })
}

fn result(id: &str, blobs: Vec<BlobRef>) -> Message {
    Message {
        role: Role::Tool,
        content: vec![Content::ToolResult(ToolResult {
            call_id: id.into(),
            is_error: false,
            text: "hello.py".into(),
            exit_code: Some(0),
            blobs,
        })],
    }
}

fn picture() -> BlobRef {
    BlobRef {
        digest: format!("sha256:{}", "a".repeat(64)),
        media_type: "image/png".into(),
        size: 3,
    }
}

/// Conversations as sessions have them after crashes, lost effects and odd models.
fn conversations() -> Vec<(&'static str, Vec<Message>)> {
    let asks = |content| Message {
        role: Role::Assistant,
        content,
    };
    let begun = || {
        vec![
            text(Role::System, "Be good."),
            text(Role::User, "What is here?"),
        ]
    };
    let with = |more: Vec<Message>| begun().into_iter().chain(more).collect();
    vec![
        ("a first question", begun()),
        (
            "a call and its result",
            with(vec![
                asks(vec![called("call_1", r#"{"command":"ls"}"#)]),
                result("call_1", vec![]),
            ]),
        ),
        (
            "a call without a result",
            with(vec![asks(vec![called("call_1", "{}")])]),
        ),
        (
            "a result without a call",
            with(vec![result("call_9", vec![])]),
        ),
        (
            "two calls of one id, with arguments that are no JSON",
            with(vec![
                asks(vec![called("", "{\"a\":"), called("", "")]),
                result("", vec![]),
                result("", vec![]),
            ]),
        ),
        ("an empty conversation", vec![]),
        (
            "blank texts",
            vec![text(Role::User, "  "), text(Role::Assistant, "")],
        ),
        (
            "pictures",
            with(vec![
                Message {
                    role: Role::User,
                    content: vec![Content::Text("See.".into()), Content::Image(picture())],
                },
                asks(vec![called("call_1", "{}")]),
                result("call_1", vec![picture()]),
            ]),
        ),
        (
            "reasoning and a stranger's piece",
            with(vec![
                asks(vec![
                    Content::Thinking(Thinking {
                        text: "Hm.".into(),
                        signature: Some("c2lnbmVk".into()),
                    }),
                    Content::Other(Custom {
                        kind: "acme.review".into(),
                        body: "not JSON".into(),
                    }),
                    Content::Text("Here.".into()),
                ]),
                text(Role::User, "Go on."),
            ]),
        ),
        (
            "the model's word last",
            with(vec![text(Role::Assistant, "Done.")]),
        ),
    ]
}

async fn encode(llm: &LlmPlugin, settings: &str) -> Result<String, Violation> {
    let tools = vec![ToolDefinition {
        name: "terminal".into(),
        description: "Runs a command.".into(),
        input_schema: r#"{"type":"object","properties":{"command":{"type":"string"}}}"#.into(),
    }];
    let mut tried = 0;
    for (name, messages) in conversations() {
        for streaming in [true, false] {
            for params in [
                "{}",
                r#"{"temperature":0.5,"thinking":{"effort":"high"},"acme":[1]}"#,
            ] {
                let request = CompletionRequest {
                    model: llm.descriptor().default_model.clone(),
                    messages: messages.clone(),
                    tools: tools.clone(),
                    max_output_tokens: Some(1_000),
                    params: params.into(),
                    streaming,
                };
                encode_one(llm, settings, &request)
                    .await
                    .map_err(|why| why.within(name))?;
                tried += 1;
            }
        }
    }
    let mut wrong = CompletionRequest {
        model: llm.descriptor().default_model.clone(),
        messages: vec![text(Role::User, "Hi")],
        tools,
        max_output_tokens: None,
        params: "{".into(),
        streaming: true,
    };
    refuses(llm, settings, &wrong, "params that are no JSON").await?;
    wrong.params = "{}".into();
    wrong.tools[0].input_schema = "{".into();
    // One bad tool should not end a session, but an adapter that refuses it is no worse than those
    // of 0.1.0.
    if encode_one(llm, settings, &wrong).await.is_err() {
        refuses(llm, settings, &wrong, "a tool's schema that is no JSON").await?;
    }
    if let Some(probe) = llm.probe(settings).await.result? {
        host_headers(&probe.headers)?;
    }
    Ok(format!(
        "{} from conversations of all kinds, each the same when made again",
        plural::count(tried, "request")
    ))
}

async fn refuses(
    llm: &LlmPlugin,
    settings: &str,
    request: &CompletionRequest,
    what: &str,
) -> Result<(), Violation> {
    match llm.encode(settings, request).await.result {
        Err(CallError::Plugin { error, .. }) if error.kind == ErrorKind::InvalidInput => Ok(()),
        Err(CallError::Plugin { error, .. }) => Err(violation!(
            "{what} must be refused as invalid-input, and are as {:?}: {}",
            error.kind,
            error.message
        )),
        Err(error) => Err(Violation::from(error).within(what)),
        Ok(_) => Err(violation!(
            "{what} must be refused as invalid-input, and are sent"
        )),
    }
}

async fn encode_one(
    llm: &LlmPlugin,
    settings: &str,
    request: &CompletionRequest,
) -> Result<(), Violation> {
    let encoded = llm.encode(settings, request).await.result?;
    if encoded != llm.encode(settings, request).await.result? {
        return Err(violation!("the same request was encoded in two ways"));
    }
    if !encoded.request.path.starts_with('/') {
        return Err(violation!(
            "the path `{}` does not begin with a slash",
            encoded.request.path
        ));
    }
    host_headers(&encoded.request.headers)?;
    for file in &encoded.files {
        let body = String::from_utf8_lossy(&encoded.request.body);
        let marks = body.matches(&file.marker).count();
        if marks != 1 || file.marker.is_empty() {
            return Err(violation!(
                "the mark of a picture occurs {marks} times in the body, and must occur once"
            ));
        }
    }
    Ok(())
}

fn host_headers(headers: &[Header]) -> Result<(), Violation> {
    for header in headers {
        let name = header.name.to_ascii_lowercase();
        if HOSTS.contains(&name.as_str()) {
            return Err(violation!(
                "it sets the header `{name}`, which is the host's own"
            ));
        }
    }
    Ok(())
}

async fn classify(llm: &LlmPlugin) -> Result<String, Violation> {
    let bodies = [
        String::new(),
        "<html><body>Bad gateway</body></html>".into(),
        r#"{"error":{"type":"some_error","code":"some_code","message":"It did not work."}}"#.into(),
        format!(r#"{{"error":{{"message":"Incorrect API key provided: {KEY}"}}}}"#),
        "[".repeat(2_000),
        "null".into(),
    ];
    let statuses = [
        400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529, 999,
    ];
    for status in statuses {
        for body in &bodies {
            let retry = Header {
                name: "retry-after".into(),
                value: "2".into(),
            };
            let error = llm
                .classify(status, &[retry], body.as_bytes())
                .await
                .result?;
            if error.message.trim().is_empty() {
                return Err(violation!("status {status} has no sentence"));
            }
            if status == 401 && error.message.contains(KEY) {
                return Err(violation!(
                    "it repeats the key that a server repeated to it"
                ));
            }
            // The host's reaction depends on these, whatever a body says.
            let kinds: &[ErrorKind] = match status {
                401 => &[ErrorKind::Unauthenticated],
                429 => &[ErrorKind::RateLimited, ErrorKind::Overloaded],
                500 | 502..=504 | 529 => &[ErrorKind::Upstream, ErrorKind::Overloaded],
                _ => continue,
            };
            if body.is_empty() && !kinds.contains(&error.kind) {
                return Err(violation!(
                    "status {status} means {:?}, and must mean {:?}",
                    error.kind,
                    kinds[0]
                ));
            }
        }
    }
    Ok(format!(
        "{} refusals, each with a sentence and none with a key",
        statuses.len() * bodies.len()
    ))
}

/// Decodes input that is not a response at all.
async fn feed_garbage(llm: &LlmPlugin) -> Result<String, Violation> {
    let event = |data: &str| {
        Frame::Sse(Sse {
            event: Some("message".into()),
            data: data.into(),
            id: None,
        })
    };
    let tries: [Vec<Frame>; 8] = [
        vec![],
        vec![event("{")],
        vec![event("null"), event("[]"), event("\"text\""), event("{}")],
        vec![event(r#"{"type":"x_new_event","x_new":{"a":[1,null]}}"#)],
        vec![event("[DONE]")],
        vec![Frame::Line("{}".into())],
        vec![
            Frame::Body(b"{\"a\":".to_vec()),
            Frame::Body(vec![0xff, 0xfe]),
        ],
        vec![event(&"[".repeat(5_000)), event("{}")],
    ];
    let count = tries.len();
    for frames in tries {
        let excerpt = format!("{frames:?}").chars().take(80).collect::<String>();
        match decode(llm, std::slice::from_ref(&frames)).await {
            Err(CallError::Plugin { .. }) => {}
            Err(error) => return Err(Violation::from(error).within(excerpt)),
            Ok((completion, _)) if frames.is_empty() || completion.message.content.is_empty() => {
                // `[DONE]` alone may be an empty response.
                if frames.is_empty() {
                    return Err(violation!(
                        "an answer of which nothing came must be an error of kind upstream, and is a completion"
                    ));
                }
            }
            Ok((completion, _)) => {
                return Err(violation!(
                    "{excerpt}: it made an answer of nothing: {:?}",
                    completion.message
                ));
            }
        }
    }
    Ok(format!(
        "{count} answers that are none: no trap, and nothing made up"
    ))
}

/// Decodes batches of frames.
async fn decode(
    llm: &LlmPlugin,
    batches: &[Vec<Frame>],
) -> Result<(Completion, Vec<Delta>), CallError> {
    let model = llm.descriptor().default_model.clone();
    let mut decoder = llm.decoder(&model).await.result?;
    let mut deltas = Vec::new();
    for frames in batches {
        deltas.extend(decoder.push(frames).await.result?);
    }
    Ok((decoder.finish().await.result?, deltas))
}

/// Decodes recorded responses, split everywhere.
async fn answers(llm: &LlmPlugin, folder: &Path) -> Result<String, Violation> {
    let cannot = |source| Violation::Read {
        path: folder.to_owned(),
        source,
    };
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .map_err(cannot)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    let (mut read, mut cuts) = (0, 0);
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let streamed = name.ends_with(".sse");
        if !streamed && !name.ends_with(".whole.json") {
            continue;
        }
        let size = file.metadata().map_err(cannot)?.len();
        if size > LARGEST {
            return Err(violation!(
                "{name} has {size} bytes, and {LARGEST} are read"
            ));
        }
        let body = std::fs::read(&file).map_err(cannot)?;
        let wrong = |why: Violation| why.within(&name);
        let whole = decode(llm, &batches(&[&body], streamed).await.map_err(wrong)?)
            .await
            .map_err(|error| wrong(error.into()))?;
        // A refusal may have no text.
        let said = matches!(whole.0.stop, StopReason::EndTurn | StopReason::ToolUse);
        if said && whole.0.message.content.is_empty() {
            return Err(wrong(violation!("the answer has nothing in it")));
        }
        let step = (body.len() / MOST_CUTS).max(1);
        for at in (0..=body.len()).step_by(step) {
            let (head, tail) = body.split_at(at);
            let cut = batches(&[head, tail], streamed).await.map_err(wrong)?;
            let answer = decode(llm, &cut).await;
            if answer.as_ref() != Ok(&whole) {
                return Err(wrong(violation!(
                    "cut at byte {at} it is another answer: {answer:?}"
                )));
            }
            cuts += 1;
        }
        if streamed {
            let all = batches(&[&body], true).await.map_err(wrong)?.concat();
            for most in 0..all.len() {
                if let Ok((completion, _)) = decode(llm, &[all[..most].to_vec()]).await
                    && completion.message != whole.0.message
                {
                    return Err(wrong(violation!(
                        "broken off after {most} events it is taken for a whole answer"
                    )));
                }
            }
        }
        read += 1;
    }
    if read == 0 {
        return Err(violation!(
            "{} holds no NAME.sse and no NAME.whole.json",
            folder.display()
        ));
    }
    Ok(format!(
        "{}, cut in {} and always the same",
        plural::count(read, "answer"),
        plural::count(cuts, "place")
    ))
}

/// Frames as the host splits them from a body that arrives in these pieces, a batch for each event.
async fn batches(pieces: &[&[u8]], streamed: bool) -> Result<Vec<Vec<Frame>>, Violation> {
    if !streamed {
        return Ok(pieces
            .iter()
            .map(|piece| vec![Frame::Body(piece.to_vec())])
            .collect());
    }
    let pieces: Vec<_> = pieces
        .iter()
        .map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
        .collect();
    let events: Vec<_> = SseStream::from_bytes_stream(stream::iter(pieces))
        .collect()
        .await;
    let mut frames = Vec::new();
    for event in events {
        let event = event.map_err(|error| violation!("it is no stream of events: {error}"))?;
        if let Some(data) = event.data {
            frames.push(vec![Frame::Sse(Sse {
                event: event.event,
                data,
                id: event.id,
            })]);
        }
    }
    Ok(frames)
}
