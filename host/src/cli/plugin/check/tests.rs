//! Runs the checks on the built-in plugins and on hand-written guests.

use super::policy::{InjectedEvent, play};
use super::tools::{self, CallResults, SimulatedEnvironment};
use super::{git, llm};
use crate::builtin;
use crate::cli::plugin::report::CheckReport;
use lucid_wasm::testing;
use lucid_wasm::{
    Engine, EngineOptions, GitPlugin, LlmPlugin, PluginLimits, PolicyPlugin, ToolsPlugin,
};

const EVENTS: [InjectedEvent; 7] = [
    InjectedEvent::Nothing,
    InjectedEvent::Message,
    InjectedEvent::Restart,
    InjectedEvent::Failures,
    InjectedEvent::Cancel,
    InjectedEvent::OddModel,
    InjectedEvent::Strange,
];

async fn policy(wasm: &[u8]) -> PolicyPlugin {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    let limits = PluginLimits::default();
    PolicyPlugin::load(&engine, "test", wasm, &limits)
        .await
        .unwrap()
}

#[tokio::test]
async fn the_built_in_policies_pass() {
    for (name, wasm) in builtin::POLICIES {
        let policy = policy(wasm).await;
        for event in EVENTS {
            let played = play(&policy, "{}", event).await;
            let played = played.unwrap_or_else(|why| panic!("{name}, {event:?}: {why}"));
            assert!(played.notes.is_empty(), "{name}, {event:?}: {played:?}");
            assert!(played.steps > 1, "{name}, {event:?}: {played:?}");
        }
    }
}

#[tokio::test]
async fn a_policy_that_traps_refuses_or_waits_for_nothing_fails_with_the_reason() {
    for (step, reason) in [
        ("unreachable", "broke down"),
        ("(global.get $err)", "too hot"),
        ("(loop $l (br $l)) (global.get $ok)", "fuel"),
        ("(global.get $ok)", "waits for nothing"),
    ] {
        let policy = policy(&testing::policy(step)).await;
        let why = play(&policy, "{}", InjectedEvent::Nothing)
            .await
            .unwrap_err();
        let why = why.to_string();
        assert!(why.contains(reason), "{step}: {why}");
    }
}

#[tokio::test]
async fn the_built_in_adapters_pass() {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    for (name, wasm) in builtin::PROVIDERS {
        let limits = PluginLimits::default();
        let adapter = LlmPlugin::load(&engine, name, wasm, &limits).await.unwrap();
        let folder = format!(
            "{}/../plugins/{name}/tests/recorded",
            env!("CARGO_MANIFEST_DIR")
        );
        let mut report = CheckReport::new();
        llm::check(&mut report, &adapter, "{}", Some(folder.as_ref())).await;
        assert!(
            !report.has_failures(),
            "{name}: the report above says what is wrong"
        );
    }
}

#[tokio::test]
async fn the_built_in_git_providers_pass() {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    for (name, wasm) in builtin::GIT {
        let limits = PluginLimits::default();
        let plugin = GitPlugin::load(&engine, name, wasm, &limits).await.unwrap();
        let mut report = CheckReport::new();
        git::check(&mut report, &plugin, "{}").await;
        assert!(
            !report.has_failures(),
            "{name}: the report above says what is wrong"
        );
    }
}

#[tokio::test]
async fn an_adapter_that_sets_the_hosts_header_or_makes_answers_of_nothing_fails() {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    for header in ["authorization", "content-type"] {
        let guest = testing::Llm {
            header,
            ..testing::Llm::default()
        };
        let limits = PluginLimits::default();
        let wasm = testing::llm(&guest);
        let adapter = LlmPlugin::load(&engine, "test", &wasm, &limits);
        let mut report = CheckReport::new();
        llm::check(&mut report, &adapter.await.unwrap(), "{}", None).await;
        // It also knows no models, and returns `done` whatever was pushed.
        assert!(report.has_failures(), "{header} passed");
    }
}

#[tokio::test]
async fn a_tool_that_behaves_passes_and_one_that_does_not_fails_with_the_reason() {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    let limits = PluginLimits {
        fuel: 500_000_000,
        ..PluginLimits::default()
    };
    let wasm = lucid_tests::TOOLING;
    let plugin = ToolsPlugin::load(&engine, "test", wasm, &limits)
        .await
        .unwrap();
    let arguments = r#"{"name": "x"}"#;
    for world in [
        SimulatedEnvironment::Kind,
        SimulatedEnvironment::Unkind,
        SimulatedEnvironment::Gone,
        SimulatedEnvironment::Odd,
    ] {
        for tool in ["lines", "item", "build", "echo", "shell", "both"] {
            let mut tried = CallResults::default();
            let played = tools::play(&plugin, "{}", tool, arguments, world, &mut tried).await;
            assert!(
                played.is_ok(),
                "{tool} in a world that is {world:?}: {played:?}"
            );
        }
    }
    for (tool, reason) in [
        ("endless", "not done after 32 steps"),
        ("trap", "broke down"),
        ("spin", "fuel"),
        ("flood", "gave more than"),
        ("inject", "host's own"),
        ("injectline", "line break"),
        ("elsewhere", "must start with `/`"),
        ("method", "CONNECT"),
        ("nothing", "is empty"),
        ("null", "null character"),
        ("hoard", "keeps 2097"),
    ] {
        let mut tried = CallResults::default();
        let played = tools::play(
            &plugin,
            "{}",
            tool,
            arguments,
            SimulatedEnvironment::Kind,
            &mut tried,
        )
        .await;
        let why = played.expect_err(tool).to_string();
        assert!(why.contains(reason), "{tool}: {why}");
    }
}
