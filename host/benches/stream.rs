//! How long a model's first words take to a client: `cargo bench --bench stream`.
//!
//! The same upstream, a server that answers every completion at once with one delta, is read by plain
//! `reqwest` and through the running server by a WebSocket client. All of them share the machine, so
//! read the second figure beside the first of the same run: what is between them is the host's.
//!
//! The upstream says when it sent its first delta, so a figure is from there to the reader's hand; the
//! request's way there, with the prompt, the encoding and the log, is in the third figure.

#[path = "common/server.rs"]
mod server;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Response;
use axum::serve::ListenerExt as _;
use futures::{SinkExt, StreamExt, stream};
use server::Server;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::Barrier;
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// How often each is measured.
const TIMES: usize = 200;
/// How many streams at once.
const STREAMS: usize = 100;
/// Before the number that tells a request's answer from another's.
const MARK: &str = "number-";

/// When the first delta of each answer was sent, by the number in its request.
type Sent = Arc<Mutex<std::collections::HashMap<u64, Instant>>>;

/// The upstream.
struct Upstream {
    url: String,
    sent: Sent,
}

impl Upstream {
    async fn start() -> Self {
        let sent = Sent::default();
        let times = sent.clone();
        let answer = move |body: Bytes| {
            let times = times.clone();
            async move { answered(&body, times) }
        };
        let router = Router::new().fallback(answer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, sent }
    }

    fn sent_at(&self, number: u64) -> Instant {
        self.sent.lock().unwrap()[&number]
    }
}

/// The last number in a text.
fn number_in(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(MARK)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn answered(body: &[u8], times: Sent) -> Response<Body> {
    let Some(number) = number_in(&String::from_utf8_lossy(body)) else {
        return Response::new(Body::from(r#"{"object":"list","data":[]}"#));
    };
    let event = |delta: &str, reason: &str| {
        let text = format!(
            r#"data: {{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}"#
        );
        text + "\n\n"
    };
    let first = event(
        &format!(r#"{{"role":"assistant","content":"{MARK}{number} "}}"#),
        "null",
    );
    let last = event("{}", r#""stop""#) + "data: [DONE]\n\n";
    let pieces = stream::unfold(0, move |piece| {
        let (times, first, last) = (times.clone(), first.clone(), last.clone());
        async move {
            match piece {
                0 => {
                    // The headers are on their way before the words, as a model's are.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    times.lock().unwrap().insert(number, Instant::now());
                    Some((Ok::<_, std::io::Error>(first), 1))
                }
                1 => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Some((Ok(last), 2))
                }
                _ => None,
            }
        }
    });
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(Body::from_stream(pieces))
        .unwrap()
}

/// From the upstream's first delta to `reqwest`'s reader.
async fn plainly(client: &reqwest::Client, upstream: &Upstream, number: u64) -> Duration {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{MARK}{number}"}}]}}"#);
    let url = format!("{}/chat/completions", upstream.url);
    let mut response = client.post(url).body(body).send().await.unwrap();
    let mut read = Vec::new();
    let mut arrived = None;
    while let Some(piece) = response.chunk().await.unwrap() {
        read.extend_from_slice(&piece);
        if arrived.is_none() && String::from_utf8_lossy(&read).contains(MARK) {
            arrived = Some(Instant::now());
        }
    }
    arrived.unwrap().duration_since(upstream.sent_at(number))
}

/// From the upstream's first delta to a WebSocket client, and from the task to there.
async fn through(url: &str, upstream: &Upstream, number: u64) -> (Duration, Duration) {
    // The library fills its whole read buffer with zeros before each read, 128 KiB by default.
    let config = WebSocketConfig::default().read_buffer_size(4 << 10);
    let connected = connect_async_with_config(url, Some(config), true).await;
    let (mut socket, _) = connected.unwrap();
    let begun = Instant::now();
    let first = format!(
        r#"{{"task":"Say {MARK}{number}","policy":"coder","modelProvider":"openai","features":["deltas"]}}"#
    );
    socket.send(Frame::text(first)).await.unwrap();
    let mut arrived = None;
    loop {
        match socket.next().await {
            Some(Ok(Frame::Text(text))) => {
                if arrived.is_none() && text.contains(r#""type":"delta""#) {
                    arrived = Some(Instant::now());
                    socket
                        .send(Frame::text(r#"{"type":"stop"}"#))
                        .await
                        .unwrap();
                }
            }
            Some(Ok(_)) => {}
            _ => break,
        }
    }
    let arrived = arrived.expect("no delta came");
    (
        arrived.duration_since(upstream.sent_at(number)),
        arrived.duration_since(begun),
    )
}

fn say(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!(
        "{what:<48} p50 {:>9.1?}   p90 {:>9.1?}   p99 {:>9.1?}",
        at(0.5),
        at(0.9),
        at(0.99)
    );
}

fn main() {
    // The client wants to know who would do TLS, also where nobody does.
    let ring = rustls::crypto::ring::default_provider();
    ring.install_default().unwrap();
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let upstream = Arc::new(Upstream::start().await);
    let storage = tempfile::tempdir().unwrap();
    let settings = [
        ("LLM_BASE_URL", upstream.url.as_str()),
        ("LLM_API_KEY", "sk-only-good-for-benchmarks"),
        ("LLM_MODEL", "m"),
        // The agent wants a place to work in; no command is run.
        ("SANDBOX_BACKEND", "local"),
    ];
    let server = Server::start(storage.path(), &settings);
    let url = server.socket("alone");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut numbers = 0..;
    let mut next = || numbers.next().unwrap_or_default();

    let mut health = Vec::new();
    for _ in 0..TIMES {
        let begun = Instant::now();
        client.get(server.health()).send().await.unwrap();
        health.push(begun.elapsed());
    }
    say("GET /health of the same server", health);

    let (mut plain, mut first, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    // In turn, so that whatever slows the machine slows both.
    for _ in 0..TIMES {
        plain.push(plainly(&client, &upstream, next()).await);
        let (delta, task) = through(&url, &upstream, next()).await;
        first.push(delta);
        whole.push(task);
    }
    say("first delta, plain reqwest", plain);
    say("first delta, to a WebSocket client", first);
    say("from a new session's task to its first delta", whole);

    let urls: Vec<String> = (0..STREAMS)
        .map(|number| server.socket(&format!("user-{number}")))
        .collect();
    let (mut plain, mut first) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let together = Arc::new(Barrier::new(STREAMS));
        let all = (0..STREAMS).map(|_| {
            let (client, upstream, number) = (client.clone(), upstream.clone(), next());
            let together = together.clone();
            tokio::spawn(async move {
                together.wait().await;
                plainly(&client, &upstream, number).await
            })
        });
        for done in futures::future::join_all(all.collect::<Vec<_>>()).await {
            plain.push(done.unwrap());
        }
        let all = urls.iter().map(|url| {
            let (url, upstream, number) = (url.clone(), upstream.clone(), next());
            let together = together.clone();
            tokio::spawn(async move {
                together.wait().await;
                through(&url, &upstream, number).await.0
            })
        });
        for done in futures::future::join_all(all.collect::<Vec<_>>()).await {
            first.push(done.unwrap());
        }
    }
    say("first delta, plain reqwest, 100 at once", plain);
    say("first delta, to WebSocket clients, 100 at once", first);
}
