//! What becomes of the work of a session that nobody looks at.

use serde_json::json;

use lucid_tests::{
    Host, HostBuilder, Model, ModelTurn, Socket, call, eventually, hosts_of_each_kind,
};

async fn sessions_of(host: &Host, user: &str) -> usize {
    let listed = host.get(user, "/api/v1/sessions").await.ok();
    listed["sessions"].as_array().unwrap().len()
}

/// A session of the mock that came to its end, and whose client left.
async fn left_behind(host: &Host) -> String {
    let mut socket = Socket::open(host, "alice", json!({"task": "Say hello"})).await;
    let session = socket.session().await;
    socket.completed().await;
    drop(socket);
    eventually("the session to end", async || {
        (sessions_of(host, "alice").await == 0).then_some(())
    })
    .await;
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_goes_on_with_nobody_there_and_its_files_can_be_read_when_the_session_is_over() {
    for host in hosts_of_each_kind().await {
        eprintln!("in {}", host.kind);
        a_task_goes_on(host.host).await;
    }
}

async fn a_task_goes_on(host: HostBuilder) {
    let model = Model::start(|number, _| match number {
        0 => call(
            "terminal",
            json!({"command": "sleep 2; echo done > result.txt"}),
        ),
        1 => call("finish", json!({"message": "It is done."})),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await;
    let host = host
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .set("SESSION_GRACE_SECONDS", "0.2")
        .start();
    let first = json!({"task": "Take your time", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket
        .until("the command", |frame| frame["eventType"] == "CmdRunAction")
        .await;
    drop(socket);
    model.asked(2).await;
    eventually("the session to end", async || {
        (sessions_of(&host, "alice").await == 0).then_some(())
    })
    .await;
    let read = format!("/api/v1/files/read?session_id={session}&path=result.txt");
    let answer = host.get("alice", &read).await;
    assert_eq!(answer.ok()["content"], "done\n");
    let about = host
        .get("alice", &format!("/api/v1/sessions/{session}"))
        .await;
    let reason = about.ok()["endReason"].as_str().unwrap().to_owned();
    assert!(reason.contains("can be read for another 1 day"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_files_are_their_users_alone_until_that_user_has_them_removed() {
    let host = Host::with_defaults()
        .set("SESSION_GRACE_SECONDS", "0.2")
        .start();
    let session = left_behind(&host).await;
    let list = format!("/api/v1/files/list?session_id={session}");
    let tree = host.get("alice", &list).await.ok();
    assert_eq!(tree["tree"][0]["name"], "hello.py", "{tree}");
    let archive = format!("/api/v1/files/archive?session_id={session}");
    assert_eq!(host.get("alice", &archive).await.status, 200);
    let download = format!("/api/v1/files/download?session_id={session}&path=hello.py");
    assert_eq!(host.get("alice", &download).await.status, 200);
    for path in [&list, &archive, &download] {
        assert_eq!(host.get("bob", path).await.status, 403, "{path}");
    }
    let one = format!("/api/v1/sessions/{session}");
    assert_eq!(host.delete("bob", &one).await.status, 403);
    let folder = host.workspace(&session);
    assert!(folder.is_dir());
    let removed = host.delete("alice", &one).await.ok();
    assert_eq!(removed["status"], "stopped", "{removed}");
    assert!(!folder.exists(), "{} is there", folder.display());
    assert_eq!(host.get("alice", &list).await.status, 404);
    assert_eq!(host.delete("alice", &one).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_started_later_removes_what_was_kept_long_enough() {
    let mut host = Host::with_defaults()
        .set("SESSION_GRACE_SECONDS", "0.2")
        .start();
    let session = left_behind(&host).await;
    let folder = host.workspace(&session);
    host.stop().await;
    assert!(folder.is_dir());
    host.set("WORKSPACE_RETENTION", "1");
    host.start_again();
    eventually("the files to go", async || (!folder.exists()).then_some(())).await;
}
