//! What one call of a plugin costs: `cargo bench --bench plugins`.
//!
//! A call is everything that the session engine pays for: a slot, a fresh store, an instance, the
//! values into the guest and out of it, and the end of the instance.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]

#[path = "common/coder.rs"]
mod coder;

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};

use lucid::builtin;
use lucid_types::wit::llm::CompletionRequest;
use lucid_types::wit::types::{Content, Message, Role};
use lucid_wasm::{Engine, EngineOptions, LlmPlugin, PluginLimits, PolicyPlugin};

use coder::{first_step, terminal};

fn runtime() -> Runtime {
    Builder::new_multi_thread().enable_all().build().unwrap()
}

fn engine() -> Engine {
    Engine::new(EngineOptions::default()).unwrap()
}

fn step(c: &mut Criterion) {
    let runtime = runtime();
    let (engine, limits) = (engine(), PluginLimits::default());
    let coder = PolicyPlugin::load(&engine, "coder", builtin::CODER, &limits);
    let coder = runtime.block_on(coder).unwrap();
    let (context, inputs) = first_step();
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
        tools: vec![terminal()],
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
