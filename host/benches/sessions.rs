//! What a session costs, part by part and whole: `cargo bench`.
//!
//! Machines differ and are noisy, so read a figure beside `health`, one HTTP request to the same
//! server in the same run.

use std::path::Path;
use std::time::{Duration, Instant};

use axum::serve::ListenerExt;
use criterion::{Criterion, criterion_group, criterion_main};
use futures::{SinkExt, StreamExt};
use lucid::app::App;
use lucid::auth::UserId;
use lucid::builtin;
use lucid::config::Config;
use lucid::plugins::llm_types::CompletionRequest;
use lucid::plugins::policy_types::{Context, Input, Start};
use lucid::plugins::types::{Content, Message, Role, ToolDefinition};
use lucid::plugins::{Engine, EngineOptions, Limits, LlmPlugin, PolicyPlugin};
use tokio::runtime::Runtime;
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::Message as Frame;

/// How many clients are connected at once in the throughput figure.
const CLIENTS: u64 = 16;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn tool() -> ToolDefinition {
    ToolDefinition {
        name: "terminal".to_owned(),
        description: "Runs a command.".to_owned(),
        input_schema: r#"{"type":"object","properties":{"command":{"type":"string"}}}"#.to_owned(),
    }
}

fn plugins(c: &mut Criterion) {
    let runtime = runtime();
    let engine = Engine::new(EngineOptions::default()).unwrap();
    let limits = Limits::default();
    let coder = runtime
        .block_on(PolicyPlugin::load(
            &engine,
            "coder",
            builtin::CODER,
            &limits,
        ))
        .unwrap();
    let context = Context {
        session: "bench".to_owned(),
        step: 0,
        now_ms: 1_800_000_000_000,
        seed: 1,
        iterations_left: 50,
        tokens_left: None,
        millis_left: None,
    };
    let inputs = [Input::Started(Start {
        task: "Fix the failing test.".to_owned(),
        entry: 0,
        workspace: "/workspace".to_owned(),
        repository: None,
        branch: None,
        model: "m".to_owned(),
        instructions: Vec::new(),
        tools: vec![tool()],
        settings: "{}".to_owned(),
    })];
    c.bench_function("step of the coder on a fresh store", |b| {
        b.iter(|| {
            let called = runtime.block_on(coder.step(&context, None, &inputs));
            called.result.unwrap()
        });
    });

    let openai = runtime
        .block_on(LlmPlugin::load(&engine, "openai", builtin::OPENAI, &limits))
        .unwrap();
    let say = |role, text: &str| Message {
        role,
        content: vec![Content::Text(text.to_owned())],
    };
    let request = CompletionRequest {
        model: "m".to_owned(),
        messages: vec![
            say(Role::System, "You fix things."),
            say(Role::User, &"Fix the failing test. ".repeat(40)),
        ],
        tools: vec![tool()],
        max_output_tokens: None,
        params: "{}".to_owned(),
        streaming: true,
    };
    c.bench_function("encode of a model request", |b| {
        b.iter(|| {
            let called = runtime.block_on(openai.encode("{}", &request));
            called.result.unwrap()
        });
    });
}

/// A server in this process, on the mock without sandbox and delay.
struct Server {
    address: String,
    app: App,
}

async fn serve(storage: &Path) -> Server {
    let config = Config::from_pairs([
        ("WORKSPACE_BASE_PATH", storage.to_str().unwrap()),
        ("SANDBOX_BACKEND", "none"),
        ("MOCK_STEP_DELAY_SECONDS", "0"),
        ("MAX_SESSIONS_PER_USER", "1000"),
    ])
    .unwrap();
    let app = Box::pin(App::start(config)).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // As the server does: a small frame does not wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    let router = app.router(app.api());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Server { address, app }
}

impl Server {
    fn url(&self, user: &str) -> String {
        let day = Duration::from_secs(86_400);
        let token = self.app.auth().issue(&UserId::from(user), day).unwrap();
        format!("ws://{}/api/v1/ws?token={token}", self.address)
    }
}

/// Connects, gives a task, reads until it is completed, stops, reads until the close.
async fn session(url: &str, task: String) {
    let (mut socket, _) = connect_async_with_config(url, None, true).await.unwrap();
    let first = format!(r#"{{"task":"{task}"}}"#);
    socket.send(Frame::text(first)).await.unwrap();
    while let Some(Ok(frame)) = socket.next().await {
        if let Frame::Text(text) = frame
            && text.contains(r#""status":"completed""#)
        {
            break;
        }
    }
    socket
        .send(Frame::text(r#"{"type":"stop"}"#))
        .await
        .unwrap();
    while let Some(Ok(_)) = socket.next().await {}
}

fn sessions(c: &mut Criterion) {
    let runtime = runtime();
    let storage = tempfile::tempdir().unwrap();
    let server = runtime.block_on(serve(storage.path()));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let health = format!("http://{}/health", server.address);
    c.bench_function("health", |b| {
        b.iter(|| {
            runtime.block_on(async { client.get(&health).send().await.unwrap().text().await })
        });
    });
    let url = server.url("alone");
    let mut count = 0;
    c.bench_function("a whole mock session, alone", |b| {
        b.iter(|| {
            count += 1;
            runtime.block_on(session(&url, format!("alone {count}")));
        });
    });
    let urls: Vec<String> = (0..CLIENTS)
        .map(|n| server.url(&format!("user-{n}")))
        .collect();
    let mut run = 0;
    c.bench_function("a whole mock session, at 16 clients", |b| {
        b.iter_custom(|sessions| {
            run += 1;
            let begin = Instant::now();
            // Clients are tasks of their own, and those can only be begun inside the runtime.
            let _inside = runtime.enter();
            runtime.block_on(futures::future::join_all(urls.iter().zip(0u64..).map(
                |(url, client)| {
                    let url = url.clone();
                    let share = (sessions + client) / CLIENTS;
                    let task = tokio::spawn(async move {
                        for n in 0..share {
                            session(&url, format!("{run} {client} {n}")).await;
                        }
                    });
                    async move { task.await.unwrap() }
                },
            )));
            begin.elapsed()
        });
    });
    runtime.block_on(server.app.sessions().shutdown());
}

criterion_group!(benches, plugins, sessions);
criterion_main!(benches);
