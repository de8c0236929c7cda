//! What commands reach over the network, in each kind of sandbox, over the running host.

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use lucid_tests::{Host, Model, ModelTurn, Socket, call, hosts_of_each_kind};

/// A server on the machine's own loopback interface.
async fn web_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().route("/", get(async || "it was reached"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_reach_what_the_operator_named_and_nothing_else_of_the_host_and_it_is_recorded() {
    let (named, other) = (web_server().await, web_server().await);
    for host in hosts_of_each_kind().await {
        let kind = host.kind;
        eprintln!("in {kind}");
        // Straight and through the proxy, which programs would not ask for an address of loopback.
        let ask = move |port: u16| {
            format!(
                "curl -sS -m 5 --noproxy '*' http://127.0.0.1:{port}/; curl -sS -m 20 --noproxy '' http://127.0.0.1:{port}/; "
            )
        };
        let command = format!("{} {} echo '<end>'", ask(named), ask(other));
        let model = Model::start(move |number, _| match number {
            0 => call("terminal", json!({"command": command})),
            _ => ModelTurn::Say("Done.".into()),
        })
        .await;
        let host = host
            .host
            .set("SANDBOX_NETWORK", "proxy")
            .set("SANDBOX_PRIVATE_HOSTS", format!("127.0.0.1:{named}"))
            .set("LLM_API_KEY", "sk-test")
            .set("LLM_BASE_URL", &model.url)
            .start();
        let first = json!({"task": "Look around", "modelProvider": "openai"});
        let mut socket = Socket::open(&host, "alice", first).await;
        let session = socket.session().await;
        let frames = socket.completed().await;
        let output = frames
            .iter()
            .filter(|frame| frame["eventType"] == "CmdOutputObservation")
            .find_map(|frame| frame["content"].as_str())
            .unwrap_or_else(|| panic!("{kind}: {frames:#?}"))
            .to_owned();
        assert_eq!(
            output.matches("it was reached").count(),
            1,
            "{kind}: {output}"
        );
        assert!(output.contains("SANDBOX_PRIVATE_HOSTS"), "{kind}: {output}");

        let path = format!("/api/v1/sessions/{session}/connections");
        let recorded = host.get("alice", &path).await.ok();
        let of = |port: u16| {
            let all = recorded["connections"].as_array().unwrap();
            let found = all.iter().find(|it| it["port"] == port);
            found
                .cloned()
                .unwrap_or_else(|| panic!("{kind}: {recorded}"))
        };
        let connected = of(named);
        assert_eq!(
            (
                &connected["host"],
                &connected["outcome"],
                &connected["count"]
            ),
            (&json!("127.0.0.1"), &json!("connected"), &json!(1)),
            "{kind}: {recorded}"
        );
        assert!(
            connected["received"].as_u64().unwrap() > 14,
            "{kind}: {recorded}"
        );
        assert_eq!(of(other)["outcome"], "refused", "{kind}: {recorded}");

        assert_eq!(host.get("mallory", &path).await.status, 403);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_connected_to_nothing_has_an_empty_list_and_one_that_is_unknown_none() {
    let host = Host::with_defaults().start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Say hello"})).await;
    let session = socket.session().await;
    socket.completed().await;
    let path = format!("/api/v1/sessions/{session}/connections");
    assert_eq!(
        host.get("alice", &path).await.ok(),
        json!({"connections": Vec::<Value>::new()})
    );
    let unknown = "/api/v1/sessions/00000000-0000-4000-8000-000000000000/connections";
    assert_eq!(host.get("alice", unknown).await.status, 404);
}
