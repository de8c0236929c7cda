//! Tests of admission, of a call's limits and of the set of plugins.

mod released;
mod wasi;
mod work;

use std::time::{Duration, Instant};

use super::testing::engine;
use super::*;
use lucid_types::wit::policy::{Context, Input, Snapshot};
use lucid_types::wit::{policy as policy_types, types};

fn context() -> Context {
    Context {
        session: "s".into(),
        step: 0,
        now_ms: 1,
        seed: 2,
        iterations_left: 3,
        tokens_left: None,
        cost_left: None,
        millis_left: Some(4),
    }
}

async fn policy_with(step: &str, limits: &PluginLimits) -> PolicyPlugin {
    let wasm = testing::policy(step);
    PolicyPlugin::load(&engine(), "test", &wasm, limits)
        .await
        .unwrap()
}

async fn stepped(step: &str, limits: &PluginLimits) -> CallOutcome<policy_types::Transition> {
    let plugin = policy_with(step, limits).await;
    let inputs = [Input::TimerFired("t".into())];
    plugin.step(&context(), None, &inputs).await
}

async fn refused(wat: &str) -> LoadError {
    let wasm = wat::parse_str(wat).unwrap();
    PolicyPlugin::load(&engine(), "bad", &wasm, &PluginLimits::default())
        .await
        .unwrap_err()
}

const ENDLESS: &str = "(loop $again (br $again)) unreachable";

#[tokio::test]
async fn a_component_that_imports_http_is_refused_by_the_name_of_the_import() {
    let error = refused(
        r#"(component (import "wasi:http/outgoing-handler@0.2.0" (instance
            (export "handle" (func)))))"#,
    )
    .await;
    assert!(matches!(&error, LoadError::ForbiddenImport { import, .. }
        if import == "wasi:http/outgoing-handler@0.2.0"));
    assert!(
        error
            .to_string()
            .contains("`bad` imports `wasi:http/outgoing-handler@0.2.0`")
    );
}

#[tokio::test]
async fn another_version_of_the_log_is_refused_as_well() {
    let error = refused(r#"(component (import "lucid:host/log@9.0.0" (instance)))"#).await;
    assert!(matches!(error, LoadError::ForbiddenImport { .. }));
}

#[tokio::test]
async fn a_component_of_another_compatible_version_of_its_interface_is_not_taken_for_one_of_this() {
    let error = refused(
        r#"(component (instance $empty) (export "lucid:policy/policy@0.1.1" (instance $empty)))"#,
    )
    .await;
    assert!(
        matches!(&error, LoadError::MissingExport { missing, .. }
            if missing.to_string() == "lucid:policy/policy@0.1.0"),
        "{error}"
    );
}

#[tokio::test]
async fn a_component_that_exports_nothing_is_told_what_it_lacks() {
    let error = refused("(component)").await;
    assert!(matches!(&error, LoadError::MissingExport { missing, .. }
        if missing.to_string() == "lucid:policy/policy@0.1.0"));
    let error = refused(
        r#"(component (instance $empty) (export "lucid:policy/policy@0.1.0" (instance $empty)))"#,
    )
    .await;
    assert!(matches!(&error, LoadError::MissingExport { missing, .. }
        if missing.to_string() == "lucid:policy/policy@0.1.0#describe"));
}

#[tokio::test]
async fn a_log_import_of_another_type_is_refused_before_anything_runs() {
    let mut wat = String::from(
        "(component (import \"lucid:host/log@0.1.0\" (instance (export \"log\" (func (param \"x\" u32)))))",
    );
    wat.push_str("(core module $m (func (export \"f\"))) (core instance $i (instantiate $m))");
    wat.push_str("(func $f (canon lift (core func $i \"f\")))");
    wat.push_str("(instance $e (export \"describe\" (func $f)) (export \"step\" (func $f)) (export \"migrate\" (func $f)))");
    wat.push_str("(export \"lucid:policy/policy@0.1.0\" (instance $e)))");
    assert!(matches!(refused(&wat).await, LoadError::OtherTypes { .. }));
}

#[tokio::test]
async fn what_is_no_component_or_too_large_is_refused() {
    let engine = engine();
    let limits = PluginLimits::default();
    for wasm in [&b"hello"[..], b"", b"\0asm\x01\0\0\0"] {
        let error = PolicyPlugin::load(&engine, "bad", wasm, &limits).await;
        assert!(matches!(error, Err(LoadError::NotAComponent { .. })));
    }
    let small = EngineOptions {
        largest_component: 10,
        ..EngineOptions::default()
    };
    let engine = Engine::new(small).unwrap();
    let error = PolicyPlugin::load(&engine, "bad", &[0; 11], &limits).await;
    assert!(matches!(
        error,
        Err(LoadError::TooLarge {
            size: 11,
            limit: 10,
            ..
        })
    ));
}

#[tokio::test]
async fn a_policy_of_another_kind_is_not_taken_for_an_adapter() {
    let wasm = testing::policy("global.get $ok");
    let error = LlmPlugin::load(&engine(), "test", &wasm, &PluginLimits::default()).await;
    assert!(matches!(error, Err(LoadError::MissingExport { .. })));
}

#[tokio::test]
async fn a_component_of_another_kind_is_refused_and_one_of_tools_is_known_by_what_it_exports() {
    let limits = PluginLimits::default();
    let error = ToolsPlugin::load(&engine(), "t", &testing::policy("global.get $ok"), &limits)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("is not a tools plugin"),
        "{error}"
    );
    let any = AnyPlugin::load(&engine(), "t", released::TOOLS, &limits)
        .await
        .unwrap();
    assert_eq!((any.kind(), any.own_name()), (PluginKind::Tools, "tooling"));
    let imports = any.imports();
    assert!(
        imports.iter().all(|one| ALLOWED_IMPORTS.contains(&&**one)),
        "{imports:?}"
    );
}

#[tokio::test]
async fn a_step_gives_its_transition_and_the_same_fuel_each_time() {
    let plugin = policy_with("global.get $ok", &PluginLimits::default()).await;
    let descriptor = plugin.descriptor();
    assert_eq!((descriptor.name.as_str(), descriptor.schema), ("test", 7));
    assert!(descriptor.calls_models && !descriptor.needs_sandbox);
    let state = Snapshot {
        schema: 7,
        bytes: vec![0; 1000],
    };
    let first = plugin.step(&context(), Some(&state), &[]).await;
    let second = plugin.step(&context(), Some(&state), &[]).await;
    assert_eq!(first.result.as_ref().unwrap().state.bytes, [1, 2, 3]);
    assert_eq!(first.usage.fuel, second.usage.fuel);
    assert!(first.usage.fuel > 0 && first.usage.memory_bytes == 160 * 65536);
}

#[tokio::test]
async fn an_endless_loop_runs_out_of_fuel() {
    let limits = PluginLimits {
        fuel: 100_000,
        ..PluginLimits::default()
    };
    let called = stepped(ENDLESS, &limits).await;
    let error = called.result.unwrap_err();
    assert!(
        matches!(error, CallError::OutOfFuel { limit: 100_000, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("`step` of the plugin `test`"));
    assert!(called.usage.fuel >= 99_000);
}

#[tokio::test]
async fn an_endless_loop_with_endless_fuel_ends_at_the_deadline_and_holds_nobody_up() {
    let limits = PluginLimits {
        fuel: u64::MAX,
        wall: Duration::from_millis(200),
        ..PluginLimits::default()
    };
    let plugin = policy_with(ENDLESS, &limits).await;
    let begun = Instant::now();
    let context = context();
    // With one executor thread, the other task runs only if the loop yields.
    let (called, turns) = tokio::join!(plugin.step(&context, None, &[]), async {
        let mut turns = 0;
        while begun.elapsed() < Duration::from_millis(150) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            turns += 1;
        }
        turns
    });
    assert!(matches!(called.result, Err(CallError::Deadline { .. })));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert!(turns >= 3, "{turns}");
    let again = plugin.step(&context, None, &[]).await;
    assert!(matches!(again.result, Err(CallError::Deadline { .. })));
}

#[tokio::test]
async fn a_trap_is_an_error_that_says_what_happened() {
    let error = stepped("unreachable", &PluginLimits::default())
        .await
        .result
        .unwrap_err();
    assert!(
        matches!(&error, CallError::Trap { detail, .. }
        if detail.contains("unreachable")),
        "{error}"
    );
    let deep = stepped("i32.const 0x7fffffff i32.load", &PluginLimits::default()).await;
    assert!(matches!(deep.result, Err(CallError::Trap { .. })));
}

#[tokio::test]
async fn memory_beyond_the_limit_is_denied_and_named() {
    let grow = "(if (i32.eq (memory.grow (i32.const 4096)) (i32.const -1)) (then unreachable)) global.get $ok";
    let error = stepped(grow, &PluginLimits::default())
        .await
        .result
        .unwrap_err();
    assert!(matches!(error, CallError::OutOfMemory { .. }), "{error}");
    let enough = PluginLimits {
        memory_bytes: 300 << 20,
        ..PluginLimits::default()
    };
    let called = stepped(grow, &enough).await;
    assert!(called.result.is_ok());
    assert_eq!(called.usage.memory_bytes, (160 + 4096) * 65536);
    // Less memory than it starts with, so it cannot even return its descriptor.
    let little = PluginLimits {
        memory_bytes: 1 << 20,
        ..PluginLimits::default()
    };
    let wasm = testing::policy("unreachable");
    let error = PolicyPlugin::load(&engine(), "test", &wasm, &little).await;
    assert!(matches!(
        error,
        Err(LoadError::Describe(CallError::OutOfMemory { .. }))
    ));
}

#[tokio::test]
async fn a_result_that_is_too_large_is_refused() {
    // The state's length, in the transition at `$ok`.
    let grow = "(i32.store offset=12 (global.get $ok) (i32.const 65536)) (i32.store offset=16 (global.get $ok) (i32.const 9437184)) global.get $ok";
    let error = stepped(grow, &PluginLimits::default())
        .await
        .result
        .unwrap_err();
    assert!(
        matches!(
            error,
            CallError::TooMuchOutput {
                limit: 8_388_608,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_plugins_own_error_comes_back_cleaned() {
    let error = stepped("global.get $err", &PluginLimits::default())
        .await
        .result
        .unwrap_err();
    let CallError::Plugin { error, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(error.kind, types::ErrorKind::Refused);
    assert_eq!(error.message, "too hot");
}

#[tokio::test]
async fn a_flood_of_log_lines_does_not_end_a_call() {
    let flood = "(local $n i32) (loop $more (call $say) (local.set $n (i32.add (local.get $n) (i32.const 1))) (br_if $more (i32.lt_u (local.get $n) (i32.const 1000)))) global.get $ok";
    assert!(
        stepped(flood, &PluginLimits::default())
            .await
            .result
            .is_ok()
    );
}

#[tokio::test]
async fn when_all_slots_are_taken_the_next_call_waits_and_does_not_fail() {
    let plugin = policy_with("global.get $ok", &PluginLimits::default()).await;
    let calls = (0..50).map(|_| {
        let plugin = plugin.clone();
        tokio::spawn(async move { plugin.step(&context(), None, &[]).await.result.is_ok() })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(call.await.unwrap());
    }
}

#[tokio::test]
async fn a_decoder_waits_for_a_decoder_and_a_short_call_for_neither() {
    let wasm = testing::llm(&testing::Llm::default());
    let plugin = LlmPlugin::load(&engine(), "test", &wasm, &PluginLimits::default())
        .await
        .unwrap();
    let mut first = plugin.decoder("m").await.result.unwrap();
    let _second = plugin.decoder("m").await.result.unwrap();
    assert!(plugin.known_models().is_empty());
    let third = tokio::time::timeout(Duration::from_millis(50), plugin.decoder("m")).await;
    assert!(third.is_err());
    assert!(first.finish().await.result.is_ok());
    assert!(matches!(
        first.finish().await.result,
        Err(CallError::Internal { .. })
    ));
    assert!(plugin.decoder("m").await.result.is_ok());
}

#[tokio::test]
async fn plugins_are_found_by_name_and_listed_and_two_of_one_name_are_refused() {
    let (policy, llm) = (
        testing::policy("global.get $ok"),
        testing::llm(&testing::Llm::default()),
    );
    let builder = || Plugins::builder(engine()).policy("coder", policy.clone());
    let plugins = builder().llm("coder", llm.clone()).build().await.unwrap();
    assert!(plugins.policy("coder").is_some() && plugins.llm("coder").is_some());
    assert!(plugins.policy("other").is_none());
    let list = serde_json::to_value(plugins.list()).unwrap();
    assert_eq!(list[0]["kind"], "policy");
    assert_eq!(list[1]["version"], "1.2.3");
    assert_eq!(list[1]["digest"].as_str().unwrap().len(), 64);
    let twice = builder().policy("coder", policy.clone()).build().await;
    assert!(matches!(twice, Err(LoadError::SameName { .. })));
}

#[tokio::test]
async fn what_was_compiled_is_kept_and_taken_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions {
        cache: Some(folder.path().join("cwasm")),
        ..EngineOptions::default()
    };
    let wasm = testing::policy("global.get $ok");
    for _ in 0..2 {
        let engine = Engine::new(options.clone()).unwrap();
        let plugin = PolicyPlugin::load(&engine, "test", &wasm, &PluginLimits::default())
            .await
            .unwrap();
        let called = plugin.step(&context(), None, &[]).await;
        assert!(called.result.is_ok());
    }
    let kept = std::fs::read_dir(folder.path().join("cwasm"))
        .unwrap()
        .count();
    assert_eq!(kept, 1);
}

#[test]
fn inputs_and_commands_can_be_written_as_json_and_read_back() {
    let input = Input::TimerFired("t".into());
    let text = serde_json::to_string(&input).unwrap();
    assert_eq!(text, r#"{"TimerFired":"t"}"#);
    assert_eq!(serde_json::from_str::<Input>(&text).unwrap(), input);
}
