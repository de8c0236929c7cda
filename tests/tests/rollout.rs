//! A new build of a policy comes to users by degrees: shadowed first, then for a share of new sessions,
//! then for all, and back by itself where it fails.

use lucid_tests::{
    Answer, HOSTILE, Host, JWT_SECRET, Socket, claims_token, command, counting, eventually,
    is_completed, text_of, token,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const PLUGINS: &str = "/api/v1/plugins";

fn admin() -> String {
    claims_token(json!({"sub": "alice", "lucid_admin": true}))
}

fn digest(wasm: &[u8]) -> String {
    let digest = Sha256::digest(wasm);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A deployment with the first build of the policy that counts.
struct Ground {
    _folder: tempfile::TempDir,
    host: Host,
}

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("counting.wasm"), counting(1, "good")).unwrap();
        let manifest = folder.path().join("lucid.toml");
        let text = "[policies.counting]\ncomponent = \"counting.wasm\"\nlimits = { fuel = 200_000_000 }\n\n[defaults]\npolicy = \"counting\"\n";
        std::fs::write(&manifest, text).unwrap();
        let host = Host::with_defaults()
            .set("LUCID_MANIFEST", manifest.to_str().unwrap())
            .set("SANDBOX_BACKEND", "none")
            .start();
        Self {
            _folder: folder,
            host,
        }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let bearer = format!("Bearer {}", admin());
        let headers = [("authorization", &*bearer)];
        let path = format!("{PLUGINS}{path}");
        let body = body.map(|body| body.to_string());
        self.host.send(method, &path, &headers, body).await
    }

    /// Uploads a component, and returns its digest.
    async fn upload(&self, wasm: Vec<u8>) -> String {
        let meant = digest(&wasm);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let sent = client
            .post(format!("http://{}{PLUGINS}", self.host.address()))
            .bearer_auth(admin())
            .header("content-type", "application/wasm")
            .body(wasm);
        let answer = sent.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
        meant
    }

    async fn begin_shadow(&self, name: &str, body: Value) -> Answer {
        let path = format!("/policy/{name}/shadow");
        self.ask("POST", &path, Some(body)).await
    }

    /// The report of a shadow that is done.
    async fn shadow(&self, build: &str) -> Value {
        let begun = self
            .begin_shadow("counting", json!({"digest": build}))
            .await;
        assert_eq!(begun.status, 202, "{begun:?}");
        self.shadowed().await
    }

    async fn shadowed(&self) -> Value {
        eventually("the shadow to be done", async || {
            let report = self.ask("GET", "/policy/counting/shadow", None).await.ok();
            report["until"].is_string().then_some(report)
        })
        .await
    }

    /// A session that counts so far, to its end.
    async fn count(&self, number: u32) -> (String, Vec<Value>) {
        let mut socket = Socket::open(&self.host, "bob", task(number)).await;
        let id = socket.session().await;
        let mut seen = socket.frames.clone();
        if !seen.iter().any(is_completed) {
            seen.extend(socket.completed().await);
        }
        (id, seen)
    }
}

fn task(number: u32) -> Value {
    // Each its own, so that no two are taken for the same work.
    json!({"task": format!("count to {number} ({})", uuid::Uuid::new_v4()), "policy": "counting"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_shows_a_planted_bug_before_any_user_meets_it() {
    let ground = Ground::new();
    let mut ids = Vec::new();
    for number in [0, 4, 5] {
        ids.push(ground.count(number).await.0);
    }
    // The same but for the bug, since its name is in its words.
    let buggy = ground.upload(counting(1, "bugs")).await;
    let report = ground.shadow(&buggy).await;
    assert_eq!(report["problem"], Value::Null, "{report}");
    assert_eq!(
        (
            &report["sessions"],
            &report["same"],
            &report["different"],
            &report["failed"]
        ),
        (&json!(3), &json!(1), &json!(0), &json!(2)),
        "{report}"
    );
    assert_eq!(report["notMigrated"], 0, "{report}");
    assert_eq!(report["beside"], digest(&counting(1, "good")).as_str());
    let shown = report["differences"].as_array().unwrap();
    assert_eq!(shown.len(), 2, "{report}");
    for (one, id) in shown.iter().zip([&ids[2], &ids[1]]) {
        assert_eq!(
            (&one["session"], &one["what"], &one["step"]),
            (&json!(id), &json!("failed"), &json!(3)),
            "{one}"
        );
        assert_eq!(one["recordedBy"], report["beside"]);
        let text = one["text"].as_str().unwrap();
        assert!(text.contains("broke down"), "{text}");
    }
    let fuel = |name: &str| report[name].as_u64().unwrap();
    assert!(fuel("fuelThen") > 0 && fuel("fuelNow") > 0, "{report}");

    // No user met it, and no figure of the running build has its calls.
    let list = ground.ask("GET", "", None).await.ok();
    let plugin = &list["plugins"][0];
    assert_eq!(
        (&plugin["digest"], &plugin["name"]),
        (&report["beside"], &json!("counting"))
    );
    assert!(
        !ground
            .ask("GET", "", None)
            .await
            .text
            .contains("\"failures\":1"),
        "{plugin}"
    );

    // Another build says other things from the first step on, and the running one nothing new.
    let other = ground.upload(counting(2, "good")).await;
    let report = ground.shadow(&other).await;
    assert_eq!(
        (&report["different"], &report["same"]),
        (&json!(3), &json!(0)),
        "{report}"
    );
    let text = report["differences"][0]["text"].as_str().unwrap();
    let line = |sign: char, build: &str| {
        text.lines()
            .any(|line| line.starts_with(sign) && line.contains(&format!("begun by {build}")))
    };
    assert!(line('-', "build-0001") && line('+', "build-0002"), "{text}");
    let same = ground.upload(counting(1, "good")).await;
    let report = ground.shadow(&same).await;
    assert_eq!(
        (&report["same"], &report["fuelNow"]),
        (&json!(3), &report["fuelThen"]),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_refused_where_there_is_nothing_to_shadow() {
    let ground = Ground::new();
    let path = "/policy/counting/shadow";
    let detail = ground.ask("GET", path, None).await.problem(404);
    assert!(detail.contains("was shadowed since"), "{detail}");
    let build = ground.upload(counting(2, "good")).await;
    for (kind, name, body, status, reason) in [
        (
            "policy",
            "counting",
            json!({"digest": "0".repeat(64)}),
            404,
            "was uploaded",
        ),
        (
            "policy",
            "nobody",
            json!({"digest": build}),
            404,
            "no policy of this name",
        ),
        (
            "policy",
            "..%2f..%2fx",
            json!({"digest": build}),
            404,
            "no policy of this name",
        ),
        (
            "llm",
            "openai",
            json!({"digest": build}),
            422,
            "Only a policy",
        ),
        (
            "tools",
            "counting",
            json!({"digest": build}),
            404,
            "`policy` or `llm`",
        ),
        (
            "policy",
            "counting",
            json!({"digest": "../../x"}),
            422,
            "`digest` must be",
        ),
        (
            "policy",
            "counting",
            json!({"digest": build, "sessions": 0}),
            422,
            "1 to 200",
        ),
        (
            "policy",
            "counting",
            json!({"digest": build, "sessions": 201}),
            422,
            "1 to 200",
        ),
        (
            "policy",
            "counting",
            json!({"digest": build, "sessions": -1}),
            422,
            "does not fit",
        ),
        (
            "policy",
            "counting",
            json!({"digest": build, "share": 1}),
            422,
            "does not fit",
        ),
        ("policy", "counting", json!({}), 422, "does not fit"),
    ] {
        let path = format!("/{kind}/{name}/shadow");
        let detail = ground
            .ask("POST", &path, Some(body.clone()))
            .await
            .problem(status);
        assert!(detail.contains(reason), "{kind} {name} {body}: {detail}");
    }
    let report = ground.shadow(&build).await;
    assert!(
        report["problem"]
            .as_str()
            .unwrap()
            .contains("nothing to replay"),
        "{report}"
    );

    // Only administrators.
    for (method, body) in [
        ("GET", None),
        ("POST", Some(json!({"digest": build}).to_string())),
    ] {
        let path = format!("{PLUGINS}{path}");
        let of_bob = format!("Bearer {}", token("bob"));
        let answer = ground.host.send(method, &path, &[], body.clone()).await;
        answer.refused(401, "Authentication required");
        let answer = ground
            .host
            .send(method, &path, &[("authorization", &of_bob)], body)
            .await;
        answer.refused(403, "Only an administrator of this deployment may do that.");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_shadow_runs_at_a_time_and_a_build_that_never_ends_is_ended() {
    let ground = Ground::new();
    ground.count(0).await;
    // Its step never ends by itself, so there is time to ask for another.
    let endless = ground.upload(counting(1, "spin")).await;
    let begun = ground
        .begin_shadow("counting", json!({"digest": endless}))
        .await;
    assert_eq!(begun.status, 202, "{begun:?}");
    let detail = ground
        .begin_shadow("counting", json!({"digest": endless}))
        .await
        .problem(409);
    assert!(detail.contains("is being shadowed (0 of"), "{detail}");
    let report = ground.shadowed().await;
    assert_eq!(
        (&report["failed"], &report["problem"]),
        (&json!(1), &Value::Null),
        "{report}"
    );
    let text = report["differences"][0]["text"].as_str().unwrap();
    assert!(text.contains("fuel"), "{text}");
    // Then there is room for the next one.
    ground.shadow(&endless).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shadows_and_tells_as_diff_does() {
    let ground = Ground::new();
    let lucid = |arguments: &[&str]| {
        let (_, port) = ground.host.address().rsplit_once(':').unwrap();
        let mut command = command(ground.host.folder(), arguments);
        let done = command
            .envs([
                ("PORT", port),
                ("HOST", "127.0.0.1"),
                ("SUPABASE_JWT_SECRET", JWT_SECRET),
            ])
            .env("WORKSPACE_BASE_PATH", ground.host.folder().join("storage"))
            .output()
            .unwrap();
        (
            done.status.code(),
            text_of(&done.stdout),
            text_of(&done.stderr),
        )
    };
    let (id, _) = ground.count(3).await;
    let buggy = ground.upload(counting(1, "bugs")).await;
    let (code, out, err) = lucid(&["plugin", "shadow", "counting", &buggy]);
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    assert!(
        out.contains(&format!("session {id}, step 3: the new build fails")),
        "{out}"
    );
    assert!(
        out.contains("0 sessions the same, 0 different, 1 failed"),
        "{out}"
    );
    let same = ground.upload(counting(1, "good")).await;
    let (code, out, err) = lucid(&[
        "plugin",
        "shadow",
        "counting",
        &format!("sha256:{same}"),
        "--sessions",
        "5",
    ]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("1 sessions the same"), "{out}");
    let (code, out, _) = lucid(&["plugin", "shadow", "counting", &buggy, "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["failed"]), (Some(1), &json!(1)));
    let hostile = ground.upload(HOSTILE.to_vec()).await;
    let (code, out, _) = lucid(&["plugin", "shadow", "counting", &hostile]);
    assert_eq!(code, Some(1), "{out}");
    let (code, _, err) = lucid(&["plugin", "shadow", "nobody", &buggy]);
    assert_eq!(code, Some(1));
    assert!(err.contains("no policy of this name"), "{err}");
    let (code, _, _) = lucid(&["plugin", "shadow", "counting", &buggy, "--sessions", "201"]);
    assert_eq!(code, Some(2));
}
