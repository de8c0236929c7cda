//! A new build of a policy comes to users by degrees: shadowed first, then for a share of new sessions,
//! then for all, and back by itself where it fails.

use futures::future::join_all;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use lucid_tests::{
    HOSTILE, Host, HttpAnswer, JWT_SECRET, Socket, claims_token, command, counting, eventually,
    is_completed, text_of, token,
};

const PLUGINS: &str = "/api/v1/plugins";
const GUIDE: &str = include_str!("../../host/docs/plugins-at-run-time.md");

fn admin() -> String {
    claims_token(json!({"sub": "alice", "lucid_admin": true}))
}

fn digest(wasm: &[u8]) -> String {
    hex::encode(Sha256::digest(wasm))
}

/// A deployment with the first build of the policy that counts.
struct Fixture {
    _folder: tempfile::TempDir,
    host: Host,
}

impl Fixture {
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

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> HttpAnswer {
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

    async fn begin_shadow(&self, name: &str, body: Value) -> HttpAnswer {
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

impl Fixture {
    /// The command line, with the server's settings: exit code, and what it printed.
    fn lucid(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let (_, port) = self.host.address().rsplit_once(':').unwrap();
        let done = command(self.host.folder(), arguments)
            .env("PORT", port)
            .env("HOST", "127.0.0.1")
            .env("SUPABASE_JWT_SECRET", JWT_SECRET)
            .env("WORKSPACE_BASE_PATH", self.host.folder().join("storage"))
            .output()
            .unwrap();
        (
            done.status.code(),
            text_of(&done.stdout),
            text_of(&done.stderr),
        )
    }

    async fn activate(&self, name: &str, build: &str, share: Option<u32>) -> HttpAnswer {
        let path = format!("/policy/{name}/activate");
        let mut body = json!({"digest": build});
        if name != "counting" {
            body["new"] = true.into();
        }
        if let Some(share) = share {
            body["share"] = share.into();
        }
        self.ask("POST", &path, Some(body)).await
    }

    async fn roll_back(&self) -> HttpAnswer {
        self.ask("POST", "/policy/counting/rollback", None).await
    }

    async fn plugin(&self) -> Value {
        let list = self.ask("GET", "", None).await.ok();
        let mut found = list["plugins"].as_array().unwrap().iter();
        found.find(|one| one["name"] == "counting").unwrap().clone()
    }

    /// The plugin, once it is as it is to be.
    async fn until(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || {
            let plugin = self.plugin().await;
            fits(&plugin).then_some(plugin)
        })
        .await
    }

    /// So many sessions at once, which end their tasks at once: their ids, and who began them.
    async fn begin(&self, count: usize) -> Vec<(String, String)> {
        let begun = (0..count).map(|_| async {
            let (id, seen) = self.count(0).await;
            let said = thoughts(&seen);
            let by = said.iter().find_map(|said| said.strip_prefix("begun by "));
            (
                id,
                by.unwrap_or_else(|| panic!("nothing was begun: {seen:?}"))
                    .to_owned(),
            )
        });
        join_all(begun).await
    }

    /// Who answers in a session that is there.
    async fn answers(&self, id: &str) -> String {
        let first = json!({"sessionId": id, "lastSeq": 1_000_000, "features": ["seq"]});
        let mut socket = Socket::open(&self.host, "bob", first).await;
        socket.say("who is it?").await;
        let seen = socket
            .until("an answer", |frame| {
                frame["content"]
                    .as_str()
                    .is_some_and(|said| said.starts_with("asked "))
            })
            .await;
        let last = seen.last().unwrap()["content"].as_str().unwrap();
        last.trim_start_matches("asked ").to_owned()
    }
}

fn thoughts(frames: &[Value]) -> Vec<String> {
    let said = frames
        .iter()
        .filter(|frame| frame["eventType"] == "ThinkAction");
    said.map(|frame| frame["content"].as_str().unwrap().to_owned())
        .collect()
}

/// How many steps a build failed, by the sentence on why it was taken back: when three are enough, some
/// more may have failed already.
fn failed_steps(why: &str) -> u32 {
    let rest = why.strip_prefix("It failed ").unwrap_or_default();
    let number = rest.split(' ').next().unwrap_or_default();
    number
        .parse()
        .unwrap_or_else(|_| panic!("no number in {why:?}"))
}

fn on_each(plugin: &Value) -> (u64, u64) {
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    (
        count(&plugin["sessions"]),
        count(&plugin["candidate"]["sessions"]),
    )
}

fn task(number: u32) -> Value {
    // Each its own, so that no two are taken for the same work.
    json!({"task": format!("count to {number} ({})", uuid::Uuid::new_v4()), "policy": "counting"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_shows_a_planted_bug_before_any_user_meets_it() {
    let fixture = Fixture::new();
    let mut ids = Vec::new();
    for number in [0, 4, 5] {
        ids.push(fixture.count(number).await.0);
    }
    // The same but for the bug, since its name is in its words.
    let buggy = fixture.upload(counting(1, "bugs")).await;
    let report = fixture.shadow(&buggy).await;
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
        let place = "panicked at tests/guests/counting/src/lib.rs:";
        assert!(
            text.contains("broke down") && text.contains(place),
            "{text}"
        );
        assert!(text.contains("as its words say"), "{text}");
        // In the log too, where it is told from what users meet.
        let whose = format!(
            "digest=\"{buggy}\" session=\"{}\" step=3 shadow=true",
            one["session"].as_str().unwrap()
        );
        fixture.host.says(&whose).await;
    }
    let fuel = |name: &str| report[name].as_u64().unwrap();
    assert!(fuel("fuelThen") > 0 && fuel("fuelNow") > 0, "{report}");

    // No user met it, and no figure of the running build has its calls.
    let list = fixture.ask("GET", "", None).await.ok();
    let plugin = &list["plugins"][0];
    assert_eq!(
        (&plugin["digest"], &plugin["name"]),
        (&report["beside"], &json!("counting"))
    );
    assert!(
        !fixture
            .ask("GET", "", None)
            .await
            .text
            .contains("\"failures\":1"),
        "{plugin}"
    );

    // Another build says other things from the first step on, and the running one nothing new.
    let other = fixture.upload(counting(2, "good")).await;
    let report = fixture.shadow(&other).await;
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
    let same = fixture.upload(counting(1, "good")).await;
    let report = fixture.shadow(&same).await;
    assert_eq!(
        (&report["same"], &report["fuelNow"]),
        (&json!(3), &report["fuelThen"]),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_refused_where_there_is_nothing_to_shadow() {
    let fixture = Fixture::new();
    let path = "/policy/counting/shadow";
    let detail = fixture.ask("GET", path, None).await.problem(404);
    assert!(detail.contains("was shadowed since"), "{detail}");
    let build = fixture.upload(counting(2, "good")).await;
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
            "There is no policy plugin",
        ),
        (
            "policy",
            "..%2f..%2fx",
            json!({"digest": build}),
            404,
            "There is no policy plugin",
        ),
        (
            "llm",
            "openai",
            json!({"digest": build}),
            422,
            "Only a policy",
        ),
        (
            "nothing",
            "counting",
            json!({"digest": build}),
            404,
            "kind is one of",
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
        let detail = fixture
            .ask("POST", &path, Some(body.clone()))
            .await
            .problem(status);
        assert!(detail.contains(reason), "{kind} {name} {body}: {detail}");
    }
    let report = fixture.shadow(&build).await;
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
        let answer = fixture.host.send(method, &path, &[], body.clone()).await;
        answer.refused(401, "Authentication required");
        let answer = fixture
            .host
            .send(method, &path, &[("authorization", &of_bob)], body)
            .await;
        answer.refused(403, "Only an administrator of this deployment may do that.");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_shadow_runs_at_a_time_and_a_build_that_never_ends_is_ended() {
    let fixture = Fixture::new();
    fixture.count(0).await;
    // Its step never ends by itself, so there is time to ask for another.
    let endless = fixture.upload(counting(1, "spin")).await;
    let begun = fixture
        .begin_shadow("counting", json!({"digest": endless}))
        .await;
    assert_eq!(begun.status, 202, "{begun:?}");
    let detail = fixture
        .begin_shadow("counting", json!({"digest": endless}))
        .await
        .problem(409);
    assert!(detail.contains("is being shadowed (0 of"), "{detail}");
    let report = fixture.shadowed().await;
    assert_eq!(
        (&report["failed"], &report["problem"]),
        (&json!(1), &Value::Null),
        "{report}"
    );
    let text = report["differences"][0]["text"].as_str().unwrap();
    assert!(text.contains("fuel"), "{text}");
    // Then there is room for the next one.
    fixture.shadow(&endless).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shadows_and_tells_as_diff_does() {
    let fixture = Fixture::new();
    let lucid = |arguments: &[&str]| fixture.lucid(arguments);
    let (id, _) = fixture.count(3).await;
    let buggy = fixture.upload(counting(1, "bugs")).await;
    let (code, out, err) = lucid(&["plugin", "shadow", "counting", &buggy]);
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    assert!(
        out.contains(&format!("session {id}, step 3: the new build fails")),
        "{out}"
    );
    assert!(
        out.contains("panicked at tests/guests/counting/src/lib.rs:"),
        "{out}"
    );
    assert!(
        out.contains("0 sessions the same, 0 different, 1 failed"),
        "{out}"
    );
    let same = fixture.upload(counting(1, "good")).await;
    let (code, out, err) = lucid(&[
        "plugin",
        "shadow",
        "counting",
        &format!("sha256:{same}"),
        "--sessions",
        "5",
    ]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("1 session the same"), "{out}");
    let (code, out, _) = lucid(&["plugin", "shadow", "counting", &buggy, "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["failed"]), (Some(1), &json!(1)));
    let hostile = fixture.upload(HOSTILE.to_vec()).await;
    let (code, out, _) = lucid(&["plugin", "shadow", "counting", &hostile]);
    assert_eq!(code, Some(1), "{out}");
    let (code, _, err) = lucid(&["plugin", "shadow", "nobody", &buggy]);
    assert_eq!(code, Some(1));
    assert!(err.contains("There is no policy plugin"), "{err}");
    let (code, _, _) = lucid(&["plugin", "shadow", "counting", &buggy, "--sessions", "201"]);
    assert_eq!(code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_gets_exactly_its_share_and_its_sessions_keep_it_over_generations_and_a_restart()
 {
    let mut fixture = Fixture::new();
    let first = digest(&counting(1, "good"));
    let second = fixture.upload(counting(2, "good")).await;
    let given = fixture.activate("counting", &second, Some(25)).await.ok();
    assert_eq!(
        (&given["digest"], &given["candidate"], &given["share"]),
        (&json!(first), &json!(second), &json!(25))
    );
    let begun = fixture.begin(100).await;
    let of_second: Vec<_> = begun.iter().filter(|(_, by)| by == "build-0002").collect();
    assert_eq!(of_second.len(), 25, "of a hundred sessions");
    let shown = fixture.plugin().await;
    assert_eq!(shown["digest"], first.as_str());
    assert_eq!(on_each(&shown), (75, 25), "{shown}");
    let candidate = &shown["candidate"];
    assert_eq!(
        (&candidate["version"], &candidate["share"], &candidate["by"]),
        (&json!("build-0002"), &json!(25), &json!("alice"))
    );
    let steps = |of: &Value| {
        let calls = of["calls"].as_array().unwrap().iter();
        calls
            .filter(|call| call["call"] == "step")
            .map(|call| call["calls"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!((steps(candidate), steps(&shown)), (25, 75), "{shown}");
    assert_eq!(shown["probation"]["steps"], 25, "{shown}");
    assert_eq!(shown["probation"]["stepsBefore"], 75, "{shown}");
    assert_eq!(shown["otherBuilds"], json!([]));

    // Other generations change nothing of it.
    fixture.activate("other", &second, None).await.ok();
    let more = fixture.begin(4).await;
    assert_eq!(
        more.iter().filter(|(_, by)| by == "build-0002").count(),
        1,
        "the turns go on: {more:?}"
    );
    for (id, by) in begun.iter().take(8) {
        assert_eq!(&fixture.answers(id).await, by);
    }
    assert_eq!(on_each(&fixture.plugin().await), (78, 26));

    fixture.host.stop().await;
    fixture.host.start_again();
    let shown = fixture.plugin().await;
    assert_eq!(
        (&shown["candidate"]["digest"], &shown["candidate"]["share"]),
        (&json!(second), &json!(25))
    );
    assert_eq!(on_each(&shown), (78, 26), "{shown}");
    for (id, by) in begun.iter().take(8) {
        assert_eq!(&fixture.answers(id).await, by, "after the restart");
    }
    let begun = fixture.begin(20).await;
    assert_eq!(
        begun.iter().filter(|(_, by)| by == "build-0002").count(),
        5,
        "{begun:?}"
    );

    // Then it gets all, and those that run come along.
    let all = fixture.activate("counting", &second, None).await.ok();
    assert_eq!(
        (&all["digest"], &all["candidate"]),
        (&json!(second), &Value::Null)
    );
    fixture
        .until("all to move", |plugin| on_each(plugin) == (124, 0))
        .await;
    assert!(
        fixture
            .begin(5)
            .await
            .iter()
            .all(|(_, by)| by == "build-0002")
    );
    fixture.roll_back().await.ok();
    fixture
        .until("all to move back", |plugin| {
            plugin["digest"] == first.as_str() && on_each(plugin) == (129, 0)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_takes_a_candidate_off_in_one_call_and_then_goes_back_through_builds() {
    let fixture = Fixture::new();
    let first = digest(&counting(1, "good"));
    let mut builds = Vec::new();
    for number in 2..=4 {
        builds.push(fixture.upload(counting(number, "good")).await);
    }
    fixture.activate("counting", &builds[0], None).await.ok();
    fixture
        .activate("counting", &builds[1], Some(60))
        .await
        .ok();
    // Another candidate takes the place of the first, and another share its share.
    fixture
        .activate("counting", &builds[2], Some(40))
        .await
        .ok();
    let given = fixture
        .activate("counting", &builds[2], Some(50))
        .await
        .ok();
    assert_eq!(
        (&given["digest"], &given["candidate"], &given["share"]),
        (&json!(builds[0]), &json!(builds[2]), &json!(50))
    );
    let begun = fixture.begin(10).await;
    assert_eq!(
        begun.iter().filter(|(_, by)| by == "build-0004").count(),
        5,
        "{begun:?}"
    );

    let back = fixture.roll_back().await.ok();
    assert_eq!(
        (&back["digest"], &back["candidate"]),
        (&json!(builds[0]), &Value::Null)
    );
    fixture
        .until("the candidate's sessions to come back", |plugin| {
            on_each(plugin) == (10, 0)
        })
        .await;
    assert!(
        fixture
            .begin(4)
            .await
            .iter()
            .all(|(_, by)| by == "build-0002")
    );
    let back = fixture.roll_back().await.ok();
    assert_eq!(back["digest"], first.as_str());
    fixture.roll_back().await.problem(409);
    // One on which the manifest's own is what others have.
    fixture.activate("counting", &builds[1], Some(1)).await.ok();
    assert_eq!(fixture.roll_back().await.ok()["candidate"], Value::Null);
    fixture.roll_back().await.problem(409);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_cannot_be_is_refused_and_changes_nothing() {
    let fixture = Fixture::new();
    let first = fixture.upload(counting(1, "good")).await;
    let second = fixture.upload(counting(2, "good")).await;
    let broken = fixture.upload(HOSTILE.to_vec()).await;
    for (kind, name, body, status, reason) in [
        (
            "policy",
            "counting",
            json!({"digest": second, "share": 0}),
            422,
            "1 to 99",
        ),
        (
            "policy",
            "counting",
            json!({"digest": second, "share": 100}),
            422,
            "1 to 99",
        ),
        (
            "policy",
            "counting",
            json!({"digest": second, "share": 256}),
            422,
            "does not fit",
        ),
        (
            "policy",
            "counting",
            json!({"digest": second, "share": -1}),
            422,
            "does not fit",
        ),
        (
            "policy",
            "counting",
            json!({"digest": second, "share": "10"}),
            422,
            "does not fit",
        ),
        (
            "policy",
            "counting",
            json!({"digest": first, "share": 10}),
            409,
            "has all new sessions",
        ),
        (
            "policy",
            "fresh",
            json!({"digest": second, "share": 10, "new": true}),
            409,
            "no active build",
        ),
        (
            "policy",
            "counting",
            json!({"digest": "0".repeat(64), "share": 10}),
            404,
            "was uploaded",
        ),
        (
            "llm",
            "openai",
            json!({"digest": second, "share": 10}),
            422,
            "Only a policy's build",
        ),
    ] {
        let path = format!("/{kind}/{name}/activate");
        let detail = fixture
            .ask("POST", &path, Some(body.clone()))
            .await
            .problem(status);
        assert!(detail.contains(reason), "{kind} {name} {body}: {detail}");
    }
    let shown = fixture.plugin().await;
    assert_eq!(
        (&shown["candidate"], &shown["source"]),
        (&Value::Null, &json!("file")),
        "{shown}"
    );
    // A candidate whose file is gone keeps no server from starting.
    fixture.activate("counting", &broken, Some(50)).await.ok();
    let mut fixture = fixture;
    fixture.host.stop().await;
    let depot = fixture.host.folder().join("storage/.lucid/data/plugins");
    std::fs::write(depot.join(format!("{broken}.wasm")), b"half").unwrap();
    fixture.host.start_again();
    let shown = fixture.plugin().await;
    assert_eq!(shown["candidate"], Value::Null, "{shown}");
    let list = fixture.ask("GET", "", None).await.ok();
    let what = list["lastError"]["problems"][0]["what"]
        .as_str()
        .unwrap_or_default();
    assert!(what.contains("is not what was uploaded"), "{list}");
    assert!(
        fixture
            .begin(4)
            .await
            .iter()
            .all(|(_, by)| by == "build-0001")
    );
    fixture.roll_back().await.ok();
    assert_eq!(
        fixture.ask("GET", "", None).await.ok()["lastError"],
        Value::Null
    );
}

/// Counts to five in so many sessions at once, and checks that nobody noticed anything.
async fn all_count_to_five(fixture: &Fixture, count: usize) -> Vec<Vec<String>> {
    let counted = join_all((0..count).map(|_| fixture.count(5))).await;
    let mut all = Vec::new();
    for (id, seen) in counted {
        assert!(
            !seen.iter().any(|frame| frame["type"] == "error"),
            "the user of {id} met the bug: {seen:?}"
        );
        let said = thoughts(&seen);
        let numbers: Vec<&str> = said
            .iter()
            .filter_map(|said| said.split_once(" by build"))
            .map(|(number, _)| number)
            .filter(|number| *number != "begun")
            .collect();
        assert_eq!(numbers, ["1", "2", "3", "4", "5"], "{said:?}");
        all.push(said);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_bug_that_was_rolled_out_all_the_same_is_taken_back_and_no_user_meets_it() {
    let mut fixture = Fixture::new();
    let first = digest(&counting(1, "good"));
    // An idle one and one that works come along, and back.
    let (idle, _) = fixture.count(0).await;
    let buggy = fixture.upload(counting(2, "bugs")).await;
    let good = fixture.upload(counting(3, "good")).await;
    fixture.activate("counting", &buggy, None).await.ok();
    let shown = fixture
        .until("the idle one to move", |plugin| on_each(plugin) == (1, 0))
        .await;
    assert_eq!(shown["probation"]["failed"], 0, "{shown}");
    let all = all_count_to_five(&fixture, 4).await;
    let met = all
        .iter()
        .filter(|said| said.contains(&"begun by build-0002".to_owned()));
    let met: Vec<_> = met.collect();
    assert!(met.len() >= 3, "too few began with the bug: {all:?}");
    for said in met {
        let at = |words: &str| said.iter().position(|one| one == words);
        let (moved, third) = (at("moved to build-0001"), at("3 by build-0001"));
        assert!(moved.is_some() && moved < third, "{said:?}");
    }
    let shown = fixture
        .until("the build to be taken back", |plugin| {
            plugin["digest"] == first.as_str()
        })
        .await;
    let taken = &shown["takenBack"][0];
    assert_eq!(taken["digest"], buggy.as_str(), "{shown}");
    let why = taken["why"].as_str().unwrap().to_owned();
    assert!(
        failed_steps(&why) >= 3 && why.contains(" the build before it 0 of "),
        "{why}"
    );
    assert_eq!(
        (&shown["source"], &shown["probation"], &shown["activated"]),
        (&json!("file"), &Value::Null, &json!([]))
    );
    let log = fixture.host.log();
    assert!(
        log.contains("taken back by itself") && log.contains(&why),
        "{log}"
    );
    fixture
        .until("all to be back", |plugin| on_each(plugin) == (5, 0))
        .await;
    assert_eq!(fixture.answers(&idle).await, "build-0001");
    assert!(
        fixture
            .begin(4)
            .await
            .iter()
            .all(|(_, by)| by == "build-0001")
    );

    // It is remembered, and nothing goes on to be taken back: what was the manifest's stays.
    fixture.host.stop().await;
    fixture.host.start_again();
    let shown = fixture.plugin().await;
    assert_eq!(
        (&shown["digest"], &shown["takenBack"][0]["why"]),
        (&json!(first), &json!(why))
    );
    // A good one goes its way.
    fixture.activate("counting", &good, None).await.ok();
    all_count_to_five(&fixture, 3).await;
    let shown = fixture.plugin().await;
    assert_eq!(
        (&shown["digest"], &shown["probation"]["failed"]),
        (&json!(good), &json!(0)),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_with_a_bug_loses_its_share_and_its_sessions_go_on_with_the_active_build() {
    let fixture = Fixture::new();
    let buggy = fixture.upload(counting(2, "bugs")).await;
    fixture.activate("counting", &buggy, Some(50)).await.ok();
    all_count_to_five(&fixture, 8).await;
    let shown = fixture
        .until("the candidate to be taken back", |plugin| {
            plugin["candidate"].is_null()
        })
        .await;
    assert_eq!(shown["takenBack"][0]["digest"], buggy.as_str(), "{shown}");
    fixture
        .until("all to be back", |plugin| on_each(plugin) == (8, 0))
        .await;
    assert!(
        fixture
            .begin(4)
            .await
            .iter()
            .all(|(_, by)| by == "build-0001")
    );
    // Whoever wants it all the same gets it, and it is judged anew.
    let given = fixture.activate("counting", &buggy, Some(99)).await.ok();
    assert_eq!(given["candidate"], buggy.as_str());
    assert_eq!(fixture.plugin().await["probation"]["failed"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_does_well_is_settled_and_can_be_rolled_back_all_the_same() {
    let mut fixture = Fixture::new();
    let first = digest(&counting(1, "good"));
    let good = fixture.upload(counting(2, "good")).await;
    fixture.activate("counting", &good, None).await.ok();
    let shown = fixture.plugin().await;
    assert_eq!(shown["probation"]["steps"], 0, "{shown}");
    // A thousand steps and more.
    join_all((0..50).map(|_| fixture.count(21))).await;
    let shown = fixture
        .until("it to be settled", |plugin| plugin["probation"].is_null())
        .await;
    assert_eq!(
        (&shown["digest"], on_each(&shown)),
        (&json!(good), (50, 0)),
        "{shown}"
    );
    fixture.host.says("settled: It failed 0 of 1").await;
    fixture.host.stop().await;
    fixture.host.start_again();
    assert_eq!(
        fixture.plugin().await["probation"],
        Value::Null,
        "also after a restart"
    );
    assert_eq!(fixture.roll_back().await.ok()["digest"], first.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_will_not_go_on_with_sessions_is_taken_back_before_anybody_says_a_word() {
    let fixture = Fixture::new();
    fixture.begin(4).await;
    let evil = fixture.upload(counting(2, "evil")).await;
    fixture.activate("counting", &evil, None).await.ok();
    let shown = fixture
        .until("it to be taken back", |plugin| plugin["source"] == "file")
        .await;
    assert_eq!(shown["takenBack"][0]["digest"], evil.as_str(), "{shown}");
    fixture
        .until("all to be where they were", |plugin| {
            on_each(plugin) == (4, 0)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shares_and_shows_what_was_taken_back() {
    let fixture = Fixture::new();
    let lucid = |arguments: &[&str]| fixture.lucid(arguments);
    let buggy = fixture.upload(counting(2, "bugs")).await;
    let out = lucid(&[
        "plugin", "activate", "policy", "counting", &buggy, "--share", "50",
    ])
    .1;
    assert!(
        out.contains(&format!("50 of a hundred new sessions get sha256:{buggy}")),
        "{out}"
    );
    fixture.begin(2).await;
    let out = lucid(&["plugin", "list"]).1;
    assert!(
        out.contains(&format!(
            "50 of a hundred new sessions get build-0002 sha256:{buggy}, 1 session"
        )),
        "{out}"
    );
    assert!(
        out.contains("on probation: 0 of 1 step failed, in 0 of 1 session; before it 0 of 1 step"),
        "{out}"
    );
    all_count_to_five(&fixture, 8).await;
    fixture
        .until("it to be taken back", |plugin| {
            plugin["candidate"].is_null()
        })
        .await;
    let out = lucid(&["plugin", "list"]).1;
    assert!(
        out.contains("taken back at ") && out.contains("It failed "),
        "{out}"
    );
    for share in ["0", "100", "-1", "x"] {
        let (code, _, _) = lucid(&[
            "plugin", "activate", "policy", "counting", &buggy, "--share", share,
        ]);
        assert_eq!(code, Some(2), "{share}");
    }
    // The commands of the guide.
    let good = fixture.upload(counting(3, "good")).await;
    let section = GUIDE
        .split_once("\n## Rolling a new build out\n")
        .unwrap()
        .1;
    let section = section.split_once("\n## ").unwrap().0;
    let lines = section.lines().filter(|line| line.starts_with("lucid "));
    let lines: Vec<&str> = lines.map(|line| line.split(" #").next().unwrap()).collect();
    assert!(lines.len() >= 4, "{lines:?}");
    for line in lines {
        let line = line.replace("coder", "counting").replace("DIGEST", &good);
        let arguments: Vec<&str> = line.split_whitespace().skip(1).collect();
        let (code, out, err) = lucid(&arguments);
        // Its name is in its words, so it differs.
        let meant = i32::from(arguments[1] == "shadow");
        assert_eq!((code, err.as_str()), (Some(meant), ""), "{line}: {out}");
    }

    // Beside a server, which notices.
    lucid(&[
        "plugin", "activate", "policy", "counting", &buggy, "--share", "1",
    ]);
    let (code, out, err) = lucid(&["plugin", "rollback", "policy", "counting", "--offline"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(
        out.contains("has no share of the sessions of the policy plugin counting any more"),
        "{out}"
    );
    fixture
        .until("the server to notice", |plugin| {
            plugin["candidate"].is_null()
        })
        .await;
}
