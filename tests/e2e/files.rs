//! A session's files over the running host: what changes is shown, what is there can be taken away,
//! and what is too much is refused.

use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::header::{HeaderMap, HeaderName};
use serde_json::{Value, json};

use lucid_tests::{
    Host, Model, ModelTurn, Socket, call, event, eventually, find, is_completed, seq, token, within,
};

/// A session of the mock that has played its script: its id, and its workspace's folder.
async fn played(host: &Host, user: &str) -> (String, PathBuf) {
    let mut socket = Socket::open(host, user, json!({"task": "Files", "projectId": "p"})).await;
    let session = socket.session().await;
    socket.completed().await;
    let hello = find(&host.workspace(&session), "hello.py").expect("hello.py is not on the disk");
    (session, hello.parent().unwrap().to_owned())
}

struct Bytes {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Bytes {
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }
}

fn request(host: &Host, user: &str, path: &str) -> reqwest::RequestBuilder {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client
        .get(format!("http://{}{path}", host.address()))
        .bearer_auth(token(user))
}

async fn bytes(host: &Host, user: &str, path: &str, headers: &[(&str, &str)]) -> Bytes {
    let mut request = request(host, user, path);
    for (name, value) in headers {
        request = request.header(name.parse::<HeaderName>().unwrap(), *value);
    }
    let answer = within("an answer", request.send()).await.unwrap();
    Bytes {
        status: answer.status().as_u16(),
        headers: answer.headers().clone(),
        body: within("a body", answer.bytes()).await.unwrap().to_vec(),
    }
}

fn escaped(text: &[u8]) -> String {
    text.iter().map(|byte| format!("%{byte:02x}")).collect()
}

fn download(session: &str, path: &str) -> String {
    let path = escaped(path.as_bytes());
    format!("/api/v1/files/download?session_id={session}&path={path}")
}

fn is_tree(frame: &Value) -> bool {
    frame["type"] == "file_tree"
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_background_process_writes_is_shown_after_the_task_at_most_twice_a_second() {
    let script = "for i in $(seq 1 60); do mkdir -p later/d$i; touch later/d$i/f; sleep 0.05; done; touch last";
    let command = format!("nohup sh -c '{script}' >/dev/null 2>&1 &");
    let model = Model::start(move |number, _| match number {
        0 => call("terminal", json!({"command": command})),
        _ => ModelTurn::Say("It goes on by itself.".into()),
    })
    .await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Go on", "modelProvider": "openai", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    let begun = std::time::Instant::now();
    socket.completed().await;
    let has_last = |frame: &Value| is_tree(frame) && frame["tree"].to_string().contains("/last");
    if !socket.frames.iter().any(has_last) {
        socket.until("the last file", has_last).await;
    }
    let trees: Vec<&Value> = socket
        .frames
        .iter()
        .filter(|frame| is_tree(frame))
        .collect();
    let most = 2 + 2 * begun.elapsed().as_secs() as usize + 2;
    assert!(trees.len() <= most, "{} trees, {most} at most", trees.len());
    assert!(
        trees.windows(2).all(|two| two[0]["tree"] != two[1]["tree"]),
        "the same tree twice"
    );
    let at = |fits: &dyn Fn(&Value) -> bool| socket.frames.iter().position(fits).unwrap();
    assert!(
        at(&is_completed) < at(&has_last),
        "the script was done before the task was"
    );
    let numbers: Vec<u64> = socket.frames.iter().filter_map(seq).collect();
    assert!(
        numbers.windows(2).all(|two| two[1] == two[0] + 1),
        "{numbers:?}"
    );

    // It is in the log: whoever comes later gets the very same.
    let all = json!({"sessionId": session, "lastSeq": 0, "features": ["seq"]});
    let mut again = Socket::open(&host, "alice", all).await;
    again.until("the last file", has_last).await;
    let of = |frames: &[Value]| -> Vec<Value> {
        let frames = frames.iter().filter(|frame| seq(frame).is_some());
        frames.cloned().collect()
    };
    let (then, now) = (of(&socket.frames), of(&again.frames));
    assert_eq!(then[then.len() - 1], now[now.len() - 1]);
    // No step was taken for it.
    assert_eq!(model.completions().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_downloaded_as_it_is_and_never_shown_as_a_page() {
    let host = Host::with_defaults().start();
    let (session, root) = played(&host, "alice").await;
    let content: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(root.join("data.bin"), &content).unwrap();
    let page = "<script>alert(1)</script>";
    let evil = "a\"; filename=x.html\r\nX-Evil: 1";
    for name in ["page.html", evil] {
        std::fs::write(root.join(name), page).unwrap();
    }
    std::fs::write(root.join("empty"), "").unwrap();
    std::fs::write(host.folder().join("outside"), "not yours").unwrap();
    std::os::unix::fs::symlink(host.folder().join("outside"), root.join("out")).unwrap();
    let get = async |path: &str, headers: &[(&str, &str)]| {
        bytes(&host, "alice", &download(&session, path), headers).await
    };

    let whole = get("/workspace/data.bin", &[]).await;
    assert_eq!(whole.status, 200);
    assert!(whole.body == content, "other bytes than those of the file");
    assert_eq!(whole.header("content-length"), "12000000");
    assert_eq!(whole.header("accept-ranges"), "bytes");
    for name in ["page.html", evil] {
        let shown = get(name, &[]).await;
        assert_eq!((shown.status, shown.body), (200, page.as_bytes().to_vec()));
        let headers = shown.headers;
        assert_eq!(headers["content-type"], "application/octet-stream");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["cache-control"], "no-store");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("sandbox"), "{policy}");
        let disposition = headers["content-disposition"].to_str().unwrap();
        assert!(disposition.starts_with("attachment; "), "{disposition}");
        assert_eq!(disposition.matches('"').count(), 2, "{disposition}");
        assert!(!headers.contains_key("x-evil"), "{headers:?}");
    }
    assert_eq!(get("empty", &[]).await.body, b"");

    let tag = whole.header("etag").to_owned();
    let part = get("data.bin", &[("range", "bytes=5-14"), ("if-range", &tag)]).await;
    assert_eq!((part.status, &part.body[..]), (206, &content[5..15]));
    assert_eq!(part.header("content-range"), "bytes 5-14/12000000");
    let end = get("data.bin", &[("range", "bytes=-10")]).await;
    assert_eq!(
        (end.status, &end.body[..]),
        (206, &content[content.len() - 10..])
    );
    let other = [("range", "bytes=5-14"), ("if-range", "\"another\"")];
    assert_eq!(get("data.bin", &other).await.status, 200);
    let beyond = get("data.bin", &[("range", "bytes=12000000-")]).await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), "bytes */12000000");
    assert_eq!(beyond.header("content-type"), "application/problem+json");

    for path in ["../outside", "out", "/workspace/../outside"] {
        host.get("alice", &download(&session, path))
            .await
            .refused(400, "Path traversal not allowed.");
    }
    host.get("alice", &download(&session, "nothing.txt"))
        .await
        .refused(404, "File not found: nothing.txt");
    host.get("alice", &download(&session, "/"))
        .await
        .problem(400);
    host.get("bob", &download(&session, "hello.py"))
        .await
        .problem(403);
    host.send("GET", &download(&session, "hello.py"), &[], None)
        .await
        .refused(401, "Authentication required");
    host.get("alice", "/api/v1/files/download")
        .await
        .problem(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_text_or_too_much_of_it_is_said_and_not_shown() {
    let host = Host::with_defaults().start();
    let (session, root) = played(&host, "alice").await;
    std::fs::write(root.join("image.png"), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR").unwrap();
    let huge = std::fs::File::create(root.join("huge.txt")).unwrap();
    huge.set_len(1 << 40).unwrap();
    std::fs::write(root.join("latin.txt"), b"caf\xe9").unwrap();
    let read = async |path: &str| {
        let path = format!("/api/v1/files/read?session_id={session}&path={path}");
        host.get("alice", &path).await
    };
    let said = read("image.png").await.problem(415);
    assert!(said.contains("binary file of 16 bytes"), "{said}");
    let said = read("huge.txt").await.problem(413);
    assert!(
        said.contains("1099511627776 bytes") && said.contains("Download"),
        "{said}"
    );
    assert_eq!(
        read("latin.txt").await.ok(),
        json!({"content": "caf\u{fffd}"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_path_is_asked_for_is_a_file_none_or_refused() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    let host = Host::with_defaults().start();
    let body = json!({"task": "not started"});
    let made = host.post("alice", "/api/v1/sessions", body).await.ok();
    let idle = made["sessionId"].as_str().unwrap().to_owned();
    let (session, root) = played(&host, "alice").await;
    symlink("itself", root.join("itself")).unwrap();
    symlink("/etc/passwd", root.join("out")).unwrap();
    let name = OsStr::from_bytes(b"caf\xe9 \xff.txt");
    std::fs::write(root.join(name), "read").unwrap();
    let pipe = Command::new("mkfifo").arg(root.join("pipe")).status();
    assert!(pipe.unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();

    let long = "n".repeat(300);
    let deep = "d/".repeat(5_000);
    let paths = [
        ("../x", 400),
        ("/workspace/../x", 400),
        ("a\0b", 400),
        ("none", 404),
        (&*long, 404),
        (&*deep, 404),
    ];
    let of_files = [
        ("itself", 404),
        ("itself/x", 404),
        ("hello.py/x", 404),
        ("pipe", 400),
        ("socket", 400),
        ("/", 400),
        ("out", 400),
    ];
    for route in ["read", "download"] {
        let url = |session: &str, path: &str| {
            let path = escaped(path.as_bytes());
            format!("/api/v1/files/{route}?session_id={session}&path={path}")
        };
        for (path, status) in paths {
            host.get("alice", &url(&idle, path)).await.problem(status);
        }
        host.get("alice", &url(&idle, "../x"))
            .await
            .refused(400, "Path traversal not allowed.");
        for (path, status) in paths.into_iter().chain(of_files) {
            host.get("alice", &url(&session, path))
                .await
                .problem(status);
        }
        let listed = format!("/api/v1/files/list?session_id={session}");
        let tree = host.get("alice", &listed).await.ok();
        let nodes = tree["tree"].as_array().unwrap();
        let node = nodes
            .iter()
            .find(|node| node["name"].as_str().unwrap().starts_with("caf"));
        let path = node.unwrap()["path"].as_str().unwrap();
        assert_eq!(path, "/caf\u{fffd}e9 \u{fffd}ff.txt");
        let got = bytes(&host, "alice", &url(&session, path), &[]).await;
        let body = String::from_utf8(got.body).unwrap();
        assert_eq!(got.status, 200, "{body}");
        assert!(body == "read" || body == r#"{"content":"read"}"#, "{body}");
    }
}

fn unpack(archive: &[u8]) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let file = to.path().join("archive.tar.gz");
    std::fs::write(&file, archive).unwrap();
    let unpacked = Command::new("tar")
        .args(["-xzf", "archive.tar.gz"])
        .current_dir(to.path())
        .output()
        .unwrap();
    assert!(
        unpacked.status.success(),
        "{}",
        String::from_utf8_lossy(&unpacked.stderr)
    );
    to
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_workspace_is_downloaded_as_an_archive_that_tar_reads() {
    let host = Host::with_defaults().start();
    let (session, root) = played(&host, "alice").await;
    std::fs::create_dir_all(root.join("node_modules/x")).unwrap();
    std::fs::write(root.join("node_modules/x/y.js"), "y").unwrap();
    std::fs::write(root.join("large"), vec![b'l'; 20 << 20]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("out")).unwrap();
    let path = format!("/api/v1/files/archive?session_id={session}");
    let archive = bytes(&host, "alice", &path, &[]).await;
    assert_eq!(archive.status, 200);
    assert_eq!(archive.header("content-type"), "application/gzip");
    let name = format!("workspace-{session}.tar.gz");
    assert!(archive.header("content-disposition").contains(&name));
    let to = unpack(&archive.body);
    let top = to.path().join("workspace");
    for file in ["hello.py", "node_modules/x/y.js", "large"] {
        assert!(
            std::fs::read(top.join(file)).unwrap() == std::fs::read(root.join(file)).unwrap(),
            "{file}"
        );
    }
    assert_eq!(
        std::fs::read_link(top.join("out")).unwrap(),
        Path::new("/etc/passwd")
    );

    host.get("bob", &path).await.problem(403);
    host.send("GET", &path, &[], None)
        .await
        .refused(401, "Authentication required");
    let waiting = host
        .post("alice", "/api/v1/sessions", json!({"task": "not started"}))
        .await
        .ok();
    let id = waiting["sessionId"].as_str().unwrap();
    host.get("alice", &format!("/api/v1/files/archive?session_id={id}"))
        .await
        .problem(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_nobody_reads_to_its_end_holds_nobody_up() {
    let host = Host::with_defaults().start();
    let (session, root) = played(&host, "alice").await;
    // Noise, which does not get smaller: what nobody reads is not made.
    let mut noise = 1u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (noise >> 56) as u8
    })
    .take(64 << 20)
    .collect();
    std::fs::write(root.join("noise"), bytes).unwrap();
    let path = format!("/api/v1/files/archive?session_id={session}");
    let mut first = within("an answer", request(&host, "alice", &path).send())
        .await
        .unwrap();
    assert!(within("a piece", first.chunk()).await.unwrap().is_some());
    host.get("alice", &path).await.problem(429);
    drop(first);
    // The connection is gone, and the work with it.
    eventually("the next archive", async || {
        let answer = request(&host, "alice", &path).send().await.unwrap();
        (answer.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_workspace_is_said_once_refuses_the_editor_and_is_cleaned_up_by_the_agent() {
    let write = |name: &str| {
        let create = json!({"command": "create", "path": name, "file_text": "x = 1\n"});
        call("file_editor", create)
    };
    let run = |command: &str| call("terminal", json!({"command": command}));
    let model = Model::start(move |number, _| match number {
        0 => write("before.py"),
        1 => run("head -c 8000000 /dev/zero | tr '\\0' x > big; sync big"),
        2 => write("refused.py"),
        3 => run("echo still"),
        4 => run("rm big"),
        5 => write("after.py"),
        _ => ModelTurn::Say("done".into()),
    })
    .await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .set("SANDBOX_DISK_LIMIT", "5m")
        .start();
    let first = json!({"task": "Fill it", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    let frames = socket.completed().await;

    let told: Vec<&Value> = frames
        .iter()
        .filter(|frame| frame["eventType"] == "AgentErrorObservation")
        .collect();
    let texts: Vec<&str> = told
        .iter()
        .map(|frame| frame["content"].as_str().unwrap())
        .collect();
    assert_eq!(
        texts.len(),
        2,
        "the user is told once, and of the refusal: {texts:#?}"
    );
    assert!(
        texts
            .iter()
            .all(|text| text.contains("7.6 MiB") && text.contains("may take 5 MiB")),
        "{texts:#?}"
    );
    assert_eq!(told[1]["path"], "refused.py", "{}", told[1]);
    assert_eq!(event(&frames, "CmdOutputObservation")["exitCode"], 0);

    let asked = model.completions();
    let tools = asked.last().unwrap().messages("tool");
    assert_eq!(tools.len(), 6, "{tools:#?}");
    for (number, part) in [
        (1, "[The workspace takes"),
        (2, "the editor writes none"),
        (3, "still"),
    ] {
        assert!(tools[number].contains(part), "{number}: {tools:#?}");
    }
    assert!(tools[3].contains("[The workspace takes"), "{tools:#?}");
    assert!(!tools[4].contains("workspace takes"), "{tools:#?}");
    let workspace = host.workspace(&session);
    for (name, there) in [
        ("before.py", true),
        ("refused.py", false),
        ("after.py", true),
    ] {
        assert_eq!(find(&workspace, name).is_some(), there, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_fills_the_disk_is_ended_and_its_session_cleans_up() {
    // It writes on after its command, far beyond what the workspace may take.
    let fill = "nohup sh -c 'for i in $(seq 1 2000); do head -c 1000000 /dev/zero >>big; sync big; done; touch all' >/dev/null 2>&1 &";
    let run = |command: &str| call("terminal", json!({"command": command}));

    let model = Model::start(move |number, _| match number {
        0 => run(fill),
        2 => run("rm big; ls"),
        _ => ModelTurn::Say("So it is.".into()),
    })
    .await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .set("SANDBOX_DISK_LIMIT", "20m")
        .start();
    let first = json!({"task": "Fill it", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket.completed().await;
    let lost = |frame: &Value| {
        frame["eventType"] == "AgentErrorObservation"
            && frame["content"]
                .as_str()
                .unwrap()
                .contains("it may take 20 MiB")
    };
    if !socket.frames.iter().any(lost) {
        socket.until("the end of the sandbox", lost).await;
    }
    let workspace = host.workspace(&session);
    assert!(find(&workspace, "big").is_some() && find(&workspace, "all").is_none());
    socket.say("Clean up").await;
    let frames = socket.completed().await;
    let output = event(&frames, "CmdOutputObservation");
    assert_eq!(output["content"], "", "{output}");
}
