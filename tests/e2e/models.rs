//! Model providers and models over the running host: which is asked with which key, what it costs, what
//! a budget ends, and what becomes of an answer that breaks off.

use serde_json::{Value, json};

use lucid_tests::{Host, HostBuilder, Model, ModelTurn, Socket, call, eventually};

const KEY: &str = "sk-the-tests-own-key-0123456789";
const OPENAI: &str = "sk-for-openai-alone-9876543210";
const ANTHROPIC: &str = "sk-ant-for-anthropic-alone-5555";

fn with(model: &Model) -> HostBuilder {
    Host::with_defaults()
        .set("LLM_API_KEY", KEY)
        .set("LLM_BASE_URL", &model.url)
}

async fn says(text: &'static str) -> Model {
    Model::start(move |_, _| ModelTurn::Say(text.to_owned())).await
}

/// Of all frames of a kind.
fn of_type<'a>(frames: &'a [Value], kind: &str) -> Vec<&'a Value> {
    frames
        .iter()
        .filter(|frame| frame["type"] == kind)
        .collect()
}

/// A task that ended, one way or the other.
fn is_over(frame: &Value) -> bool {
    frame["type"] == "error" || frame["status"] == "completed"
}

/// What a client that keeps to the protocol has on its screen of an answer that is being written.
fn on_screen(frames: &[Value]) -> String {
    let mut shown = String::new();
    for frame in of_type(frames, "delta") {
        if frame["reset"] == true {
            shown.clear();
        } else if frame["kind"] == "text" {
            shown.push_str(frame["content"].as_str().unwrap());
        }
    }
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn each_provider_is_asked_at_its_own_address_with_its_own_key_and_no_other() {
    let (openai, anthropic) = (says("Here I am.").await, says("Never mind.").await);
    let host = Host::with_defaults()
        .set("OPENAI_API_KEY", OPENAI)
        .set("OPENAI_BASE_URL", &openai.url)
        .set("ANTHROPIC_API_KEY", ANTHROPIC)
        .set("ANTHROPIC_BASE_URL", &anthropic.url)
        .set("LLM_API_KEY", KEY)
        .start();
    let first = json!({"task": "One", "modelProvider": "openai", "model": "some/model-1"});
    let mut socket = Socket::open(&host, "alice", first).await;
    socket.completed().await;
    // The scripted server does not speak Anthropic's protocol: how the session ends is not the point.
    let first = json!({"task": "Two", "modelProvider": "Anthropic", "model": "m2"});
    let mut socket = Socket::open(&host, "alice", first).await;
    socket.until("an end", is_over).await;

    assert_eq!(openai.completions()[0].json()["model"], "some/model-1");
    for request in openai.seen() {
        assert_eq!(
            request.headers["authorization"],
            format!("Bearer {OPENAI}").as_str()
        );
        let all = format!("{request:?}");
        assert!(!all.contains(ANTHROPIC) && !all.contains(KEY), "{all}");
    }
    let messages: Vec<_> = anthropic.seen();
    assert!(
        messages
            .iter()
            .any(|request| request.json()["model"] == "m2"),
        "{messages:?}"
    );
    for request in messages {
        assert_eq!(request.headers["x-api-key"], ANTHROPIC);
        assert!(
            !request.headers.contains_key("authorization"),
            "{request:?}"
        );
        let all = format!("{request:?}");
        assert!(!all.contains(OPENAI) && !all.contains(KEY), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_without_a_key_is_refused_with_the_variables_name() {
    let host = Host::with_defaults().set("DEFAULT_POLICY", "coder").start();
    let ask = async |provider: &str, key: Option<&str>| {
        let body = json!({"task": "t", "model_provider": provider, "api_key": key});
        host.post("alice", "/api/v1/sessions", body).await
    };
    for (provider, variable) in [
        ("anthropic", "ANTHROPIC_API_KEY"),
        ("google", "GOOGLE_API_KEY"),
        ("openai", "OPENAI_API_KEY"),
    ] {
        let detail = ask(provider, None).await.problem(400);
        assert!(detail.contains(variable), "{detail}");
    }
    ask("nobody", Some("k")).await.refused(
        400,
        "Unknown model provider 'nobody': there are: anthropic, google, openai.",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_chosen_within_what_the_deployment_offers() {
    let model = says("Done.").await;
    let host = with(&model)
        .set("LLM_MODELS", "openai/big, small, google/other")
        .start();
    assert_eq!(host.get("alice", "/").await.ok()["llm_model"], "big");
    let ask = async |body: Value| host.post("alice", "/api/v1/sessions", body).await;
    let detail = ask(json!({"task": "t", "model": "huge"}))
        .await
        .problem(400);
    assert!(
        detail.contains("'huge'") && detail.contains("big, small"),
        "{detail}"
    );
    let wrong = json!({"task": "t", "model": "google/other"});
    assert!(ask(wrong).await.problem(400).contains("GOOGLE_API_KEY"));
    let mut socket = Socket::open(&host, "alice", json!({"task": "t", "model": "huge"})).await;
    socket
        .until("an error", |frame| frame["type"] == "error")
        .await;

    for (name, asked) in [
        (json!("small"), "small"),
        (json!("openai/big"), "big"),
        (Value::Null, "big"),
    ] {
        let first = json!({"task": format!("with {name}"), "model": name});
        let mut socket = Socket::open(&host, "alice", first).await;
        let session = socket.session().await;
        socket.completed().await;
        assert_eq!(model.completions().last().unwrap().json()["model"], asked);
        let details = host
            .get("alice", &format!("/api/v1/sessions/{session}"))
            .await
            .ok();
        assert_eq!(
            (&details["model"], &details["modelProvider"]),
            (&json!(asked), &json!("openai"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_calls_used_is_shown_summed_and_outlives_the_session() {
    let model = Model::start(|number, _| match number % 2 {
        0 => call("terminal", json!({"command": "echo hello"})),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await;
    // A model that the adapter knows has a price, wherever it runs.
    let known = Host::with_defaults().start().get("alice", "/").await.ok()["llm_model"].clone();
    let host = with(&model)
        .set("LLM_MODEL", known.as_str().unwrap())
        .start();
    let first = json!({"task": "Count", "features": ["usage"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket.completed().await;
    let usage = of_type(&socket.frames, "usage");
    assert_eq!(usage.len(), model.completions().len());
    let calls = usage.len() as u64;
    assert!(calls >= 2);
    let cost = usage[0]["costUsd"].as_f64().unwrap();
    assert!(cost > 0.0, "{}", usage[0]);
    for (number, frame) in (1..).zip(&usage) {
        assert_eq!(
            (&frame["inputTokens"], &frame["outputTokens"]),
            (&json!(100), &json!(20))
        );
        assert_eq!(
            (&frame["provider"], &frame["model"]),
            (&json!("openai"), &known)
        );
        assert_eq!(frame["sessionTokens"], 120 * number);
    }
    let path = format!("/api/v1/sessions/{session}");
    let check = |details: &Value| {
        let used = &details["usage"];
        assert_eq!(used["modelCalls"], calls, "{details}");
        assert_eq!(used["totalTokens"], 120 * calls);
        assert_eq!(
            (&used["inputTokens"], &used["outputTokens"]),
            (&json!(100 * calls), &json!(20 * calls))
        );
        assert!(
            (used["costUsd"].as_f64().unwrap() - cost * calls as f64).abs() < 1e-9,
            "{details}"
        );
    };
    let details = host.get("alice", &path).await.ok();
    check(&details);
    assert_eq!(
        (&details["isAlive"], &details["task"]),
        (&json!(true), &json!("Count"))
    );
    assert_eq!(
        (&details["tokenLimit"], &details["costLimit"]),
        (&Value::Null, &Value::Null)
    );

    host.get("bob", &path)
        .await
        .refused(403, "Not authorized to see this session.");
    let absent = "/api/v1/sessions/0198c0de-0000-7000-8000-000000000000";
    assert_eq!(
        host.get("alice", absent).await.problem(404),
        "Session 0198c0de-0000-7000-8000-000000000000 not found."
    );
    host.get("alice", "/api/v1/sessions/nonsense")
        .await
        .problem(404);
    assert_eq!(host.send("GET", &path, &[], None).await.status, 401);

    host.delete("alice", &path).await.ok();
    let details = host.get("alice", &path).await.ok();
    check(&details);
    assert_eq!(
        (&details["isAlive"], &details["status"]),
        (&json!(false), &json!("ended"))
    );
    let chat = host
        .get(
            "alice",
            &format!("/api/v1/chats/{}", details["chatId"].as_str().unwrap()),
        )
        .await
        .ok();
    assert_eq!(chat["usage"], details["usage"]);
}

/// How the open task ended: what the client was told as an error.
fn error(frames: &[Value]) -> &str {
    let over = frames.iter().find(|frame| is_over(frame));
    let over = over.expect("no task ended");
    assert_eq!(over["type"], "error", "it did not end for want of budget");
    over["message"].as_str().unwrap()
}

const NO_TOKENS: &str = "The session's budget of tokens is used up. What was done so far is in the workspace; a new session can go on from there.";
const NO_MONEY: &str = "The session's budget of money is used up. What was done so far is in the workspace; a new session can go on from there.";

/// A model that never comes to an end.
async fn endless() -> Model {
    Model::start(|number, _| call("terminal", json!({"command": format!("echo {number}")}))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_used_up_its_tokens_ends_its_task_politely() {
    let model = endless().await;
    let host = with(&model).set("SESSION_TOKEN_LIMIT", "300").start();
    // What is asked for cannot be more than what the deployment allows.
    let first = json!({"task": "Never stop", "tokenLimit": 100_000});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    assert_eq!(error(&socket.until("the end", is_over).await), NO_TOKENS);
    // 120 tokens each: after two there are 60 left, and the third is the last that may begin.
    assert_eq!(model.completions().len(), 3);
    let path = format!("/api/v1/sessions/{session}");
    let details = host.get("alice", &path).await.ok();
    assert_eq!(details["tokenLimit"], 300);
    assert_eq!(
        details["isAlive"], true,
        "the session itself goes on: {details}"
    );
    // Saying more does not get more.
    socket.say("Go on").await;
    assert_eq!(error(&socket.until("the end", is_over).await), NO_TOKENS);
    assert_eq!(model.completions().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_used_up_its_money_ends_its_task_politely() {
    let model = endless().await;
    let known = Host::with_defaults().start().get("alice", "/").await.ok()["llm_model"].clone();
    let host = with(&model)
        .set("LLM_MODEL", known.as_str().unwrap())
        .set("SESSION_COST_LIMIT", "100")
        .start();
    let first = json!({"task": "Never stop", "costLimit": 0.000_001});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    assert_eq!(error(&socket.until("the end", is_over).await), NO_MONEY);
    assert_eq!(model.completions().len(), 1);
    let details = host
        .get("alice", &format!("/api/v1/sessions/{session}"))
        .await
        .ok();
    assert_eq!(details["costLimit"], 0.000_001);
    let wrong = json!({"task": "t", "costLimit": -1});
    host.post("alice", "/api/v1/sessions", wrong)
        .await
        .problem(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_provider_is_asked_again() {
    let model = Model::start(|number, _| match number {
        0 => ModelTurn::Later(429, "0".into()),
        1 => ModelTurn::Later(503, "Wed, 21 Oct 2015 07:28:00 GMT".into()),
        _ => ModelTurn::Say("At last.".into()),
    })
    .await;
    let host = with(&model).start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Wait"})).await;
    let frames = socket.completed().await;
    assert!(
        frames
            .iter()
            .any(|frame| frame.to_string().contains("At last.")),
        "{frames:#?}"
    );
    assert!(of_type(&frames, "error").is_empty() && frames.iter().all(|f| f["event"] != "error"));
    assert!(model.completions().len() >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_asked_for_again_and_nothing_is_double() {
    const WORDS: &str = "The whole answer, word for word.";
    let model = Model::start(|number, _| match number {
        0 => ModelTurn::Break("The whole ".into()),
        1 => ModelTurn::Break("The whole answer, word ".into()),
        _ => ModelTurn::Say(WORDS.into()),
    })
    .await;
    let host = with(&model).start();
    let first = json!({"task": "Say it", "features": ["deltas"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let said = |frame: &Value| frame["eventType"] == "AgentMessageAction";
    let mut read = Vec::new();
    for _ in 0..2 {
        let shown = |frame: &Value| frame["type"] == "delta" && frame["kind"] == "text";
        read.extend(socket.until("a delta", shown).await);
        model.break_off();
        read.extend(
            socket
                .until("a reset", |frame| frame["reset"] == true)
                .await,
        );
    }
    read.extend(socket.until("the answer", said).await);
    assert_eq!(on_screen(&read), WORDS, "{read:#?}");
    let resets = of_type(&read, "delta")
        .iter()
        .filter(|delta| delta["reset"] == true)
        .count();
    assert_eq!(resets, 2, "{read:#?}");
    assert_eq!(read.last().unwrap()["content"], WORDS);
    socket.completed().await;
    let all = socket.frames.iter().filter(|frame| said(frame));
    assert!(all.filter(|frame| frame["content"] == WORDS).count() >= 1);
    assert!(
        socket
            .frames
            .iter()
            .all(|frame| !frame.to_string().contains("The whole The whole"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_stopped_drops_its_request_at_once() {
    let model = Model::start(|_, _| ModelTurn::Hang("I think ".into())).await;
    let host = with(&model).start();
    let first = json!({"task": "Think", "features": ["deltas"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    socket
        .until("a delta", |frame| frame["type"] == "delta")
        .await;
    socket.send(json!({"type": "stop"})).await;
    model.dropped(1).await;
    assert_eq!(socket.end().await, 1000);
    assert_eq!(model.completions().len(), 1);
}

/// A PNG of one pixel.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_reaches_a_model_that_sees_and_goes_with_its_session() {
    let model = Model::start(|number, _| match number {
        0 => call(
            "terminal",
            json!({"command": format!("echo {PIXEL} | base64 -d > dot.png")}),
        ),
        1 => call("file_editor", json!({"command": "view", "path": "dot.png"})),
        _ => ModelTurn::Say("A dot.".into()),
    })
    .await;
    let known = Host::with_defaults().start().get("alice", "/").await.ok()["llm_model"].clone();
    let host = with(&model)
        .set("LLM_MODEL", known.as_str().unwrap())
        .start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "What is it?"})).await;
    let session = socket.session().await;
    socket.completed().await;
    let seen = &model.completions()[2].body;
    assert!(
        seen.contains(&format!("data:image/png;base64,{PIXEL}")),
        "{seen}"
    );
    assert!(!seen.contains("lucid-blob:"), "{seen}");
    let blobs = host
        .folder()
        .join("storage/.lucid/data/blobs")
        .join(&session);
    let kept = std::fs::read_dir(&blobs).unwrap().flatten();
    let pictures = kept.filter(|file| file.file_name() != "verdicts");
    assert_eq!(pictures.count(), 1);
    host.delete("alice", &format!("/api/v1/sessions/{session}"))
        .await
        .ok();
    eventually("the picture to go", async || {
        (!blobs.exists()).then_some(())
    })
    .await;

    // Of a model that nobody knows it is not known that it sees.
    let model = Model::start(|number, _| match number {
        0 => call(
            "terminal",
            json!({"command": format!("echo {PIXEL} | base64 -d > dot.png")}),
        ),
        1 => call("file_editor", json!({"command": "view", "path": "dot.png"})),
        _ => ModelTurn::Say("I cannot see.".into()),
    })
    .await;
    let host = with(&model).set("LLM_MODEL", "blind").start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "What is it?"})).await;
    socket.completed().await;
    let seen = &model.completions()[2];
    assert!(
        seen.messages("tool")
            .concat()
            .contains("does not see pictures"),
        "{}",
        seen.body
    );
    assert!(!seen.body.contains("image_url"), "{}", seen.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_this_machine_is_used_by_its_address_alone_however_that_was_pasted() {
    let model = Model::start(|_, request| match request.uri.starts_with("/v1/") {
        true => ModelTurn::Say("Hello.".into()),
        false => ModelTurn::Refuse(404, "Not found".into()),
    })
    .await;
    let bare = model.url.strip_suffix("/v1").unwrap();
    let place = bare.strip_prefix("http://").unwrap();
    for (variable, pasted) in [
        ("LLM_BASE_URL", bare.to_owned()),
        ("OPENAI_BASE_URL", format!(" '{place}/' ")),
        (
            "LLM_BASE_URL",
            format!("{}/chat/completions?api-version=2026-06-01", model.url),
        ),
    ] {
        let host = Host::with_defaults().set(variable, &pasted).start();
        assert_eq!(
            host.get("alice", "/").await.ok()["openhands_available"],
            true,
            "{pasted}"
        );
        let mut socket = Socket::open(&host, "alice", json!({"task": "Greet"})).await;
        socket.completed().await;
    }
    for request in model.completions() {
        assert!(
            !request.headers.contains_key("authorization"),
            "{request:?}"
        );
    }
    let last = model.completions().pop().unwrap();
    assert_eq!(last.uri, "/v1/chat/completions?api-version=2026-06-01");
}
