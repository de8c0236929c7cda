//! The agent on a real repository: cloned over smart HTTP, its failing test fixed by a scripted model.

use std::process::Command;

use serde_json::{Value, json};

use lucid_tests::{
    GitServer, Host, Model, ModelTurn, Socket, call, calls, event, kinds, repository, seq,
};

const KEY: &str = "sk-the-tests-own-key-0123456789";
/// It is for OpenAI itself, and must not be sent anywhere else.
const OTHER_KEY: &str = "sk-for-openai-alone-9876543210";
const BROKEN: &str = "def add(a, b):\n    return a - b\n";
const TEST: &str = "import unittest\n\nfrom calc import add\n\n\nclass Calc(unittest.TestCase):\n    \
                    def test_add(self):\n        self.assertEqual(add(2, 3), 5)\n";
const RUN: &str = "python3 -B -m unittest -q test_calc 2>&1";
const PUSH: &str = "git switch -q -c lucid/fix && git commit -q -a -m 'Add' && git push -q -u origin lucid/fix 2>&1 && echo pushed";
const LONG: &str = "python3 -c \"print('x' * 9000)\"";

#[tokio::test(flavor = "multi_thread")]
async fn the_coder_fixes_a_real_repository_and_every_message_is_kept_uncut() {
    let git = GitServer::start().await;
    let source = repository(&[
        ("calc.py", BROKEN),
        ("test_calc.py", TEST),
        ("AGENTS.md", "Always run the tests with python3.\n"),
    ]);
    let url = git.publish("calc", source.path());

    let model = Model::start(|number, _| match number {
        0 => call("terminal", json!({"command": RUN})),
        1 => calls([
            ("think", json!({"thought": "The sign is wrong."})),
            (
                "file_editor",
                json!({"command": "str_replace", "path": "/workspace/calc.py",
                    "old_str": "return a - b", "new_str": "return a + b"}),
            ),
        ]),
        2 => calls([
            ("terminal", json!({"command": RUN})),
            ("terminal", json!({"command": LONG})),
        ]),
        3 => call("terminal", json!({"command": PUSH})),
        4 => call("finish", json!({"message": "add() adds now."})),
        _ => ModelTurn::Say("You have thanked me already.".into()),
    })
    .await;
    let mut host = Host::with_defaults()
        .set("LLM_API_KEY", KEY)
        .set("OPENAI_API_KEY", OTHER_KEY)
        .set("LLM_BASE_URL", &model.url)
        .start();

    let task = format!("Make the tests pass. {}", "And be careful. ".repeat(200));
    let first = json!({"task": task, "repoUrl": url, "branch": "main", "modelProvider": "openai",
        "gitUserName": "An Agent", "gitUserEmail": "agent@example.com", "projectId": "calc", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    assert_eq!(
        socket.frames.last().unwrap()["status"],
        "ready",
        "{:?}",
        socket.frames
    );
    socket.completed().await;
    let frames = socket.frames.clone();

    // In order, without a gap.
    let numbers: Vec<u64> = frames
        .iter()
        .map(|frame| seq(frame).unwrap_or_else(|| panic!("no seq: {frame}")))
        .collect();
    assert!(
        numbers.windows(2).all(|two| two[1] == two[0] + 1),
        "{numbers:?}"
    );
    let kinds = kinds(&frames);
    let at = |kind: &str| {
        kinds
            .iter()
            .position(|found| found == kind)
            .unwrap_or_else(|| panic!("no {kind}: {kinds:?}"))
    };
    assert!(at("status:ready") < at("task_start"), "{kinds:?}");
    assert!(at("task_start") < at("action:CmdRunAction"), "{kinds:?}");
    assert!(
        at("action:CmdRunAction") < at("observation:CmdOutputObservation"),
        "{kinds:?}"
    );
    assert!(
        at("observation:CmdOutputObservation") < at("action:FileEditAction"),
        "{kinds:?}"
    );
    assert!(
        at("action:FileEditAction") < at("observation:FileEditObservation"),
        "{kinds:?}"
    );
    assert_eq!(kinds.last().unwrap(), "status:completed");
    assert_eq!(
        kinds
            .iter()
            .filter(|kind| *kind == "action:CmdRunAction")
            .count(),
        5,
        "the model's four commands, and the agent's look at what git says: {kinds:?}"
    );
    assert!(!kinds.iter().any(|kind| kind == "error"), "{kinds:?}");

    let outputs: Vec<_> = frames
        .iter()
        .filter(|frame| frame["eventType"] == "CmdOutputObservation")
        .collect();
    assert_eq!(outputs.len(), 5, "{kinds:?}");
    assert_ne!(
        outputs[0]["exitCode"], 0,
        "the test passed before it was fixed: {}",
        outputs[0]
    );
    assert!(
        outputs[0]["content"].as_str().unwrap().contains("-1 != 5"),
        "{}",
        outputs[0]
    );
    assert_eq!(outputs[1]["exitCode"], 0, "{}", outputs[1]);
    assert_eq!(event(&frames, "CmdRunAction")["command"], RUN);
    assert_eq!(
        event(&frames, "FileEditAction")["path"],
        "/workspace/calc.py"
    );
    for frame in &frames {
        assert!(
            frame["content"]
                .as_str()
                .unwrap_or_default()
                .chars()
                .count()
                <= 2000,
            "{frame}"
        );
        assert!(
            frame["thought"]
                .as_str()
                .unwrap_or_default()
                .chars()
                .count()
                <= 1000,
            "{frame}"
        );
    }

    // The work is really done: the repository's own test, run by us.
    let workspace = checkout(&host.workspace(&session));
    let output = Command::new("python3")
        .args(["-B", "-m", "unittest", "-q", "test_calc"])
        .current_dir(&workspace)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    // What the model was told: the tools' results, and what the repository says to agents.
    let asked = model.completions();
    assert_eq!(asked.len(), 5);
    assert!(
        asked[0].body.contains("Always run the tests with python3."),
        "AGENTS.md was not read: {}",
        asked[0].body
    );
    assert!(
        asked[0].messages("user").concat().contains(&task),
        "the model did not get the whole task"
    );
    assert!(
        asked[1].messages("tool")[0].contains("-1 != 5"),
        "{:?}",
        asked[1].messages("tool")
    );
    assert_eq!(
        asked[2].messages("tool").len(),
        3,
        "{:?}",
        asked[2].messages("tool")
    );

    // The key went to the model as a Bearer token, and nowhere else.
    for request in model.seen() {
        assert_eq!(
            request.headers["authorization"],
            format!("Bearer {KEY}").as_str()
        );
        let headers = request
            .headers
            .iter()
            .filter(|(name, _)| *name != "authorization");
        assert!(!request.body.contains(KEY) && !request.uri.contains(KEY));
        assert!(
            !format!("{request:?}").contains(OTHER_KEY),
            "another provider's key was sent"
        );
        assert!(
            headers
                .into_iter()
                .all(|(_, value)| !String::from_utf8_lossy(value.as_bytes()).contains(KEY))
        );
    }
    assert!(
        frames.iter().all(|frame| !frame.to_string().contains(KEY)),
        "a frame holds the key"
    );
    assert!(!host.log().contains(KEY), "the host's log holds the key");
    assert_eq!(
        holding(&host.folder().join("storage"), KEY.as_bytes()),
        Vec::<std::path::PathBuf>::new()
    );

    // The chat holds all of it, uncut.
    let chats = host.get("alice", "/api/v1/chats").await.ok();
    let id = chats["chats"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(chats["chats"][0]["agentSessionId"], session.as_str());
    let messages = lucid_tests::eventually("the whole chat", async || {
        let chat = host.get("alice", &format!("/api/v1/chats/{id}")).await.ok();
        let messages = chat["messages"].as_array().unwrap().clone();
        (messages
            .iter()
            .filter(|message| message["eventType"] == "CmdOutputObservation")
            .count()
            == 5)
            .then_some(messages)
    })
    .await;
    assert_eq!(messages[0]["role"], "user");
    assert_eq!(messages[0]["eventType"], "InitialTask");
    assert_eq!(messages[0]["content"].as_str().unwrap().trim(), task.trim());
    assert!(
        messages[1..]
            .iter()
            .all(|message| message["role"] == "assistant"),
        "{messages:#?}"
    );
    let long = messages.iter().any(|message| {
        message["content"]
            .as_str()
            .unwrap()
            .contains(&"x".repeat(9000))
    });
    assert!(long, "a message was cut");
    let recorded: Vec<_> = messages
        .iter()
        .filter_map(|message| message["eventType"].as_str())
        .collect();
    let shown: Vec<_> = frames
        .iter()
        .filter(|frame| {
            ["action", "observation", "error"]
                .contains(&frame["event"].as_str().unwrap_or_default())
        })
        .filter(|frame| !frame["content"].as_str().unwrap_or_default().is_empty())
        .filter_map(|frame| frame["eventType"].as_str())
        .collect();
    assert_eq!(recorded[1..], shown);

    // What the log holds gives the same commands again, byte for byte, without the server.
    host.crash();
    let storage = host.folder().join("storage");
    let settings = [
        ("WORKSPACE_BASE_PATH", storage.to_str().unwrap()),
        ("SANDBOX_BACKEND", "none"),
    ];
    let config = lucid::config::Config::from_pairs(settings).unwrap();
    let app = Box::pin(lucid::server::App::start(config)).await.unwrap();
    let replay = app
        .sessions()
        .replay(session.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(replay.different, None);
    assert!(replay.same >= 6, "only {} steps were replayed", replay.same);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coder_that_never_finishes_ends_at_its_budget() {
    let model = Model::start(|_, _| call("terminal", json!({"command": "echo again"}))).await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", KEY)
        .set("LLM_BASE_URL", &model.url)
        .set("MAX_ITERATIONS", "3")
        .start();
    let mut socket = Socket::open(
        &host,
        "alice",
        json!({"task": "Never stop", "modelProvider": "openai"}),
    )
    .await;
    let ended = |frame: &serde_json::Value| {
        frame["type"] == "error" || frame["status"] == "completed" || frame["event"] == "error"
    };
    socket.until("the end", ended).await;
    assert!(
        model.completions().len() <= 3,
        "{} model calls",
        model.completions().len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_refuses_the_key_is_said_plainly_and_without_the_key() {
    let model =
        Model::start(|_, _| ModelTurn::Refuse(401, format!("Incorrect API key provided: {KEY}")))
            .await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", KEY)
        .set("LLM_BASE_URL", &model.url)
        .start();
    let mut socket = Socket::open(
        &host,
        "alice",
        json!({"task": "Go", "modelProvider": "openai"}),
    )
    .await;
    let read = socket
        .until("an error", |frame| {
            frame["type"] == "error" || frame["event"] == "error"
        })
        .await;
    assert!(
        !read.iter().any(|frame| frame.to_string().contains(KEY)),
        "a frame holds the key: {read:#?}"
    );
    assert!(!host.log().contains(KEY), "the host's log holds the key");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_words_come_as_deltas_diffs_and_usage_to_a_client_that_asks() {
    let model = Model::start(|number, _| match number {
        0 => call(
            "file_editor",
            json!({"command": "create", "path": "/workspace/a.txt", "file_text": "one\n"}),
        ),
        _ => ModelTurn::Say("I wrote one line for you.".into()),
    })
    .await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", KEY)
        .set("LLM_BASE_URL", &model.url)
        .start();
    let features = json!(["seq", "deltas", "diffs", "usage"]);
    let first = json!({"task": "Write a line", "modelProvider": "openai", "features": features});
    let mut socket = Socket::open(&host, "alice", first).await;
    let frames = socket.completed().await;
    let deltas: Vec<_> = frames
        .iter()
        .filter(|frame| frame["type"] == "delta")
        .collect();
    assert!(!deltas.is_empty(), "no delta: {frames:#?}");
    assert!(
        frames
            .iter()
            .any(|frame| frame.to_string().contains("+one")),
        "no diff: {frames:#?}"
    );
    assert!(
        frames
            .iter()
            .any(|frame| frame["type"] == "usage" || frame.get("usage").is_some()),
        "no usage: {frames:#?}"
    );
}

/// A PNG of one pixel.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_the_provider_refuses_does_not_end_the_session_and_is_not_sent_again() {
    let model = Model::start(|number, seen| match number {
        // Any request with a picture in it is wrong.
        _ if seen.body.contains("data:image/png;base64,") => {
            ModelTurn::Refuse(400, "Could not process image.".into())
        }
        0 => call(
            "terminal",
            json!({"command": format!("echo {PIXEL} | base64 -d > dot.png && head -c 40 dot.png > cut.png")}),
        ),
        1 => calls([
            ("file_editor", json!({"command": "view", "path": "cut.png"})),
            ("file_editor", json!({"command": "view", "path": "dot.png"})),
        ]),
        // 2 was refused.
        3 => call("terminal", json!({"command": "file dot.png"})),
        _ => call("finish", json!({"message": "I could not see it."})),
    })
    .await;
    let known = Host::with_defaults().start().get("alice", "/").await.ok()["llm_model"].clone();
    let host = Host::with_defaults()
        .set("LLM_API_KEY", KEY)
        .set("LLM_BASE_URL", &model.url)
        .set("LLM_MODEL", known.as_str().unwrap())
        .start();
    let first = json!({"task": "What is it?", "modelProvider": "openai", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let frames = socket.completed().await;
    assert!(
        !frames.iter().any(|frame| frame["type"] == "error"),
        "{frames:#?}"
    );
    let asked = model.completions();
    let bodies: Vec<bool> = asked
        .iter()
        .map(|seen| seen.body.contains("data:image/png"))
        .collect();
    assert_eq!(
        bodies,
        [false, false, true, false, false],
        "which requests held the picture"
    );
    for seen in &asked[3..] {
        let tools = seen.messages("tool").concat();
        assert!(
            tools.contains("cut.png begins like a picture"),
            "a picture that is cut off was shown: {tools}"
        );
        assert_eq!(
            seen.body
                .matches("picture that the provider refused was left out")
                .count(),
            1,
            "{}",
            seen.body
        );
    }
}

/// The checkout below a session's folder.
fn checkout(folder: &std::path::Path) -> std::path::PathBuf {
    if folder.join("test_calc.py").exists() {
        return folder.to_owned();
    }
    std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.join("test_calc.py").exists())
        .unwrap_or_else(|| panic!("no checkout below {}", folder.display()))
}

/// The files below a folder that hold some bytes.
fn holding(folder: &std::path::Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            found.extend(holding(&entry.path(), bytes));
        } else if kind.is_file() {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            if text.windows(bytes.len()).any(|window| window == bytes) {
                found.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_written_slightly_wrong_are_shown_logged_and_run_as_they_are_meant() {
    let odd = |name: &str, arguments: &str| {
        let call = vec![(name.to_owned(), arguments.to_owned())];
        ModelTurn::Odd(String::new(), call, "tool_calls")
    };
    let model = Model::start(move |number, _| match number {
        0 => odd("functions.terminal", "{}{\"command\": \"echo one\"}"),
        1 => odd(
            "Terminal",
            "{\"command\": \"echo two\necho three\", \"timeout\": \"20\",}",
        ),
        2 => odd(
            "file_editor",
            r#"{"command": "create", "path": "a.txt", "file_text": "x\ny\n"}"#,
        ),
        3 => odd(
            "file_editor",
            r#"{"command": "view", "path": "a.txt", "view_range": [1.0, "2"]}"#,
        ),
        4 => odd("terminal", r#"{"command": "grep \d"}"#),
        5 => odd(
            "finish",
            "```json\n{\"message\": \"Done.\", \"success\": \"true\"}\n```",
        ),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let mut socket = Socket::open(&host, "alice", json!({"task": "Be odd"})).await;
    socket.completed().await;
    let commands: Vec<&str> = socket
        .frames
        .iter()
        .filter(|frame| frame["eventType"] == "CmdRunAction")
        .map(|frame| frame["command"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(
        commands[..2],
        ["echo one", "echo two\necho three"],
        "{:#?}",
        socket.frames
    );
    // What cannot be mended without guessing was not run, and the model was told what is wrong.
    assert!(
        !commands.iter().any(|command| command.contains("grep")),
        "{commands:?}"
    );
    let asked = model.completions();
    let results = asked[5].messages("tool");
    assert!(
        results[0].contains("one") && results[1].contains("two\nthree"),
        "{results:?}"
    );
    assert!(
        results[3].contains('x') && results[3].contains('y'),
        "{results:?}"
    );
    assert!(results[4].contains("invalid escape"), "{results:?}");
    // The model reads its calls as they were run.
    let calls = &asked[2].json()["messages"];
    let calls: Vec<&Value> = calls
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["tool_calls"].is_array())
        .collect();
    assert_eq!(calls[0]["tool_calls"][0]["function"]["name"], "terminal");
    assert_eq!(
        calls[0]["tool_calls"][0]["function"]["arguments"],
        r#"{"command":"echo one"}"#
    );
}
