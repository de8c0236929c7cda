//! The mock agent over WebSocket: exactly the contract's frames, played for real.

use serde_json::{Value, json};

use lucid_tests::{
    Host, Socket, claims_token, event, expired_token, find, foreign_token, kinds, token,
};

/// The contract's script, without `file_tree`, which may come at any time.
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

fn without_trees(frames: &[Value]) -> Vec<Value> {
    frames
        .iter()
        .filter(|frame| frame["type"] != "file_tree")
        .cloned()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mock_plays_exactly_the_contracts_sequence_and_its_file_is_really_there() {
    let host = Host::with_defaults().start();
    let mut socket = Socket::open(
        &host,
        "alice",
        json!({"task": "Write a \"hello\"", "projectId": "p1"}),
    )
    .await;
    let all = socket.completed().await;
    let frames = without_trees(&all);
    assert_eq!(kinds(&frames), SCRIPT, "{frames:#?}");

    for frame in &all {
        let members = ["seq", "policy", "diff", "usage"];
        assert!(
            members.iter().all(|name| frame.get(name).is_none()),
            "nobody asked for this: {frame}"
        );
        if frame["type"] != "status" {
            let time = frame["timestamp"]
                .as_str()
                .unwrap_or_else(|| panic!("no timestamp: {frame}"));
            assert!(
                time.contains('T') && (time.ends_with("+00:00") || time.ends_with('Z')),
                "{frame}"
            );
        }
        if frame["type"] == "agent_event" {
            assert!(frame["content"].is_string(), "{frame}");
        }
    }
    assert!(frames[0]["message"].is_string() && frames[1]["message"].is_string());
    let session = frames[1]["sessionId"].as_str().unwrap();
    assert!(
        frames[2]["content"]
            .as_str()
            .unwrap()
            .starts_with("Analyzing task: \""),
        "{}",
        frames[2]
    );
    assert!(
        !frames[2]["thought"].as_str().unwrap().is_empty(),
        "{}",
        frames[2]
    );
    assert_eq!(frames[3]["command"], "mkdir -p /workspace && cd /workspace");
    assert_eq!(frames[3]["content"], frames[3]["command"]);
    assert_eq!(frames[4]["exitCode"], 0);
    assert_eq!(frames[5]["path"], "/workspace/hello.py");
    assert!(
        frames[5]["content"]
            .as_str()
            .unwrap()
            .contains("print(\"Hello, World!\")"),
        "{}",
        frames[5]
    );
    assert_eq!(frames[6]["path"], "/workspace/hello.py");
    assert_eq!(frames[7]["command"], "python /workspace/hello.py");
    assert_eq!(frames[8]["exitCode"], 0, "{}", frames[8]);
    assert_eq!(
        frames[8]["content"].as_str().unwrap().trim_end(),
        "Hello, World!"
    );
    assert!(
        frames[9]["message"].as_str().unwrap().starts_with("[MOCK]"),
        "{}",
        frames[9]
    );

    let file = host
        .get(
            "alice",
            &format!("/api/v1/files/read?session_id={session}&path=/workspace/hello.py"),
        )
        .await
        .ok();
    assert_eq!(
        file["content"].as_str().unwrap().trim_end(),
        "print(\"Hello, World!\")"
    );
    let tree = host
        .get("alice", &format!("/api/v1/files/list?session_id={session}"))
        .await
        .ok();
    assert_eq!(
        tree["tree"],
        json!([{"name": "hello.py", "type": "file", "path": "/hello.py"}])
    );
    let told = all
        .iter()
        .rfind(|frame| frame["type"] == "file_tree")
        .expect("the tree changed, and nobody said so");
    assert_eq!(told["tree"], tree["tree"]);
    let on_disk = find(&host.workspace(session), "hello.py").expect("hello.py is not on the disk");
    assert!(
        std::fs::read_to_string(on_disk)
            .unwrap()
            .starts_with("print(")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_completed_the_connection_takes_follow_ups_pings_and_refuses_empty_content() {
    let host = Host::with_defaults().start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Say hello"})).await;
    let session = socket.session().await;
    socket.completed().await;

    socket.send(json!({"type": "ping"})).await;
    let pong = without_trees(&socket.until("pong", |frame| frame["type"] == "pong").await);
    assert_eq!(pong, [json!({"type": "pong"})]);

    for empty in [
        json!({"type": "message", "content": ""}),
        json!({"type": "message"}),
    ] {
        socket.send(empty).await;
        let read = without_trees(
            &socket
                .until("the refusal", |frame| frame["type"] == "error")
                .await,
        );
        assert_eq!(read, [json!({"type": "error", "message": "Empty content"})]);
    }

    socket.say("And now in French, s'il vous plaît").await;
    let read = socket
        .until("the answer", |frame| frame["eventType"] == "MockResponse")
        .await;
    let answer = event(&read, "MockResponse");
    assert_eq!(answer["event"], "observation");
    assert!(
        answer["content"]
            .as_str()
            .unwrap()
            .contains("And now in French, s'il vous plaît"),
        "{answer}"
    );
    assert!(
        !kinds(&read).iter().any(|kind| kind == "error"),
        "{read:#?}"
    );

    // A second one, to be sure that the first left the session as it was.
    socket.say("Thank you").await;
    let read = socket
        .until("the answer", |frame| frame["eventType"] == "MockResponse")
        .await;
    assert!(
        event(&read, "MockResponse")["content"]
            .as_str()
            .unwrap()
            .contains("Thank you")
    );

    let chats = host.get("alice", "/api/v1/chats").await.ok();
    let chat = chats["chats"]
        .as_array()
        .unwrap()
        .iter()
        .find(|chat| chat["agentSessionId"] == session.as_str())
        .unwrap();
    assert_eq!(chat["isActive"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_session_with_1000() {
    let host = Host::with_defaults()
        .set("MOCK_STEP_DELAY_SECONDS", "30")
        .start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Wait for me"})).await;
    let session = socket.session().await;
    socket
        .send(json!({"type": "stop", "content": "enough"}))
        .await;
    let read = socket
        .until("stopping", |frame| frame["status"] == "stopping")
        .await;
    assert!(read.last().unwrap()["message"].is_string(), "{read:#?}");
    assert_eq!(socket.end().await, 1000);
    lucid_tests::eventually("the session's end", async || {
        let sessions = host.get("alice", "/api/v1/sessions").await.ok();
        let alive = sessions["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|listed| listed["sessionId"] == session.as_str() && listed["isAlive"] == true);
        (!alive).then_some(())
    })
    .await;
    lucid_tests::eventually("the chat to be inactive", async || {
        let chats = host.get("alice", "/api/v1/chats").await.ok();
        (chats["chats"][0]["isActive"] == false).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_a_task_is_closed_with_4001() {
    let host = Host::with_defaults().start();
    for first in [json!({}), json!({"task": ""}), json!({"task": null})] {
        let mut socket = Socket::open(&host, "alice", first.clone()).await;
        assert_eq!(socket.end().await, 4001, "{first}");
        let error = socket.frames.iter().find(|frame| frame["type"] == "error");
        assert_eq!(
            error,
            Some(&json!({"type": "error", "message": "Missing required field: 'task'"})),
            "{first}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_above_one_mebibyte_is_closed_with_1009_and_the_session_goes_on() {
    const MOST: usize = 1 << 20;
    const REASON: &str = "A message may have at most 1048576 bytes; send less at once.";
    let of_length = |mut frame: Value, bytes: usize| {
        frame["padding"] = json!("");
        frame["padding"] = json!("x".repeat(bytes - frame.to_string().len()));
        let text = frame.to_string();
        assert_eq!(text.len(), bytes);
        text
    };
    let host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    let query = format!("?token={}", token("alice"));

    // The first message. A client that is still sending when it is refused hears of it too.
    let hello = json!({"task": "Say a lot"});
    for bytes in [MOST + 1, 20 * MOST] {
        let socket = Socket::connect(&host, &query).await;
        let close = socket.closed_by(&of_length(hello.clone(), bytes)).await;
        assert_eq!(close, (1009, REASON.to_owned()), "{bytes} bytes");
    }
    let sessions = host.get("alice", "/api/v1/sessions").await.ok();
    assert_eq!(sessions, json!({"sessions": []}));
    let mut socket = Socket::connect(&host, &query).await;
    socket.send_text(&of_length(hello, MOST)).await;
    let session = socket.session().await;
    socket.completed().await;

    // Later ones.
    let ping = json!({"type": "ping"});
    socket.send_text(&of_length(ping.clone(), MOST)).await;
    socket.until("pong", |frame| frame["type"] == "pong").await;
    for bytes in [MOST + 1, 20 * MOST] {
        let close = socket.closed_by(&of_length(ping.clone(), bytes)).await;
        assert_eq!(close, (1009, REASON.to_owned()), "{bytes} bytes");
        socket = Socket::open(&host, "alice", json!({"sessionId": session})).await;
        socket.completed().await;
    }
    socket.say("Less, then").await;
    let answer = socket.completed().await;
    let content = &event(&answer, "MockResponse")["content"];
    assert_eq!(content, "[MOCK] Received: Less, then");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_good_token_gets_in() {
    let host = Host::with_defaults().start();
    // By handshake message: an error frame, then 4010.
    for member in [
        json!(null),
        json!(""),
        json!("nonsense"),
        json!(expired_token("alice")),
        json!(foreign_token("alice")),
        json!(claims_token(json!({"role": "anon"}))),
    ] {
        let mut socket = Socket::connect(&host, "").await;
        socket
            .send(json!({"task": "Let me in", "token": member}))
            .await;
        assert_eq!(socket.end().await, 4010, "{member}");
        let error = json!({"type": "error", "message": "Authentication required. Provide a valid JWT token."});
        assert_eq!(socket.frames, [error], "{member}");
    }
    // In the address.
    for bad in [
        "nonsense".to_owned(),
        expired_token("alice"),
        foreign_token("alice"),
    ] {
        let mut socket = Socket::connect(&host, &format!("?token={bad}")).await;
        assert_eq!(socket.end().await, 4010);
        assert!(
            socket.frames.iter().all(|frame| frame["type"] == "error"),
            "{:?}",
            socket.frames
        );
    }
    // A good one is taken in both places.
    let mut socket = Socket::connect(&host, "").await;
    socket
        .send(json!({"task": "Let me in", "token": token("alice")}))
        .await;
    socket.completed().await;
    let sessions = host.get("alice", "/api/v1/sessions").await.ok();
    assert_eq!(
        sessions["sessions"].as_array().unwrap().len(),
        1,
        "{sessions}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_repeats_its_project_and_task_gets_its_session_back() {
    let host = Host::with_defaults().start();
    let first = json!({"task": "Only once", "projectId": "p1", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first.clone()).await;
    let session = socket.session().await;
    drop(socket);
    let mut again = Socket::open(&host, "alice", first.clone()).await;
    assert_eq!(again.session().await, session);
    again.completed().await;
    // Another user who says the same is somebody else.
    let mut other = Socket::open(&host, "bob", first).await;
    assert_ne!(other.session().await, session);
    let sessions = host.get("alice", "/api/v1/sessions").await.ok();
    assert_eq!(
        sessions["sessions"].as_array().unwrap().len(),
        1,
        "{sessions}"
    );
}
