//! Many sessions at once, and clients that do not keep up.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use lucid_tests::{Host, Socket, event, eventually, is_completed, kinds, own_memory, seq, token};

const SESSIONS: usize = 200;

/// One of many sessions, its script played to the end.
async fn played(host: &Host, number: usize) -> Socket {
    let user = format!("user-{}", number % 20);
    let first = json!({"task": format!("Task {number}"), "features": ["seq"]});
    let mut socket = Socket::open(host, &user, first).await;
    socket.completed().await;
    socket
}

/// Nothing is left out, and nothing comes twice or too early.
#[track_caller]
fn check_dense(frames: &[Value]) {
    let numbers: Vec<u64> = frames.iter().filter_map(seq).collect();
    let dense = numbers.windows(2).all(|two| two[1] == two[0] + 1);
    assert!(dense, "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_at_once_each_get_every_frame_in_order() {
    let host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    let runs = join_all((0..SESSIONS).map(|number| played(&host, number))).await;
    let mut sessions = std::collections::HashSet::new();
    for (number, run) in runs.iter().enumerate() {
        let frames = &run.frames;
        assert!(
            frames.iter().all(|frame| seq(frame).is_some()),
            "session {number} has a frame without seq: {frames:#?}"
        );
        check_dense(frames);
        let script: Vec<String> = kinds(frames)
            .into_iter()
            .filter(|kind| kind != "file_tree")
            .collect();
        assert_eq!(script.len(), 10, "session {number}: {script:?}");
        assert_eq!(
            script[9], "status:completed",
            "session {number}: {script:?}"
        );
        let own = format!("Task {number}");
        let think = event(frames, "ThinkAction");
        assert!(
            think["content"].as_str().unwrap().contains(&own),
            "session {number} got another's frame: {think}"
        );
        let session = frames
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

/// What is said to a session, and how much of that its clients were sent.
struct Talk {
    socket: Socket,
    said: usize,
    bytes: usize,
}

impl Talk {
    /// A message of four-byte characters, as many as a frame shows, gives the largest frames.
    fn message(number: usize) -> String {
        format!("message {number:04} {}", "🦀".repeat(1900))
    }

    async fn say(&mut self, times: usize) {
        for _ in 0..times {
            self.socket.say(&Self::message(self.said)).await;
            self.said += 1;
            let frames = self.socket.completed().await;
            self.bytes += frames
                .iter()
                .map(|frame| frame.to_string().len())
                .sum::<usize>();
        }
    }
}

/// Every one of a crowd says something, and reads the answer.
async fn all_say(crowd: &mut [Socket], text: &str) {
    join_all(crowd.iter_mut().map(|socket| async move {
        socket.say(text).await;
        let answer = socket.completed().await;
        let content = &event(&answer, "MockResponse")["content"];
        assert_eq!(content, &format!("[MOCK] Received: {text}"));
        check_dense(&socket.frames);
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_for_ten_seconds_misses_nothing_and_costs_no_memory() {
    const STALL: Duration = Duration::from_secs(10);
    const BYTES: usize = 20 << 20;
    let host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    let query = format!("?token={}", token("alice"));
    // What it has not read fills a window of 4 KB, and what the host's side of the connection takes.
    let mut slow = Socket::connect_with(&host, &query, Some(4096)).await;
    slow.send(json!({"task": "Talk to me", "features": ["seq"]}))
        .await;
    let session = slow.session().await;
    slow.completed().await;
    let mut crowd = join_all((1..SESSIONS).map(|number| played(&host, number))).await;

    // Another client talks to its session, until all that is bounded is full.
    let mut socket = Socket::open(&host, "alice", json!({"sessionId": session})).await;
    socket.completed().await;
    let mut talk = Talk {
        socket,
        said: 0,
        bytes: 0,
    };
    talk.say(200).await;
    all_say(&mut crowd, "Warm up").await;

    let before = own_memory(host.pid());
    let (stalled, warm) = (Instant::now(), talk.bytes);
    let (mut most, mut round) = (before, 0);
    while talk.bytes - warm < BYTES || stalled.elapsed() < STALL {
        round += 1;
        if talk.bytes - warm < BYTES {
            talk.say(100).await;
        }
        all_say(&mut crowd, &format!("Round {round}")).await;
        most = most.max(own_memory(host.pid()));
    }
    // Kept for the client, the frames alone would be all of it.
    let grown = usize::try_from(most - before).unwrap();
    assert!(
        grown < BYTES / 3,
        "the host grew by {grown} bytes while {} were not read",
        talk.bytes - warm
    );

    // It reads again.
    let mut answers = Vec::new();
    while answers.len() < talk.said {
        let read = slow
            .until("the next answer", |frame| {
                frame["eventType"] == "MockResponse"
            })
            .await;
        let content = read.last().unwrap()["content"].as_str().unwrap().to_owned();
        answers.push(content);
    }
    for (number, answer) in answers.iter().enumerate() {
        let own = format!("[MOCK] Received: message {number:04} ");
        assert!(answer.starts_with(&own), "{number}: {answer}");
    }
    check_dense(&slow.frames);

    // The chat has every one of them, whole, in the order they were said.
    let chats = host.get("alice", "/api/v1/chats").await.ok();
    let path = format!(
        "/api/v1/chats/{}",
        chats["chats"][0]["id"].as_str().unwrap()
    );
    eventually("all follow-ups in the chat", async || {
        let chat = host.get("alice", &path).await.ok();
        let messages = chat["messages"].as_array().unwrap();
        let said = messages
            .iter()
            .filter(|message| message["eventType"] == "FollowUp")
            .map(|message| message["content"].as_str().unwrap());
        said.eq((0..talk.said).map(Talk::message)).then_some(())
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
