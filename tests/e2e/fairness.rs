//! One user who asks for as much as they can, and the others beside them. The bounds are on hangs, not
//! on speed: `cargo bench --bench fairness` measures.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use lucid_tests::{Host, Socket, eventually, find, is_completed, within};

const HIDDEN: usize = 100_000;
const LISTINGS: usize = 200;
/// What somebody else waits at most, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(10);

/// A session of the mock that has played its script: its id, and its workspace's folder.
async fn played(host: &Host, user: &str) -> (String, PathBuf) {
    let mut socket = Socket::open(host, user, json!({"task": "Files", "projectId": "p"})).await;
    let session = socket.session().await;
    socket.completed().await;
    let hello = find(&host.workspace(&session), "hello.py").expect("hello.py is not on the disk");
    (session, hello.parent().unwrap().to_owned())
}

fn listing(session: &str) -> String {
    format!("/api/v1/files/list?session_id={session}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_lists_a_huge_folder_200_times_at_once_keeps_nobody_waiting() {
    let host = Host::with_defaults().start();
    let (session, root) = played(&host, "alice").await;
    let (other, _) = played(&host, "bob").await;
    tokio::task::spawn_blocking(move || {
        let hidden = root.join("many");
        std::fs::create_dir(&hidden).unwrap();
        for number in 0..HIDDEN {
            std::fs::write(hidden.join(format!(".lucid-{number}")), "").unwrap();
        }
    })
    .await
    .unwrap();

    let paths = [
        ("bob", listing(&other)),
        ("bob", "/api/v1/chats".to_owned()),
        // Nor does Alice wait for it where no file is worked on.
        ("alice", format!("/api/v1/sessions/{session}")),
    ];
    let own = listing(&session);
    let flood = join_all((0..LISTINGS).map(|_| host.get("alice", &own)));
    let mut calls = 0;
    let mut longest = Duration::ZERO;
    let beside = async {
        for _ in 0..5 {
            for (user, path) in &paths {
                let begun = Instant::now();
                host.get(user, path).await.ok();
                longest = longest.max(begun.elapsed());
                calls += 1;
            }
        }
    };
    let (answers, ()) = tokio::join!(flood, beside);
    assert!(
        longest < PATIENCE,
        "somebody waited {longest:?} in {calls} calls"
    );
    let mut listed = 0;
    for answer in answers {
        match answer.status {
            200 => listed += 1,
            429 => assert_eq!(
                answer.problem(429),
                "Too many of your requests wait for their turn already. Try again in a moment."
            ),
            _ => panic!("{answer:?}"),
        }
    }
    assert!(listed > 0);
    // It is over with the last of them.
    let begun = Instant::now();
    assert_eq!(host.get("alice", "/api/v1/chats").await.status, 200);
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_writes_has_a_bound_and_deleting_a_chat_makes_room() {
    let host = Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .set("USER_LOG_LIMIT", "4m")
        .start();
    let mut socket =
        Socket::open(&host, "alice", json!({"task": "Talk", "features": ["seq"]})).await;
    let session = socket.session().await;
    socket.completed().await;
    let long = "x".repeat(700_000);
    // A message is refused, or the session ends while it answers one: whichever comes first.
    for number in 0..20 {
        socket.say(&format!("{number} {long}")).await;
        let is_answer = |frame: &Value| frame["type"] == "error" || is_completed(frame);
        let read = socket.until("an answer", is_answer).await;
        if read.iter().any(|frame| frame["type"] == "error") {
            break;
        }
    }
    let refusal = socket
        .frames
        .iter()
        .find(|frame| frame["type"] == "error")
        .unwrap_or_else(|| panic!("nothing was refused"));
    let said = refusal["message"].as_str().unwrap();
    assert!(
        said.contains("he record of your sessions takes 4 MiB, which is as much as it may"),
        "{said}"
    );
    let detail = host
        .post("alice", "/api/v1/sessions", json!({"task": "Another"}))
        .await
        .problem(429);
    assert_eq!(
        detail,
        "The record of your sessions takes 4 MiB, which is as much as it may. Delete chats first."
    );
    host.post("bob", "/api/v1/sessions", json!({"task": "Mine"}))
        .await
        .ok();

    let path = format!("/api/v1/sessions/{session}");
    host.delete("alice", &path).await;
    let chats = host.get("alice", "/api/v1/chats").await.ok();
    for chat in chats["chats"].as_array().unwrap() {
        let path = format!("/api/v1/chats/{}", chat["id"].as_str().unwrap());
        host.delete("alice", &path).await.ok();
    }
    let again = async || {
        let made = host.post("alice", "/api/v1/sessions", json!({"task": "Again"}));
        (made.await.status == 200).then_some(())
    };
    eventually("a session after the chats were deleted", again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_too_much_within_a_minute_is_refused_with_a_sentence() {
    let host = Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .set("USER_LOG_RATE", "1m")
        .start();
    let task = "x".repeat(400_000);
    let create = async |user: &str| {
        let body = json!({"task": &task});
        within("an answer", host.post(user, "/api/v1/sessions", body)).await
    };
    create("alice").await.ok();
    create("alice").await.ok();
    assert_eq!(
        create("alice").await.problem(429),
        "You have sent more than 1 MiB within a minute, which is as much as you may. Try again in a moment."
    );
    create("bob").await.ok();
}
