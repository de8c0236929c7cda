//! What the database keeps of sessions and chats, and what goes from it.

use serde_json::json;

use lucid_tests::{Host, Model, ModelTurn, Socket, call, event, eventually};

fn database(host: &Host) -> rusqlite::Connection {
    let database = host.folder().join("storage/.lucid/data/lucid.db");
    rusqlite::Connection::open(database).unwrap()
}

/// The id of a session's chat.
async fn chat_of(host: &Host, user: &str, session: &str) -> String {
    let details = host.get(user, &format!("/api/v1/sessions/{session}")).await;
    details.ok()["chatId"].as_str().unwrap().to_owned()
}

/// The tables of the database that have rows of a session, and how many.
fn left_of(host: &Host, session: &str) -> Vec<(&'static str, i64)> {
    let database = database(host);
    let tables = [
        ("sessions", "id"),
        ("steps", "session_id"),
        ("transcript", "session_id"),
        ("effects", "session_id"),
        ("inbox", "session_id"),
        ("texts", "session_id"),
    ];
    let rows = tables.map(|(table, column)| {
        let count = format!("SELECT count(*) FROM {table} WHERE {column} = ?1");
        let rows = database.query_row(&count, [session], |row| row.get(0));
        (table, rows.unwrap())
    });
    rows.into_iter().filter(|(_, rows)| *rows > 0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_chat_goes_all_that_the_log_has_of_its_session() {
    let host = Host::with_defaults().start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "A secret task"})).await;
    let over = socket.session().await;
    socket.completed().await;
    let chat = chat_of(&host, "alice", &over).await;
    let session = format!("/api/v1/sessions/{over}");
    host.delete("alice", &session).await.ok();
    assert!(left_of(&host, &over).len() >= 3, "its log is kept so far");
    // Another user's word removes nothing.
    let path = format!("/api/v1/chats/{chat}");
    host.delete("mallory", &path)
        .await
        .refused(404, "Chat not found");
    host.get("alice", &session).await.ok();
    host.delete("alice", &path).await.ok();
    host.get("alice", &session).await.problem(404);
    assert_eq!(left_of(&host, &over), []);
    eventually("the disk to hold nothing of it", async || {
        let files = std::fs::read_dir(host.folder().join("storage/.lucid/data")).unwrap();
        let held = files.flatten().any(|file| {
            let bytes = std::fs::read(file.path()).unwrap_or_default();
            bytes.windows(13).any(|part| part == b"A secret task")
        });
        (!held).then_some(())
    })
    .await;

    // One that lives keeps what it works with, until it ends.
    let mut socket = Socket::open(&host, "alice", json!({"task": "Another one"})).await;
    let alive = socket.session().await;
    socket.completed().await;
    let session = format!("/api/v1/sessions/{alive}");
    let chat = chat_of(&host, "alice", &alive).await;
    host.delete("alice", &format!("/api/v1/chats/{chat}"))
        .await
        .ok();
    host.get("alice", &session).await.ok();
    socket.say("Go on").await;
    socket.completed().await;
    let mut again = Socket::open(&host, "alice", json!({"sessionId": alive})).await;
    let frames = again.completed().await;
    event(&frames, "ThinkAction");
    host.delete("alice", &session).await.ok();
    host.get("alice", &session).await.problem(404);
    eventually("its log to be deleted", async || {
        left_of(&host, &alive).is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tool_printed_is_stored_once_and_told_whole_everywhere() {
    let model = Model::start(|number, _| match number {
        // The command does not hold what it prints.
        0 => call(
            "terminal",
            json!({"command": "seq 1 4000; printf 'stored-%s\\n' once"}),
        ),
        _ => ModelTurn::Say("done".into()),
    })
    .await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Print", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket.completed().await;
    let told = model
        .completions()
        .last()
        .unwrap()
        .messages("tool")
        .remove(0);
    assert!(
        told.len() > 15_000 && told.contains("stored-once"),
        "{told}"
    );

    let database = database(&host);
    let columns = [
        ("steps", "frames"),
        ("steps", "inputs"),
        ("steps", "commands"),
        ("transcript", "message"),
        ("chat_messages", "content"),
        ("chat_messages", "metadata_json"),
        ("texts", "text"),
    ];
    let times = columns.map(|(table, column)| {
        let count =
            format!("SELECT count(*) FROM {table} WHERE instr({column}, 'stored-once') > 0");
        let rows = database.query_row(&count, [], |row| row.get::<_, i64>(0));
        (table, column, rows.unwrap())
    });
    let all: i64 = times.iter().map(|(_, _, rows)| rows).sum();
    assert_eq!(all, 1, "{times:?}");

    let chat = chat_of(&host, "alice", &session).await;
    let chat = host
        .get("alice", &format!("/api/v1/chats/{chat}"))
        .await
        .ok();
    let messages = chat["messages"].as_array().unwrap();
    let printed = messages
        .iter()
        .find(|message| message["eventType"] == "CmdOutputObservation")
        .unwrap();
    let printed = printed["content"].as_str().unwrap();
    assert!(
        told.starts_with(printed) && printed.ends_with("stored-once\n"),
        "{printed}"
    );
    // The frames of the log are what was shown at first.
    let again = json!({"sessionId": session, "lastSeq": 0});
    let mut again = Socket::open(&host, "alice", again).await;
    again.completed().await;
    assert_eq!(again.frames, socket.frames);
}
