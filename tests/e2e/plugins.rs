//! The administration of a running host's plugins: over HTTP, and by the command line that does the same.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use lucid_tests::{
    DEADLINE, HOSTILE, Host, HostBuilder, HttpAnswer, JWT_SECRET, Socket, binary, claims_token,
    command, counting, eventually, expired_token, text_of, token,
};
use lucid_wasm::testing::{many_locals, type_chain};

const INTERNAL: &str = "the-internal-key-of-the-tests";
const PLUGINS: &str = "/api/v1/plugins";
const WASM: &str = "application/wasm";
const GUIDE: &str = include_str!("../../host/docs/plugins-at-run-time.md");

fn admin() -> String {
    claims_token(json!({"sub": "alice", "lucid_admin": true}))
}

fn digest(wasm: &[u8]) -> String {
    hex::encode(Sha256::digest(wasm))
}

/// A deployment with the first build of the policy that counts, which its manifest pins.
struct Fixture {
    folder: tempfile::TempDir,
    host: Host,
}

impl Fixture {
    fn new() -> Self {
        Self::with(|host| host)
    }

    fn with(set: impl FnOnce(HostBuilder) -> HostBuilder) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let first = counting(1, "good");
        std::fs::write(folder.path().join("counting.wasm"), &first).unwrap();
        let manifest = folder.path().join("lucid.toml");
        let text = format!(
            r#"
[policies.counting]
component = "counting.wasm"
digest = "sha256:{}"
limits = {{ fuel = 3_000_000_000 }}

[providers.house]
component = "builtin:openai"
base_url = "http://127.0.0.1:9/v1"
key = "HOUSE_KEY"
key_place = {{ header = "x-house-key" }}
models = ["house-1"]

[defaults]
policy = "counting"
"#,
            digest(&first)
        );
        std::fs::write(&manifest, text).unwrap();
        let host = Host::with_defaults()
            .set("LUCID_MANIFEST", manifest.to_str().unwrap())
            .set("SANDBOX_BACKEND", "none")
            .set("INTERNAL_API_KEY", INTERNAL)
            .set("HOUSE_KEY", "the-house-key-0123456789");
        let host = set(host).start();
        Self { folder, host }
    }

    fn depot(&self) -> PathBuf {
        self.host.folder().join("storage/.lucid/data/plugins")
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> HttpAnswer {
        let bearer = format!("Bearer {}", admin());
        let headers = [("authorization", &*bearer)];
        let path = format!("{PLUGINS}{path}");
        let body = body.map(|body| body.to_string());
        self.host.send(method, &path, &headers, body).await
    }

    async fn send(&self, wasm: Vec<u8>) -> (u16, Value) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let sent = client
            .post(format!("http://{}{PLUGINS}", self.host.address()))
            .bearer_auth(admin())
            .header("content-type", WASM)
            .timeout(DEADLINE)
            .body(wasm);
        let answer = sent.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// Uploads what is fine, and returns its digest.
    async fn upload(&self, wasm: Vec<u8>) -> String {
        let meant = digest(&wasm);
        let (status, answer) = self.send(wasm).await;
        assert_eq!(
            (status, answer["digest"].as_str()),
            (200, Some(&*meant)),
            "{answer}"
        );
        meant
    }

    async fn activate(&self, kind: &str, name: &str, digest: &str) -> HttpAnswer {
        let path = format!("/{kind}/{name}/activate");
        self.ask("POST", &path, Some(json!({ "digest": digest })))
            .await
    }

    /// The same under a name that nobody has.
    async fn add(&self, kind: &str, name: &str, digest: &str) -> HttpAnswer {
        let path = format!("/{kind}/{name}/activate");
        let body = json!({ "digest": digest, "new": true });
        self.ask("POST", &path, Some(body)).await
    }

    async fn roll_back(&self, kind: &str, name: &str) -> HttpAnswer {
        self.ask("POST", &format!("/{kind}/{name}/rollback"), None)
            .await
    }

    async fn list(&self) -> Value {
        self.ask("GET", "", None).await.ok()
    }

    async fn plugin(&self, kind: &str, name: &str) -> Value {
        let all = self.list().await;
        let mut found = all["plugins"].as_array().unwrap().iter();
        let found = found.find(|one| one["kind"] == kind && one["name"] == name);
        found
            .unwrap_or_else(|| panic!("no {kind} {name}: {all}"))
            .clone()
    }

    async fn begins_with(&self) -> String {
        self.begins_with_policy("counting").await
    }

    async fn begins_with_policy(&self, policy: &str) -> String {
        let mut socket = Socket::open(&self.host, "bob", task(0, policy)).await;
        let seen = socket.completed().await;
        let mut said = seen.iter().filter_map(|frame| frame["content"].as_str());
        let begun = said.find_map(|said| said.strip_prefix("begun by "));
        begun
            .unwrap_or_else(|| panic!("nothing was begun: {seen:?}"))
            .to_owned()
    }
}

fn task(number: u32, policy: &str) -> Value {
    let task = format!("count to {number} ({})", uuid::Uuid::new_v4());
    json!({ "task": task, "policy": policy })
}

/// A component of a world of this repository, from a core module in text.
fn component(module: &str, package: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let mut resolve = Resolve::default();
    for shared in ["types", "host"] {
        resolve.push_path(wit.join(shared)).unwrap();
    }
    let (package, _) = resolve.push_path(wit.join(package)).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    let mut encoder = ComponentEncoder::default();
    encoder.module(&module).unwrap().encode().unwrap()
}

/// An adapter that says what it is, and nothing more.
fn adapter() -> Vec<u8> {
    let texts = [
        "own-adapter",
        "7.8.9",
        "A test.",
        "https://example.org",
        "m",
        "m",
    ];
    let (mut data, mut words) = (String::new(), Vec::new());
    let mut at = 1024;
    for text in texts {
        data += text;
        words.extend([at, text.len()]);
        at += text.len();
    }
    // The key's place (bearer), and no schema.
    words.extend([0; 6]);
    let words: String = words
        .iter()
        .flat_map(|word| u32::try_from(*word).unwrap().to_le_bytes())
        .map(|byte| format!("\\{byte:02x}"))
        .collect();
    let at = "lucid:llm/provider@0.1.0";
    let module = format!(
        r#"(module
    (memory (export "memory") 2)
    (data (i32.const 1024) "{data}")
    (data (i32.const 4096) "{words}")
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
    (func (export "{at}#describe") (result i32) (i32.const 4096))
    (func (export "{at}#models") (param i32 i32) (result i32) (i32.const 8192))
    (func (export "{at}#probe") (param i32 i32) (result i32) unreachable)
    (func (export "{at}#encode") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) unreachable)
    (func (export "{at}#classify") (param i32 i32 i32 i32 i32) (result i32) unreachable)
    (func (export "{at}#[constructor]decoder") (param i32 i32) (result i32) unreachable)
    (func (export "{at}#[method]decoder.push") (param i32 i32 i32) (result i32) unreachable)
    (func (export "{at}#[method]decoder.finish") (param i32) (result i32) unreachable))"#
    );
    component(&module, "llm", "llm-plugin")
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_an_administrator_sees_or_changes_plugins() {
    let fixture = Fixture::new();
    let build = fixture.upload(counting(2, "good")).await;
    let routes = [
        ("GET", PLUGINS.to_owned(), None),
        ("POST", PLUGINS.to_owned(), Some(String::new())),
        ("POST", format!("{PLUGINS}/reload"), Some("{}".to_owned())),
        (
            "POST",
            format!("{PLUGINS}/policy/counting/activate"),
            Some(json!({"digest": build}).to_string()),
        ),
        (
            "POST",
            format!("{PLUGINS}/policy/counting/rollback"),
            Some("{}".to_owned()),
        ),
    ];
    let claims = [
        json!({"sub": "bob"}),
        json!({"sub": "bob", "user_metadata": {"lucid_admin": true, "role": "admin"}}),
        json!({"sub": "bob", "role": "admin", "app_metadata": {"role": "admin"}}),
        json!({"sub": "bob", "lucid_admin": "true"}),
    ];
    for (method, path, body) in &routes {
        let call = async |headers: &[(&str, &str)]| {
            fixture.host.send(method, path, headers, body.clone()).await
        };
        call(&[]).await.refused(401, "Authentication required");
        let old = format!("Bearer {}", expired_token("alice"));
        call(&[("authorization", &old)])
            .await
            .refused(401, "Invalid token");
        call(&[("x-user-id", "alice"), ("x-internal-key", "guessed")])
            .await
            .refused(401, "Invalid internal API key");
        for claims in &claims {
            let bearer = format!("Bearer {}", claims_token(claims.clone()));
            let answer = call(&[("authorization", &bearer)]).await;
            answer.refused(403, "Only an administrator of this deployment may do that.");
        }
        // A token that is no administrator's stands or falls alone.
        let bearer = format!("Bearer {}", token("bob"));
        let both = [
            ("authorization", &*bearer),
            ("x-user-id", "bob"),
            ("x-internal-key", INTERNAL),
        ];
        call(&both).await.problem(403);
    }
    assert_eq!(
        fixture.plugin("policy", "counting").await["source"],
        "file",
        "nothing was activated"
    );

    let of_app = claims_token(json!({"sub": "carol", "app_metadata": {"lucid_admin": true}}));
    let of_app = format!("Bearer {of_app}");
    for headers in [
        &[("authorization", &*of_app)][..],
        &[("x-user-id", "dave"), ("x-internal-key", INTERNAL)],
    ] {
        fixture.host.send("GET", PLUGINS, headers, None).await.ok();
        let path = format!("{PLUGINS}/policy/counting/activate");
        let body = json!({ "digest": build }).to_string();
        fixture
            .host
            .send("POST", &path, headers, Some(body))
            .await
            .ok();
        let by = &fixture.plugin("policy", "counting").await["activated"][0]["by"];
        assert!(by == "carol" || by == "dave", "{by}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_build_takes_over_and_a_rollback_brings_the_one_before_back() {
    let mut fixture = Fixture::new();
    let manifests = digest(&counting(1, "good"));
    let (status, kept) = fixture.send(counting(2, "good")).await;
    assert_eq!(status, 200, "{kept}");
    let second = digest(&counting(2, "good"));
    assert_eq!(
        (
            &kept["kind"],
            &kept["ownName"],
            &kept["version"],
            &kept["digest"]
        ),
        (
            &json!("policy"),
            &json!("counting"),
            &json!("build-0002"),
            &json!(second)
        )
    );
    assert!(
        kept["imports"]
            .as_array()
            .unwrap()
            .contains(&json!("lucid:types/types@0.1.0")),
        "{kept}"
    );
    assert_eq!(kept["calls"][0]["call"], "describe", "{kept}");
    assert_eq!(
        fixture.begins_with().await,
        "build-0001",
        "an upload alone changes nothing"
    );

    // A session that is in the middle of something moves along.
    let mut long = Socket::open(&fixture.host, "bob", task(10_000, "counting")).await;
    long.until("its beginning", |frame| {
        frame["content"] == "begun by build-0001"
    })
    .await;
    let before = fixture.plugin("policy", "counting").await;
    assert_eq!(
        (&before["source"], &before["digest"]),
        (&json!("file"), &json!(manifests))
    );
    assert_eq!(
        before["sessions"], 2,
        "one that works, and one that waits for its user: {before}"
    );
    assert_eq!(before["limits"]["fuel"], 3_000_000_000_u64);
    assert_eq!(
        before["grants"],
        json!({"callsModels": false, "needsSandbox": false})
    );
    let step = before["calls"]
        .as_array()
        .unwrap()
        .iter()
        .find(|of| of["call"] == "step");
    assert!(
        step.is_some_and(|of| of["calls"].as_u64() > Some(1) && of["fuel"].as_u64() > Some(0)),
        "{before}"
    );

    let first_change = fixture
        .activate("policy", "counting", &format!("sha256:{second}"))
        .await
        .ok();
    assert_eq!(
        (
            &first_change["digest"],
            &first_change["source"],
            &first_change["version"]
        ),
        (&json!(second), &json!("upload"), &json!("build-0002"))
    );
    assert_eq!(fixture.begins_with().await, "build-0002");
    long.until("the move", |frame| {
        frame["content"] == "moved to build-0002"
    })
    .await;
    let now = fixture.plugin("policy", "counting").await;
    let others: u64 = now["otherBuilds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|other| other["sessions"].as_u64().unwrap())
        .sum();
    let here = now["sessions"].as_u64().unwrap();
    assert!(
        here >= 2,
        "the one that moved and the one that began here: {now}"
    );
    assert_eq!(here + others, 3, "each is counted once: {now}");
    assert_eq!(
        now["component"].as_str().unwrap().rsplit('/').next(),
        Some("counting.wasm")
    );
    assert_eq!(
        now["limits"]["fuel"], 3_000_000_000_u64,
        "the limits stay the manifest's"
    );
    assert_eq!(now["activated"][0]["by"], "alice");

    let third = fixture.upload(counting(3, "good")).await;
    let second_change = fixture.activate("policy", "counting", &third).await.ok();
    assert!(second_change["generation"].as_u64() > first_change["generation"].as_u64());
    assert_eq!(fixture.begins_with().await, "build-0003");
    // What is active already is no other build to go back from.
    fixture.activate("policy", "counting", &third).await.ok();

    let back = fixture.roll_back("policy", "counting").await.ok();
    assert_eq!(back["digest"], second.as_str());
    assert_eq!(fixture.begins_with().await, "build-0002");
    drop(long);

    fixture.host.stop().await;
    fixture.host.start_again();
    assert_eq!(
        fixture.begins_with().await,
        "build-0002",
        "it holds over a restart"
    );
    let back = fixture.roll_back("policy", "counting").await.ok();
    assert_eq!(
        (&back["digest"], &back["source"]),
        (&json!(manifests), &json!("file"))
    );
    assert_eq!(fixture.begins_with().await, "build-0001");
    let detail = fixture.roll_back("policy", "counting").await.problem(409);
    assert!(
        detail.contains("no uploaded build to go back from"),
        "{detail}"
    );
    let uploads = fixture.list().await["uploads"].clone();
    assert_eq!(uploads.as_array().unwrap().len(), 2, "{uploads}");
    assert_eq!(
        (&uploads[0]["version"], &uploads[0]["by"]),
        (&json!("build-0003"), &json!("alice"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_can_be_added_by_an_upload_and_a_provider_needs_the_manifest() {
    let fixture = Fixture::new();
    let build = fixture.upload(counting(5, "good")).await;
    // A name that nobody has is a slip more often, and is answered with those that there are.
    let detail = fixture
        .activate("policy", "countin", &build)
        .await
        .problem(404);
    assert!(
        detail.starts_with("No policy is called `countin`; did you mean `counting`?")
            && detail.contains("--new"),
        "{detail}"
    );
    let added = fixture.add("policy", "fresh", &build).await.ok();
    assert_eq!(
        (&added["name"], &added["source"]),
        (&json!("fresh"), &json!("upload"))
    );
    assert_eq!(fixture.begins_with_policy("fresh").await, "build-0005");
    assert_eq!(
        fixture.begins_with().await,
        "build-0001",
        "the default is the manifest's"
    );
    assert_eq!(
        fixture.plugin("policy", "fresh").await["component"],
        Value::Null
    );
    // From then on it is a name like others.
    let next = fixture.upload(counting(6, "good")).await;
    fixture.activate("policy", "fresh", &next).await.ok();
    fixture.roll_back("policy", "fresh").await.ok();
    let shown = fixture.plugin("policy", "fresh").await;
    assert_eq!(shown["digest"], build.as_str());
    let rolled = &shown["rolledBack"];
    assert_eq!(
        (&rolled[0]["digest"], &rolled[0]["by"], &rolled[1]),
        (&json!(next), &json!("alice"), &Value::Null),
        "{rolled}"
    );
    assert!(rolled[0]["at"].is_string(), "{rolled}");
    let back = format!("a plugin's build was rolled back (sha256:{next})");
    fixture.host.says(&back).await;
    let log = fixture.host.log();
    let line = log.lines().find(|line| line.contains(&back));
    assert!(line.unwrap().contains("by=\"alice\""), "{line:?}");
    let gone = fixture.roll_back("policy", "fresh").await.ok();
    assert_eq!(gone["digest"], Value::Null);
    let refused = fixture
        .host
        .post("bob", "/api/v1/sessions", task(0, "fresh"))
        .await;
    let refused = refused.problem(400);
    assert!(refused.starts_with("Unknown policy 'fresh': "), "{refused}");

    let own = fixture.upload(adapter()).await;
    let detail = fixture
        .activate("llm", "elsewhere", &own)
        .await
        .problem(404);
    assert!(
        detail.contains("needs an entry in the manifest"),
        "{detail}"
    );
    let before = fixture.plugin("llm", "house").await;
    fixture.activate("llm", "house", &own).await.ok();
    let after = fixture.plugin("llm", "house").await;
    assert_eq!(
        (&after["ownName"], &after["version"]),
        (&json!("own-adapter"), &json!("7.8.9"))
    );
    assert_eq!(
        after["grants"], before["grants"],
        "address, key and models stay the manifest's"
    );
    assert_eq!(
        after["grants"],
        json!({
            "baseUrl": "http://127.0.0.1:9/v1", "keyPlace": "x-house-key", "keyVariable": "HOUSE_KEY",
            "hasKey": true, "models": ["house-1"],
        })
    );
    assert!(
        !fixture.list().await.to_string().contains("the-house-key"),
        "the key is shown"
    );
    fixture.roll_back("llm", "house").await.ok();
    assert_eq!(
        fixture.plugin("llm", "house").await["digest"],
        before["digest"]
    );
}

/// A minute and 2 GB of compiling, and a panic of the compiler.
#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_a_compiler_does_not_survive_is_refused_and_the_host_goes_on() {
    let fixture = Fixture::new();
    let refused = async |wasm: Vec<u8>| {
        let started = Instant::now();
        let (status, answer) = fixture.send(wasm).await;
        assert_eq!(status, 422, "{answer}");
        let detail = answer["detail"].as_str().unwrap_or_default().to_owned();
        (detail, started.elapsed())
    };
    let (detail, took) = refused(many_locals(49_000, 1_000)).await;
    assert!(
        detail.contains("has 49000 locals in one function, and at most 5000 are compiled"),
        "{detail}"
    );
    assert!(took < Duration::from_secs(5), "{took:?}");
    let (detail, _) = refused(many_locals(4_900, 1_000)).await;
    assert!(detail.contains("4900000 locals times blocks"), "{detail}");

    let (detail, _) = refused(type_chain(200)).await;
    assert!(
        detail.contains("the compiler failed (exit code 101); report it to the plugin's author"),
        "{detail}"
    );
    let (detail, _) = refused(type_chain(200)).await;
    assert!(
        detail.contains("failed before (the compiler failed (exit code 101))"),
        "{detail}"
    );
    // The sentence says how to try again.
    let cache = fixture.host.folder().join("storage/.lucid/cache");
    let failures = std::fs::read_dir(&cache).unwrap().flatten();
    let failures: Vec<_> = failures
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "failed"))
        .collect();
    let [failure] = &failures[..] else {
        panic!("{failures:?}")
    };
    let name = failure.file_name().unwrap().to_str().unwrap();
    assert!(detail.contains(name), "{detail}");
    std::fs::remove_file(failure).unwrap();
    let (detail, _) = refused(type_chain(200)).await;
    assert!(!detail.contains("before"), "{detail}");

    assert_eq!(fixture.list().await["uploads"], json!([]));
    fixture.upload(counting(2, "good")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_plugin_is_refused_with_the_reason_and_not_kept() {
    let fixture = Fixture::new();
    let other_world =
        r#"(component (instance $i) (export "acme:review/review@1.0.0" (instance $i)))"#;
    let forbidden = r#"(component (import "acme:net/sockets@1.0.0" (instance)))"#;
    let good = counting(2, "good");
    for (what, wasm, reason) in [
        (
            "half a file",
            good[..good.len() / 2].to_vec(),
            "not a WebAssembly component",
        ),
        ("no file", Vec::new(), "not a WebAssembly component"),
        (
            "text",
            b"#!/bin/sh\nrm -rf /\n".to_vec(),
            "not a WebAssembly component",
        ),
        (
            "a core module",
            wat::parse_str("(module)").unwrap(),
            "not a WebAssembly component",
        ),
        (
            "another world",
            wat::parse_str(other_world).unwrap(),
            "so it is no plugin",
        ),
        (
            "a forbidden import",
            wat::parse_str(forbidden).unwrap(),
            "acme:net/sockets@1.0.0",
        ),
        (
            "a trap in describe",
            counting(2, "trap"),
            "did not describe itself",
        ),
    ] {
        let (status, answer) = fixture.send(wasm).await;
        let detail = answer["detail"].as_str().unwrap_or_default();
        assert_eq!(status, 422, "{what}: {answer}");
        assert!(
            detail.starts_with("The component was not kept: ") && detail.contains(reason),
            "{what}: {answer}"
        );
    }
    let bearer = format!("Bearer {}", admin());
    let wrong = [
        ("authorization", &*bearer),
        ("content-type", "application/json"),
    ];
    let answer = fixture
        .host
        .send("POST", PLUGINS, &wrong, Some("{}".to_owned()))
        .await;
    answer.refused(
        415,
        "A component must be sent with Content-Type: application/wasm.",
    );

    // Before a byte of it is read, and while it comes without a length.
    let most = (64 << 20) + 1;
    let address = fixture.host.address().to_owned();
    let head = format!(
        "POST {PLUGINS} HTTP/1.1\r\nhost: {address}\r\nauthorization: {bearer}\r\ncontent-type: {WASM}\r\n"
    );
    let answers = tokio::task::spawn_blocking(move || {
        let announced = raw(
            &address,
            format!("{head}content-length: {most}\r\n\r\n").as_bytes(),
            0,
        );
        let endless = raw(
            &address,
            format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes(),
            80,
        );
        [announced, endless]
    });
    for answer in answers.await.unwrap() {
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(answer.contains("67108864 bytes"), "{answer}");
    }

    assert_eq!(fixture.list().await["uploads"], json!([]));
    let left = std::fs::read_dir(fixture.depot()).map_or(0, Iterator::count);
    assert_eq!(
        left,
        0,
        "something was kept in {}",
        fixture.depot().display()
    );
    assert_eq!(fixture.begins_with().await, "build-0001");
}

/// Sends a request's head and so many chunks of 1 MiB, and returns what comes back.
fn raw(address: &str, head: &[u8], chunks: usize) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(head).unwrap();
    let mut chunk = b"100000\r\n".to_vec();
    chunk.resize(chunk.len() + (1 << 20), 0);
    chunk.extend(b"\r\n");
    for _ in 0..chunks {
        // It may have answered already.
        if stream.write_all(&chunk).is_err() {
            break;
        }
    }
    let mut answer = vec![0; 4096];
    let mut length = 0;
    while !answer[..length].ends_with(b"}") {
        match stream.read(&mut answer[length..]) {
            Ok(0) | Err(_) => break,
            Ok(more) => length += more,
        }
    }
    text_of(&answer[..length])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_that_cannot_be_leaves_everything_as_it_was() {
    let fixture = Fixture::new();
    let build = fixture.upload(counting(2, "good")).await;
    let before = fixture.plugin("policy", "counting").await["digest"].clone();
    let none = "0".repeat(64);
    for (kind, name, digest, status, reason) in [
        ("policy", "counting", &*none, 404, "was uploaded"),
        ("policy", "counting", "", 422, "`digest` must be"),
        (
            "policy",
            "counting",
            "../../../../etc/passwd",
            422,
            "`digest` must be",
        ),
        ("policy", "counting", &build[..63], 422, "`digest` must be"),
        (
            "nonsense",
            "counting",
            &*build,
            404,
            "one of `policy`, `llm`",
        ),
        ("llm", "house", &*build, 422, "does not export"),
        (
            "llm",
            "nobody",
            &*build,
            404,
            "There is no llm plugin `nobody`",
        ),
        ("policy", "auto", &*build, 422, "A plugin's name is"),
        ("policy", "UPPER", &*build, 422, "A plugin's name is"),
        (
            "policy",
            "..%2f..%2fescape",
            &*build,
            422,
            "A plugin's name is",
        ),
        ("policy", "%2e%2e%2fx", &*build, 422, "A plugin's name is"),
        ("policy", "a%00b", &*build, 422, "A plugin's name is"),
    ] {
        let detail = fixture.activate(kind, name, digest).await.problem(status);
        assert!(detail.contains(reason), "{kind} {name} {digest}: {detail}");
    }
    for body in [
        "",
        "{}",
        "[]",
        r#"{"digest": 7}"#,
        r#"{"digest": "x", "share": 10}"#,
    ] {
        let bearer = format!("Bearer {}", admin());
        let path = format!("{PLUGINS}/policy/counting/activate");
        let answer = fixture
            .host
            .send(
                "POST",
                &path,
                &[("authorization", &bearer)],
                Some(body.to_owned()),
            )
            .await;
        assert!(matches!(answer.status, 400 | 422), "{body}: {answer:?}");
    }
    for name in ["counting", "nobody", "UPPER"] {
        let status = fixture.roll_back("policy", name).await.status;
        assert!(matches!(status, 404 | 409 | 422), "{name}: {status}");
    }
    // What was refused is the last error, until something is loaded.
    fixture.activate("llm", "house", &build).await.problem(422);
    let error = fixture.list().await["lastError"].clone();
    assert!(
        error["problems"][0]["what"]
            .as_str()
            .unwrap()
            .contains("does not export"),
        "{error}"
    );
    assert_eq!(fixture.plugin("policy", "counting").await["digest"], before);
    assert!(
        !fixture.depot().join("active.json").exists(),
        "something was written down as active"
    );
    fixture.activate("policy", "counting", &build).await.ok();
    assert_eq!(fixture.list().await["lastError"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn activations_at_once_take_turns_and_none_is_lost() {
    let fixture = Fixture::new();
    let uploads = join_all((2..8).map(|number| fixture.upload(counting(number, "good")))).await;
    let changes = uploads
        .iter()
        .map(|build| fixture.activate("policy", "counting", build));
    let mut generations: Vec<u64> = join_all(changes)
        .await
        .into_iter()
        .map(|answer| answer.ok()["generation"].as_u64().unwrap())
        .collect();
    generations.sort_unstable();
    generations.dedup();
    assert_eq!(generations.len(), 6, "each made one of its own");
    let now = fixture.plugin("policy", "counting").await;
    let activated = now["activated"].as_array().unwrap();
    assert_eq!(activated.len(), 6, "{now}");
    assert_eq!(activated[0]["digest"], now["digest"]);
    for left in (0..6).rev() {
        fixture.roll_back("policy", "counting").await.ok();
        let now = fixture.plugin("policy", "counting").await;
        assert_eq!(now["activated"].as_array().unwrap().len(), left, "{now}");
    }
    assert_eq!(fixture.begins_with().await, "build-0001");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_does_not_wait_for_a_manifest_to_be_put_right() {
    let fixture = Fixture::new();
    let build = fixture.upload(counting(2, "good")).await;
    fixture.activate("policy", "counting", &build).await.ok();
    let manifest = fixture.folder.path().join("lucid.toml");
    let good = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, "[policies").unwrap();
    let detail = fixture.ask("POST", "/reload", None).await.problem(422);
    assert!(
        detail.contains("lucid.toml:1:") && detail.contains("stays as it is"),
        "{detail}"
    );
    fixture.roll_back("policy", "counting").await.ok();
    assert_eq!(fixture.begins_with().await, "build-0001");
    let error = fixture.list().await["lastError"].clone();
    assert!(
        error["problems"][0]["file"]
            .as_str()
            .unwrap()
            .ends_with("lucid.toml"),
        "it is wrong still: {error}"
    );
    std::fs::write(&manifest, good).unwrap();
    let reloaded = fixture.ask("POST", "/reload", None).await.ok();
    assert_eq!(reloaded["lastError"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_build_that_no_longer_loads_keeps_nobody_from_working() {
    let mut fixture = Fixture::new();
    let [second, third] = [2, 3].map(|number| counting(number, "good"));
    for wasm in [&second, &third] {
        let build = fixture.upload(wasm.clone()).await;
        fixture.activate("policy", "counting", &build).await.ok();
    }
    let build = fixture.upload(adapter()).await;
    fixture.activate("llm", "house", &build).await.ok();
    fixture.host.stop().await;
    let file = fixture.depot().join(format!("{}.wasm", digest(&third)));
    std::fs::write(&file, &third[..third.len() / 2]).unwrap();
    // An upload hid that the manifest's own component is gone, and goes on doing so.
    let own = fixture.folder.path().join("counting.wasm");
    let hidden = std::fs::read(&own).unwrap();
    std::fs::remove_file(&own).unwrap();
    fixture.host.start_again();
    assert_eq!(
        fixture.begins_with().await,
        "build-0002",
        "the build before it"
    );
    assert_eq!(
        fixture.plugin("llm", "house").await["ownName"],
        "own-adapter",
        "others stay"
    );
    assert!(
        fixture
            .host
            .log()
            .contains("the server starts with the build before"),
        "{}",
        fixture.host.log()
    );
    std::fs::write(&own, hidden).unwrap();
    // It is said also after the server has looked at its files again, and until it is put right.
    let reloaded = fixture.ask("POST", "/reload", None).await.ok();
    let error = &reloaded["lastError"]["problems"][0];
    assert_eq!(error["file"], file.to_str().unwrap(), "{reloaded}");
    let what = error["what"].as_str().unwrap();
    assert!(
        what.contains("lucid plugin rollback policy counting"),
        "{what}"
    );
    let shown = fixture.plugin("policy", "counting").await;
    assert_eq!(shown["digest"], digest(&second).as_str());
    assert_eq!(shown["activated"][0]["digest"], digest(&third).as_str());
    // Nothing else waits for that.
    let fourth = fixture.upload(counting(4, "good")).await;
    fixture.add("policy", "fresh", &fourth).await.ok();
    fixture.roll_back("policy", "counting").await.ok();
    assert_eq!(fixture.list().await["lastError"], Value::Null);
    assert_eq!(fixture.begins_with().await, "build-0002");

    // A rollback is to get away from a build: it passes over those that are no better.
    let fifth = fixture.upload(counting(5, "good")).await;
    fixture.activate("policy", "counting", &fifth).await.ok();
    std::fs::remove_file(fixture.depot().join(format!("{}.wasm", digest(&second)))).unwrap();
    let back = fixture.roll_back("policy", "counting").await.ok();
    assert_eq!(back["source"], "file", "{back}");
    assert_eq!(fixture.begins_with().await, "build-0001");

    // A record that nobody can read is no empty one.
    fixture.host.stop().await;
    let record = fixture.depot().join("active.json");
    std::fs::write(&record, "{").unwrap();
    let started = command(fixture.host.folder(), &["serve"])
        .env("PORT", "0")
        .env("SUPABASE_JWT_SECRET", JWT_SECRET)
        .env("SANDBOX_BACKEND", "none")
        .env("WORKSPACE_BASE_PATH", fixture.host.folder().join("storage"))
        .output()
        .unwrap();
    let said = text_of(&started.stderr);
    assert_eq!(started.status.code(), Some(2), "{said}");
    assert!(
        said.contains("active.json cannot be understood") && said.contains("remove it"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_the_same() {
    let fixture = Fixture::new();
    let (folder, host) = (fixture.folder.path(), &fixture.host);
    std::fs::write(folder.join("next.wasm"), counting(2, "good")).unwrap();
    std::fs::write(folder.join("bad.wasm"), b"no component").unwrap();
    let (_, port) = host.address().rsplit_once(':').unwrap();
    let lucid = |arguments: &[&str], set: &[(&str, &str)]| {
        let mut command = command(folder, arguments);
        let done = command.envs(set.iter().copied()).output().unwrap();
        (
            done.status.code(),
            text_of(&done.stdout),
            text_of(&done.stderr),
        )
    };
    let storage = host.folder().join("storage");
    let here = [
        ("PORT", port),
        ("HOST", "127.0.0.1"),
        ("SUPABASE_JWT_SECRET", JWT_SECRET),
        ("WORKSPACE_BASE_PATH", storage.to_str().unwrap()),
    ];
    let ok = |arguments: &[&str]| {
        let (code, out, err) = lucid(arguments, &here);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}: {out}");
        out
    };
    let second = digest(&counting(2, "good"));
    let out = ok(&["plugin", "upload", "next.wasm"]);
    assert!(
        out.contains("policy counting build-0002") && out.contains(&second),
        "{out}"
    );
    let out = ok(&["plugin", "activate", "policy", "counting", &second]);
    assert!(
        out.contains("The policy plugin counting is build-0002"),
        "{out}"
    );
    assert_eq!(fixture.begins_with().await, "build-0002");
    let out = ok(&["plugin", "list"]);
    assert!(
        out.contains("an upload in place of")
            && out.contains("step")
            && out.contains("builtin:openai"),
        "{out}"
    );
    let json: Value = serde_json::from_str(&ok(&["plugin", "list", "--json"])).unwrap();
    assert_eq!(json["uploads"][0]["by"], "command-line", "{json}");
    assert!(
        ok(&["plugin", "reload"]).contains("Generation"),
        "it was loaded again"
    );
    let out = ok(&["plugin", "rollback", "policy", "counting"]);
    assert!(out.contains("is build-0001"), "{out}");
    let out = ok(&["plugin", "list"]);
    let rolled = format!("by command-line: sha256:{second}");
    assert!(
        out.contains("rolled back at ") && out.contains(&rolled),
        "{out}"
    );
    let (code, _, err) = lucid(
        &["plugin", "activate", "policy", "cuonting", &second],
        &here,
    );
    assert!(
        code == Some(1) && err.contains("did you mean `counting`?") && err.contains("--new"),
        "{err}"
    );
    let out = ok(&["plugin", "activate", "policy", "another", &second, "--new"]);
    assert!(
        out.contains("The policy plugin another is build-0002"),
        "{out}"
    );
    ok(&["plugin", "rollback", "policy", "another"]);
    let out = ok(&["plugin", "upload", "next.wasm", "--activate", "counting"]);
    assert!(
        out.contains("The policy plugin counting is build-0002"),
        "{out}"
    );

    // The commands of the guide: its first block.
    let block = GUIDE.split("```").nth(1).unwrap();
    let lines = block.lines().filter(|line| line.starts_with("lucid "));
    let lines: Vec<&str> = lines.map(|line| line.split(" #").next().unwrap()).collect();
    assert!(lines.len() >= 5, "{lines:?}");
    for line in lines {
        let line = line.replace("reviewer.wasm", "next.wasm");
        let line = line.replace("coder", "counting").replace("DIGEST", &second);
        let arguments: Vec<&str> = line.split_whitespace().skip(1).collect();
        if arguments[0] == "token" {
            assert!(!lucid(&arguments, &here).1.is_empty(), "{line}");
        } else {
            ok(&arguments);
        }
    }
    assert_eq!(
        fixture.begins_with().await,
        "build-0002",
        "the last of them activated it"
    );

    // Beside a server, which notices.
    let out = ok(&["plugin", "rollback", "policy", "counting", "--offline"]);
    assert!(out.contains("what the manifest names"), "{out}");
    eventually("the server to notice the rollback", async || {
        (fixture.begins_with().await == "build-0001").then_some(())
    })
    .await;
    let (code, _, err) = lucid(
        &["plugin", "rollback", "policy", "counting", "--offline"],
        &here,
    );
    assert_eq!(code, Some(1));
    assert!(err.contains("no uploaded build to go back from"), "{err}");

    // Another server is asked with the token one is given, and no other.
    let server = format!("http://{}", host.address());
    let list = ["plugin", "list", "--server", &server];
    let (code, _, err) = lucid(&list, &here);
    assert_eq!(code, Some(1));
    assert!(err.contains("LUCID_TOKEN"), "{err}");
    let (code, _, err) = lucid(&list, &[("LUCID_TOKEN", &token("bob"))]);
    assert_eq!(
        (code, err.trim()),
        (
            Some(1),
            "Only an administrator of this deployment may do that."
        )
    );
    let (code, out, _) = lucid(&list, &[("LUCID_TOKEN", &admin())]);
    assert_eq!(code, Some(0), "{out}");
    let (_, made, _) = lucid(&["token", "--user", "alice", "--admin"], &here);
    let (code, out, _) = lucid(&list, &[("LUCID_TOKEN", made.trim())]);
    assert_eq!(code, Some(0), "{out}");
    let (_, made, _) = lucid(&["token", "--user", "alice"], &here);
    assert_eq!(lucid(&list, &[("LUCID_TOKEN", made.trim())]).0, Some(1));

    let (code, _, err) = lucid(&["plugin", "upload", "bad.wasm"], &here);
    assert_eq!(code, Some(1));
    assert!(err.contains("not a WebAssembly component"), "{err}");
    let (code, _, err) = lucid(
        &["plugin", "list", "--server", "http://127.0.0.1:9"],
        &[("LUCID_TOKEN", "x")],
    );
    assert_eq!(code, Some(1));
    assert!(
        err.contains("No server answers at http://127.0.0.1:9/"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fails_in_use_is_seen_in_its_figures() {
    let fixture = Fixture::new();
    let build = fixture.upload(HOSTILE.to_vec()).await;
    fixture.add("policy", "hostile", &build).await.ok();
    let mut socket = Socket::open(
        &fixture.host,
        "bob",
        json!({"task": "trap", "policy": "hostile"}),
    )
    .await;
    let session = socket.session().await;
    socket
        .until("the error", |frame| frame["type"] == "error")
        .await;
    let shown = fixture.plugin("policy", "hostile").await;
    let step = shown["calls"]
        .as_array()
        .unwrap()
        .iter()
        .find(|of| of["call"] == "step");
    assert!(
        step.is_some_and(|of| of["failures"].as_u64() >= Some(1)),
        "{shown}"
    );

    // What it said and why it failed are in the log, with the session, the step and the build.
    let whose = format!("plugin=\"hostile\" digest=\"{build}\" session=\"{session}\" step=0");
    fixture.host.says("call=\"step\"").await;
    let log = fixture.host.log();
    let has = |level: &str, words: &str| {
        log.lines().any(|line| {
            let all = [
                level,
                words,
                "panicked at tests/guests/hostile/src/lib.rs:",
                "as asked",
                &whose,
            ];
            all.iter().all(|part| line.contains(part))
        })
    };
    assert!(has("ERROR", "") && has("WARN", "broke down"), "{log}");
    assert!(!log.contains("shadow=true"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_plugins_say_in_the_log_is_a_setting_and_their_failures_are_the_hosts_to_say() {
    let fixture = Fixture::with(|host| host.set("PLUGIN_LOG_LEVEL", "off"));
    let build = fixture.upload(HOSTILE.to_vec()).await;
    fixture.add("policy", "hostile", &build).await.ok();
    let first = json!({"task": "trap", "policy": "hostile"});
    let mut socket = Socket::open(&fixture.host, "bob", first).await;
    socket
        .until("the error", |frame| frame["type"] == "error")
        .await;
    fixture.host.says("call=\"step\"").await;
    let log = fixture.host.log();
    assert!(log.contains("broke down (panicked at"), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

/// A host whose depot is on a disk of its own, of so many bytes: bubblewrap puts a file system there.
struct Cramped {
    child: Child,
    address: String,
}

impl Cramped {
    fn start(folder: &Path, bytes: u32) -> Self {
        let storage = folder.join("storage");
        let depot = storage.join(".lucid/data/plugins");
        std::fs::create_dir_all(&depot).unwrap();
        let mut child = Command::new("bwrap")
            .args(["--die-with-parent", "--dev-bind", "/", "/", "--size"])
            .arg(bytes.to_string())
            .arg("--tmpfs")
            .arg(&depot)
            .arg(binary())
            .arg("serve")
            .current_dir(folder)
            .env("PORT", "0")
            .env("SUPABASE_JWT_SECRET", JWT_SECRET)
            .env("HOST", "127.0.0.1")
            .env("SANDBOX_BACKEND", "none")
            .env("WORKSPACE_BASE_PATH", &storage)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = lines.map_while(Result::ok);
        let address =
            said.find_map(|line| Some(line.strip_prefix("listening on http://")?.to_owned()));
        Self {
            child,
            address: address.expect("it never said where it listens"),
        }
    }

    async fn ask(&self, method: &str, path: &str, media_type: &str, body: Vec<u8>) -> (u16, Value) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let sent = client
            .request(method, format!("http://{}{PLUGINS}{path}", self.address))
            .bearer_auth(admin())
            .header("content-type", media_type)
            .timeout(DEADLINE)
            .body(body);
        let answer = sent.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }
}

impl Drop for Cramped {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_an_upload_is_refused_and_what_is_there_stays() {
    let folder = tempfile::tempdir().unwrap();
    let room = u32::try_from(counting(2, "good").len()).unwrap() * 5 / 2;
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let host = Cramped::start(folder.path(), room);
    let mut kept = Vec::new();
    let refused = loop {
        let number = u32::try_from(kept.len()).unwrap() + 2;
        let wasm = counting(number, "good");
        let meant = digest(&wasm);
        match host.ask("POST", "", WASM, wasm).await {
            (200, _) => kept.push(meant),
            (status, answer) => break (status, answer),
        }
        assert!(kept.len() < 4, "there was room for more than there is");
    };
    let detail = refused.1["detail"].as_str().unwrap_or_default();
    assert_eq!(refused.0, 507, "{refused:?}");
    assert!(detail.contains("cannot be written"), "{detail}");
    assert!(!kept.is_empty(), "there was room for some");
    let (_, list) = host.ask("GET", "", WASM, Vec::new()).await;
    assert_eq!(
        list["uploads"].as_array().unwrap().len(),
        kept.len(),
        "{list}"
    );
    // The half of it is gone, so there is room for what is small.
    let body = json!({ "digest": kept[0], "new": true });
    let body = body.to_string().into_bytes();
    let path = "/policy/counting/activate";
    let (status, answer) = host.ask("POST", path, "application/json", body).await;
    assert_eq!(
        (status, answer["digest"].as_str()),
        (200, Some(&*kept[0])),
        "{answer}"
    );
}
