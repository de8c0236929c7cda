//! Many sessions at once, and clients that do not keep up.

use futures::future::join_all;
use lucid_tests::{Host, Socket, eventually, is_completed, kinds, seq, token};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_at_once_each_get_every_frame_in_order() {
    const SESSIONS: usize = 200;
    let host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    let runs = join_all((0..SESSIONS).map(|number| {
        let host = &host;
        async move {
            let user = format!("user-{}", number % 20);
            let first = json!({"task": format!("Task {number}"), "features": ["seq"]});
            let mut socket = Socket::open(host, &user, first).await;
            socket.completed().await;
            socket
        }
    }))
    .await;
    let mut sessions = std::collections::HashSet::new();
    for (number, run) in runs.iter().enumerate() {
        let numbers: Vec<u64> = run.frames.iter().filter_map(seq).collect();
        assert_eq!(
            numbers.len(),
            run.frames.len(),
            "session {number} has a frame without seq: {:#?}",
            run.frames
        );
        assert!(
            numbers.windows(2).all(|two| two[1] == two[0] + 1),
            "session {number}: {numbers:?}"
        );
        let script: Vec<String> = kinds(&run.frames)
            .into_iter()
            .filter(|kind| kind != "file_tree")
            .collect();
        assert_eq!(script.len(), 10, "session {number}: {script:?}");
        assert_eq!(
            script[9], "status:completed",
            "session {number}: {script:?}"
        );
        let own = format!("Task {number}");
        let think = run
            .frames
            .iter()
            .find(|frame| frame["eventType"] == "ThinkAction")
            .unwrap();
        assert!(
            think["content"].as_str().unwrap().contains(&own),
            "session {number} got another's frame: {think}"
        );
        let session = run
            .frames
            .iter()
            .find_map(|frame| frame["sessionId"].as_str())
            .unwrap();
        assert!(
            sessions.insert(session.to_owned()),
            "two runs have the session {session}"
        );
    }
    let about = host.send("GET", "/", &[], None).await.ok();
    assert_eq!(about["active_sessions"], SESSIONS, "{about}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_for_a_while_misses_nothing_when_it_does() {
    const MESSAGES: usize = 1000;
    let host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    let query = format!("?token={}", token("alice"));
    let mut slow = Socket::connect_with(&host, &query, Some(4096)).await;
    slow.send(json!({"task": "Talk to me", "features": ["seq"]}))
        .await;
    let session = slow.session().await;
    slow.completed().await;

    // Another client talks, and what is sent to the first one fills all that is between the two:
    // about 5 MB, through a window of 4 KB.
    let mut quick = Socket::open(&host, "alice", json!({"sessionId": session})).await;
    quick.completed().await;
    for number in 0..MESSAGES {
        quick
            .say(&format!("message {number:04} {}", "blah ".repeat(380)))
            .await;
        quick.completed().await;
    }

    // The first one reads again.
    let mut answers = Vec::new();
    while answers.len() < MESSAGES {
        let read = slow
            .until("the next answer", |frame| {
                frame["eventType"] == "MockResponse"
            })
            .await;
        let content = read.last().unwrap()["content"].as_str().unwrap().to_owned();
        let at = content
            .find("message ")
            .unwrap_or_else(|| panic!("{content}"))
            + "message ".len();
        answers.push(content[at..at + 4].parse::<usize>().unwrap());
    }
    assert_eq!(answers, (0..MESSAGES).collect::<Vec<_>>());
    let numbers: Vec<u64> = slow.frames.iter().filter_map(seq).collect();
    assert!(
        numbers.windows(2).all(|two| two[1] == two[0] + 1),
        "a gap in {numbers:?}"
    );

    // The chat has every one of them, whole, in the order they were said.
    let chats = host.get("alice", "/api/v1/chats").await.ok();
    let chat = chats["chats"]
        .as_array()
        .unwrap()
        .iter()
        .find(|chat| chat["agentSessionId"] == session.as_str())
        .unwrap();
    let path = format!("/api/v1/chats/{}", chat["id"].as_str().unwrap());
    eventually("all follow-ups in the chat", async || {
        let chat = host.get("alice", &path).await.ok();
        let messages = chat["messages"].as_array().unwrap();
        let said: Vec<&str> = messages
            .iter()
            .filter(|message| message["eventType"] == "FollowUp")
            .map(|message| message["content"].as_str().unwrap())
            .collect();
        let whole = said
            .iter()
            .enumerate()
            .all(|(n, text)| text.starts_with(&format!("message {n:04} ")) && text.len() > 1900);
        (said.len() == MESSAGES && whole).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_loses_its_connection_at_any_frame_gets_the_rest_exactly_once() {
    let host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    for taken in 2..12 {
        let first = json!({"task": format!("Lost after {taken}"), "features": ["seq"]});
        let mut socket = Socket::open(&host, "alice", first).await;
        let session = socket.session().await;
        while socket.frames.len() < taken && !socket.frames.iter().any(is_completed) {
            socket.next().await;
        }
        let before = socket.frames.clone();
        let last = before.iter().filter_map(seq).max().unwrap();
        drop(socket);
        let again = json!({"sessionId": session, "lastSeq": last, "features": ["seq"]});
        let mut back = Socket::open(&host, "alice", again).await;
        if before.iter().any(is_completed) {
            back.say("And then?").await;
        }
        back.completed().await;
        let numbers: Vec<u64> = before.iter().chain(&back.frames).filter_map(seq).collect();
        assert!(
            numbers.windows(2).all(|two| two[1] == two[0] + 1),
            "lost after {taken}: {numbers:?}"
        );
    }
}
