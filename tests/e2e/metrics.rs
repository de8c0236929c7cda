//! What Prometheus reads of a running host.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use lucid_tests::{Host, Model, ModelTurn, Socket, call, eventually};

const KEY: &str = "the-tests-own-internal-key";

/// The sum of all series of a name whose labels have these values.
fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |line: &&str| {
        let rest = line.strip_prefix(name);
        let is_named = rest.is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '));
        let has = |(label, value): &(&str, &str)| line.contains(&format!("{label}=\"{value}\""));
        is_named && labels.iter().all(has)
    };
    let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
    text.lines().filter(fits).map(value).sum()
}

async fn scraped(host: &Host) -> String {
    let answer = host
        .send("GET", "/metrics", &[("x-internal-key", KEY)], None)
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.media_type.starts_with("text/plain"), "{answer:?}");
    answer.text
}

/// Has Prometheus' own tool read them.
fn check(text: &str) {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus");
    let mut input = tool.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = tool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_says_what_sessions_steps_models_and_tools_did() {
    let model = Model::start(|number, _| match number {
        0 => call("think", json!({"thought": "Let me see."})),
        1 => call("terminal", json!({"command": "exit 3"})),
        2 => call("finish", json!({"message": "Seen."})),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await;
    let host = Host::with_defaults()
        .set("INTERNAL_API_KEY", KEY)
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let mut used = (0.0, 0.0);
    let mut sockets = Vec::new();
    for (user, task) in [("alice", "Look around"), ("bob", "Look about")] {
        let first = json!({"task": task, "modelProvider": "openai", "projectId": "secret-project"});
        let mut socket = Socket::open(&host, user, first).await;
        let session = socket.session().await;
        socket.completed().await;
        let path = format!("/api/v1/sessions/{session}");
        let details = host.get(user, &path).await.ok();
        used.0 += details["usage"]["costUsd"].as_f64().unwrap();
        used.1 += details["usage"]["inputTokens"].as_f64().unwrap();
        sockets.push((socket, session));
    }
    let mut mock = Socket::open(&host, "carol", json!({"task": "Play", "policy": "mock"})).await;
    mock.completed().await;

    let text = scraped(&host).await;
    check(&text);
    let at = |name: &str, labels: &[(&str, &str)]| sum(&text, name, labels);
    let coder = [("policy", "coder")];
    assert_eq!(at("lucid_sessions_created_total", &coder), 2.0, "{text}");
    assert_eq!(at("lucid_sessions", &coder), 2.0, "{text}");
    assert_eq!(at("lucid_websocket_connections", &[]), 3.0, "{text}");
    assert!(
        at("lucid_step_duration_seconds_count", &coder) >= 4.0,
        "{text}"
    );
    assert!(at("lucid_step_fuel_total", &coder) > 10_000.0, "{text}");
    assert!(at("lucid_step_duration_seconds_count", &[("policy", "mock")]) >= 1.0);
    assert_eq!(at("lucid_step_failures_total", &[]), 0.0, "{text}");
    assert!(at("lucid_log_rounds_total", &[]) >= 8.0, "{text}");
    assert_eq!(at("lucid_ready", &[]) + at("lucid_log_writable", &[]), 2.0);

    // What models cost is one number everywhere.
    let openai = [
        ("gen_ai_provider_name", "openai"),
        ("gen_ai_operation_name", "chat"),
    ];
    let calls = model.completions().len() as f64;
    assert!(used.0 > 0.0, "{text}");
    let cost = at("lucid_model_cost_microdollars_total", &openai);
    assert_eq!(cost, (used.0 * 1e6).round(), "{text}");
    let input = [openai[0], ("gen_ai_token_type", "input")];
    assert_eq!(at("lucid_model_tokens_total", &input), used.1, "{text}");
    assert_eq!(at("lucid_model_calls_total", &openai), calls, "{text}");
    let seconds = "gen_ai_client_operation_duration_seconds";
    assert_eq!(at(&format!("{seconds}_count"), &openai), calls, "{text}");
    assert!(
        at(
            "gen_ai_client_operation_time_to_first_chunk_seconds_count",
            &openai
        ) > 0.0
    );

    // One of the coder, and the mock's two.
    let tool = "lucid_tool_duration_seconds_count";
    assert_eq!(at(tool, &[("tool", "terminal")]), 3.0, "{text}");
    let started = [("outcome", "ok")];
    assert!(
        at("lucid_sandbox_start_duration_seconds_count", &started) >= 1.0,
        "{text}"
    );
    let route = [
        ("http_route", "/api/v1/sessions/{id}"),
        ("http_response_status_code", "200"),
    ];
    let requests = "http_server_request_duration_seconds_count";
    assert_eq!(at(requests, &route), 2.0, "{text}");
    assert!(text.contains("process_cpu_seconds_total"), "{text}");

    // Nothing in it says who works on what.
    for (_, session) in &sockets {
        assert!(!text.contains(session.as_str()), "{text}");
    }
    for secret in ["alice", "secret-project", "Look around", "sk-test", KEY] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }

    // What is gone is 0.
    for (user, (_, session)) in ["alice", "bob"].iter().zip(&sockets) {
        let path = format!("/api/v1/sessions/{session}");
        host.delete(user, &path).await.ok();
    }
    eventually("the sessions to be gone", async || {
        let text = scraped(&host).await;
        (sum(&text, "lucid_sessions", &coder) == 0.0).then_some(())
    })
    .await;
    let ended = [("policy", "coder"), ("reason", "stopped")];
    assert_eq!(
        sum(&scraped(&host).await, "lucid_sessions_ended_total", &ended),
        2.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_the_operators_alone() {
    let host = Host::with_defaults().set("INTERNAL_API_KEY", KEY).start();
    for headers in [
        &[][..],
        &[("x-internal-key", "another-key-of-some-length")],
        &[("x-internal-key", "")],
        &[("x-user-id", "alice")],
    ] {
        host.send("GET", "/metrics", headers, None)
            .await
            .problem(401);
    }
    host.get("alice", "/metrics").await.problem(401);
    scraped(&host).await;

    // Without a key there is nobody who may ask.
    let host = Host::with_defaults().start();
    let key = [("x-internal-key", KEY)];
    let answer = host.send("GET", "/metrics", &key, None).await;
    let why = answer.problem(401);
    assert!(why.contains("INTERNAL_API_KEY"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_an_address_of_their_own_where_the_operator_wants_one() {
    let host = Host::with_defaults()
        .set("METRICS_LISTEN", "127.0.0.1:0")
        .start();
    host.says("metrics at http://").await;
    let log = host.log();
    let address = log.split("metrics at ").nth(1).unwrap();
    let address = address.lines().next().unwrap();
    let client = reqwest::Client::new();
    let answer = client.get(address).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    check(&answer.text().await.unwrap());
    // Nothing else is there.
    let other = address.replace("/metrics", "/api/v1/sessions");
    assert_eq!(client.get(other).send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_at_the_address_of_metrics_takes_no_connections_from_the_server() {
    let host = Host::with_defaults()
        .set("METRICS_LISTEN", "127.0.0.1:0")
        .start();
    host.says("metrics at http://").await;
    let log = host.log();
    let address = log.split("metrics at http://").nth(1).unwrap();
    let address = address.split('/').next().unwrap();
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Each begins a request that has no end. One that is refused may be closed already.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n").await;
        open.push(stream);
    }
    eventually("all but a few to be closed", async || {
        let mut answer = [0; 1024];
        open.retain(|stream| {
            let read = stream.try_read(&mut answer);
            matches!(&read, Ok(more) if *more > 0)
                || matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock)
        });
        (open.len() <= 16).then_some(())
    })
    .await;
    host.send("GET", "/health", &[], None).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_asks_for_tools_that_there_are_not_makes_no_series_of_them() {
    let model = Model::start(|number, _| match number {
        0..3 => call(&format!("invented_{number}"), json!({})),
        3 => call("terminal", json!({"command": "exit 3"})),
        _ => call("finish", json!({"message": "Seen."})),
    })
    .await;
    let host = Host::with_defaults()
        .set("INTERNAL_API_KEY", KEY)
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Invent", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    socket.completed().await;
    let text = scraped(&host).await;
    assert!(!text.contains("invented"), "{text}");
    let count = "lucid_tool_duration_seconds_count";
    assert_eq!(sum(&text, count, &[("tool", "terminal")]), 1.0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_anything_makes_no_series_of_it() {
    let host = Host::with_defaults().set("INTERNAL_API_KEY", KEY).start();
    for number in 0..50 {
        let path = format!("/nothing-{number}");
        host.send("GET", &path, &[], None).await.problem(404);
        let path = format!("/api/v1/chats/chat-{number}");
        host.get("alice", &path).await.problem(404);
        host.send(&format!("VERB{number}"), "/health", &[], None)
            .await;
    }
    let text = scraped(&host).await;
    let series = text
        .lines()
        .filter(|line| line.starts_with("http_server_request_duration_seconds_count"));
    assert!(
        series.clone().count() <= 5,
        "{:#?}",
        series.collect::<Vec<_>>()
    );
    for trace in ["nothing-", "chat-1", "VERB"] {
        assert!(!text.contains(trace), "{trace}: {text}");
    }
}

/// The files that are there for operators.
fn deployed(name: &str) -> (PathBuf, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    let text = std::fs::read_to_string(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    (root, text)
}

/// The metrics that an expression of Prometheus names.
fn named(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = ["lucid_", "gen_ai_client_", "http_server_", "process_"];
    words
        .filter(|word| ours.iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() {
    let (rules, alerts) = deployed("alerts.yaml");
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(&rules)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let (_, dashboard) = deployed("grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let mut asked: Vec<String> = targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    assert!(asked.len() > 20, "{asked:?}");
    asked.extend(
        alerts
            .lines()
            .filter_map(|line| Some(line.trim().strip_prefix("expr: ")?.to_owned())),
    );

    let host = Host::with_defaults().set("INTERNAL_API_KEY", KEY).start();
    let text = scraped(&host).await;
    let known = |name: &str| {
        let metric = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|part| name.strip_suffix(part));
        let is = |name: &str| {
            lucid_types::metrics::ALL
                .iter()
                .any(|metric| metric.name == name)
        };
        is(name) || metric.is_some_and(is) || text.contains(&format!("# TYPE {name} "))
    };
    for expression in &asked {
        let names = named(expression);
        let is_ours = !names.is_empty() || expression.starts_with("up{");
        assert!(is_ours, "{expression}");
        for name in names {
            assert!(known(name), "there is no metric {name}: {expression}");
        }
    }
}

#[test]
fn the_guide_lists_every_metric() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    for metric in lucid_types::metrics::ALL {
        let line = format!("| `{}` |", metric.name);
        assert!(
            guide.contains(&line),
            "operations.md does not list {}",
            metric.name
        );
    }
}
