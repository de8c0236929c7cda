//! What one call of a plugin costs: `cargo bench --bench plugins`.
//!
//! A call is everything that the session engine pays for: a slot, a fresh store, an instance, the
//! values into the guest and out of it, and the end of the instance.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};

use lucid::builtin;
use lucid_session::AvailableModels;
use lucid_types::wit::llm::CompletionRequest;
use lucid_types::wit::policy::{Context, Input, Start};
use lucid_types::wit::types::{Content, Message, Role, ToolDefinition};
use lucid_wasm::{Engine, EngineOptions, LlmPlugin, PluginLimits, PolicyPlugin};

fn runtime() -> Runtime {
    Builder::new_multi_thread().enable_all().build().unwrap()
}

fn engine() -> Engine {
    Engine::new(EngineOptions::default()).unwrap()
}

fn tool() -> ToolDefinition {
    ToolDefinition {
        name: "terminal".to_owned(),
        description: "Runs a command.".to_owned(),
        input_schema: r#"{"type":"object","properties":{"command":{"type":"string"}}}"#.to_owned(),
    }
}

fn step(c: &mut Criterion) {
    let runtime = runtime();
    let (engine, limits) = (engine(), PluginLimits::default());
    let coder = PolicyPlugin::load(&engine, "coder", builtin::CODER, &limits);
    let coder = runtime.block_on(coder).unwrap();
    let context = Context {
        session: "bench".to_owned(),
        step: 0,
        now_ms: 1_800_000_000_000,
        seed: 1,
        iterations_left: 50,
        tokens_left: None,
        cost_left: None,
        millis_left: None,
    };
    let models = AvailableModels::only("m");
    let inputs = [Input::Started(Start {
        task: "Fix the failing test.".to_owned(),
        entry: 0,
        workspace: "/workspace".to_owned(),
        repository: None,
        branch: None,
        model: models.model,
        small_model: models.small,
        models: models.names,
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
}

fn encode(c: &mut Criterion) {
    let runtime = runtime();
    let (engine, limits) = (engine(), PluginLimits::default());
    let openai = LlmPlugin::load(&engine, "openai", builtin::OPENAI, &limits);
    let openai = runtime.block_on(openai).unwrap();
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

criterion_group!(benches, step, encode);
criterion_main!(benches);
