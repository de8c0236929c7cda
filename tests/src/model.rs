//! A model endpoint that speaks OpenAI's chat completions and says what the test tells it to.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use futures::StreamExt as _;
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use crate::wait::within;

/// What the model does when it is asked.
pub enum ModelTurn {
    /// Says something and ends its turn.
    Say(String),
    /// Calls tools, all in one turn: name and arguments.
    Call(Vec<(String, Value)>),
    /// Takes the request, and never begins to answer.
    Silence,
    /// Says this much, and never goes on.
    Hang(String),
    /// Says this much, and breaks the connection off when [`Model::break_off`] says so.
    Break(String),
    /// Refuses with a status and an error message.
    Refuse(u16, String),
    /// Refuses for now: a status, and what `Retry-After` says.
    Later(u16, String),
    /// Answers with a success, and with this in it: a content type and a body.
    Body(&'static str, String),
    /// Answers as no model should: what it says, its calls with arguments as they are, and why it stopped.
    Odd(String, Vec<(String, String)>, &'static str),
}

/// One tool call.
pub fn call(tool: &str, arguments: Value) -> ModelTurn {
    ModelTurn::Call(vec![(tool.to_owned(), arguments)])
}

/// Several tool calls in one turn.
pub fn calls<const N: usize>(all: [(&str, Value); N]) -> ModelTurn {
    ModelTurn::Call(
        all.map(|(tool, arguments)| (tool.to_owned(), arguments))
            .into(),
    )
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct ModelRequestSeen {
    /// Path and query.
    pub uri: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: String,
}

impl ModelRequestSeen {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The texts of all messages of a role.
    pub fn messages(&self, role: &str) -> Vec<String> {
        let body = self.json();
        let all = body["messages"].as_array().cloned().unwrap_or_default();
        let text = |content: &Value| match content {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        all.iter()
            .filter(|message| message["role"] == role)
            .map(|message| text(&message["content"]))
            .collect()
    }
}

/// The running endpoint.
pub struct Model {
    /// For `LLM_BASE_URL`.
    pub url: String,
    seen: Arc<Mutex<Vec<ModelRequestSeen>>>,
    count: watch::Receiver<usize>,
    gone: watch::Receiver<usize>,
    breaking: Arc<Notify>,
}

/// Marks an answer that is not given.
#[derive(Clone)]
struct Never;

/// Lives as long as an answer that hangs is waited for.
struct Waiting(watch::Sender<usize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.send_modify(|gone| *gone += 1);
    }
}

impl Model {
    /// Starts it. The script is asked with the number of the completion, from 0, and the request.
    pub async fn start(
        script: impl Fn(usize, &ModelRequestSeen) -> ModelTurn + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_on(listener, script)
    }

    /// The same, where somebody has chosen the port.
    pub fn start_on(
        listener: TcpListener,
        script: impl Fn(usize, &ModelRequestSeen) -> ModelTurn + Send + Sync + 'static,
    ) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (counted, count) = watch::channel(0);
        let (leaving, gone) = watch::channel(0);
        let breaking = Arc::new(Notify::new());
        let to_break = breaking.clone();
        let all = seen.clone();
        let asked = Mutex::new(0);
        let answer = Arc::new(move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let request = ModelRequestSeen {
                uri: uri.to_string(),
                headers,
                body: String::from_utf8_lossy(&body).into_owned(),
            };
            all.lock().unwrap().push(request.clone());
            if !uri.path().ends_with("/chat/completions") {
                // What else a host may ask, such as whether a key is good.
                return match script(usize::MAX, &request) {
                    ModelTurn::Refuse(status, message) => refusal(status, &message),
                    _ => json_response(
                        200,
                        &json!({"object": "list", "data": [{"id": "scripted", "object": "model"}]}),
                    ),
                };
            }
            let number = {
                let mut asked = asked.lock().unwrap();
                *asked += 1;
                *asked - 1
            };
            let response = match script(number, &request) {
                ModelTurn::Refuse(status, message) => refusal(status, &message),
                ModelTurn::Later(status, after) => {
                    let mut response = refusal(status, "Not now.");
                    let headers = response.headers_mut();
                    headers.insert("retry-after", after.parse().unwrap());
                    response
                }
                ModelTurn::Silence => {
                    let mut response = Response::new(Body::empty());
                    response.extensions_mut().insert(Never);
                    response
                }
                ModelTurn::Body(kind, body) => in_pieces(kind, &body),
                turn => streamed(number, turn, &leaving, breaking.clone()),
            };
            counted.send_replace(number + 1);
            response
        });
        let router = Router::new().fallback(move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let answer = answer.clone();
            async move {
                let response = answer(uri, headers, body);
                if response.extensions().get::<Never>().is_some() {
                    std::future::pending::<()>().await;
                }
                response
            }
        });
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            seen,
            count,
            gone,
            breaking: to_break,
        }
    }

    /// Waits until it was asked for so many completions.
    pub async fn asked(&self, times: usize) {
        let mut count = self.count.clone();
        within(
            &format!("{times} model calls"),
            count.wait_for(|count| *count >= times),
        )
        .await
        .unwrap();
    }

    /// Waits until so many answers that hang are not waited for any more: the host dropped them.
    pub async fn dropped(&self, times: usize) {
        let mut gone = self.gone.clone();
        within(
            "the host to drop its request",
            gone.wait_for(|gone| *gone >= times),
        )
        .await
        .unwrap();
    }

    /// Breaks one answer off: the one that waits for it, or the next.
    pub fn break_off(&self) {
        self.breaking.notify_one();
    }

    /// Every request, probes of a key too.
    pub fn seen(&self) -> Vec<ModelRequestSeen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests for completions.
    pub fn completions(&self) -> Vec<ModelRequestSeen> {
        self.seen()
            .into_iter()
            .filter(|seen| seen.uri.contains("/chat/completions"))
            .collect()
    }
}

fn json_response(status: u16, body: &Value) -> Response<Body> {
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

fn refusal(status: u16, message: &str) -> Response<Body> {
    json_response(
        status,
        &json!({"error": {"message": message, "type": "scripted", "code": "scripted"}}),
    )
}

fn in_pieces(kind: &str, body: &str) -> Response<Body> {
    let pieces: Vec<_> = body
        .as_bytes()
        .chunks(7)
        .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
        .collect();
    Response::builder()
        .header("content-type", kind)
        .body(Body::from_stream(stream::iter(pieces)))
        .unwrap()
}

/// A tool call as it comes in a stream: its name, then its arguments in pieces.
fn called(number: usize, index: usize, tool: &str, arguments: &str) -> Vec<Value> {
    let id = format!("call_{number}_{index}");
    let function = json!({"name": tool, "arguments": ""});
    let start = json!({"index": index, "id": id, "type": "function", "function": function});
    let mut deltas = vec![json!({"tool_calls": [start]})];
    let arguments: Vec<char> = arguments.chars().collect();
    for piece in arguments.chunks(12) {
        let piece: String = piece.iter().collect();
        let more = json!({"index": index, "function": {"arguments": piece}});
        deltas.push(json!({"tool_calls": [more]}));
    }
    deltas
}

/// The answer as server-sent events, in pieces that fall where they may.
fn streamed(
    number: usize,
    turn: ModelTurn,
    leaving: &watch::Sender<usize>,
    breaking: Arc<Notify>,
) -> Response<Body> {
    let chunk = |delta: Value, reason: Option<&str>| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        let chunk = json!({"id": format!("chatcmpl-{number}"), "object": "chat.completion.chunk", "created": 1,
            "model": "scripted", "choices": [choice]});
        format!("data: {chunk}\n\n")
    };
    let mut text = chunk(json!({"role": "assistant", "content": ""}), None);
    let (mut hangs, mut breaks) = (false, false);
    let reason = match turn {
        ModelTurn::Say(said) => {
            for word in said.split_inclusive(' ') {
                text += &chunk(json!({"content": word}), None);
            }
            "stop"
        }
        ModelTurn::Call(all) => {
            for (index, (tool, arguments)) in all.iter().enumerate() {
                for delta in called(number, index, tool, &arguments.to_string()) {
                    text += &chunk(delta, None);
                }
            }
            "tool_calls"
        }
        ModelTurn::Odd(said, all, reason) => {
            if !said.is_empty() {
                text += &chunk(json!({"content": said}), None);
            }
            for (index, (tool, arguments)) in all.iter().enumerate() {
                for delta in called(number, index, tool, arguments) {
                    text += &chunk(delta, None);
                }
            }
            reason
        }
        ModelTurn::Hang(said) => {
            text += &chunk(json!({"content": said}), None);
            hangs = true;
            ""
        }
        ModelTurn::Break(said) => {
            text += &chunk(json!({"content": said}), None);
            breaks = true;
            ""
        }
        ModelTurn::Refuse(..) | ModelTurn::Later(..) | ModelTurn::Silence | ModelTurn::Body(..) => {
            unreachable!("it is not streamed in chunks")
        }
    };
    if !hangs && !breaks {
        text += &chunk(json!({}), Some(reason));
        let usage = json!({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120});
        let last = json!({"id": format!("chatcmpl-{number}"), "object": "chat.completion.chunk", "created": 1,
            "model": "scripted", "choices": [], "usage": usage});
        text += &format!("data: {last}\n\ndata: [DONE]\n\n");
    }
    let pieces: Vec<_> = text
        .as_bytes()
        .chunks(97)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let waiting = hangs.then(|| Waiting(leaving.clone()));
    let rest = async move {
        if let Some(_waiting) = &waiting {
            // Dropped with the connection, since it is never over.
            std::future::pending::<()>().await;
        }
        if breaks {
            breaking.notified().await;
        }
        breaks.then(|| Err(std::io::Error::other("broken off as the test wants")))
    };
    let rest = stream::once(rest).filter_map(std::future::ready);
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(Body::from_stream(stream::iter(pieces).chain(rest)))
        .unwrap()
}
