//! A deployment's manifest over the running host: what it says reaches the agent and the model's server,
//! and one that is wrong is a line for each thing that is.

use std::path::Path;

use serde_json::json;

use lucid_tests::registry::{TestRegistry, answer};
use lucid_tests::{
    Host, HostBuilder, Model, ModelTurn, Socket, claims_token, command, counting, eventually,
    text_of,
};
use lucid_wasm::testing::type_chain;

const KEY: &str = "the-key-of-the-tests-0123456789";
const OTHER: &str = "sk-for-somebody-else-987654321";

fn written(folder: &Path, text: &str) -> String {
    let path = folder.join("lucid.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn with(manifest: &str) -> HostBuilder {
    Host::with_defaults().set("LUCID_MANIFEST", manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manifest_says_reaches_the_agent_and_the_models_server() {
    let model = Model::start(|_, _| ModelTurn::Say("Done.".to_owned())).await;
    let folder = tempfile::tempdir().unwrap();
    let manifest = written(
        folder.path(),
        &format!(
            r#"
[policies.careful]
component = "builtin:coder"
settings = {{ ask = false, max_output_tokens = 77, params = {{ temperature = 0.25 }} }}

[policies.plain]
component = "builtin:coder"

[providers.house]
component = "builtin:openai"
base_url = "{}"
key = "HOUSE_KEY"
key_place = {{ header = "x-house-key" }}
models = ["house-1", "house-2"]
model = "house-2"
settings = {{ stream_usage = false }}
prices = {{ house-2 = {{ input = 1, output = 10 }} }}

[defaults]
policy = "plain"

[[assign]]
users = ["alice"]
policy = "careful"
"#,
            model.url
        ),
    );
    let host = with(&manifest)
        .set("HOUSE_KEY", KEY)
        // Of the environment, for others: it goes nowhere.
        .set("LLM_API_KEY", OTHER)
        .set("OPENAI_API_KEY", OTHER)
        .start();
    assert_eq!(host.get("alice", "/").await.ok()["llm_model"], "house-2");
    assert!(
        host.log().contains("OPENAI_API_KEY is not used"),
        "the operator is told of keys that nothing uses:\n{}",
        host.log()
    );

    let mut socket = Socket::open(&host, "alice", json!({"task": "Say it"})).await;
    let session = socket.session().await;
    socket.completed().await;
    let asked = &model.completions()[0];
    assert_eq!(asked.headers["x-house-key"], KEY);
    assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
    let body = asked.json();
    assert_eq!(body["model"], "house-2");
    assert_eq!(body["temperature"], 0.25, "the agent's `params`");
    assert_eq!(
        body["max_tokens"], 77,
        "as servers that are not OpenAI's want it"
    );
    assert!(
        body.get("stream_options").is_none(),
        "the adapter's settings: {body}"
    );
    let tools = |body: &serde_json::Value| -> Vec<String> {
        let tools = body["tools"].as_array().unwrap().iter();
        tools
            .map(|tool| tool["function"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(
        !tools(&body).contains(&"ask_user".to_owned()),
        "`ask` is off: {body}"
    );
    let path = format!("/api/v1/sessions/{session}");
    let details = host.get("alice", &path).await.ok();
    assert!(
        details["usage"]["costUsd"]
            .as_f64()
            .is_some_and(|cost| cost > 0.0),
        "the manifest's price: {details}"
    );

    // Nobody assigned bob a policy.
    let mut socket = Socket::open(&host, "bob", json!({"task": "Say it"})).await;
    socket.completed().await;
    let body = model.completions().last().unwrap().json();
    assert!(body.get("temperature").is_none(), "{body}");
    assert!(tools(&body).contains(&"ask_user".to_owned()), "{body}");

    for request in model.seen() {
        assert!(!format!("{request:?}").contains(OTHER), "{request:?}");
    }
    assert!(!host.log().contains(KEY), "the key is in the log");

    let create = async |body| host.post("bob", "/api/v1/sessions", body).await;
    let detail = create(json!({"task": "t", "policy": "coder"}))
        .await
        .problem(400);
    assert_eq!(detail, "Unknown policy 'coder': there are: careful, plain.");
    let detail = create(json!({"task": "t", "modelProvider": "openai"}))
        .await
        .problem(400);
    assert!(detail.contains("Unknown model provider"), "{detail}");
    // Of house-2 the price is known, of house-1 it is not.
    create(json!({"task": "t", "costLimit": 1})).await.ok();
    let detail = create(json!({"task": "t", "model": "house-1", "costLimit": 1}))
        .await
        .problem(400);
    assert!(
        detail.contains("'house-1'") && detail.contains("`prices`"),
        "{detail}"
    );
}

#[test]
fn a_manifest_is_checked_before_it_is_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let done = command(folder.path(), arguments).output().unwrap();
        (
            done.status.code(),
            text_of(&done.stdout),
            text_of(&done.stderr),
        )
    };
    let (code, example, _) = run(&["manifest", "example"]);
    assert_eq!(code, Some(0));
    // It is found without being named, where it lies in the working directory.
    written(folder.path(), &example);
    let (code, out, err) = run(&["check"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("lucid.toml is fine") && out.contains("rehearsal"),
        "{out}"
    );
    assert!(err.contains("VLLM_TOKEN is not set"), "{err}");

    let text =
        "[policies.coder]\ncomponent = \"builtin:coder\"\nsettings = { aks = true }\nlimit = 1\n";
    let bad = folder.path().join("bad.toml");
    std::fs::write(&bad, text).unwrap();
    let (code, out, err) = run(&["check", "bad.toml"]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(
        err.starts_with(
            "bad.toml:4:1: `policies.coder` has no field `limit`; did you mean `limits`?"
        ),
        "{err}"
    );
    std::fs::write(&bad, text.replace("limit = 1\n", "")).unwrap();
    let (code, _, err) = run(&["check", "bad.toml"]);
    assert_eq!(code, Some(2));
    assert!(
        err.starts_with("bad.toml:3:14: ") && err.contains("did you mean `ask`?"),
        "{err}"
    );

    // The server says the same, and does not begin.
    let done = command(folder.path(), &["serve"])
        .env("LUCID_MANIFEST", "bad.toml")
        .env("PORT", "0")
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(
        text_of(&done.stderr).contains("bad.toml:3:14: "),
        "{done:?}"
    );
}

#[test]
fn a_component_that_a_compiler_does_not_survive_is_tried_once_and_then_refused_at_each_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.wasm"), type_chain(200)).unwrap();
    let text = "[policies.bad]\ncomponent = \"bad.wasm\"\n";
    written(folder.path(), text);
    let serve = || {
        let done = command(folder.path(), &["serve"])
            .env("PORT", "0")
            .env("WORKSPACE_BASE_PATH", "storage")
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        text_of(&done.stderr)
    };
    let first = serve();
    let reason = "compiling the plugin `bad` failed: the compiler failed (exit code 101)";
    assert!(first.contains(reason), "{first}");
    let second = serve();
    assert!(
        second.contains("lucid.toml:2:13: compiling the plugin `bad` failed before"),
        "{second}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_from_a_registry_is_run_and_goes_on_when_the_registry_is_gone() {
    let registry = TestRegistry::start().await;
    registry.push("stable", &counting(1, "good"));
    registry.instead(|asked| {
        // `robot:hunter2`
        let known = asked.authorization.as_deref() == Some("Basic cm9ib3Q6aHVudGVyMg==");
        let who = || answer(401, &[("www-authenticate", "Basic realm=\"x\"")], "");
        (!known).then(who)
    });
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        r#"
[policies.counting]
component = "oci://{address}/team/counting:stable"

[registries."{address}"]
user = "robot"
password = "REGISTRY_PASSWORD"

[defaults]
policy = "counting"
"#,
        address = registry.address
    );
    let manifest = written(folder.path(), &text);

    // Without the password it is one line, at the component's place.
    let refused = command(folder.path(), &["check"]).output().unwrap();
    let said = text_of(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("lucid.toml:3:13: the component oci://") && said.contains("HTTP 401"),
        "{said}"
    );

    let mut host = with(&manifest)
        .set("SANDBOX_BACKEND", "none")
        .set("REGISTRY_PASSWORD", "hunter2")
        .start();
    let begins_with = async |host: &Host| {
        let task = json!({"task": format!("count to 0 ({})", uuid::Uuid::new_v4())});
        let mut socket = Socket::open(host, "alice", task).await;
        let seen = socket.completed().await;
        let last = seen.last().unwrap()["message"].as_str().unwrap().to_owned();
        socket.send(json!({"type": "stop"})).await;
        socket.end().await;
        last
    };
    assert_eq!(begins_with(&host).await, "counted by build-0001");

    // The tag moves. What runs does when somebody says so, and not with a change of something else.
    registry.push("stable", &counting(2, "good"));
    let before = registry.asked().len();
    assert!(before > 0);
    written(
        folder.path(),
        &format!("{text}\n[policies.mock]\ncomponent = \"builtin:mock\"\n"),
    );
    eventually("the other policy", async || {
        let asked = json!({"task": "t", "policy": "mock"});
        let answer = host.post("alice", "/api/v1/sessions", asked).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(begins_with(&host).await, "counted by build-0001");
    assert!(
        registry.asked().is_empty(),
        "a change of the manifest asked for the tag"
    );
    let admin = claims_token(json!({"sub": "alice", "lucid_admin": true}));
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", &*bearer)];
    let reload = host.send("POST", "/api/v1/plugins/reload", &headers, None);
    reload.await.ok();
    assert_eq!(begins_with(&host).await, "counted by build-0002");

    // Over a restart with no registry.
    registry.stop().await;
    host.stop().await;
    host.start_again();
    assert_eq!(begins_with(&host).await, "counted by build-0002");
    let list = host
        .send("GET", "/api/v1/plugins", &headers, None)
        .await
        .ok();
    let warnings = list["warnings"].to_string();
    assert!(warnings.contains("is what it last was"), "{list}");
    let counting = &list["plugins"][0];
    assert_eq!(counting["source"], "registry", "{list}");
    host.says("is what it last was").await;
    assert!(!host.log().contains("hunter2"), "{}", host.log());
}
