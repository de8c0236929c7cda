//! A storage folder that was copied, restored, or lost a part.

use std::process::Command;

use serde_json::json;

use lucid_tests::{Host, HostBuilder, Model, ModelTurn, Socket, call, hosts_of_each_kind, kinds};

/// Makes a file, is asked a second time for ever, and then is done.
async fn model() -> Model {
    Model::start(|number, _| match number {
        0 => call("terminal", json!({"command": "echo kept > kept.txt"})),
        1 => ModelTurn::Hang("I think about ".into()),
        2 => call("terminal", json!({"command": "ls -A"})),
        3 => call("finish", json!({"message": "All done."})),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await
}

/// A host that was stopped in the middle of a task.
async fn stopped_at_work(host: HostBuilder, model: &Model) -> (Host, String) {
    let mut host = host
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Work", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    model.asked(2).await;
    host.stop().await;
    (host, session)
}

/// As a backup that was put back: every file is another one.
fn restore(host: &Host) {
    let path = |name: &str| host.folder().join(name);
    let copied = Command::new("cp")
        .arg("-a")
        .args([path("storage"), path("backup")])
        .status();
    assert!(copied.unwrap().success());
    std::fs::remove_dir_all(path("storage")).unwrap();
    std::fs::rename(path("backup"), path("storage")).unwrap();
}

async fn comes_back(host: &Host, session: &str) -> Socket {
    let again = json!({"sessionId": session, "lastSeq": 0, "features": ["seq"]});
    let mut back = Socket::open(host, "alice", again).await;
    back.completed().await;
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_restored_database_wait_until_their_users_come_back_also_over_restarts() {
    for host in hosts_of_each_kind().await {
        eprintln!("in {}", host.kind);
        a_database_is_restored(host.host).await;
    }
}

async fn a_database_is_restored(host: HostBuilder) {
    let model = model().await;
    let (mut host, session) = stopped_at_work(host, &model).await;
    restore(&host);
    host.set("SESSION_GRACE_SECONDS", "0.1");
    host.start_again();
    host.says("do not go on by themselves").await;
    host.stop().await;
    host.start_again();
    host.says("wait for their users").await;
    assert_eq!(model.completions().len(), 2, "it went on by itself");
    let listed = host.get("alice", "/api/v1/sessions").await.ok();
    assert_eq!(listed["sessions"][0]["sessionId"], *session, "{listed}");
    comes_back(&host, &session).await;
    assert_eq!(model.completions().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_says_whether_sessions_go_on() {
    let model = model().await;
    let (mut host, _session) = stopped_at_work(Host::with_defaults(), &model).await;
    host.start_again_with(&["serve", "--no-resume"]);
    host.says("wait for their users").await;
    host.stop().await;
    assert_eq!(model.completions().len(), 2, "it went on by itself");
    restore(&host);
    host.start_again_with(&["serve", "--resume"]);
    model.asked(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_files_are_gone_says_so_to_its_user_and_to_its_model() {
    for host in hosts_of_each_kind().await {
        eprintln!("in {}", host.kind);
        files_are_gone(host.host).await;
    }
}

async fn files_are_gone(host: HostBuilder) {
    let model = model().await;
    let (mut host, session) = stopped_at_work(host, &model).await;
    std::fs::remove_dir_all(host.workspace(&session)).unwrap();
    host.start_again();
    let back = comes_back(&host, &session).await;
    let told = back
        .frames
        .iter()
        .filter(|frame| {
            frame["content"]
                .as_str()
                .is_some_and(|c| c.contains("is gone from the server"))
        })
        .count();
    assert_eq!(told, 1, "{:?}", kinds(&back.frames));
    let asked = model.completions();
    let said = asked[2].messages("user");
    assert!(
        said.iter()
            .any(|said| said.contains("is gone from the server")),
        "{said:?}"
    );
    // It has a workspace again, and the next start has nothing to say.
    host.stop().await;
    host.start_again();
    let again = comes_back(&host, &session).await;
    let told = again
        .frames
        .iter()
        .filter(|frame| {
            frame["content"]
                .as_str()
                .is_some_and(|c| c.contains("is gone from the server"))
        })
        .count();
    assert_eq!(told, 1, "{:?}", kinds(&again.frames));
}
