//! MCP servers as an agent's tools: honest ones and hostile ones, in the sandbox and on the network.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use lucid_tests::{
    Host, HostBuilder, Model, ModelRequestSeen, ModelTurn, Socket, call, calls, eventually, within,
};

const SERVER: &str = include_str!("mcp/server.py");
const KEY: &str = "sk-the-wikis-own-key-0123456789";
const WRONG: &str = "sk-another-key-9876543210-abc";

/// A deployment whose manifest is these entries, and the default agent on this model.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(entries: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("server.py"), SERVER).unwrap();
        std::fs::write(folder.path().join("lucid.toml"), entries).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn host(&self, model: &Model) -> HostBuilder {
        Host::with_defaults()
            .set("LLM_API_KEY", "sk-of-the-model-0123456789")
            .set("LLM_BASE_URL", &model.url)
            .set("LUCID_MANIFEST", self.path("lucid.toml").to_str().unwrap())
    }
}

/// The server as a program in the sandbox, where no file of the host's is.
fn program(name: &str, rest: &str) -> String {
    format!("[mcp.{name}]\ncommand = [\"python3\", \"-u\", \"-c\", '''\n{SERVER}''']\n{rest}\n")
}

fn task() -> Value {
    json!({"task": format!("Use the tools ({}).", uuid::Uuid::new_v4()), "modelProvider": "openai"})
}

/// The names of the tools that a model was told of.
fn told(seen: &ModelRequestSeen) -> Vec<String> {
    let body = seen.json();
    let tools = body["tools"].as_array().cloned().unwrap_or_default();
    let name = |tool: &Value| tool["function"]["name"].as_str().unwrap().to_owned();
    tools.iter().map(name).collect()
}

/// The tool for whose schema OpenAI would refuse the request.
fn unfit(seen: &ModelRequestSeen) -> Option<String> {
    let body = seen.json();
    let tools = body["tools"].as_array().cloned().unwrap_or_default();
    let wrong = |tool: &&Value| {
        let schema = &tool["function"]["parameters"];
        let root = ["anyOf", "oneOf", "allOf", "$ref", "$defs"];
        let text = schema.to_string();
        schema["type"] != "object"
            || !schema["properties"].is_object()
            || root.iter().any(|name| schema.get(name).is_some())
            || text.contains("\"type\":\"array\"") && !text.contains("\"items\"")
    };
    let tool = tools.iter().find(wrong)?;
    Some(tool["function"]["name"].to_string())
}

/// What the tools said, in the last request.
fn results(model: &Model) -> Vec<String> {
    model.completions().last().unwrap().messages("tool")
}

fn has_event(frames: &[Value], kind: &str, text: &str) -> bool {
    frames.iter().any(|frame| {
        frame["eventType"] == kind
            && frame["content"]
                .as_str()
                .is_some_and(|said| said.contains(text))
    })
}

/// The server on the network, in a process of the test's own.
struct Http {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Http {
    fn start(folder: &Path, name: &str, away: &str) -> Self {
        let log = folder.join(format!("{name}.log"));
        let mut child = Command::new("python3")
            .arg(folder.join("server.py"))
            .arg("http")
            .env("KEY", KEY)
            .env("LOG", &log)
            .env("AWAY", away)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap();
        Self { child, port, log }
    }

    fn seen(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_the_sandbox_gives_an_agent_the_tools_that_are_allowed_and_each_session_has_its_own()
 {
    let entries = program(
        "box",
        "env = { GREETING = \"hello\" }\ntools = [\"echo\", \"count\", \"write\", \"env\", \"picture\", \"fail\", \"ask\", \"dotted.name\", \"half\"]",
    );
    let fixture = Fixture::new(&entries);
    let model = Model::start(|number, seen| {
        // The host asks first whether the key is good.
        if number == usize::MAX {
            ModelTurn::Say(String::new())
        } else if let Some(tool) = unfit(seen) {
            ModelTurn::Refuse(400, format!("Invalid schema for function {tool}"))
        } else if seen.messages("tool").is_empty() {
            let dotted = told(seen)
                .into_iter()
                .find(|name| name.starts_with("box__dotted"));
            let dotted = dotted.expect("a name that models do not take is made one");
            ModelTurn::Call(
                [
                    ("box__echo", json!({"text": "a\u{1b}[2Jb"})),
                    ("box__count", json!({})),
                    ("box__count", json!({})),
                    ("box__write", json!({"text": "by mcp"})),
                    ("box__env", json!({})),
                    ("box__picture", json!({})),
                    ("box__fail", json!({})),
                    ("box__ask", json!({})),
                    (&dotted, json!({"text": "dots"})),
                    ("box__half", json!({})),
                    ("box__secret", json!({})),
                    ("terminal", json!({"command": "cat made-by-mcp.txt"})),
                ]
                .map(|(name, arguments)| (name.to_owned(), arguments))
                .into(),
            )
        } else {
            call("finish", json!({"message": "Done."}))
        }
    })
    .await;
    let host = fixture.host(&model).start();
    let mut one = Socket::open(&host, "alice", task()).await;
    one.completed().await;
    let first = results(&model);
    let mut two = Socket::open(&host, "alice", task()).await;
    two.completed().await;
    assert_eq!(
        results(&model),
        first,
        "a session's program is its own, and counts from the beginning"
    );

    let tools = told(&model.completions()[0]);
    let at = |name: &str| tools.iter().position(|tool| tool == name);
    assert!(
        at("terminal") < at("box__echo") && at("box__echo").is_some(),
        "{tools:?}"
    );
    assert!(at("box__secret").is_none(), "it is not allowed: {tools:?}");
    let wanted = [
        "you said a[2Jb",
        "count 1",
        "count 2",
        "written in /workspace",
        "GREETING is hello",
        "[A picture (image/png, 4 bytes in base64) is left out: only text is passed on.]",
        "it did not work",
        "sampling: error, elicitation: decline",
        "you said dots",
        "half \u{fffd} and \u{1f600}",
        "There is no tool `box__secret`",
        "by mcp\n[exit code 0]",
    ];
    assert_eq!(first.len(), wanted.len(), "{first:#?}");
    for (said, wanted) in first.iter().zip(wanted) {
        assert!(said.contains(wanted), "{said:?} instead of {wanted:?}");
    }
    let frames = &one.frames;
    assert!(
        has_event(frames, "CmdRunAction", "box__env {}"),
        "{frames:?}"
    );
    assert!(
        has_event(frames, "CmdOutputObservation", "GREETING is hello"),
        "{frames:?}"
    );
    assert!(
        has_event(frames, "AgentErrorObservation", "it did not work"),
        "{frames:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_program_harms_nothing_but_its_own_call_and_is_started_again() {
    let entries =
        program("box", "tools = [\"*\"]\ntime = 20") + &program("other", "tools = [\"count\"]");
    let fixture = Fixture::new(&entries);
    let model = Model::start(|number, _| match number {
        0 => calls([
            ("other__count", json!({})),
            ("box__count", json!({})),
            ("box__flood", json!({})),
            ("box__count", json!({})),
            ("box__endless", json!({})),
            ("box__junk", json!({"text": "well"})),
            ("box__big", json!({})),
            ("box__crash", json!({})),
            ("box__crash", json!({})),
            ("box__count", json!({})),
            ("other__count", json!({})),
            ("terminal", json!({"command": "echo well"})),
        ]),
        _ => call("finish", json!({"message": "Done."})),
    })
    .await;
    let host = fixture.host(&model).start();
    let mut socket = Socket::open(&host, "alice", task()).await;
    socket.completed().await;
    let said = results(&model);
    let lost = "was lost under the call: it said more than the 4194304 bytes";
    let wanted = [
        "count 1",
        "count 1",
        lost,
        "count 1",
        lost,
        "you said well",
        "bytes left out",
        "It ended with exit code 7. It said: it fell over",
        "It ended with exit code 7. It said: it fell over",
        "ended 4 times within a minute, and is not started again for a while",
        "count 2",
        "well\n[exit code 0]",
    ];
    assert_eq!(said.len(), wanted.len(), "{said:#?}");
    for (said, wanted) in said.iter().zip(wanted) {
        let start: String = said.chars().take(300).collect();
        assert!(said.contains(wanted), "{start:?} instead of {wanted:?}");
        assert!(said.len() < 31_000, "{} bytes are told", said.len());
    }
    assert!(
        host.get("alice", "/api/v1/sessions").await.status == 200,
        "the host is well"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_do_not_start_are_left_out_and_said_and_the_session_goes_on() {
    let shell = |name: &str, script: &str| {
        format!(
            "[mcp.{name}]\ncommand = [\"sh\", \"-c\", '''{script}''']\ntools = [\"*\"]\nstart_time = 1\n"
        )
    };
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let entries = [
        "[mcp.missing]\ncommand = [\"no-such-program\"]\ntools = [\"*\"]\n".to_owned(),
        shell("dead", "echo I cannot >&2; exit 3"),
        shell("mute", "exec sleep 1000"),
        shell("words", "read line; echo hello; cat"),
        shell(
            "wrong",
            r#"read line; echo '{"jsonrpc":"2.0","id":0,"result":{"tools":[]}}'; cat"#,
        ),
        format!("[mcp.nobody]\nurl = \"http://127.0.0.1:{port}/mcp\"\ntools = [\"*\"]\n"),
        program("well", "tools = [\"echo\"]"),
        program("others", "tools = [\"*\"]\npolicies = [\"mock\"]"),
    ];
    let fixture = Fixture::new(&entries.concat());
    let model = Model::start(|number, _| match number {
        0 => call("well__echo", json!({"text": "hi"})),
        _ => call("finish", json!({"message": "Done."})),
    })
    .await;
    let host = fixture.host(&model).start();
    let mut socket = Socket::open(&host, "alice", task()).await;
    socket.completed().await;
    let mcp: Vec<_> = told(&model.completions()[0])
        .into_iter()
        .filter(|name| name.contains("__"))
        .collect();
    assert_eq!(mcp, ["well__echo"]);
    assert_eq!(results(&model), ["you said hi"]);
    for (name, why) in [
        (
            "missing",
            "There is no program no-such-program in the sandbox.",
        ),
        ("dead", "It ended with exit code 3. It said: I cannot"),
        ("mute", "it was not ready within 1 second."),
        ("words", "it was not ready within 1 second."),
        ("wrong", "it does not speak the protocol"),
        ("nobody", "127.0.0.1 cannot be reached"),
    ] {
        let sentence = format!("The tools of {name} are not there: ");
        let said = socket.frames.iter().find_map(|frame| {
            let said = frame["content"]
                .as_str()
                .filter(|said| said.starts_with(&sentence))?;
            Some(said.to_owned())
        });
        let said = said.unwrap_or_else(|| panic!("nothing is said of {name}: {:?}", socket.frames));
        assert!(said.contains(why), "{said:?} instead of {why:?}");
        // The operator is told.
        host.says(&sentence).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_too_long_or_is_stopped_is_given_up_and_the_server_is_told() {
    let entries = program("box", "tools = [\"hang\", \"echo\"]\ntime = 1");
    let fixture = Fixture::new(&entries);
    let model = Model::start(|number, _| match number {
        0 => calls([
            ("box__hang", json!({})),
            ("box__echo", json!({"text": "still here"})),
        ]),
        1 => call("terminal", json!({"command": "cat cancelled.txt"})),
        2 => call("finish", json!({"message": "Done."})),
        _ => call("box__hang", json!({})),
    })
    .await;
    let mut host = fixture.host(&model).start();
    let mut socket = Socket::open(&host, "alice", task()).await;
    socket.completed().await;
    let said = results(&model);
    assert!(
        said[0].contains("did not answer within 1 second"),
        "{said:?}"
    );
    assert_eq!(said[1], "you said still here", "it goes on");
    assert!(said[2].contains("notifications/cancelled"), "{said:?}");

    // A stop in the middle of a call ends the session at once, and the program with it.
    let longer = entries.replace("time = 1", "time = 600");
    std::fs::write(fixture.path("lucid.toml"), longer).unwrap();
    host.stop().await;
    host.start_again();
    let mut socket = Socket::open(&host, "alice", task()).await;
    let session = socket.session().await;
    socket
        .until("the call", |frame| {
            frame["content"]
                .as_str()
                .is_some_and(|said| said.starts_with("box__hang"))
        })
        .await;
    let workspace = host.workspace(&session);
    socket.send(json!({"type": "stop"})).await;
    within("the session to end", socket.end()).await;
    eventually("the workspace to go", async || {
        (!workspace.exists()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_the_network_is_asked_with_its_key_which_nobody_sees() {
    let fixture = Fixture::new("");
    let folder = fixture.folder.path();
    let elsewhere = Http::start(folder, "elsewhere", "");
    let away = format!("http://localhost:{}/mcp", elsewhere.port);
    let wiki = Http::start(folder, "wiki", &away);
    let entry = |name: &str, path: &str, rest: &str| {
        format!(
            "[mcp.{name}]\nurl = \"http://127.0.0.1:{}{path}\"\n{rest}\n",
            wiki.port
        )
    };
    let all = "key = \"WIKI_KEY\"\ntools = [\"*\"]";
    let entries = [
        entry("wiki", "/mcp", &format!("{all}\ntime = 1")),
        entry("near", "/near", all),
        entry("away", "/away", all),
        entry("keyless", "/mcp", "tools = [\"*\"]"),
        entry("wrong", "/mcp", "key = \"WRONG_KEY\"\ntools = [\"*\"]"),
    ];
    std::fs::write(fixture.path("lucid.toml"), entries.concat()).unwrap();
    let model = Model::start(|number, _| match number {
        0 => calls([
            ("wiki__echo", json!({"text": "hi"})),
            ("wiki__key", json!({})),
            ("wiki__hang", json!({})),
            ("wiki__big", json!({})),
            ("wiki__fail", json!({})),
            ("wiki__crash", json!({})),
            ("near__echo", json!({"text": "near"})),
        ]),
        _ => call("finish", json!({"message": "Done."})),
    })
    .await;
    let host = fixture
        .host(&model)
        .set("WIKI_KEY", KEY)
        .set("WRONG_KEY", WRONG)
        .start();
    let mut socket = Socket::open(&host, "alice", task()).await;
    socket.completed().await;
    let said = results(&model);
    let wanted = [
        "you said hi",
        "the key is Bearer [secret]",
        "did not answer within 1 second",
        "bytes left out",
        "it did not work",
        "The server wiki failed: no such tool.",
        "you said near",
    ];
    assert_eq!(said.len(), wanted.len(), "{said:#?}");
    for (said, wanted) in said.iter().zip(wanted) {
        assert!(said.contains(wanted), "{said:?} instead of {wanted:?}");
    }
    let frames = json!(socket.frames).to_string();
    for said in [
        "The tools of keyless are not there: it answered with HTTP 401: not with None.",
        "The tools of wrong are not there: it answered with HTTP 401: not with Bearer [secret].",
        "The tools of away are not there: 127.0.0.1 answered with a redirect (HTTP 307) that is not followed",
    ] {
        assert!(frames.contains(said), "{said} is not in {frames}");
    }
    assert_eq!(
        elsewhere.seen(),
        "",
        "a redirect to another server is not followed"
    );

    eventually("the call that hung to be hung up", async || {
        wiki.seen().contains("hung up").then_some(())
    })
    .await;
    socket.send(json!({"type": "stop"})).await;
    socket.end().await;
    eventually("the servers' sessions to end", async || {
        (wiki.seen().matches("DELETE s-").count() == 2).then_some(())
    })
    .await;
    let log = wiki.seen();
    assert!(!log.contains("GET"), "no stream is held open: {log}");
    assert!(
        log.contains("POST /mcp tools/call s-"),
        "calls are in their session: {log}"
    );
    let asked: String = model
        .completions()
        .iter()
        .map(|seen| seen.body.clone())
        .collect();
    for (what, text) in [
        ("frames", &frames),
        ("prompts", &asked),
        ("the host's log", &host.log()),
    ] {
        for key in [KEY, WRONG] {
            assert!(!text.contains(key), "a key is in {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_manifest_holds_for_the_next_session() {
    let fixture = Fixture::new(&program("box", "tools = [\"echo\"]"));
    let model = Model::start(|_, _| call("finish", json!({"message": "Done."}))).await;
    let host = fixture.host(&model).start();
    let mut socket = Socket::open(&host, "alice", task()).await;
    socket.completed().await;
    assert!(told(&model.completions()[0]).contains(&"box__echo".to_owned()));
    std::fs::write(
        fixture.path("lucid.toml"),
        program("crate", "tools = [\"count\"]"),
    )
    .unwrap();
    eventually("a session with the new tools", async || {
        let mut socket = Socket::open(&host, "alice", task()).await;
        socket.completed().await;
        let tools = told(model.completions().last().unwrap());
        let new = tools.contains(&"crate__count".to_owned());
        assert!(new || tools.contains(&"box__echo".to_owned()), "{tools:?}");
        assert!(
            !new || !tools.contains(&"box__echo".to_owned()),
            "{tools:?}"
        );
        new.then_some(())
    })
    .await;
}
