//! A host that is told to stop while it works.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use lucid_tests::{
    Host, HostBuilder, Model, ModelTurn, Socket, call, eventually, hosts_of_each_kind, seq,
};

/// Asks for a command that goes on until a file is there, and then for one more.
async fn waiting_model(command: &'static str) -> Model {
    Model::start(move |number, _| match number {
        0 => call("terminal", json!({"command": command})),
        1 => call("terminal", json!({"command": "echo second >> effects.txt"})),
        2 => call("finish", json!({"message": "Both were run."})),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await
}

const UNTIL_GO: &str =
    "echo first >> effects.txt; while [ ! -f go ]; do sleep 0.1; done; echo it went";

fn last_seq(socket: &Socket) -> u64 {
    let numbers = socket.frames.iter().filter_map(seq);
    numbers.max().unwrap_or_default()
}

async fn begun(host: &Host, command_in: &str) -> (Socket, String) {
    let first = json!({"task": command_in, "modelProvider": "openai", "features": ["seq"]});
    let mut socket = Socket::open(host, "alice", first).await;
    let session = socket.session().await;
    let read = format!("/api/v1/files/read?session_id={session}&path=effects.txt");
    eventually("the command's first effect", async || {
        let answer = host.get("alice", &read).await;
        (answer.body["content"] == "first\n").then_some(())
    })
    .await;
    (socket, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_the_command_that_runs_and_the_next_start_goes_on_behind_it() {
    a_stop_waits(Host::with_defaults(), Signal::HUP).await;
    for host in hosts_of_each_kind().await {
        eprintln!("in {}", host.kind);
        a_stop_waits(host.host, Signal::TERM).await;
    }
}

async fn a_stop_waits(host: HostBuilder, signal: Signal) {
    let model = waiting_model(UNTIL_GO).await;
    let mut host = host
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let (socket, session) = begun(&host, "Wait for it").await;
    let seen = last_seq(&socket);
    host.signal(signal);
    host.says("stopping").await;
    // The command is still there, and is let go on.
    std::fs::write(host.workspace(&session).join("go"), "").unwrap();
    host.stopped().await;
    host.says("sessions are paused").await;
    assert!(!host.log().contains("was cut off"), "{}", host.log());

    host.start_again();
    let again = json!({"sessionId": session, "lastSeq": seen, "features": ["seq"]});
    let mut back = Socket::open(&host, "alice", again).await;
    back.completed().await;
    let shown = |text: &str| {
        let holds = |frame: &&Value| frame["content"].as_str().is_some_and(|c| c.contains(text));
        back.frames.iter().filter(holds).count()
    };
    let printed = |frame: &&Value| frame["content"] == "it went\n";
    let printed = back.frames.iter().filter(printed).count();
    assert_eq!(printed, 1, "{:#?}", back.frames);
    assert_eq!(shown("was restarted"), 0, "{:#?}", back.frames);
    let read = format!("/api/v1/files/read?session_id={session}&path=effects.txt");
    let effects = host.get("alice", &read).await.ok();
    assert_eq!(effects["content"], "first\nsecond\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_fits_into_its_time_and_names_the_command_that_it_cut_off() {
    let model = waiting_model(UNTIL_GO).await;
    let mut host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .set("SHUTDOWN_TIMEOUT", "3")
        .start();
    let (_socket, session) = begun(&host, "Wait in vain").await;
    let asked = Instant::now();
    host.stop().await;
    // Wide: the machine may be busy, and without a limit it would be for ever.
    assert!(asked.elapsed().as_secs() < 20, "{:?}", asked.elapsed());
    host.says("a command was cut off").await;
    let line = host.log();
    let line = line
        .lines()
        .find(|line| line.contains("was cut off"))
        .unwrap();
    assert!(
        line.contains(&session) && line.contains("echo first"),
        "{line}"
    );

    host.start_again();
    let again = json!({"sessionId": session, "lastSeq": 0, "features": ["seq"]});
    let mut back = Socket::open(&host, "alice", again).await;
    back.completed().await;
    let told = model.completions()[1].messages("tool");
    assert!(
        told.iter()
            .any(|said| said.contains("lost") || said.contains("may or may not have happened")),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_at_any_moment_fails_no_task_of_the_mock() {
    const SESSIONS: usize = 12;
    let mut host = Host::with_defaults().start();
    let mut sockets = Vec::new();
    for number in 0..SESSIONS {
        let first = json!({"task": format!("Task {number}"), "features": ["seq"]});
        sockets.push(Socket::open(&host, "alice", first).await);
    }
    let mut sessions = Vec::new();
    for (number, socket) in sockets.iter_mut().enumerate() {
        sessions.push(socket.session().await);
        // Some have only begun, some are far.
        for _ in 0..number % 5 {
            socket.next().await;
        }
    }
    host.stop().await;
    host.start_again();
    for session in sessions {
        let again = json!({"sessionId": session, "lastSeq": 0, "features": ["seq"]});
        let mut back = Socket::open(&host, "alice", again).await;
        let over = |frame: &Value| frame["status"] == "completed" || frame["type"] == "error";
        back.until("the end", over).await;
        let last = back.frames.last().unwrap();
        assert_eq!(last["status"], "completed", "{:#?}", back.frames);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_took_from_the_mock_is_done_again() {
    let mut host = Host::with_defaults()
        .set("MOCK_STEP_DELAY_SECONDS", "0.2")
        .start();
    let first = json!({"task": "Play", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket
        .until("its first command", |frame| {
            frame["eventType"] == "CmdRunAction"
        })
        .await;
    host.crash();
    host.start_again();
    let again = json!({"sessionId": session, "lastSeq": 0, "features": ["seq"]});
    let mut back = Socket::open(&host, "alice", again).await;
    let over = |frame: &Value| frame["status"] == "completed" || frame["type"] == "error";
    back.until("the end", over).await;
    assert_eq!(
        back.frames.last().unwrap()["status"],
        "completed",
        "{:#?}",
        back.frames
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_takes_no_new_sessions_and_goes_on_with_those_that_it_has() {
    let model = waiting_model(UNTIL_GO).await;
    let mut host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .set("DRAIN_TIME", "1h")
        .start();
    let (mut socket, session) = begun(&host, "Wait for it").await;
    let is_up = async |path| host.send("GET", path, &[], None).await;
    assert_eq!(is_up("/ready").await.ok()["status"], "ready");
    host.signal(Signal::TERM);
    host.says("no new sessions are taken").await;

    let not_ready = is_up("/ready").await;
    assert_eq!(not_ready.problem(503), "The server is stopping.");
    assert!(
        not_ready.headers.contains_key("retry-after"),
        "{not_ready:?}"
    );
    assert_eq!(is_up("/health").await.ok()["status"], "ok");
    let refused = host
        .post("bob", "/api/v1/sessions", json!({"task": "One more"}))
        .await;
    refused.problem(503);
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    let mut late = Socket::open(&host, "bob", json!({"task": "One more"})).await;
    assert_eq!(late.end().await, 1013, "come again");
    assert!(late.frames.is_empty(), "{:?}", late.frames);

    // A client of a session that there is comes back to it, and it works.
    socket.close().await;
    let again = json!({"sessionId": session, "lastSeq": 0, "features": ["seq"]});
    socket = Socket::open(&host, "alice", again).await;
    std::fs::write(host.workspace(&session).join("go"), "").unwrap();
    socket.completed().await;
    assert!(
        !host.log().contains("sessions are paused"),
        "{}",
        host.log()
    );

    // A second signal waits for nothing.
    host.signal(Signal::TERM);
    let status = host.ended().await;
    assert_eq!(status.code(), Some(130), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_begins_when_the_drain_time_is_over() {
    let mut host = Host::with_defaults().set("DRAIN_TIME", "1").start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Work"})).await;
    socket.completed().await;
    let asked = Instant::now();
    host.signal(Signal::TERM);
    assert_eq!(socket.end().await, 1012);
    assert!(asked.elapsed().as_millis() >= 1000, "{:?}", asked.elapsed());
    host.stopped().await;
}
