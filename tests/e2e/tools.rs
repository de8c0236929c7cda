//! Tools of a team's own over the running host: a component turns a model's calls into commands in the
//! sandbox and requests to one server, with a key that only the server sees.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use lucid_tests::{
    Host, HostBuilder, Model, ModelTurn, Socket, TOOLING, call, calls, claims_token, command,
    counting, event, eventually, guest_memories, text_of, tooling,
};

const KEY: &str = "tk-7f3a/91bc+5d02=e64f8a7b3c";
const MODEL_KEY: &str = "sk-of-the-model-0123456789";
const PLUGINS: &str = "/api/v1/plugins";

/// What the server was asked: path with query, and headers.
type Asked = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// A server of a team's: it has items, it repeats what it is told, and it has too much of one thing.
struct Server {
    url: String,
    asked: Asked,
}

impl Server {
    async fn start() -> Self {
        let asked = Asked::default();
        let seen = asked.clone();
        let answer = move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let first = {
                let mut seen = seen.lock().unwrap();
                seen.push((uri.to_string(), headers.clone()));
                seen.len() == 1
            };
            async move {
                let (status, text) = match uri.path() {
                    "/api/items/one" if first => (503, "busy".to_owned()),
                    "/api/items/one" => (200, "item one".to_owned()),
                    "/api/again" => (200, "item one, at last".to_owned()),
                    "/api/items/none" => (404, "there is none".to_owned()),
                    "/api/echo" => (200, format!("{headers:?} {body:?}")),
                    "/api/big" => (200, "x".repeat(5 << 20)),
                    _ => (500, "this was not to be asked".to_owned()),
                };
                let mut response = Response::new(Body::from(text));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                let echoed = headers.get("x-token").cloned();
                if let Some(echoed) = echoed {
                    response.headers_mut().insert("x-echo", echoed);
                }
                let cookie = "session=1".parse().unwrap();
                response.headers_mut().insert("set-cookie", cookie);
                response
            }
        };
        let router = Router::new().fallback(answer);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, asked }
    }

    fn paths(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|(path, _)| path.clone()).collect()
    }
}

/// A deployment's folder.
struct Files(tempfile::TempDir);

impl Files {
    fn new(model: &Model, server: &Server, of_tools: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put("tooling.wasm", TOOLING);
        let text = format!(
            r#"
[policies.coder]
component = "builtin:coder"
settings = {{ ask = false }}

[policies.bare]
component = "builtin:coder"

[providers.openai]
component = "builtin:openai"
base_url = "{}"
key = "MODEL_KEY"
models = ["m"]
model = "m"

[tools.house]
component = "tooling.wasm"
base_url = "{}"
key = "HOUSE_TOKEN"
settings = {{ greeting = "Hello. " }}
{of_tools}
"#,
            model.url, server.url
        );
        files.put("lucid.toml", text.as_bytes());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As tools do it: beside its place, and moved there.
    fn put(&self, name: &str, content: &[u8]) {
        let draft = self.path(&format!(".{name}.new"));
        std::fs::write(&draft, content).unwrap();
        std::fs::rename(draft, self.path(name)).unwrap();
    }

    fn host(&self) -> HostBuilder {
        Host::with_defaults()
            .set("LUCID_MANIFEST", self.path("lucid.toml").to_str().unwrap())
            .set("HOUSE_TOKEN", KEY)
            .set("MODEL_KEY", MODEL_KEY)
    }
}

fn task(text: &str) -> Value {
    // Each its own, so that no two are taken for the same work.
    json!({"task": format!("{text} ({})", uuid::Uuid::new_v4()), "features": ["seq", "deltas"]})
}

/// The names of the tools that a model was offered.
fn offered(body: &Value) -> Vec<String> {
    let tools = body["tools"].as_array().unwrap().iter();
    tools
        .map(|tool| tool["function"]["name"].as_str().unwrap().to_owned())
        .collect()
}

fn all_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(all_files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

#[track_caller]
fn has_no_key(what: &str, text: &str) {
    assert!(!text.contains(&KEY[..12]), "{what} has the key: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_runs_commands_and_asks_a_server_with_a_key_that_only_the_server_sees() {
    let server = Server::start().await;
    let model = Model::start(|number, _| match number {
        0 => call(
            "terminal",
            json!({"command": "printf 'a\\nb\\n' > two.txt; mkdir sub"}),
        ),
        1 => calls([
            ("house__lines", json!({"name": "two.txt"})),
            ("house__item", json!({"name": "one"})),
            ("house__shell", json!({})),
            ("house__echo", json!({})),
            ("house__item", json!({"name": "none"})),
            ("house__both", json!({"name": "one"})),
        ]),
        2 => call("terminal", json!({"command": "cat found.txt"})),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await;
    let files = Files::new(&model, &server, "policies = [\"coder\"]");
    let host = files.host().start();
    let mut socket = Socket::open(&host, "alice", task("Use the tools")).await;
    let session = socket.session().await;
    socket.completed().await;

    // The model was told of them, and of what came of its calls.
    let completions = model.completions();
    let names = offered(&completions[0].json());
    for name in ["terminal", "house__lines", "house__item", "house__terminal"] {
        assert!(names.contains(&name.to_owned()), "no {name}: {names:?}");
    }
    let results = completions.last().unwrap().messages("tool");
    let wanted = [
        "Hello. 2\n [0 after 1, 0 left out, in time]",
        "item one, at last",
        "Hello. from stdin\n",
        "[secret]",
        "there is none",
        "Hello. item one",
        "item one",
    ];
    assert_eq!(results.len(), wanted.len() + 1, "{results:#?}");
    for (result, wanted) in results[1..].iter().zip(wanted) {
        assert!(result.contains(wanted), "no {wanted:?} in {result}");
    }
    let shell = &results[3];
    for part in ["/sub\n", "from a variable\n", "[3 after 1"] {
        assert!(shell.contains(part), "no {part:?} in {shell}");
    }
    assert!(!results[4].contains("set-cookie"), "{}", results[4]);

    // The server was asked below its address, with the key.
    let paths = server.paths();
    assert_eq!(
        paths,
        [
            "/api/items/one?q=a+b",
            "/api/again",
            "/api/echo",
            "/api/items/none?q=a+b",
            "/api/items/one?q=a+b"
        ]
    );
    for (path, headers) in &*server.asked.lock().unwrap() {
        assert_eq!(headers["x-token"], KEY, "{path}");
        assert!(!headers.contains_key("authorization"), "{path}");
    }

    // Each command and request was shown, before its answer, and is in the record.
    let shown: Vec<String> = socket
        .frames
        .iter()
        .filter(|frame| frame["type"] == "agent_event")
        .map(|frame| frame["content"].as_str().unwrap_or_default().to_owned())
        .collect();
    let at = |text: &str| {
        let found = shown.iter().position(|one| one.contains(text));
        found.unwrap_or_else(|| panic!("{text:?} was not shown: {shown:#?}"))
    };
    let asks = format!("GET {}/items/one?q=a+b", server.url);
    let order = [
        "house__lines",
        "grep -c '' -- two.txt",
        "2\n",
        &asks,
        "HTTP 503",
        "/again",
        "cat; pwd; echo \"$GREETING\"; exit 3",
        "POST",
        "tee found.txt",
    ];
    let places: Vec<usize> = order.iter().map(|text| at(text)).collect();
    assert!(
        places.is_sorted(),
        "{order:?} came as {places:?}: {shown:#?}"
    );
    let commands: Vec<&str> = socket
        .frames
        .iter()
        .filter_map(|frame| frame["command"].as_str())
        .collect();
    assert!(commands.contains(&"grep -c '' -- two.txt"), "{commands:?}");
    let exits: Vec<i64> = socket
        .frames
        .iter()
        .filter_map(|frame| frame["exitCode"].as_i64())
        .collect();
    assert!(exits.contains(&3), "how a command ended: {exits:?}");

    // The key is nowhere else.
    for frame in &socket.frames {
        has_no_key("a frame", &frame.to_string());
    }
    for request in model.seen() {
        has_no_key("a model's prompt", &request.body);
    }
    has_no_key("the log", &host.log());
    for memory in guest_memories(host.pid()) {
        let found = memory.windows(12).any(|part| part == &KEY.as_bytes()[..12]);
        assert!(!found, "a guest's memory has the key");
    }
    let files = all_files(&host.folder().join("storage"));
    assert!(files.iter().any(|file| file.ends_with("lucid.db")));
    for file in files {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let found = bytes.windows(12).any(|part| part == &KEY.as_bytes()[..12]);
        assert!(!found, "{} has the key", file.display());
    }
    let path = format!("/api/v1/sessions/{session}");
    has_no_key(
        "the session's details",
        &host.get("alice", &path).await.ok().to_string(),
    );

    // Who has another policy has no such tools.
    let other = json!({"task": "Say it", "policy": "bare"});
    let mut socket = Socket::open(&host, "bob", other).await;
    socket.completed().await;
    let names = offered(&model.completions().last().unwrap().json());
    assert!(
        names.iter().all(|name| !name.contains("__")),
        "the policy is not among `policies`: {names:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_misbehaves_harms_its_own_call_and_nothing_else() {
    const BAD: [(&str, &str); 17] = [
        ("endless", "not done after 32 steps"),
        ("trap", "broke down"),
        ("spin", "fuel"),
        ("flood", "gave more than the"),
        ("hoard", "are allowed"),
        ("inject", "the host's own"),
        ("injectline", "line break"),
        ("elsewhere", "must start with `/`"),
        ("upwards", "`.` or `..`"),
        ("method", "CONNECT"),
        ("nothing", "The command is empty"),
        ("null", "null character"),
        ("big", "more than the"),
        ("sleep", "late]"),
        ("chatter", "said a lot"),
        ("long", "left out"),
        ("yes", "left out"),
    ];
    let server = Server::start().await;
    let model = Model::start(|number, _| match number {
        0 => ModelTurn::Call(
            BAD.iter()
                .map(|(tool, _)| (format!("house__{tool}"), json!({})))
                .collect(),
        ),
        1 => calls([
            (
                "terminal",
                json!({"command": "echo \"still the sandbox's\""}),
            ),
            ("house__terminal", json!({"command": "echo no"})),
            ("other__lines", json!({"name": "x"})),
            ("house__lines", json!({"name": "asleep"})),
        ]),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await;
    let limits = "time = 2\nlimits = { fuel = 100_000_000, memory = \"32m\", output = \"4m\" }";
    let files = Files::new(&model, &server, limits);
    let host = files.host().start();
    let mut socket = Socket::open(&host, "alice", task("Misuse the tools")).await;
    socket.completed().await;

    let results = model.completions().last().unwrap().messages("tool");
    assert_eq!(results.len(), BAD.len() + 4, "{results:#?}");
    for (result, (tool, wanted)) in results.iter().zip(BAD) {
        let start: String = result.chars().take(400).collect();
        assert!(result.contains(wanted), "{tool}: no {wanted:?} in {start}");
        assert!(
            result.len() < 140_000,
            "{tool} told the model {} bytes",
            result.len()
        );
    }
    let [terminal, theirs, other, lines] = &results[BAD.len()..] else {
        panic!("{results:#?}")
    };
    assert!(terminal.contains("still the sandbox's"), "{terminal}");
    assert_eq!(theirs, "not the sandbox's");
    assert!(
        other.contains("no tool") || other.contains("There is no"),
        "{other}"
    );
    assert!(
        lines.starts_with("Hello. 1\n"),
        "the next call works: {lines}"
    );
    assert_eq!(server.paths(), ["/api/big"], "what may not be sent was not");
    let events = socket
        .frames
        .iter()
        .filter(|frame| frame["type"] == "agent_event");
    for event in events {
        assert!(event.to_string().len() < 20_000, "too large: {event}");
    }
    let log = host.log();
    let chatter = log.lines().filter(|line| line.contains("line 3")).count();
    assert!(
        chatter < 20,
        "{chatter} lines of a chatterer are in the log"
    );
    // The host goes on, and so does another user's session.
    let mut socket = Socket::open(&host, "bob", task("Say it")).await;
    socket.completed().await;
}

/// Says what the tool `build` answered, and the next time again.
async fn telling() -> Model {
    Model::start(|_, request| match request.messages("tool").last() {
        Some(said) => ModelTurn::Say(said.clone()),
        None => call("house__build", json!({})),
    })
    .await
}

async fn build_of(host: &Host) -> String {
    let mut socket = Socket::open(host, "alice", task("Which build?")).await;
    let seen = socket.completed().await;
    socket.send(json!({"type": "stop"})).await;
    socket.end().await;
    let said = event(&seen, "AgentMessageAction");
    said["content"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_sessions_have_the_tools_of_a_new_build_and_a_broken_one_changes_nothing() {
    let (server, model) = (Server::start().await, telling().await);
    let files = Files::new(&model, &server, "");
    let host = files.host().start();
    assert_eq!(build_of(&host).await, "build-0000");
    files.put("tooling.wasm", &tooling(2));
    eventually("the second build", async || {
        (build_of(&host).await == "build-0002").then_some(())
    })
    .await;

    files.put("tooling.wasm", &counting(1, "good"));
    let refused = async || host.log().contains("is not a tools plugin").then_some(());
    eventually("why it was refused", refused).await;
    assert_eq!(build_of(&host).await, "build-0002", "the old one serves on");
    files.put("tooling.wasm", &tooling(3));
    eventually("the third build", async || {
        (build_of(&host).await == "build-0003").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_activates_a_build_sees_its_grants_and_rolls_back() {
    let (server, model) = (Server::start().await, telling().await);
    let files = Files::new(&model, &server, "policies = [\"coder\"]\ntime = 30");
    let host = files.host().start();
    let bearer = format!(
        "Bearer {}",
        claims_token(json!({"sub": "alice", "lucid_admin": true}))
    );
    let ask = async |method: &str, path: &str, body: Option<Value>| {
        let headers = [("authorization", &*bearer)];
        let path = format!("{PLUGINS}{path}");
        let body = body.map(|body| body.to_string());
        host.send(method, &path, &headers, body).await
    };
    let upload = async |wasm: Vec<u8>| -> Value {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let sent = client
            .post(format!("http://{}{PLUGINS}", host.address()))
            .header("authorization", &bearer)
            .header("content-type", "application/wasm")
            .body(wasm);
        let text = sent.send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let listed = async || -> Value {
        let all = ask("GET", "", None).await.ok();
        let mut found = all["plugins"].as_array().unwrap().iter();
        let found = found.find(|one| one["kind"] == "tools" && one["name"] == "house");
        found
            .unwrap_or_else(|| panic!("it is not listed: {all}"))
            .clone()
    };
    let activate = async |name: &str, digest: &Value| {
        let body = json!({ "digest": digest });
        ask("POST", &format!("/tools/{name}/activate"), Some(body)).await
    };

    let first = listed().await;
    assert_eq!(first["source"], "file", "{first}");
    let grants = &first["grants"];
    assert_eq!(grants["baseUrl"], server.url, "{grants}");
    assert_eq!(
        (
            &grants["keyPlace"],
            &grants["keyVariable"],
            &grants["hasKey"]
        ),
        (&json!("x-token"), &json!("HOUSE_TOKEN"), &json!(true))
    );
    assert_eq!(grants["policies"], json!(["coder"]));
    assert_eq!(grants["callTime"], 30.0);
    let names = grants["tools"].as_array().unwrap();
    assert!(names.contains(&json!("house__lines")), "{grants}");
    has_no_key("the list", &first.to_string());

    let kept = upload(tooling(7)).await;
    assert_eq!(
        (&kept["kind"], &kept["ownName"], &kept["version"]),
        (&json!("tools"), &json!("tooling"), &json!("build-0007"))
    );
    assert_eq!(
        build_of(&host).await,
        "build-0000",
        "an upload alone changes nothing"
    );
    let answer = activate("house", &kept["digest"]).await.ok();
    assert_eq!(answer["source"], "upload", "{answer}");
    assert_eq!(build_of(&host).await, "build-0007");
    let after = listed().await;
    assert_eq!(
        after["grants"], first["grants"],
        "address and key are the manifest's"
    );
    let calls = after["calls"].as_array().unwrap();
    assert!(
        calls
            .iter()
            .any(|one| one["call"] == "step" && one["calls"].as_u64() > Some(0)),
        "{after}"
    );

    // Only a manifest says where tools ask and with which key.
    let detail = activate("elsewhere", &kept["digest"]).await.problem(404);
    assert!(detail.contains("elsewhere"), "{detail}");
    let policy = upload(counting(1, "good")).await;
    let detail = activate("house", &policy["digest"]).await.problem(422);
    assert!(detail.contains("not a tools plugin"), "{detail}");
    let body = json!({ "digest": kept["digest"] });
    let detail = ask("POST", "/toolz/house/activate", Some(body))
        .await
        .problem(404);
    assert!(detail.contains("`tools`"), "{detail}");
    assert_eq!(build_of(&host).await, "build-0007");

    ask("POST", "/tools/house/rollback", None).await.ok();
    assert_eq!(build_of(&host).await, "build-0000");
    assert_eq!(
        listed().await["digest"],
        hex::encode(Sha256::digest(TOOLING))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_a_call_and_its_command() {
    let server = Server::start().await;
    let model = Model::start(|_, _| call("house__sleep", json!({}))).await;
    let files = Files::new(&model, &server, "");
    let host = files.host().start();
    let mut socket = Socket::open(&host, "alice", task("Sleep")).await;
    let session = socket.session().await;
    let asleep = host.workspace(&session).join("asleep");
    eventually("the command", async || asleep.exists().then_some(())).await;
    socket.send(json!({"type": "stop"})).await;
    assert_eq!(socket.end().await, 1000);
    let all = host.get("alice", "/api/v1/sessions").await.ok();
    assert_eq!(all["sessions"], json!([]), "it is over: {all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lucid_check_shows_tools_and_says_where_an_entry_is_wrong() {
    let (server, model) = (Server::start().await, telling().await);
    let files = Files::new(&model, &server, "");
    let check = |name: &str| {
        let path = files.path(name);
        let mut check = command(files.0.path(), &["check", path.to_str().unwrap()]);
        check.env("WORKSPACE_BASE_PATH", files.path("storage"));
        let output = tokio::task::block_in_place(|| check.output().unwrap());
        let said = text_of(&output.stdout) + &text_of(&output.stderr);
        (output.status.code(), said)
    };
    let (code, said) = check("lucid.toml");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("tools   house"), "{said}");
    assert!(
        said.contains("HOUSE_TOKEN is not set, so the tools `house` have no key"),
        "{said}"
    );
    let text = std::fs::read_to_string(files.path("lucid.toml")).unwrap();
    let wrong = text.replace("greeting = \"Hello. \"", "greting = 7");
    files.put("wrong.toml", wrong.as_bytes());
    let (code, said) = check("wrong.toml");
    assert_eq!(code, Some(2), "{said}");
    let line = wrong
        .lines()
        .position(|line| line.contains("greting"))
        .unwrap()
        + 1;
    assert!(said.contains(&format!("wrong.toml:{line}:")), "{said}");
    assert!(said.contains("did you mean `greeting`?"), "{said}");
}
