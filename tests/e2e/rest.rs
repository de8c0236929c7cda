//! The REST table of the wire contract, row by row: each success, each refusal, and two users who
//! never see each other's things.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use lucid_tests::{
    Host, HttpAnswer, Model, ModelTurn, Socket, claims_token, eventually, expired_token, find,
    foreign_token, token,
};

const NOBODY: &str = "0198c0de-0000-7000-8000-000000000000";

/// A session of a user that has played its script: its id, and its chat's.
async fn played(host: &Host, user: &str, task: &str) -> (String, String) {
    let mut socket = Socket::open(host, user, json!({"task": task, "projectId": task})).await;
    let session = socket.session().await;
    socket.completed().await;
    let chat = chat_of(host, user, &session).await;
    (session, chat)
}

async fn chat_of(host: &Host, user: &str, session: &str) -> String {
    let chats = host.get(user, "/api/v1/chats?limit=100").await.ok();
    let all = chats["chats"].as_array().unwrap();
    let chat = all.iter().find(|chat| chat["agentSessionId"] == session);
    chat.unwrap_or_else(|| panic!("no chat of {session}: {chats}"))["id"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn made(host: &Host, user: &str, body: Value) -> String {
    let answer = host.post(user, "/api/v1/sessions", body).await.ok();
    answer["sessionId"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_open_routes_say_what_this_is() {
    let host = Host::with_defaults().start();
    assert_eq!(
        host.send("GET", "/health", &[], None).await.ok(),
        json!({"status": "ok"})
    );
    let about = host.send("GET", "/", &[], None).await.ok();
    assert_eq!(about["service"], "Lucid AI Engine");
    assert_eq!(about["status"], "healthy");
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        about["openhands_available"], false,
        "the default here is the mock"
    );
    assert_eq!(
        (&about["active_sessions"], &about["active_sandboxes"]),
        (&json!(0), &json!(0))
    );
    assert!(
        about["docker_available"].is_boolean() && about["llm_model"].is_string(),
        "{about}"
    );
    assert_eq!(about["store"], "sqlite");
    assert!(!about["sandbox"].as_str().unwrap().is_empty());
    for (kind, name) in [("policy", "mock"), ("policy", "coder"), ("llm", "openai")] {
        let found = about["plugins"].as_array().unwrap().iter().any(|plugin| {
            plugin["kind"] == kind && plugin["name"] == name && plugin["version"].is_string()
        });
        assert!(found, "no {kind} {name}: {about}");
    }
    let real = Host::with_defaults()
        .set("OPENAI_API_KEY", "sk-test")
        .start();
    let about = real.send("GET", "/", &[], None).await.ok();
    assert_eq!(about["openhands_available"], true);
    assert_ne!(about["llm_model"], "", "{about}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_whoever_does_not_prove_who_they_are() {
    let host = Host::with_defaults()
        .set("INTERNAL_API_KEY", "internal-key-of-the-tests")
        .start();
    let routes = [
        ("POST", "/api/v1/sessions".to_owned()),
        ("GET", "/api/v1/sessions".to_owned()),
        ("DELETE", format!("/api/v1/sessions/{NOBODY}")),
        ("GET", "/api/v1/chats".to_owned()),
        ("GET", format!("/api/v1/chats/{NOBODY}")),
        ("PATCH", format!("/api/v1/chats/{NOBODY}")),
        ("DELETE", format!("/api/v1/chats/{NOBODY}")),
        ("GET", format!("/api/v1/files/list?session_id={NOBODY}")),
        (
            "GET",
            format!("/api/v1/files/read?session_id={NOBODY}&path=a"),
        ),
    ];
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let user = || ("x-user-id", "alice".to_owned());
    let key = |key: &str| ("x-internal-key", key.to_owned());
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6OTk5OTk5OTk5OX0.";
    let refusals = [
        (vec![], "Authentication required"),
        (vec![user()], "Authentication required"),
        (
            vec![key("internal-key-of-the-tests")],
            "Authentication required",
        ),
        (
            vec![("authorization", "Basic YWxpY2U6cGFzcw==".to_owned())],
            "Authentication required",
        ),
        (vec![bearer("nonsense")], "Invalid token"),
        (vec![bearer(&expired_token("alice"))], "Invalid token"),
        (vec![bearer(&foreign_token("alice"))], "Invalid token"),
        (vec![bearer(none)], "Invalid token"),
        (
            vec![bearer(&claims_token(json!({"role": "anon"})))],
            "Token missing sub claim",
        ),
        (
            vec![user(), key("internal-key-of-the-test")],
            "Invalid internal API key",
        ),
        // A Bearer that fails does not fall through.
        (
            vec![bearer("nonsense"), user(), key("internal-key-of-the-tests")],
            "Invalid token",
        ),
    ];
    for (method, path) in &routes {
        let body = || {
            ["POST", "PATCH"]
                .contains(method)
                .then(|| json!({"task": "t", "title": "t"}).to_string())
        };
        for (headers, detail) in &refusals {
            let headers: Vec<(&str, &str)> = headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            host.send(method, path, &headers, body())
                .await
                .refused(401, detail);
        }
    }

    // The ways that are open.
    let list = async |headers: &[(&str, String)]| {
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        host.send("GET", "/api/v1/sessions", &headers, None)
            .await
            .ok()
    };
    let session = made(&host, "alice", json!({"task": "Mine"})).await;
    for headers in [
        vec![bearer(&token("alice"))],
        vec![bearer(&claims_token(json!({"userId": "alice"})))],
        vec![bearer(&claims_token(
            json!({"sub": "alice", "userId": "bob", "aud": ["anything"]}),
        ))],
        vec![user(), key("internal-key-of-the-tests")],
        // A good Bearer decides, whatever else is sent.
        vec![
            bearer(&token("alice")),
            ("x-user-id", "bob".to_owned()),
            key("internal-key-of-the-tests"),
        ],
    ] {
        assert_eq!(
            list(&headers).await["sessions"][0]["sessionId"],
            session.as_str(),
            "{headers:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_internal_key_the_way_for_servers_is_closed() {
    let host = Host::with_defaults().start();
    for key in ["", "anything", "undefined"] {
        let headers = [("x-user-id", "alice"), ("x-internal-key", key)];
        host.send("GET", "/api/v1/sessions", &headers, None)
            .await
            .refused(401, "Authentication required");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_made_listed_and_stopped() {
    let host = Host::with_defaults().start();
    let task = format!("Größe {}", "x".repeat(200));
    let body = json!({"task": task, "repoUrl": "", "gitToken": null, "branch": "", "gitUserName": null,
        "gitUserEmail": "", "projectId": "p1", "model_provider": "anything at all", "api_key": "",
        "token": "ignored", "userId": "bob"});
    let answer = host.post("alice", "/api/v1/sessions", body).await.ok();
    assert_eq!(answer["status"], "mock");
    assert!(answer["message"].is_string(), "{answer}");
    let id = answer["sessionId"].as_str().unwrap();

    let listed = host.get("alice", "/api/v1/sessions").await.ok();
    let listed = listed["sessions"].as_array().unwrap().clone();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["sessionId"], id);
    assert_eq!(
        listed[0]["userId"], "alice",
        "`userId` was taken for an identity"
    );
    assert_eq!(
        listed[0]["task"],
        task.chars().take(80).collect::<String>().as_str()
    );
    assert_eq!(listed[0]["isAlive"], true);
    assert!(listed[0]["createdAt"].as_str().unwrap().contains('T'));
    assert_eq!(
        host.get("bob", "/api/v1/sessions").await.ok(),
        json!({"sessions": []})
    );

    let path = format!("/api/v1/sessions/{id}");
    host.delete("bob", &path)
        .await
        .refused(403, "Not authorized to stop this session.");
    let stopped = host.delete("alice", &path).await.ok();
    let message = "Session stopped and resources cleaned up.";
    assert_eq!(
        stopped,
        json!({"status": "stopped", "sessionId": id, "message": message})
    );
    host.delete("alice", &path)
        .await
        .refused(404, &format!("Session {id} not found."));
    let unknown = format!("Session {NOBODY} not found.");
    host.delete("alice", &format!("/api/v1/sessions/{NOBODY}"))
        .await
        .refused(404, &unknown);
    host.delete("alice", "/api/v1/sessions/nonsense")
        .await
        .refused(404, "Session nonsense not found.");
    assert_eq!(
        host.get("alice", "/api/v1/sessions").await.ok(),
        json!({"sessions": []})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_be_made_is_refused_before_anything_is_made() {
    let host = Host::with_defaults()
        .set("MAX_SESSIONS_PER_USER", "2")
        .start();
    for body in [
        json!({}),
        json!({"task": ""}),
        json!({"task": null}),
        json!({"task": " \n"}),
        json!({"task": 7}),
    ] {
        host.post("alice", "/api/v1/sessions", body)
            .await
            .problem(422);
    }
    let bearer = format!("Bearer {}", token("alice"));
    let send = async |kind: &str, body: String| {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        host.send("POST", "/api/v1/sessions", &headers, Some(body))
            .await
    };
    send("application/json", "{".into()).await.problem(400);
    send("text/plain", r#"{"task":"t"}"#.into())
        .await
        .problem(415);
    // One byte too many: all of it is read before that shows, so the answer is not cut off by it.
    let mut large = json!({"task": ""}).to_string();
    large.insert_str(large.len() - 2, &"x".repeat((1 << 20) + 1 - large.len()));
    send("application/json", large).await.problem(413);

    let coder =
        |provider: Value| json!({"task": "t", "policy": "coder", "model_provider": provider});
    let unknown = host
        .post("alice", "/api/v1/sessions", coder(json!("nobody")))
        .await
        .problem(400);
    assert!(unknown.contains("nobody"), "{unknown}");
    let keyless = host
        .post("alice", "/api/v1/sessions", coder(json!("openai")))
        .await
        .problem(400);
    assert!(keyless.contains("key"), "{keyless}");
    host.post("alice", "/api/v1/sessions", coder(json!(null)))
        .await
        .problem(400);
    let policy = json!({"task": "t", "policy": "nonsense"});
    host.post("alice", "/api/v1/sessions", policy)
        .await
        .problem(400);
    assert_eq!(
        host.get("alice", "/api/v1/sessions").await.ok(),
        json!({"sessions": []})
    );
    assert_eq!(
        host.get("alice", "/api/v1/chats").await.ok(),
        json!({"chats": []})
    );

    // With a key of the caller's own it is made, and the key is shown nowhere.
    let own = json!({"task": "t", "policy": "coder", "model_provider": "openai", "api_key": "sk-alices-very-own"});
    let answer = host.post("alice", "/api/v1/sessions", own).await;
    assert!(!answer.text.contains("sk-alices"), "{answer:?}");
    assert_eq!(answer.ok()["status"], "ready");
    made(&host, "alice", json!({"task": "the second"})).await;
    host.post("alice", "/api/v1/sessions", json!({"task": "the third"}))
        .await
        .problem(429);
    made(&host, "bob", json!({"task": "another user's first"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_provider_refuses_is_401() {
    let model =
        Model::start(|_, _| ModelTurn::Refuse(401, "Incorrect API key provided.".into())).await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-revoked")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let body = json!({"task": "t", "model_provider": "openai"});
    let answer = host.post("alice", "/api/v1/sessions", body).await;
    assert!(!answer.text.contains("sk-revoked"), "{answer:?}");
    answer.problem(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_made_by_rest_starts_when_a_client_attaches_and_ends_when_it_is_stopped() {
    let host = Host::with_defaults().start();
    let id = made(&host, "alice", json!({"task": "Made by REST"})).await;
    let empty = host
        .get("alice", &format!("/api/v1/files/list?session_id={id}"))
        .await
        .ok();
    assert_eq!(empty, json!({"tree": []}));
    let mut socket = Socket::open(&host, "alice", json!({"sessionId": id})).await;
    assert_eq!(socket.session().await, id);
    socket.completed().await;
    host.delete("alice", &format!("/api/v1/sessions/{id}"))
        .await
        .ok();
    assert_eq!(socket.end().await, 1000);
    let chat = chat_of(&host, "alice", &id).await;
    let chat = host
        .get("alice", &format!("/api/v1/chats/{chat}"))
        .await
        .ok();
    assert_eq!(chat["isActive"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_are_listed_read_renamed_and_deleted() {
    let host = Host::with_defaults().start();
    let (session, chat) = played(&host, "alice", "The first of all").await;
    let path = format!("/api/v1/chats/{chat}");
    let members = |chat: &Value| {
        assert_eq!(chat["projectId"], "The first of all", "{chat}");
        assert_eq!(chat["agentSessionId"], session.as_str(), "{chat}");
        assert_eq!(chat["isActive"], true, "{chat}");
        assert!(
            chat.as_object().unwrap().contains_key("modelProvider"),
            "{chat}"
        );
        assert!(
            chat["createdAt"].as_str() <= chat["updatedAt"].as_str(),
            "{chat}"
        );
    };
    let listed = host.get("alice", "/api/v1/chats").await.ok();
    members(&listed["chats"][0]);
    assert_eq!(listed["chats"][0]["title"], "The first of all");
    assert!(listed["chats"][0].get("messages").is_none());

    // Batches of 2 s: the last ones may still be on their way.
    let expected = [
        ("user", "InitialTask"),
        ("assistant", "ThinkAction"),
        ("assistant", "CmdRunAction"),
        ("assistant", "FileWriteAction"),
        ("assistant", "FileWriteObservation"),
        ("assistant", "CmdRunAction"),
        ("assistant", "CmdOutputObservation"),
    ];
    let whole = eventually("the whole chat", async || {
        let whole = host.get("alice", &path).await.ok();
        let last = whole["messages"].as_array().unwrap().last()?;
        last["content"]
            .as_str()?
            .contains("Hello, World!")
            .then_some(())?;
        (last["eventType"] == "CmdOutputObservation").then_some(whole)
    })
    .await;
    members(&whole);
    let messages = whole["messages"].as_array().unwrap();
    // The first command prints nothing, and what has no content is not kept.
    let kept: Vec<_> = messages
        .iter()
        .filter(|message| !message["content"].as_str().unwrap().trim().is_empty())
        .map(|message| {
            (
                message["role"].as_str().unwrap(),
                message["eventType"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(kept, expected, "{messages:#?}");
    assert_eq!(messages[0]["content"], "The first of all");
    let mut ids: Vec<_> = messages
        .iter()
        .map(|message| message["id"].as_str().unwrap())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), messages.len());
    assert!(
        messages
            .iter()
            .all(|message| message["createdAt"].is_string()),
        "{messages:#?}"
    );
    assert!(
        messages
            .iter()
            .all(|message| message.as_object().unwrap().contains_key("metadataJson"))
    );

    let patch = async |user: &str, path: &str, body: Value| {
        host.call(user, "PATCH", path, Some(&body)).await
    };
    let renamed = patch("alice", &path, json!({"title": "Ein besserer Name"}))
        .await
        .ok();
    assert_eq!(
        renamed,
        json!({"status": "updated", "id": chat, "title": "Ein besserer Name"})
    );
    assert_eq!(
        host.get("alice", &path).await.ok()["title"],
        "Ein besserer Name"
    );
    for body in [json!({}), json!({"title": ""}), json!({"title": null})] {
        patch("alice", &path, body)
            .await
            .refused(400, "Missing 'title'");
    }
    let unknown = format!("/api/v1/chats/{NOBODY}");
    patch("alice", &unknown, json!({"title": "t"}))
        .await
        .refused(404, "Chat not found");
    host.get("alice", &unknown)
        .await
        .refused(404, "Chat not found");
    host.delete("alice", &unknown)
        .await
        .refused(404, "Chat not found");
    // A session's id is not a chat's.
    if session != chat {
        host.get("alice", &format!("/api/v1/chats/{session}"))
            .await
            .refused(404, "Chat not found");
    }

    assert_eq!(
        host.delete("alice", &path).await.ok(),
        json!({"status": "deleted", "id": chat})
    );
    host.get("alice", &path)
        .await
        .refused(404, "Chat not found");
    host.delete("alice", &path)
        .await
        .refused(404, "Chat not found");
    assert_eq!(
        host.get("alice", "/api/v1/chats").await.ok(),
        json!({"chats": []})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_come_in_pages_newest_first() {
    let host = Host::with_defaults().start();
    for number in 0..5 {
        made(&host, "alice", json!({"task": format!("Task {number}")})).await;
    }
    let page = async |query: &str| -> Vec<Value> {
        let chats = host
            .get("alice", &format!("/api/v1/chats{query}"))
            .await
            .ok();
        chats["chats"].as_array().unwrap().clone()
    };
    let all = page("").await;
    assert_eq!(all.len(), 5);
    let times: Vec<_> = all
        .iter()
        .map(|chat| chat["updatedAt"].as_str().unwrap())
        .collect();
    assert!(times.windows(2).all(|two| two[0] >= two[1]), "{times:?}");
    assert_eq!(page("?limit=2").await, all[..2]);
    assert_eq!(page("?limit=2&offset=2").await, all[2..4]);
    assert_eq!(page("?limit=100&offset=4").await, all[4..]);
    assert_eq!(page("?offset=9").await, [] as [Value; 0]);
    for query in [
        "?limit=0",
        "?limit=101",
        "?limit=-1",
        "?limit=x",
        "?offset=-1",
        "?offset=x",
    ] {
        host.get("alice", &format!("/api/v1/chats{query}"))
            .await
            .problem(422);
    }
    // A change makes the oldest the newest.
    let oldest = all[4]["id"].as_str().unwrap();
    eventually("the renamed chat at the top", async || {
        let title = json!({"title": "Newest"});
        host.call(
            "alice",
            "PATCH",
            &format!("/api/v1/chats/{oldest}"),
            Some(&title),
        )
        .await
        .ok();
        (page("").await[0]["id"] == oldest).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_listed_and_read_and_the_workspace_cannot_be_left() {
    let host = Host::with_defaults().start();
    let (session, _) = played(&host, "alice", "Files").await;
    let hello = find(&host.workspace(&session), "hello.py").expect("hello.py is not on the disk");
    let root = hello.parent().unwrap();
    let write = |path: &str, bytes: &[u8]| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    for left_out in [
        ".git",
        "node_modules",
        "__pycache__",
        ".next",
        ".venv",
        "venv",
        ".mypy_cache",
        ".pytest_cache",
        "dist",
        "build",
        ".tox",
        ".eggs",
        ".anything",
        "src/node_modules",
    ] {
        write(&format!("{left_out}/inside.txt"), b"not shown");
    }
    write("src/a.py", b"a = 1\n");
    write("src/deep/b.txt", b"caf\xe9 \xff");
    write(".env.example", b"X=1\n");
    write("z.txt", b"");
    write("with space & more?.txt", "Größe\n".as_bytes());
    std::fs::create_dir(root.join("empty")).unwrap();
    std::fs::write(host.folder().join("outside.txt"), "not yours").unwrap();
    std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
    std::os::unix::fs::symlink(host.folder().join("outside.txt"), root.join("link.txt")).unwrap();

    let answer = host
        .get("alice", &format!("/api/v1/files/list?session_id={session}"))
        .await
        .ok();
    let file = |name: &str, path: &str| json!({"name": name, "type": "file", "path": path});
    let folder = |name: &str, path: &str, children: Value| json!({"name": name, "type": "folder", "path": path, "children": children});
    let tree: Vec<Value> = answer["tree"].as_array().unwrap().clone();
    let links: Vec<_> = tree
        .iter()
        .filter(|node| ["out", "link.txt"].contains(&node["name"].as_str().unwrap()))
        .collect();
    assert!(
        links
            .iter()
            .all(|node| node["children"].as_array().is_none_or(Vec::is_empty)),
        "{links:?}"
    );
    let names: Vec<_> = tree
        .iter()
        .map(|node| node["name"].as_str().unwrap().to_owned())
        .collect();
    let mut own: Vec<Value> = tree
        .into_iter()
        .filter(|node| !["out", "link.txt"].contains(&node["name"].as_str().unwrap()))
        .collect();
    let mut expected = vec![
        file(".env.example", "/.env.example"),
        folder("empty", "/empty", json!([])),
        file("hello.py", "/hello.py"),
        folder(
            "src",
            "/src",
            json!([
                file("a.py", "/src/a.py"),
                folder(
                    "deep",
                    "/src/deep",
                    json!([file("b.txt", "/src/deep/b.txt")])
                )
            ]),
        ),
        file("with space & more?.txt", "/with space & more?.txt"),
        file("z.txt", "/z.txt"),
    ];
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted, "not sorted by name");
    let by_name = |node: &Value| node["name"].as_str().unwrap().to_owned();
    own.sort_by_key(by_name);
    expected.sort_by_key(by_name);
    assert_eq!(own, expected);

    let read = async |user: &str, path: &str| {
        let path: String = path.bytes().map(|byte| format!("%{byte:02x}")).collect();
        host.get(
            user,
            &format!("/api/v1/files/read?session_id={session}&path={path}"),
        )
        .await
    };
    for path in ["src/a.py", "/src/a.py", "/workspace/src/a.py"] {
        assert_eq!(
            read("alice", path).await.ok(),
            json!({"content": "a = 1\n"}),
            "{path}"
        );
    }
    assert_eq!(
        read("alice", "src/deep/b.txt").await.ok()["content"],
        "caf\u{fffd} \u{fffd}"
    );
    assert_eq!(
        read("alice", "with space & more?.txt").await.ok()["content"],
        "Größe\n"
    );
    assert_eq!(read("alice", "z.txt").await.ok()["content"], "");
    for path in [
        "../outside.txt",
        "/workspace/../outside.txt",
        "src/../../x",
        "..",
        "link.txt",
        "out/hostname",
        "/workspace/out/hostname",
    ] {
        read("alice", path)
            .await
            .refused(400, "Path traversal not allowed.");
    }
    for path in [
        "nothing.txt",
        "/workspace/src/nothing.py",
        "/etc/hostname",
        "src/a.py/b",
    ] {
        read("alice", path)
            .await
            .refused(404, &format!("File not found: {path}"));
    }
    read("alice", "src").await.problem(400);
    read("bob", "src/a.py").await.problem(403);
    host.get("bob", &format!("/api/v1/files/list?session_id={session}"))
        .await
        .problem(403);
    let unknown = format!("Session {NOBODY} not found.");
    host.get("alice", &format!("/api/v1/files/list?session_id={NOBODY}"))
        .await
        .refused(404, &unknown);
    host.get(
        "alice",
        &format!("/api/v1/files/read?session_id={NOBODY}&path=a"),
    )
    .await
    .refused(404, &unknown);
    host.get("alice", "/api/v1/files/list").await.problem(422);
    host.get("alice", &format!("/api/v1/files/read?session_id={session}"))
        .await
        .problem(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_never_see_each_others_things_by_any_route() {
    let host = Host::with_defaults()
        .set("INTERNAL_API_KEY", "internal-key-of-the-tests")
        .start();
    let (session, chat) = played(&host, "alice", "alices-secret-plan").await;
    let (bobs, _) = played(&host, "bob", "bobs-own-plan").await;
    let bob = format!("Bearer {}", token("bob"));
    let ways: [Vec<(&str, &str)>; 2] = [
        vec![("authorization", &bob)],
        vec![
            ("x-user-id", "bob"),
            ("x-internal-key", "internal-key-of-the-tests"),
        ],
    ];
    for headers in &ways {
        let title = || Some(json!({"title": "bob was here"}).to_string());
        for (method, path, body, status) in [
            ("GET", "/api/v1/sessions".to_owned(), None, 200),
            ("GET", "/api/v1/chats?limit=100".to_owned(), None, 200),
            ("DELETE", format!("/api/v1/sessions/{session}"), None, 403),
            ("GET", format!("/api/v1/chats/{chat}"), None, 404),
            ("PATCH", format!("/api/v1/chats/{chat}"), title(), 404),
            ("DELETE", format!("/api/v1/chats/{chat}"), None, 404),
            (
                "GET",
                format!("/api/v1/files/list?session_id={session}"),
                None,
                403,
            ),
            (
                "GET",
                format!("/api/v1/files/read?session_id={session}&path=hello.py"),
                None,
                403,
            ),
            (
                "GET",
                format!("/api/v1/files/read?session_id={bobs}&path=../{session}/hello.py"),
                None,
                400,
            ),
        ] {
            let answer = host.send(method, &path, headers, body).await;
            assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
            for word in ["alices-secret-plan", "alice", "hello.py\""] {
                assert!(
                    !answer.text.contains(word),
                    "{method} {path} shows {word}: {answer:?}"
                );
            }
        }
    }
    // Nor by the socket.
    for features in [json!(["seq"]), json!(null)] {
        let mut socket = Socket::open(
            &host,
            "bob",
            json!({"sessionId": session, "lastSeq": 0, "features": features}),
        )
        .await;
        let code = socket.end().await;
        assert!(
            socket.frames.iter().all(|frame| frame["type"] == "error"),
            "{:?}",
            socket.frames
        );
        assert!(code >= 4000 || code == 1000 || code == 1008, "{code}");
    }
    // And nothing of alice's has changed.
    let chat = host
        .get("alice", &format!("/api/v1/chats/{chat}"))
        .await
        .ok();
    assert_eq!(
        (&chat["title"], &chat["isActive"]),
        (&json!("alices-secret-plan"), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_a_problem_too_and_the_description_names_every_route() {
    let host = Host::with_defaults().start();
    host.get("alice", "/api/v1/nothing").await.problem(404);
    host.call("alice", "PUT", "/api/v1/sessions", None)
        .await
        .problem(405);
    host.get("alice", "/api/v1/ws").await.problem(400);
    let page = host.send("GET", "/docs/", &[], None).await;
    assert_eq!(
        (page.status, page.media_type.starts_with("text/html")),
        (200, true),
        "{page:?}"
    );
    let description = host.send("GET", "/openapi.json", &[], None).await.ok();
    the_page_loads_nothing_that_its_policy_forbids(&host, &page).await;
    for (path, methods) in [
        ("/", &["get"][..]),
        ("/health", &["get"]),
        ("/api/v1/sessions", &["get", "post"]),
        ("/api/v1/sessions/{id}", &["delete"]),
        ("/api/v1/chats", &["get"]),
        ("/api/v1/chats/{id}", &["get", "patch", "delete"]),
        ("/api/v1/files/list", &["get"]),
        ("/api/v1/files/read", &["get"]),
        ("/api/v1/ws", &["get"]),
    ] {
        for method in methods {
            assert!(
                description["paths"][path][method].is_object(),
                "{method} {path} is not described"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_may_call_from_the_allowed_origins_only() {
    let host = Host::with_defaults()
        .set(
            "ALLOWED_ORIGINS",
            "https://app.example.com,http://localhost:3000",
        )
        .start();
    for (origin, allowed) in [
        ("https://app.example.com", true),
        ("http://localhost:3000", true),
        ("https://evil.example", false),
    ] {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "PATCH"),
            (
                "access-control-request-headers",
                "authorization,content-type",
            ),
        ];
        let answer = host
            .send("OPTIONS", "/api/v1/sessions", &headers, None)
            .await;
        let told = answer
            .headers
            .get("access-control-allow-origin")
            .map(|value| value.to_str().unwrap());
        assert_eq!(told, allowed.then_some(origin), "{answer:?}");
        if allowed {
            let methods = answer.headers["access-control-allow-methods"]
                .to_str()
                .unwrap();
            assert!(
                ["GET", "POST", "PATCH", "DELETE"]
                    .iter()
                    .all(|method| methods.contains(method)),
                "{methods}"
            );
        }
        let simple = host
            .send("GET", "/health", &[("origin", origin)], None)
            .await;
        let told = simple
            .headers
            .get("access-control-allow-origin")
            .map(|value| value.to_str().unwrap());
        assert_eq!(told, allowed.then_some(origin), "{simple:?}");
    }
}

/// Reads the page as a browser does that keeps to the page's policy.
async fn the_page_loads_nothing_that_its_policy_forbids(host: &Host, page: &HttpAnswer) {
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'; script-src 'self';"));
    assert!(
        !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );
    let file = async |name: &str| {
        let path = format!("/docs/{name}");
        let file = host.send("GET", &path, &[], None).await;
        assert_eq!(file.status, 200, "{path}");
        file.text
    };
    let mut scripts = String::new();
    for script in page.text.split("<script").skip(1) {
        let (tag, rest) = script.split_once('>').unwrap();
        let inside = rest.split("</script>").next().unwrap();
        assert!(inside.trim().is_empty(), "an inline script: {inside}");
        let source = tag.split("src=\"./").nth(1).expect(tag);
        scripts.push_str(&file(source.split('"').next().unwrap()).await);
    }
    assert!(scripts.contains("/openapi.json") && scripts.contains("\"validatorUrl\": \"none\""));
    let loaded = page
        .text
        .split(['<', '>'])
        .filter(|tag| tag.starts_with("link"));
    for link in loaded {
        assert!(!link.contains("://"), "{link}");
    }
    assert!(!page.text.contains("<style") && !page.text.contains("style="));
    // Styles that the scripts make: those of elements they create themselves are allowed by their hash.
    let styles = scripts.split("createElement(\"style\"").skip(1);
    let styles = styles.map(|call| call.split('"').nth(1).unwrap());
    let hashes: Vec<String> = styles
        .map(|style| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(style))))
        .collect();
    assert!(
        !hashes.is_empty(),
        "the page has no style of its own any more"
    );
    for hash in hashes {
        assert!(policy.contains(&hash), "{hash} is not in {policy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_names_its_request_and_so_does_the_log() {
    let host = Host::with_defaults()
        .set("RUST_LOG", "info,tower_http=debug")
        .start();
    let id_of = |answer: &HttpAnswer| {
        let id = answer.headers.get("x-request-id").expect("an id");
        id.to_str().unwrap().to_owned()
    };
    let ask = async |path: &str, id: Option<&str>| {
        let headers: Vec<_> = id.map(|id| ("x-request-id", id)).into_iter().collect();
        host.send("GET", path, &headers, None).await
    };
    // Each of ours is another.
    let ids = [
        id_of(&ask("/health", None).await),
        id_of(&ask("/health", None).await),
        id_of(&ask("/docs/", None).await),
    ];
    assert!(ids[0] < ids[1] && ids[1] < ids[2], "{ids:?}");
    // A client's own is kept, in a success, in a problem and in the log.
    for path in ["/health", "/nothing", "/api/v1/sessions"] {
        let own = format!("trace-{}", path.len());
        let answer = ask(path, Some(&own)).await;
        assert_eq!(id_of(&answer), own);
        if answer.status != 200 {
            answer.problem(answer.status);
        }
        host.says(&own).await;
    }
    for id in ["", "two words", "<script>", &"x".repeat(129)] {
        let answer = ask("/nothing", Some(id)).await;
        answer.problem(404);
        assert_ne!(id_of(&answer), id);
    }
    let preflight = host
        .send(
            "GET",
            "/health",
            &[("origin", "https://page.example")],
            None,
        )
        .await;
    let exposed = &preflight.headers["access-control-expose-headers"];
    assert!(
        exposed.to_str().unwrap().contains("x-request-id"),
        "{exposed:?}"
    );
}
