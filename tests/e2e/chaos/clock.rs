//! A wall clock that jumps, by libfaketime (Debian's `faketime`): the monotonic one stays as it is, as where
//! an operator sets a clock, or a virtual machine was suspended.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use lucid_tests::{Host, Model, ModelTurn, Socket, call, eventually, kinds};

/// The library that moves a process's clock.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let found = folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.is_file());
    found.expect("libfaketime is missing: `tests/run --install-only` installs it")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_jumps_forward_and_back_ends_no_task_and_no_session() {
    let model = Model::start(|number, _| match number {
        0 => call(
            "terminal",
            json!({"command": "while [ ! -f go ]; do sleep 0.1; done; echo it went"}),
        ),
        1 => call("finish", json!({"message": "It went."})),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await;
    let time = tempfile::NamedTempFile::new().unwrap();
    let jump = |offset: &str| std::fs::write(time.path(), offset).unwrap();
    jump("+0");
    let host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .set("CONVERSATION_TIMEOUT", "1800")
        .set("LD_PRELOAD", library().to_str().unwrap())
        .set("FAKETIME_TIMESTAMP_FILE", time.path().to_str().unwrap())
        .set("FAKETIME_CACHE_DURATION", "1")
        .set("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .set("DONT_FAKE_MONOTONIC", "1")
        .start();
    let first = json!({"task": "Wait for it", "modelProvider": "openai"});
    let mut watched = Socket::open(&host, "alice", first).await;
    let session = watched.session().await;
    watched
        .until("the command", |frame| frame["eventType"] == "CmdRunAction")
        .await;
    // Nobody looks at this one.
    let idle = host.post("bob", "/api/v1/sessions", json!({"task": "Later"}));
    let idle = idle.await.ok()["sessionId"].as_str().unwrap().to_owned();

    // More than a task has, and than the grace time.
    jump("+2700");
    host.says("the wall clock jumped forward").await;
    jump("-5400");
    host.says("the wall clock jumped back").await;
    let go = host.workspace(&session).join("go");
    std::fs::write(go, "").unwrap();
    watched.completed().await;
    let shown = kinds(&watched.frames);
    assert!(
        shown.contains(&"observation:CmdOutputObservation".to_owned()),
        "{shown:?}"
    );
    assert!(!shown.iter().any(|kind| kind == "error"), "{shown:?}");
    jump("+0");
    eventually("the clock to be right again", async || {
        (host.log().matches("the wall clock jumped").count() >= 3).then_some(())
    })
    .await;
    assert_eq!(
        host.log().matches("the wall clock jumped").count(),
        3,
        "a jump is said once"
    );
    let listed = host.get("bob", "/api/v1/sessions").await.ok();
    assert_eq!(listed["sessions"][0]["sessionId"], *idle, "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stood_still_takes_no_time_from_its_tasks() {
    let model = Model::start(|number, _| match number {
        0 => call("terminal", json!({"command": "sleep 2; echo it went"})),
        1 => call("finish", json!({"message": "It went."})),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .set("CONVERSATION_TIMEOUT", "10")
        .start();
    let first = json!({"task": "Wait for it", "modelProvider": "openai"});
    let mut watched = Socket::open(&host, "alice", first).await;
    watched
        .until("the command", |frame| frame["eventType"] == "CmdRunAction")
        .await;
    host.signal(rustix::process::Signal::STOP);
    // More than the task has.
    tokio::time::sleep(Duration::from_secs(14)).await;
    host.signal(rustix::process::Signal::CONT);
    watched.completed().await;
    host.says("this process stood still").await;
}
