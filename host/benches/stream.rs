//! How long a model's first words take to a client: `cargo bench --bench stream`.
//!
//! The same upstream, a server that answers every completion at once with one delta, is read by plain
//! `reqwest` and through the running server by a WebSocket client. All of them share the machine, so
//! read the second figure beside the first of the same run: what is between them is the host's.
//!
//! The upstream says when it sent each delta, so a figure is from there to the reader's hand; the
//! request's way there, with the prompt, the encoding and the log, is in the third figure. Of many
//! streams at once each sends its deltas at its own moments, once all of them have begun: what is
//! measured is streams that run, and not the beginning of many sessions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a frontend's client, which is none of the host's"
)]

#[path = "common/server.rs"]
mod server;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Response;
use axum::serve::ListenerExt as _;
use futures::{SinkExt, StreamExt, stream};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::Barrier;
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use server::Server;

/// How often each is measured.
const TIMES: usize = 200;
/// How many streams at once.
const STREAMS: usize = 100;
/// How many deltas each of them has, and how long is between two.
const DELTAS: usize = 20;
const BETWEEN: Duration = Duration::from_millis(100);
/// Before the number that tells a request's answer from another's.
const MARK: &str = "number-";

/// When each delta was sent, by the number in its request and its own.
type Sent = Arc<Mutex<std::collections::HashMap<(u64, usize), Instant>>>;

/// The upstream.
struct Upstream {
    url: String,
    sent: Sent,
    /// How many answers begin together, and have many deltas; none begin at once, with one.
    together: Arc<Mutex<Option<Arc<Barrier>>>>,
}

impl Upstream {
    async fn start() -> Self {
        let sent = Sent::default();
        let together = Arc::<Mutex<Option<Arc<Barrier>>>>::default();
        let (times, barrier) = (sent.clone(), together.clone());
        let answer = move |body: Bytes| {
            let (times, barrier) = (times.clone(), barrier.lock().unwrap().clone());
            async move { answered(&body, times, barrier) }
        };
        let router = Router::new().fallback(answer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            url,
            sent,
            together,
        }
    }

    /// How long each delta of an answer took, by when it arrived.
    fn took(&self, number: u64, arrived: &[Instant]) -> Vec<Duration> {
        let sent = self.sent.lock().unwrap();
        let of = |(piece, at): (usize, &Instant)| at.duration_since(sent[&(number, piece)]);
        arrived.iter().enumerate().map(of).collect()
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

/// The headers at once, the deltas later, as a model's.
fn answered(body: &[u8], times: Sent, together: Option<Arc<Barrier>>) -> Response<Body> {
    let Some(number) = number_in(&String::from_utf8_lossy(body)) else {
        return Response::new(Body::from(r#"{"object":"list","data":[]}"#));
    };
    let event = |delta: &str, reason: &str| {
        format!(
            "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{reason}}}]}}\n\n"
        )
    };
    let words = event(
        &format!(r#"{{"role":"assistant","content":"{MARK}{number} "}}"#),
        "null",
    );
    let end = event("{}", r#""stop""#) + "data: [DONE]\n\n";
    let deltas = if together.is_some() { DELTAS } else { 1 };
    let pieces = stream::unfold(0, move |piece| {
        let (times, words, end, together) =
            (times.clone(), words.clone(), end.clone(), together.clone());
        async move {
            if piece == 0
                && let Some(together) = together
            {
                together.wait().await;
                // Each at its own moment.
                let part = u32::try_from(number % STREAMS as u64).unwrap_or_default();
                tokio::time::sleep(BETWEEN * part / STREAMS as u32).await;
            }
            if piece > deltas {
                return None;
            }
            let pause = if deltas == 1 { BETWEEN / 5 } else { BETWEEN };
            tokio::time::sleep(pause).await;
            if piece == deltas {
                return Some((Ok::<_, std::io::Error>(end), piece + 1));
            }
            times
                .lock()
                .unwrap()
                .insert((number, piece), Instant::now());
            Some((Ok(words), piece + 1))
        }
    });
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(Body::from_stream(pieces))
        .unwrap()
}

/// When `reqwest`'s reader has each delta.
async fn plainly(client: &reqwest::Client, upstream: &Upstream, number: u64) -> Vec<Instant> {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{MARK}{number}"}}]}}"#);
    let url = format!("{}/chat/completions", upstream.url);
    let mut response = client.post(url).body(body).send().await.unwrap();
    let (mut arrived, mut read) = (Vec::new(), String::new());
    while let Some(piece) = response.chunk().await.unwrap() {
        read.push_str(&String::from_utf8_lossy(&piece));
        let so_far = read.matches(MARK).count();
        arrived.resize(so_far, Instant::now());
    }
    arrived
}

/// When the task was sent, and when a WebSocket client has each delta.
async fn through(url: &str, number: u64, deltas: usize) -> (Instant, Vec<Instant>) {
    // The library fills its whole read buffer with zeros before each read, 128 KiB by default.
    let config = WebSocketConfig::default().read_buffer_size(4 << 10);
    let connected = connect_async_with_config(url, Some(config), true).await;
    let (mut socket, _) = connected.unwrap();
    let begun = Instant::now();
    let first = format!(
        r#"{{"task":"Say {MARK}{number}","policy":"coder","modelProvider":"openai","features":["deltas"]}}"#
    );
    socket.send(Frame::text(first)).await.unwrap();
    let mut arrived = Vec::new();
    loop {
        match socket.next().await {
            Some(Ok(Frame::Text(text))) => {
                if arrived.len() < deltas && text.contains(r#""type":"delta""#) {
                    arrived.resize(text.matches(MARK).count() + arrived.len(), Instant::now());
                    if arrived.len() == deltas {
                        let stop = Frame::text(r#"{"type":"stop"}"#);
                        socket.send(stop).await.unwrap();
                    }
                }
            }
            Some(Ok(_)) => {}
            _ => break,
        }
    }
    assert_eq!(arrived.len(), deltas, "not every delta came");
    (begun, arrived)
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
        let number = next();
        let arrived = plainly(&client, &upstream, number).await;
        plain.extend(upstream.took(number, &arrived));
        let number = next();
        let (begun, arrived) = through(&url, number, 1).await;
        first.extend(upstream.took(number, &arrived));
        whole.push(arrived[0].duration_since(begun));
    }
    say("first delta, plain reqwest", plain);
    say("first delta, to a WebSocket client", first);
    say("from a new session's task to its first delta", whole);

    let urls: Vec<String> = (0..STREAMS)
        .map(|number| server.socket(&format!("user-{number}")))
        .collect();
    *upstream.together.lock().unwrap() = Some(Arc::new(Barrier::new(STREAMS)));
    let all = (0..STREAMS).map(|_| {
        let (client, upstream, number) = (client.clone(), upstream.clone(), next());
        tokio::spawn(async move {
            let arrived = plainly(&client, &upstream, number).await;
            upstream.took(number, &arrived)
        })
    });
    let plain = futures::future::join_all(all.collect::<Vec<_>>()).await;
    let all = urls.iter().map(|url| {
        let (url, upstream, number) = (url.clone(), upstream.clone(), next());
        tokio::spawn(async move {
            let (_, arrived) = through(&url, number, DELTAS).await;
            upstream.took(number, &arrived)
        })
    });
    let first = futures::future::join_all(all.collect::<Vec<_>>()).await;
    let flat = |all: Vec<Result<Vec<Duration>, _>>| all.into_iter().flat_map(Result::unwrap);
    say("a delta, plain reqwest, 100 streams", flat(plain).collect());
    say(
        "a delta, to WebSocket clients, 100 streams",
        flat(first).collect(),
    );
}
