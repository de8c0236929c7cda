//! What commands reach over the network, in each kind of sandbox, over the running host.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use lucid_tests::{Host, Model, ModelTurn, Socket, call, hosts_of_each_kind};

/// A server on the machine's own loopback interface.
async fn web_server() -> u16 {
    web_server_at(Ipv4Addr::LOCALHOST.into()).await
}

async fn web_server_at(address: IpAddr) -> u16 {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
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

/// An address of this machine that is not of its loopback interface, which each sandbox has one of. `None`
/// on a machine without any network.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Sends nothing.
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().unwrap().ip())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_asks_no_proxy_reaches_an_opened_port_and_it_is_recorded() {
    let Some(address) = own_address() else {
        return;
    };
    let (opened, closed) = (web_server_at(address).await, web_server_at(address).await);
    for host in hosts_of_each_kind().await {
        let kind = host.kind;
        let ask =
            move |port: u16| format!("curl -sS -m 20 --noproxy '*' http://{address}:{port}/; ");
        let command = format!("{} {} echo '<end>'", ask(opened), ask(closed));
        let model = Model::start(move |number, _| match number {
            0 => call("terminal", json!({"command": command})),
            _ => ModelTurn::Say("Done.".into()),
        })
        .await;
        let host = host
            .host
            .set("SANDBOX_NETWORK", "proxy")
            .set("SANDBOX_PRIVATE_HOSTS", address.to_string())
            .set("SANDBOX_DIRECT", format!("tcp:{opened}"))
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
        let path = format!("/api/v1/sessions/{session}/connections");
        let recorded = host.get("alice", &path).await.ok();
        let outcome_of = |port: u16| {
            let all = recorded["connections"].as_array().unwrap();
            let found = all.iter().find(|it| it["port"] == port);
            found.map(|it| it["outcome"].clone())
        };
        // An engine has it whoever this is.
        if kind != "docker" && is_kept_from_this_user("/dev/net/tun") {
            assert_eq!(output.matches("it was reached").count(), 0, "{kind}");
            continue;
        }
        assert_eq!(
            output.matches("it was reached").count(),
            1,
            "{kind}: {output}"
        );
        assert_eq!(
            outcome_of(opened),
            Some(json!("connected")),
            "{kind}: {recorded}"
        );
        assert_eq!(
            outcome_of(closed),
            Some(json!("refused")),
            "{kind}: {recorded}"
        );
    }
}

fn is_kept_from_this_user(device: &str) -> bool {
    let file = std::fs::File::options().read(true).write(true).open(device);
    file.is_err()
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
