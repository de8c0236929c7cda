//! The disk is full.

use serde_json::{Value, json};

use super::{begun, check_dense, is_said, is_status};
use lucid_tests::{
    Host, HostBuilder, Model, ModelTurn, SmallDisk, Socket, call, event, eventually,
    hosts_of_each_kind, is_completed, within,
};

const SESSIONS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_wait_for_a_disk_that_is_full_and_lose_nothing() {
    if !SmallDisk::possible() {
        return;
    }
    let host = Host::with_defaults()
        .on_disk_of("128m")
        .set("SANDBOX_BACKEND", "none")
        .set("DISK_RESERVE", "0")
        .set("MOCK_STEP_DELAY_SECONDS", "1")
        .start();
    let mut sockets = begun(&host, SESSIONS).await;
    host.disk().fill("filler");
    for socket in &mut sockets {
        socket
            .until("the pause", |frame| is_status(frame, "paused"))
            .await;
    }
    let about = is_said(&host, "degraded").await;
    let reason = about["reason"].as_str().unwrap();
    assert!(reason.contains("the disk is full"), "{reason}");
    let not_ready = host.send("GET", "/ready", &[], None).await.problem(503);
    assert!(not_ready.contains("the disk is full"), "{not_ready}");
    let refused = host
        .post("eve", "/api/v1/sessions", json!({"task": "One more"}))
        .await;
    refused.problem(503);
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    let mut eve = Socket::open(&host, "eve", json!({"task": "One more"})).await;
    assert_eq!(eve.end().await, 1013);
    assert!(eve.frames.is_empty(), "{:?}", eve.frames);
    // A message that is not kept is said to be so.
    sockets[0].say("And this too").await;
    sockets[0]
        .until("the answer", |frame| frame["type"] == "error")
        .await;
    sockets[0].frames.pop();

    host.disk().free("filler");
    for mut socket in sockets {
        let frames = socket.completed().await;
        assert!(
            frames.iter().any(|frame| is_status(frame, "resumed")),
            "{frames:#?}"
        );
        check_dense(&socket.frames);
    }
    is_said(&host, "healthy").await;
    host.send("GET", "/ready", &[], None).await.ok();
    host.says("the log is written again").await;
    let log = host.log();
    let said = |words: &str| log.matches(words).count();
    assert_eq!(
        said("the log cannot be written"),
        said("the log is written again")
    );
    assert!((1..4).contains(&said("the log cannot be written")), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_stopped_on_a_full_disk_is_not_said_to_have_ended_before_it_has() {
    if !SmallDisk::possible() {
        return;
    }
    let host = Host::with_defaults()
        .on_disk_of("128m")
        .set("SANDBOX_BACKEND", "none")
        .set("DISK_RESERVE", "0")
        .set("MOCK_STEP_DELAY_SECONDS", "1")
        .start();
    let mut socket = begun(&host, 1).await.remove(0);
    let session = socket
        .frames
        .iter()
        .find_map(|frame| frame["sessionId"].as_str())
        .unwrap()
        .to_owned();
    host.disk().fill("filler");
    socket
        .until("the pause", |frame| is_status(frame, "paused"))
        .await;
    let path = format!("/api/v1/sessions/{session}");
    let answer = host.delete("user-0", &path).await;
    answer.problem(503);
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    host.disk().free("filler");
    assert_eq!(socket.end().await, 1000);
    check_dense(&socket.frames);
    let details = host.get("user-0", &path).await.ok();
    assert_eq!(details["status"], "ended", "{details}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fills_the_disk_ends_nobody_and_the_reserve_lifts_by_itself() {
    if !SmallDisk::possible() {
        return;
    }
    for host in hosts_of_each_kind().await {
        eprintln!("in {}", host.kind);
        a_command_fills_the_disk(host.host).await;
    }
}

async fn a_command_fills_the_disk(host: HostBuilder) {
    let model = Model::start(move |number, _| match number {
        0 => call(
            "terminal",
            json!({"command": "head -c 500000000 /dev/zero > big; echo it ended"}),
        ),
        1 => call(
            "file_editor",
            json!({"command": "create", "path": "more.txt", "file_text": "more"}),
        ),
        2 => ModelTurn::Say("It is full.".into()),
        3 => call("terminal", json!({"command": "rm -f big; ls"})),
        _ => ModelTurn::Say("done".into()),
    })
    .await;
    let host = host
        .on_disk_of("192m")
        .set("DISK_RESERVE", "32m")
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .set("MOCK_STEP_DELAY_SECONDS", "0.5")
        .start();
    let mock = |number: usize| json!({"task": format!("Task {number}"), "policy": "mock", "features": ["seq"]});
    let mut others = Vec::new();
    for number in 0..8 {
        others.push(Socket::open(&host, &format!("user-{number}"), mock(number)).await);
    }
    let first = json!({"task": "Fill it", "modelProvider": "openai", "policy": "coder", "features": ["seq"]});
    let mut filler = Socket::open(&host, "mallory", first).await;
    filler.session().await;
    let frames = filler.completed().await;
    let refused = frames
        .iter()
        .rfind(|frame| frame["eventType"] == "AgentErrorObservation")
        .unwrap();
    let content = refused["content"].as_str().unwrap();
    assert!(content.contains("disk is nearly full"), "{refused}");
    // What they wanted to write meanwhile was refused, if it was; their sessions live.
    let over = |frame: &Value| is_completed(frame) || frame["type"] == "error";
    for socket in &mut others {
        if !socket.frames.iter().any(over) {
            socket.until("the end of its task", over).await;
        }
    }
    is_said(&host, "degraded").await;
    let answer = host
        .post("eve", "/api/v1/sessions", json!({"task": "One more"}))
        .await;
    assert!(answer.problem(503).contains("nearly full"));
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    let mut eve = Socket::open(&host, "eve", json!({"task": "One more"})).await;
    assert_eq!(eve.end().await, 1013);

    filler.say("Clean up").await;
    filler.completed().await;
    check_dense(&filler.frames);
    is_said(&host, "healthy").await;
    let mut again = Socket::open(&host, "eve", json!({"task": "One more", "policy": "mock"})).await;
    again.completed().await;
    for socket in &mut others {
        socket.say("Go on").await;
        event(&socket.completed().await, "MockResponse");
        check_dense(&socket.frames);
    }
}

/// Programs that fill a disk and go on with that, each in another way, and where that is tried.
const FILLING: [(&str, &[&str], &str); 4] = [
    (
        "a file",
        &["bubblewrap"],
        "while true; do head -c 1000000 /dev/zero >>big; sleep 0.02; done",
    ),
    (
        "a file that was removed",
        &["bubblewrap", "docker"],
        "exec 3>big; rm big; while true; do head -c 1000000 /dev/zero >&3; sleep 0.02; done",
    ),
    (
        "more folders than are looked into",
        &["bubblewrap"],
        "for i in $(seq 200); do mkdir d; cd d; done; while true; do head -c 1000000 /dev/zero >>big; sleep 0.02; done",
    ),
    (
        "a temporary file on the disk",
        &["landlock"],
        "while true; do head -c 1000000 /dev/zero >>\"$TMPDIR\"/big; sleep 0.02; done",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_filling_a_disk_that_is_nearly_full_is_ended_and_others_work_on() {
    if !SmallDisk::possible() {
        return;
    }
    for (what, kinds, fill) in FILLING {
        for host in hosts_of_each_kind().await {
            if kinds.contains(&host.kind) {
                eprintln!("filled with {what}, in {}", host.kind);
                a_program_fills_the_disk(host.host, fill).await;
            }
        }
    }
}

async fn a_program_fills_the_disk(host: HostBuilder, fill: &str) {
    let fill = format!("sh -c '{fill}' >/dev/null 2>&1 &");
    let model = Model::start(move |number, _| match number {
        0 => call("terminal", json!({"command": fill})),
        _ => ModelTurn::Say("It runs.".into()),
    })
    .await;
    let host = host
        .on_disk_of("192m")
        .set("DISK_RESERVE", "32m")
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Fill it", "modelProvider": "openai", "policy": "coder"});
    let mut filler = Socket::open(&host, "mallory", first).await;
    let mut other = Socket::open(&host, "alice", json!({"task": "Work", "policy": "mock"})).await;
    other.completed().await;
    let lost = |frame: &Value| {
        let content = frame["content"].as_str().unwrap_or_default();
        content.contains("went on filling it")
    };
    filler.until("the end of its sandbox", lost).await;
    // What is left stays with the log: a session that is there works on.
    other.say("Go on").await;
    let frames = within("an answer", other.completed()).await;
    event(&frames, "MockResponse");
    eventually("no more to be written", async || {
        let before = host.disk().left();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        // Less than is written in that time; the log takes a little.
        (before.saturating_sub(host.disk().left()) < 1_000_000).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_more_files_than_a_workspace_may_have_is_ended() {
    if !SmallDisk::possible() {
        return;
    }
    // The second has no limit of its own that it could meet: a part of the disk's is one.
    for (limit, most) in [("2000", "2000"), ("500000", "4096")] {
        let model = Model::start(move |number, _| match number {
            0 => call(
                "terminal",
                json!({"command": "python3 -c 'for i in range(16000): open(str(i), \"w\").close()' >/dev/null 2>&1; sleep 60"}),
            ),
            _ => ModelTurn::Say("It ran.".into()),
        })
        .await;
        let host = Host::with_defaults()
            .on_disk_of("128m,nr_inodes=16k")
            .set("DISK_RESERVE", "8m")
            .set("SANDBOX_FILE_LIMIT", limit)
            .set("LLM_API_KEY", "sk-test")
            .set("LLM_BASE_URL", &model.url)
            .start();
        let first = json!({"task": "Make files", "modelProvider": "openai", "policy": "coder"});
        let mut maker = Socket::open(&host, "mallory", first).await;
        let ended = |frame: &Value| {
            let content = frame["content"].as_str().unwrap_or_default();
            content.contains(&format!("files and folders; it may have {most}."))
        };
        maker.until("the end of its sandbox", ended).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_files_that_take_more_than_a_session_may_end_its_sandbox_and_go_with_it() {
    if !SmallDisk::possible() {
        return;
    }
    let fill = "while true; do head -c 1000000 /dev/zero >>\"$TMPDIR\"/big; sleep 0.02; done";
    let fill = format!("sh -c '{fill}' >/dev/null 2>&1 &");
    // On the disk of the workspaces, and on another one.
    for host in [
        Host::with_defaults().on_disk_of("512m"),
        Host::with_defaults().run_on_disk_of("512m"),
    ] {
        let fill = fill.clone();
        let model = Model::start(move |number, _| match number {
            0 => call("terminal", json!({"command": fill})),
            1 => ModelTurn::Say("It runs.".into()),
            2 => call("terminal", json!({"command": "ls \"$TMPDIR\"; echo well"})),
            _ => ModelTurn::Say("It is gone.".into()),
        })
        .await;
        let host = host
            .set("SANDBOX_BACKEND", "landlock")
            .set("SANDBOX_DISK_LIMIT", "20m")
            .set("DISK_RESERVE", "8m")
            .set("LLM_API_KEY", "sk-test")
            .set("LLM_BASE_URL", &model.url)
            .start();
        let first = json!({"task": "Fill it", "modelProvider": "openai", "policy": "coder"});
        let mut filler = Socket::open(&host, "mallory", first).await;
        let ended = |frame: &Value| {
            let content = frame["content"].as_str().unwrap_or_default();
            content.contains("outside of the workspace")
                && content.contains("which are gone now; they may take 20 MiB.")
        };
        let over = |frames: &[Value]| {
            let is_told = frames.iter().any(ended);
            is_told && frames.iter().any(is_completed)
        };
        while !over(&filler.frames) {
            filler
                .until("the end of its sandbox", |frame| {
                    ended(frame) || is_completed(frame)
                })
                .await;
        }
        filler.say("Look").await;
        let frames = filler.completed().await;
        let output = event(&frames, "CmdOutputObservation");
        assert_eq!(output["content"], "well\n", "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_begins_while_no_file_can_be_made_waits_and_goes_on_by_itself() {
    if !SmallDisk::possible() {
        return;
    }
    let host = Host::with_defaults()
        .on_disk_of("128m,nr_inodes=8k")
        .set("DISK_RESERVE", "8m")
        .start();
    begun(&host, 1).await.remove(0).completed().await;
    host.disk().use_up_files("names");
    let mut late = Socket::open(&host, "eve", json!({"task": "Later", "features": ["seq"]})).await;
    let frames = late
        .until("the pause", |frame| is_status(frame, "paused"))
        .await;
    let told = frames.last().unwrap()["message"].as_str().unwrap();
    assert!(
        told.contains("cannot be made, because the disk is full"),
        "{told}"
    );
    host.disk().free_files("names");
    let frames = late.completed().await;
    assert!(
        frames.iter().any(|frame| is_status(frame, "resumed")),
        "{frames:#?}"
    );
    check_dense(&late.frames);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_file_can_be_made_those_that_nobody_works_on_go_for_who_begins() {
    if !SmallDisk::possible() {
        return;
    }
    let model = Model::start(|number, _| match number {
        0 => call("terminal", json!({"command": "touch $(seq 100)"})),
        _ => ModelTurn::Say("There are many files.".into()),
    })
    .await;
    let host = Host::with_defaults()
        .on_disk_of("128m,nr_inodes=8k")
        .set("DISK_RESERVE", "8m")
        .set("SESSION_GRACE_SECONDS", "0.2")
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Make files", "modelProvider": "openai", "policy": "coder"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket.completed().await;
    drop(socket);
    eventually("the session to end", async || {
        let listed = host.get("alice", "/api/v1/sessions").await.ok();
        listed["sessions"]
            .as_array()
            .unwrap()
            .is_empty()
            .then_some(())
    })
    .await;
    let kept = host.workspace(&session);
    assert!(kept.join("100").exists(), "nothing was kept");
    host.disk().use_up_files("names");
    let mut late = Socket::open(&host, "eve", json!({"task": "Later", "policy": "mock"})).await;
    late.completed().await;
    assert!(!kept.exists());
    host.says("is removed before its time").await;
}
