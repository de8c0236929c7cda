//! The key, looked for in every place it must not be: guests' memory, the log, the database, frames,
//! what the host prints, errors that echo it, and what a process leaves behind that is killed or dies.

use std::os::unix::process::ExitStatusExt as _;

use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};

use lucid_tests::{
    Host, Model, ModelTurn, Socket, call, command, eventually, guest_memories, text_of,
};

/// As a key of a user's own, with characters that every encoding changes.
fn key() -> String {
    format!(
        "sk-{}/+=?>~{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    )
}

/// The ways in which an answer may hold it.
fn echoes(key: &str) -> Vec<String> {
    let percent = |upper: bool| -> String {
        key.bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
                _ if upper => format!("%{byte:02X}"),
                _ => format!("%{byte:02x}"),
            })
            .collect()
    };
    let mut all = vec![
        key.to_owned(),
        percent(true),
        percent(false),
        key.replace('/', "\\/"),
    ];
    for before in ["", "x", "xy", "Bearer "] {
        all.push(STANDARD.encode(format!("{before}{key}")));
        all.push(URL_SAFE_NO_PAD.encode(format!("{before}{key}\n")));
    }
    all
}

/// Pieces of the key in each of its forms: long enough to be no accident.
fn traces(key: &str) -> Vec<String> {
    let mut traces = vec![key[3..19].to_owned(), key[key.len() - 16..].to_owned()];
    for before in ["", "x", "xy"] {
        let encoded = STANDARD.encode(format!("{before}{key}"));
        traces.push(encoded[8..28].to_owned());
    }
    traces
}

#[track_caller]
fn holds_none(what: &str, bytes: &[u8], key: &str) {
    for trace in traces(key) {
        let found = bytes
            .windows(trace.len())
            .any(|part| part == trace.as_bytes());
        assert!(!found, "{what} holds the key, as {trace}");
    }
}

fn all_files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
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

fn storage_holds_none(host: &Host, key: &str) {
    let files = all_files(&host.folder().join("storage"));
    assert!(
        files.iter().any(|file| file.ends_with("lucid.db")),
        "no database: {files:?}"
    );
    for file in files {
        holds_none(
            &file.display().to_string(),
            &std::fs::read(&file).unwrap_or_default(),
            key,
        );
    }
}

fn ended(frame: &Value) -> bool {
    frame["type"] == "error" || frame["status"] == "completed"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_provider_echoes_is_found_nowhere() {
    let key = key();
    let said = echoes(&key).join(" and ");
    let model = Model::start(move |number, request| {
        // As it came, whatever the header is called.
        match number {
            usize::MAX => ModelTurn::Say("fine".into()),
            0 => call(
                "terminal",
                json!({"command": format!("echo '{}'", echoes(request_key(request)).join("' '"))}),
            ),
            1 => ModelTurn::Say(said.clone()),
            2 => ModelTurn::Refuse(400, format!("Wrong: {said}")),
            3 => ModelTurn::Refuse(401, format!("Incorrect API key provided: {said}")),
            _ => ModelTurn::Refuse(403, said.clone()),
        }
    })
    .await;
    let mut host = Host::with_defaults()
        .set("LLM_BASE_URL", &model.url)
        .set("DEFAULT_POLICY", "coder")
        .set("RUST_LOG", "debug")
        .start();
    let features = json!(["seq", "deltas", "diffs", "usage"]);
    let first =
        json!({"task": "Go", "modelProvider": "openai", "apiKey": key, "features": features});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket.until("an end", ended).await;
    for _ in 0..3 {
        socket.say("Again").await;
        socket.until("an end", ended).await;
    }
    assert!(
        model.completions().len() >= 4,
        "{} calls",
        model.completions().len()
    );
    for request in model.completions() {
        assert_eq!(request_key(&request), key);
        holds_none("a request's body", request.body.as_bytes(), &key);
    }
    let frames = json!(socket.frames).to_string();
    assert!(
        frames.contains("[secret]"),
        "nothing was blanked, so nothing was tried: {frames}"
    );
    holds_none("a frame", frames.as_bytes(), &key);

    let details = host
        .get("alice", &format!("/api/v1/sessions/{session}"))
        .await;
    holds_none("what is said of a session", details.text.as_bytes(), &key);
    let chat = format!("/api/v1/chats/{}", details.body["chatId"].as_str().unwrap());
    holds_none(
        "the chat",
        host.get("alice", &chat).await.text.as_bytes(),
        &key,
    );
    storage_holds_none(&host, &key);

    // Killed in the midst, it leaves no more than that; and the sealed key still opens.
    host.crash();
    storage_holds_none(&host, &key);
    holds_none("what the host printed", host.log().as_bytes(), &key);
    host.start_again();
    let first = json!({"sessionId": session, "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let before = model.completions().len();
    socket.say("Once more").await;
    model.asked(before + 1).await;
    assert_eq!(request_key(model.completions().last().unwrap()), key);
    host.delete("alice", &format!("/api/v1/sessions/{session}"))
        .await
        .ok();
    holds_none("what the host printed", host.log().as_bytes(), &key);
    storage_holds_none(&host, &key);
}

/// The key that came with a request.
fn request_key(request: &lucid_tests::ModelRequestSeen) -> &str {
    let header = request.headers["authorization"].to_str().unwrap();
    header.strip_prefix("Bearer ").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echoed_key_is_in_no_guests_memory() {
    let key = key();
    let marker = format!("marker-{}", uuid::Uuid::new_v4().simple());
    let said = format!("{marker} {}", echoes(&key).join(" "));
    let model = Model::start(move |_, _| ModelTurn::Hang(said.clone())).await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", &key)
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Look at me", "features": ["deltas"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    socket
        .until("a delta", |frame| frame["type"] == "delta")
        .await;
    let guests = guest_memories(host.pid());
    let marked = |memory: &&Vec<u8>| {
        memory
            .windows(marker.len())
            .any(|part| part == marker.as_bytes())
    };
    assert!(
        guests.iter().any(|memory| marked(&memory)),
        "these are not the guests' memories"
    );
    for memory in &guests {
        holds_none("a guest's memory", memory, &key);
    }
    holds_none("a frame", json!(socket.frames).to_string().as_bytes(), &key);
}

#[test]
fn a_host_that_does_not_start_does_not_print_a_key() {
    let key = key();
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("ANTHROPIC_API_KEY", format!("{key} with a space")),
        ("GOOGLE_API_KEY", format!("{key}\nx")),
        (
            "LLM_BASE_URL",
            format!(
                "https://user:{}@models.example/v1",
                key.replace(['/', '?', '='], "")
            ),
        ),
        (
            "OPENAI_BASE_URL",
            format!("https://models.example/v1?key={key}"),
        ),
        ("PORT", "wrong".to_owned()),
    ] {
        let output = command(folder.path(), &["serve"])
            .env("LLM_API_KEY", &key)
            .env("OPENAI_API_KEY", &key)
            .env("RUST_LOG", "trace")
            .env(name, value)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{name}");
        let printed = text_of(&output.stdout) + &text_of(&output.stderr);
        assert!(printed.contains(name), "{printed}");
        holds_none(name, printed.as_bytes(), &key);
    }
}

/// A model that says a text a few characters at a time.
async fn drip(said: String) -> String {
    let answer = move || {
        let chunk = |delta: Value, reason: Option<&str>| {
            let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
            let chunk = json!({"id": "1", "object": "chat.completion.chunk", "created": 1,
                "model": "drip", "choices": [choice]});
            format!("data: {chunk}\n\n")
        };
        let said: Vec<char> = said.chars().collect();
        let pieces = said.chunks(5).map(|piece| {
            let piece: String = piece.iter().collect();
            chunk(json!({"content": piece}), None)
        });
        let text: String = pieces.collect();
        let text = text + &chunk(json!({}), Some("stop")) + "data: [DONE]\n\n";
        async { ([("content-type", "text/event-stream")], text) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_provider_echoes_in_pieces_is_shown_to_nobody() {
    let key = key();
    let said = format!("Well: {} And that is all, sk-", echoes(&key).join(" and "));
    let url = drip(said).await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", &key)
        .set("LLM_BASE_URL", &url)
        .start();
    let first = json!({"task": "Go", "modelProvider": "openai", "features": ["deltas"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    socket.until("an end", ended).await;
    let deltas = socket
        .frames
        .iter()
        .filter(|frame| frame["type"] == "delta");
    let texts: Vec<&str> = deltas
        .filter_map(|frame| frame["content"].as_str())
        .collect();
    let shown = texts.concat();
    assert!(
        texts.len() > 1,
        "that did not come in pieces: {:?}",
        socket.frames
    );
    assert!(shown.starts_with("Well: [secret] and "), "{shown}");
    assert!(shown.ends_with("And that is all, sk-"), "{shown}");
    holds_none("what was shown of the answer", shown.as_bytes(), &key);
    let frames = json!(socket.frames).to_string();
    holds_none("a frame", frames.as_bytes(), &key);
    storage_holds_none(&host, &key);
}

/// What is in a folder, not looking further down.
fn names(folder: &std::path::Path) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_of_a_signal_leaves_no_memory_behind() {
    let key = key();
    // `ulimit -c unlimited`, as far as this machine allows it, for all that is started from here.
    let most = getrlimit(Resource::Core).maximum;
    let unlimited = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Core, unlimited).unwrap();

    // Where this machine leaves the core of a process that does not forbid it: here, or elsewhere.
    let folder = tempfile::tempdir().unwrap();
    std::process::Command::new("sh")
        .args(["-c", "kill -ABRT $$"])
        .env("KEY", &key)
        .current_dir(folder.path())
        .status()
        .unwrap();
    for left in all_files(folder.path()) {
        let core = std::fs::read(&left).unwrap();
        let found = core.windows(key.len()).any(|part| part == key.as_bytes());
        assert!(found, "a core dump is no place to look for a key");
    }

    for signal in [Signal::ABORT, Signal::SEGV] {
        let model = Model::start(|_, _| ModelTurn::Hang("Let me see".into())).await;
        let mut host = Host::with_defaults()
            .set("LLM_API_KEY", &key)
            .set("LLM_BASE_URL", &model.url)
            .start();
        let first = json!({"task": "Think", "features": ["deltas"]});
        let mut socket = Socket::open(&host, "alice", first).await;
        socket
            .until("a delta", |frame| frame["type"] == "delta")
            .await;
        let before = names(host.folder());
        let about =
            |what: &str| std::fs::read_to_string(format!("/proc/{}/{what}", host.pid())).unwrap();
        // What holds wherever this machine would leave it.
        let limits = about("limits");
        let limit = limits
            .lines()
            .find(|line| line.starts_with("Max core file"));
        let words: Vec<&str> = limit.unwrap().split_whitespace().collect();
        assert_eq!(words[4..6], ["0", "0"], "{limits}");
        if std::path::Path::new("/proc/self/coredump_filter").exists() {
            assert_eq!(about("coredump_filter").trim(), "00000000");
        }

        let pid = Pid::from_raw(i32::try_from(host.pid()).unwrap()).unwrap();
        // Again and again, since a handler takes the first SIGSEGV for a stack that overflowed. Not
        // SIGKILL, which would end a core dump too.
        let status = eventually("the host to die", async || {
            kill_process(pid, signal).unwrap();
            let stat = about("stat");
            let state = stat.rsplit(") ").next()?.chars().next()?;
            (state == 'Z').then(|| stat.split_whitespace().last()?.parse::<i32>().ok())
        })
        .await;
        let status = std::process::ExitStatus::from_raw(status.unwrap());
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
        assert!(!status.core_dumped(), "{signal:?} left a core dump");
        host.crash();
        assert_eq!(names(host.folder()), before, "{signal:?} left something");
        storage_holds_none(&host, &key);
    }
}
