//! Model providers that are down, silent or overloaded for a while.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use lucid_tests::{Host, HostBuilder, Model, ModelTurn, Socket};

fn host(url: &str) -> HostBuilder {
    Host::with_defaults()
        .set("LLM_API_KEY", "sk-the-tests-own-key-0123456789")
        .set("LLM_BASE_URL", url)
        .set("MODEL_OUTAGE_PATIENCE", "2m")
}

fn of_outage(frame: &Value) -> bool {
    frame["eventType"] == "ModelStateMessage"
}

fn is_over(frame: &Value) -> bool {
    frame["type"] == "error" || frame["status"] == "completed"
}

/// What a person was told of outages, in order.
fn outages(frames: &[Value]) -> Vec<&str> {
    let told = frames.iter().filter(|frame| of_outage(frame));
    told.map(|frame| frame["content"].as_str().unwrap())
        .collect()
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_a_provider_that_is_down_and_says_so_once_at_each_end() {
    let address = nobody().await;
    let host = host(&format!("http://{address}/v1")).start();
    let first = json!({"task": "Wait for it", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket.until("word of the outage", of_outage).await;
    // A moment longer than it takes to notice.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let model = Model::start_on(listener, |_, _| ModelTurn::Say("Here I am again.".into()));
    socket.completed().await;
    assert!(!model.completions().is_empty());
    let [begins, ends] = outages(&socket.frames)[..] else {
        panic!("{:#?}", socket.frames)
    };
    assert!(
        begins.contains("127.0.0.1 cannot be reached") && begins.contains("2 minutes"),
        "{begins}"
    );
    assert!(
        ends.starts_with("The model answers again, after "),
        "{ends}"
    );
    for frame in &socket.frames {
        assert!(
            frame["type"] != "error" && frame["event"] != "error",
            "{frame}"
        );
        if of_outage(frame) {
            assert_eq!(
                (&frame["type"], &frame["event"]),
                (&json!("agent_event"), &json!("state"))
            );
        }
    }
    // They are rows of the log: who comes later sees them at their place.
    let before = socket.frames.clone();
    drop(socket);
    let again =
        json!({"task": "Wait for it", "sessionId": session, "lastSeq": 0, "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", again).await;
    socket.completed().await;
    assert_eq!(outages(&socket.frames), outages(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_tried_again_until_it_has_passed() {
    let model = Model::start(|number, _| match number {
        0 => ModelTurn::Later(429, "1".into()),
        1 => ModelTurn::Refuse(529, "Overloaded".into()),
        2 => ModelTurn::Refuse(500, "Internal server error".into()),
        3 => ModelTurn::Refuse(502, "Bad gateway".into()),
        _ => ModelTurn::Say("At last.".into()),
    })
    .await;
    let host = host(&model.url).start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Wait"})).await;
    socket.completed().await;
    assert!(model.completions().len() >= 5);
    assert_eq!(outages(&socket.frames).len(), 2, "{:#?}", socket.frames);
    assert!(socket.frames.iter().all(|frame| frame["type"] != "error"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_for_too_long_is_asked_again_before_and_within_an_answer() {
    let model = Model::start(|number, _| match number {
        0 => ModelTurn::Silence,
        1 => ModelTurn::Hang("I think ".into()),
        _ => ModelTurn::Say("I thought.".into()),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("lucid.toml");
    let entry = format!(
        "[providers.own]\ncomponent = \"builtin:openai\"\nbase_url = \"{}\"\nmodel = \"m\"\nsilence = \"1s\"\n",
        model.url
    );
    std::fs::write(&manifest, entry).unwrap();
    let host = Host::with_defaults()
        .set("LUCID_MANIFEST", manifest.to_str().unwrap())
        .set("MODEL_OUTAGE_PATIENCE", "2m")
        .start();
    let first = json!({"task": "Think", "features": ["deltas"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    socket.completed().await;
    assert!(model.completions().len() >= 3);
    let resets = socket.frames.iter().filter(|frame| frame["reset"] == true);
    assert_eq!(resets.count(), 1, "{:#?}", socket.frames);
    let told = outages(&socket.frames);
    assert!(
        told[0].contains("did not begin to answer within 1 s"),
        "{told:?}"
    );
    assert_eq!(told.len(), 2, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_patience_the_task_fails_with_the_servers_words_and_the_session_goes_on() {
    let model = Model::start(|number, request| match number {
        _ if request.body.contains("Try once more") => ModelTurn::Say("Now it works.".into()),
        _ => ModelTurn::Refuse(503, "The cluster is being moved.".into()),
    })
    .await;
    let host = host(&model.url).set("MODEL_OUTAGE_PATIENCE", "2s").start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Wait"})).await;
    let frames = socket.until("the end", is_over).await;
    let over = frames.last().unwrap();
    assert_eq!(over["type"], "error", "{over}");
    assert!(
        over["message"]
            .as_str()
            .unwrap()
            .contains("The cluster is being moved."),
        "{over}"
    );
    let [begins, ends] = outages(&socket.frames)[..] else {
        panic!("{:#?}", socket.frames)
    };
    assert!(begins.contains("for up to 2 seconds"), "{begins}");
    assert!(ends.contains("is not tried again"), "{ends}");
    socket.say("Try once more").await;
    socket
        .until("an answer", |frame| frame["status"] == "completed")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_will_not_pass_is_told_at_once_and_a_stop_does_not_wait_for_a_provider() {
    for (status, words) in [
        (400, "Bad request."),
        (403, "Not in your region."),
        (402, "Out of credit."),
    ] {
        let model = Model::start(move |_, _| ModelTurn::Refuse(status, words.into())).await;
        let host = host(&model.url).start();
        let mut socket = Socket::open(&host, "alice", json!({"task": "Try"})).await;
        let frames = socket.until("the end", is_over).await;
        assert!(
            frames.last().unwrap()["message"]
                .as_str()
                .unwrap()
                .contains(words)
        );
        assert_eq!(model.completions().len(), 1, "{status}");
        assert!(outages(&socket.frames).is_empty());
    }
    let host = host(&format!("http://{}/v1", nobody().await)).start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Wait"})).await;
    socket.until("word of the outage", of_outage).await;
    socket.send(json!({"type": "stop"})).await;
    assert_eq!(socket.end().await, 1000);
}
