//! What a frontend relies on that names no features, and sends text as JavaScript has it.

use serde_json::{Value, json};

use lucid_tests::{Host, HostBuilder, Model, ModelTurn, Socket, call, event, kinds, seq, token};

/// A host whose mock waits long between its steps, so that a test comes before the next one.
fn with_pauses(seconds: &str) -> Host {
    Host::with_defaults()
        .set("MOCK_STEP_DELAY_SECONDS", seconds)
        .start()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_frame_names_the_session_and_who_is_cut_off_behind_it_comes_back_to_it() {
    let host = with_pauses("30");
    let first = json!({"task": "Wait for me", "projectId": "p"});
    let mut socket = Socket::open(&host, "alice", first.clone()).await;
    let frame = socket.next().await.unwrap();
    assert_eq!(frame["status"], "initializing", "{frame}");
    let session = frame["sessionId"].as_str().unwrap().to_owned();
    drop(socket);

    let mut again = Socket::open(&host, "alice", json!({"sessionId": session})).await;
    assert_eq!(again.session().await, session);
    let sessions = host.get("alice", "/api/v1/sessions").await.ok();
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_the_first_frame_is_there_after_a_crash_right_behind_it() {
    let mut host = with_pauses("30");
    let first = json!({"task": "Survive"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let frame = socket.next().await.unwrap();
    let session = frame["sessionId"].as_str().unwrap().to_owned();
    host.crash();
    host.start_again();
    let mut again = Socket::open(&host, "alice", json!({"sessionId": session})).await;
    assert_eq!(again.session().await, session);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_sleeps_when_its_client_has_left_and_is_back_with_it_also_over_a_restart() {
    let mut host = Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .set("RUST_LOG", "info,lucid_session=debug")
        .start();
    let first = json!({"task": "Rest", "projectId": "p"});
    let mut socket = Socket::open(&host, "alice", first.clone()).await;
    let session = socket.session().await;
    socket.completed().await;
    socket.close().await;
    host.says("a session sleeps").await;
    let listed = host.get("alice", "/api/v1/sessions").await.ok();
    assert_eq!(listed["sessions"][0]["sessionId"], *session, "{listed}");
    assert!(!host.log().contains("is awake"), "a list wakes nobody");
    let path = format!("/api/v1/sessions/{session}");
    host.delete("bob", &path)
        .await
        .refused(403, "Not authorized to stop this session.");
    assert!(!host.log().contains("is awake"), "a stranger wakes nobody");

    // The same task of the same user is the same session.
    let mut again = Socket::open(&host, "alice", first).await;
    assert_eq!(again.session().await, session);
    again.completed().await;
    again.say("And now?").await;
    again.completed().await;
    again.close().await;
    host.stop().await;
    host.start_again();
    let by_id = json!({"sessionId": session});
    let mut back = Socket::open(&host, "alice", by_id).await;
    back.completed().await;
    back.close().await;
    host.delete("alice", &path).await.ok();
    let listed = host.get("alice", "/api/v1/sessions").await.ok();
    assert_eq!(listed["sessions"], json!([]));
}

/// A body as `JSON.stringify` writes one that holds half a character.
async fn post(host: &Host, method: &str, path: &str, body: &str) -> lucid_tests::HttpAnswer {
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("authorization", bearer.as_str())];
    host.send(method, path, &headers, Some(body.to_owned()))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_surrogate_pair_in_a_message_is_the_replacement_character() {
    let host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    let mut socket = Socket::connect(&host, &format!("?token={}", token("alice"))).await;
    socket
        .send_text(r#"{"task":"Say \ud83d \ud83d\ude00 \\ud83d","projectId":"\udc00"}"#)
        .await;
    let all = socket.completed().await;
    let said = event(&all, "ThinkAction")["content"].as_str().unwrap();
    assert!(said.contains("Say \u{fffd} 😀 \\ud83d"), "{said}");
    let follow_up = r#"{"type":"message","content":"\ude00 and \ud83d\u0041"}"#;
    socket.send_text(follow_up).await;
    let answer = socket.completed().await;
    let content = &event(&answer, "MockResponse")["content"];
    assert_eq!(content, "[MOCK] Received: \u{fffd} and \u{fffd}A");
    assert!(
        all.iter()
            .chain(&answer)
            .all(|frame| frame["type"] != "error")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_surrogate_pair_in_a_body_is_the_replacement_character_on_every_route() {
    let host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    let made = post(&host, "POST", "/api/v1/sessions", r#"{"task":"\ud83d!"}"#).await;
    assert_eq!(made.ok()["status"], "mock");
    let listed = host.get("alice", "/api/v1/sessions").await.ok();
    assert_eq!(listed["sessions"][0]["task"], "\u{fffd}!");
    let chat = host.get("alice", "/api/v1/chats").await.ok()["chats"][0]["id"].clone();
    let path = format!("/api/v1/chats/{}", chat.as_str().unwrap());
    let renamed = post(&host, "PATCH", &path, r#"{"title":"\udc00 \ud83d\ude00"}"#).await;
    assert_eq!(renamed.ok()["title"], "\u{fffd} 😀");
    // Each is refused for what it says, not for how it is written.
    let connect = r#"{"provider":"\ud83d","token":"t"}"#;
    let refused = post(&host, "POST", "/api/v1/integrations", connect).await;
    assert!(refused.problem(400).contains("\u{fffd}"), "{refused:?}");
    let change = r#"{"repoUrl":"https://github.com/o/r","branch":"b","title":"\ud83d"}"#;
    let refused = post(&host, "POST", "/api/v1/integrations/github/pr", change).await;
    assert_eq!(refused.status, 404, "{refused:?}");
}

fn with(model: &Model) -> HostBuilder {
    Host::with_defaults()
        .set("LLM_API_KEY", "sk-the-tests-own-key-0123456789")
        .set("LLM_BASE_URL", &model.url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_in_its_action_and_not_again_in_its_output() {
    let host = Host::with_defaults().start();
    for (features, twice) in [
        (json!(null), false),
        (json!([]), false),
        (json!(["usage"]), true),
    ] {
        let first = json!({"task": format!("With {features}"), "features": features});
        let mut socket = Socket::open(&host, "alice", first).await;
        let frames = socket.completed().await;
        let of = |kind: &str| -> Vec<Value> {
            let some = frames.iter().filter(|frame| frame["eventType"] == kind);
            some.cloned().collect()
        };
        let (actions, outputs) = (of("CmdRunAction"), of("CmdOutputObservation"));
        assert_eq!((actions.len(), outputs.len()), (2, 2), "{frames:#?}");
        let written = event(&frames, "FileWriteObservation")["content"].as_str();
        assert!(written.unwrap().contains(": 1 line."), "{written:?}");
        for (action, output) in actions.iter().zip(&outputs) {
            assert!(action["command"].is_string(), "{action}");
            assert_eq!(output.get("command").is_some(), twice, "{output}");
            assert_eq!(output["exitCode"], 0, "{output}");
        }
    }
}

/// How often a text stands in the frames.
fn times(frames: &[Value], text: &str) -> usize {
    frames
        .iter()
        .map(|frame| frame.to_string().matches(text).count())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_says_last_is_shown_once_and_the_task_ends_with_a_short_sentence() {
    let model = Model::start(|number, _| match number {
        0 => ModelTurn::Say("It adds now, and the test passes.".to_owned()),
        1 => call("finish", json!({"message": "It multiplies now."})),
        2 => ModelTurn::Say(format!(
            "A long report.\n{}",
            "Another line of it.\n".repeat(30)
        )),
        // The text and the call say the same, as models like to.
        _ => ModelTurn::Odd(
            "All is well.".to_owned(),
            vec![(
                "finish".to_owned(),
                r#"{"message":"All is well."}"#.to_owned(),
            )],
            "tool_calls",
        ),
    })
    .await;
    let host = with(&model).start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Repair it"})).await;
    for said in [
        "It adds now, and the test passes.",
        "It multiplies now.",
        "A long report.",
        "All is well.",
    ] {
        let frames = socket.completed().await;
        assert_eq!(times(&frames, said), 1, "{frames:#?}");
        let content = event(&frames, "AgentMessageAction")["content"].as_str();
        assert!(content.unwrap().starts_with(said), "{frames:#?}");
        assert_eq!(frames.last().unwrap()["message"], "Task completed.");
        socket.say("And now the next").await;
    }
    // The record has it too.
    let chat = host.get("alice", "/api/v1/chats").await.ok()["chats"][0]["id"].clone();
    let path = format!("/api/v1/chats/{}", chat.as_str().unwrap());
    lucid_tests::eventually("the record", async || {
        let chat = host.get("alice", &path).await.ok();
        let lines = chat["messages"].as_array().unwrap().clone();
        (times(&lines, "It multiplies now.") == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_url_serves_the_providers_that_a_frontend_names() {
    const KEY: &str = "sk-the-tests-own-key-0123456789";
    let model = Model::start(|_, _| ModelTurn::Say("Here I am.".to_owned())).await;
    // One whose price the adapter knows, so that a limit of dollars can be kept.
    let priced = Host::with_defaults().start().get("alice", "/").await.ok()["llm_model"].clone();
    let priced = priced.as_str().unwrap();
    let host = with(&model)
        .set("LLM_MODEL", priced)
        .set("DEFAULT_MODEL_PROVIDER", "anthropic")
        .set("SESSION_COST_LIMIT", "5")
        .start();
    host.says("DEFAULT_MODEL_PROVIDER is anthropic, which has no key")
        .await;
    assert_eq!(host.get("alice", "/").await.ok()["llm_model"], priced);
    let named = [
        json!("anthropic"),
        json!("google"),
        json!("openai"),
        json!(null),
        json!(""),
    ];
    for (number, provider) in named.iter().enumerate() {
        let label = provider.as_str().filter(|name| !name.is_empty());
        let label = label.unwrap_or("anthropic");
        let task = format!("Task {number}");
        // By REST, and started by the WebSocket.
        let body = json!({"task": task, "model_provider": provider});
        let made = host.post("alice", "/api/v1/sessions", body).await.ok();
        assert_eq!(made["status"], "ready", "{provider}");
        let first = json!({"sessionId": made["sessionId"], "features": ["usage"]});
        let rest = Socket::open(&host, "alice", first).await;
        // By the WebSocket alone.
        let first = json!({"task": task, "projectId": "p", "modelProvider": provider, "features": ["usage"]});
        let alone = Socket::open(&host, "alice", first).await;
        for mut socket in [rest, alone] {
            let session = socket.session().await;
            let frames = socket.completed().await;
            assert_eq!(
                event(&frames, "AgentMessageAction")["content"],
                "Here I am."
            );
            let usage = frames
                .iter()
                .find(|frame| frame["type"] == "usage")
                .unwrap();
            assert_eq!(
                (&usage["provider"], &usage["model"]),
                (&json!(label), &json!(priced))
            );
            assert!(usage["costUsd"].as_f64().unwrap() > 0.0, "{usage}");
            let path = format!("/api/v1/sessions/{session}");
            let details = host.get("alice", &path).await.ok();
            assert_eq!(details["modelProvider"], label, "{details}");
            assert_eq!(details["model"], priced, "{details}");
        }
    }
    let chats = host.get("alice", "/api/v1/chats").await.ok();
    assert_eq!(chats["chats"][0]["modelProvider"], "anthropic", "{chats}");
    for request in model.seen() {
        assert_eq!(
            request.headers["authorization"],
            format!("Bearer {KEY}").as_str()
        );
    }
    for request in model.completions() {
        assert_eq!(request.json()["model"], priced);
    }
    // What nobody has is unknown still, and a user's own key goes to no server it was not given for.
    let body = json!({"task": "t", "model_provider": "nobody"});
    let refused = host.post("alice", "/api/v1/sessions", body).await;
    refused.refused(
        400,
        "Unknown model provider 'nobody': there are: anthropic, google, openai.",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_base_url_serves_goes_on_after_a_restart() {
    let model = Model::start(|_, _| ModelTurn::Say("Here I am.".to_owned())).await;
    let mut host = with(&model).set("LLM_MODEL", "qwen").start();
    let first = json!({"task": "Stay", "modelProvider": "google"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket.completed().await;
    host.stop().await;
    host.start_again();
    let mut again = Socket::open(&host, "alice", json!({"sessionId": session})).await;
    again.completed().await;
    again.say("Once more").await;
    again.completed().await;
    assert_eq!(model.completions().len(), 2);
    assert_eq!(model.completions()[1].json()["model"], "qwen");
}

/// A host whose mock only shows its script, with a pause before each step.
fn with_steps() -> Host {
    Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .set("MOCK_STEP_DELAY_SECONDS", "0.4")
        .start()
}

/// What a client without features shows of the whole script.
const SCRIPT: [&str; 10] = [
    "status:initializing",
    "status:mock_mode",
    "action:ThinkAction",
    "action:CmdRunAction",
    "observation:CmdOutputObservation",
    "action:FileWriteAction",
    "observation:FileWriteObservation",
    "action:CmdRunAction",
    "observation:CmdOutputObservation",
    "status:completed",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_connection_breaks_is_shown_what_it_missed_and_nothing_twice() {
    let host = with_steps();
    let first = json!({"task": "Say hello", "projectId": "p"});
    let mut shown = Vec::new();
    let mut session = None;
    // Behind each there is a pause.
    for step in [
        "action:ThinkAction",
        "observation:CmdOutputObservation",
        "observation:FileWriteObservation",
        "status:completed",
    ] {
        let mut socket = Socket::open(&host, "alice", first.clone()).await;
        let came = |frame: &Value| kinds(std::slice::from_ref(frame)) == [step];
        shown.extend(socket.until(step, came).await);
        session = session.or(shown[0]["sessionId"].as_str().map(str::to_owned));
        socket.lose().await;
    }
    assert_eq!(kinds(&shown), SCRIPT, "{shown:#?}");
    // Whoever was there to the end gets what comes afterwards.
    let mut socket = Socket::open(&host, "alice", first.clone()).await;
    socket.say("And now?").await;
    let frames = socket.completed().await;
    assert_eq!(
        kinds(&frames),
        ["observation:MockResponse", "status:completed"]
    );
    // By its id a session is shown from its beginning, as ever.
    let mut again = Socket::open(&host, "alice", json!({"sessionId": session})).await;
    assert_eq!(kinds(&again.completed().await), SCRIPT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_connection_and_another_tab_get_all_from_the_start() {
    let host = with_steps();
    let first = json!({"task": "Say hello"});
    let thinks = |frame: &Value| frame["eventType"] == "ThinkAction";
    let mut socket = Socket::open(&host, "alice", first.clone()).await;
    socket.until("the first step", thinks).await;
    socket.close().await;
    let mut refreshed = Socket::open(&host, "alice", first.clone()).await;
    let mut before = refreshed.until("the first step", thinks).await;
    // A tab beside it begins at the beginning, also while a third one is away.
    let mut lost = Socket::open(&host, "alice", first.clone()).await;
    let mut missed = lost.until("the first step", thinks).await;
    // As a browser does it all the time, it reads on, and answers what the host asks.
    lost.send(json!({"type": "ping"})).await;
    missed.extend(
        lost.until("the pong", |frame| frame["type"] == "pong")
            .await,
    );
    let mut tab = Socket::open(&host, "alice", first.clone()).await;
    assert_eq!(kinds(&tab.completed().await), SCRIPT);
    lost.lose().await;
    let mut back = Socket::open(&host, "alice", first.clone()).await;
    missed.extend(back.completed().await);
    assert_eq!(
        &kinds(&missed)[kinds(&missed).len() - 1..],
        ["status:completed"]
    );
    for kind in &SCRIPT[..3] {
        let shown = kinds(&missed).iter().filter(|shown| shown == kind).count();
        assert_eq!(shown, 1, "{kind}: {missed:#?}");
    }
    // What the others lost and found is nothing to a tab that stayed.
    before.extend(refreshed.completed().await);
    assert_eq!(kinds(&before), SCRIPT);
    let mut fresh = Socket::open(&host, "alice", first).await;
    assert_eq!(kinds(&fresh.completed().await), SCRIPT);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_to_a_connection_that_broke_and_not_taken_is_sent_again() {
    let host = with_steps();
    let first = json!({"task": "Say hello"});
    let mut socket = Socket::open(&host, "alice", first.clone()).await;
    let thinks = |frame: &Value| frame["eventType"] == "ThinkAction";
    let mut shown = socket.until("the first step", thinks).await;
    // It reads no more, and all the rest is written to it.
    let chat = host.get("alice", "/api/v1/chats").await.ok()["chats"][0]["id"].clone();
    let path = format!("/api/v1/chats/{}", chat.as_str().unwrap());
    lucid_tests::eventually("the end of the script", async || {
        let chat = host.get("alice", &path).await.ok();
        let ran = |line: &&Value| line["eventType"] == "CmdOutputObservation";
        let lines = chat["messages"].as_array().unwrap().clone();
        // That of the first command is empty, and in no record.
        lines.iter().any(|line| ran(&line)).then_some(())
    })
    .await;
    socket.lose().await;
    let mut again = Socket::open(&host, "alice", first).await;
    let frames = again.completed().await;
    shown.retain(|frame| !frames.contains(frame));
    shown.extend(frames);
    assert_eq!(kinds(&shown), SCRIPT, "{shown:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_counts_frames_gets_what_it_asks_for() {
    let host = with_steps();
    let first = json!({"task": "Say hello", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first.clone()).await;
    let thinks = |frame: &Value| frame["eventType"] == "ThinkAction";
    let read = socket.until("the first step", thinks).await;
    let last = seq(read.last().unwrap()).unwrap();
    socket.lose().await;
    let mut all = Socket::open(&host, "alice", first.clone()).await;
    assert_eq!(seq(&all.next().await.unwrap()), Some(1));
    let mut first = first;
    first["lastSeq"] = json!(last);
    let mut rest = Socket::open(&host, "alice", first).await;
    assert_eq!(seq(&rest.next().await.unwrap()), Some(last + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn to_a_client_a_restart_of_the_host_is_a_lost_connection() {
    let mut host = with_steps();
    let first = json!({"task": "Say hello"});
    let thinks = |frame: &Value| frame["eventType"] == "ThinkAction";
    let mut socket = Socket::open(&host, "alice", first.clone()).await;
    let mut shown = socket.until("the first step", thinks).await;
    let stopping = async {
        while let Some(frame) = socket.next().await {
            shown.push(frame);
        }
        assert_eq!(socket.closed, Some(1012));
    };
    tokio::join!(host.stop(), stopping);
    host.start_again();
    let mut again = Socket::open(&host, "alice", first).await;
    shown.extend(again.completed().await);
    // What the restart itself did is told as well.
    let told = |kind: &str| kinds(&shown).iter().filter(|shown| *shown == kind).count();
    for kind in &SCRIPT[..3] {
        assert_eq!(told(kind), 1, "{kind}: {shown:#?}");
    }
    assert_eq!(told("status:completed"), 1, "{shown:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_host_costs_a_client_no_frame() {
    let mut host = with_steps();
    let first = json!({"task": "Say hello"});
    let thinks = |frame: &Value| frame["eventType"] == "ThinkAction";
    let mut socket = Socket::open(&host, "alice", first.clone()).await;
    let mut shown = socket.until("the first step", thinks).await;
    host.crash();
    while let Some(frame) = socket.next().await {
        shown.push(frame);
    }
    host.start_again();
    let mut again = Socket::open(&host, "alice", first).await;
    let frames = again.completed().await;
    shown.retain(|frame| !frames.contains(frame));
    shown.extend(frames);
    let kinds = kinds(&shown);
    for kind in SCRIPT {
        assert!(kinds.iter().any(|shown| shown == kind), "{kind}: {kinds:?}");
    }
}
