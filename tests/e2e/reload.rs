//! A deployment whose plugins change while its sessions run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use lucid_tests::{
    DEADLINE, Host, HostBuilder, Socket, counting, eventually, is_completed, own_memory, seq,
};

const MANIFEST: &str = r#"
[policies.counting]
component = "counting.wasm"

[defaults]
policy = "counting"
"#;

/// A deployment's folder, in which files are put as tools do it: beside their place, and moved there.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        files.put("counting.wasm", &counting(1, "good"));
        files.put("lucid.toml", MANIFEST.as_bytes());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, content: &[u8]) {
        let draft = self.path(&format!(".{name}.new"));
        std::fs::write(&draft, content).unwrap();
        std::fs::rename(draft, self.path(name)).unwrap();
    }

    fn host(&self) -> HostBuilder {
        Host::with_defaults()
            .set("LUCID_MANIFEST", self.path("lucid.toml").to_str().unwrap())
            .set("SANDBOX_BACKEND", "none")
    }
}

fn task(number: u32) -> Value {
    // Each its own, so that no two are taken for the same work.
    json!({"task": format!("count to {number} ({})", uuid::Uuid::new_v4()), "features": ["seq"]})
}

/// Which build a new session begins with.
async fn begins_with(host: &Host) -> String {
    let mut socket = Socket::open(host, "alice", task(0)).await;
    let seen = socket.completed().await;
    socket.send(json!({"type": "stop"})).await;
    socket.end().await;
    thoughts(&seen)
        .iter()
        .find_map(|said| said.strip_prefix("begun by ").map(str::to_owned))
        .unwrap_or_else(|| panic!("nothing was begun: {seen:?}"))
}

fn thoughts(frames: &[Value]) -> Vec<String> {
    let said = frames
        .iter()
        .filter(|frame| frame["eventType"] == "ThinkAction");
    said.map(|frame| frame["content"].as_str().unwrap().to_owned())
        .collect()
}

async fn until_begins_with(host: &Host, build: &str) -> Duration {
    let begun = Instant::now();
    loop {
        if begins_with(host).await == build {
            return begun.elapsed();
        }
        // What is measured is not to be slowed by the looking.
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(
            begun.elapsed() < DEADLINE,
            "no session came to {build}: {}",
            host.log()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_moves_to_a_new_build_in_the_middle_of_its_task_and_finishes_there() {
    let files = Files::new();
    let host = files.host().start();
    assert_eq!(begins_with(&host).await, "build-0001");

    let mut socket = Socket::open(&host, "alice", task(30)).await;
    let told = |words: &'static str| {
        move |frame: &Value| {
            frame["content"]
                .as_str()
                .is_some_and(|text| text.starts_with(words))
        }
    };
    let mut seen = socket
        .until("the first number", told("1 by build-0001"))
        .await;
    files.put("counting.wasm", &counting(2, "good"));
    seen.extend(
        socket
            .until("the second build", told("moved to build-0002"))
            .await,
    );
    seen.extend(socket.completed().await);
    let said = thoughts(&seen);
    let counted: Vec<&str> = said
        .iter()
        .filter_map(|said| said.split_once(" by build"))
        .map(|(n, _)| n)
        .collect();
    let meant: Vec<String> = std::iter::once("begun".to_owned())
        .chain((1..=30).map(|number| number.to_string()))
        .collect();
    assert_eq!(counted, meant, "each number once, in order");
    assert_eq!(said.last().unwrap(), "30 by build-0002");
    assert_eq!(begins_with(&host).await, "build-0002");

    // A build that will not take it over: it stays, and new ones begin with the new one.
    files.put("counting.wasm", &counting(3, "evil"));
    until_begins_with(&host, "build-0003").await;
    socket.say("still there?").await;
    let seen = socket.completed().await;
    assert_eq!(thoughts(&seen), ["asked build-0002"]);
    assert!(
        host.log().contains("stays with the generation it has"),
        "{}",
        host.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_loaded_leaves_what_was_there_and_the_reason_is_told() {
    let files = Files::new();
    let host = files.host().start();
    assert_eq!(begins_with(&host).await, "build-0001");
    let whole = counting(2, "good");
    let digest = format!(
        "{MANIFEST}\n[policies.other]\ncomponent = \"counting.wasm\"\ndigest = \"sha256:{}\"\n",
        "0".repeat(64)
    );
    let cases: [(&str, &str, Vec<u8>, &str); 7] = [
        (
            "an empty manifest",
            "lucid.toml",
            b" \n".to_vec(),
            "the manifest is empty",
        ),
        (
            "no component",
            "counting.wasm",
            b"not wasm".to_vec(),
            "lucid.toml:3:13",
        ),
        (
            "half a file",
            "counting.wasm",
            whole[..whole.len() / 2].to_vec(),
            "lucid.toml:3:13",
        ),
        (
            "one that cannot say what it is",
            "counting.wasm",
            counting(2, "trap"),
            "broke down",
        ),
        (
            "a manifest with an error of syntax",
            "lucid.toml",
            b"[policies".to_vec(),
            "lucid.toml:1:",
        ),
        (
            "a manifest with a word it does not know",
            "lucid.toml",
            b"[policie.x]\n".to_vec(),
            "policies",
        ),
        (
            "another digest",
            "lucid.toml",
            digest.into_bytes(),
            "is another than the manifest means",
        ),
    ];
    for (what, name, content, reason) in cases {
        let before = host.log().len();
        files.put(name, &content);
        eventually(&format!("the reason of {what}"), async || {
            host.log()[before..].contains(reason).then_some(())
        })
        .await;
        assert_eq!(begins_with(&host).await, "build-0001", "{what}");
        files.put("lucid.toml", MANIFEST.as_bytes());
        files.put("counting.wasm", &counting(1, "good"));
    }
    files.put("counting.wasm", &counting(2, "good"));
    until_begins_with(&host, "build-0002").await;
}

/// One session that counts, read to its end.
async fn counts(host: &Host, user: &str, number: u32) -> Vec<Value> {
    let mut socket = Socket::open(host, user, task(number)).await;
    let mut seen = Vec::new();
    while let Some(frame) = socket.next().await {
        let over = is_completed(&frame);
        seen.push(frame);
        if over {
            socket.send(json!({"type": "stop"})).await;
            socket.end().await;
            return seen;
        }
    }
    panic!("the session ended before it was done: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_fails_and_no_frame_is_lost_while_builds_follow_one_another() {
    // `LUCID_RELOAD=full` is 200 sessions and a build a second for a minute.
    let full = std::env::var("LUCID_RELOAD").is_ok_and(|how| how == "full");
    let (sessions, number, pause, builds) = if full {
        (200_u32, 2_000, Duration::from_secs(1), 60)
    } else {
        (40, 80, Duration::from_millis(250), 10)
    };
    let files = Files::new();
    let host = files.host().start();
    assert_eq!(begins_with(&host).await, "build-0001");
    // The first builds are new, and the ones after them were compiled before.
    let work = async |build: u32, again: u32| {
        let counting = (0..sessions).map(|user| {
            let host = &host;
            async move { counts(host, &format!("user-{user}"), number).await }
        });
        let dropping = async {
            let mut took = Vec::new();
            for build in (build..build + builds).chain(2..2 + again) {
                let next = tokio::time::Instant::now() + pause;
                files.put("counting.wasm", &counting_build(build));
                took.push(until_begins_with(&host, &format!("build-{build:04}")).await);
                tokio::time::sleep_until(next).await;
            }
            let again = took.split_off(builds as usize);
            (took, again)
        };
        tokio::join!(futures::future::join_all(counting), dropping)
    };
    // What a server needs for so many sessions is there after the first time.
    work(2, 0).await;
    let before = own_memory(host.pid());
    let (all, (took, again)) = work(2 + builds, builds).await;
    let mut moved = 0;
    for seen in &all {
        let numbers: Vec<u64> = seen.iter().filter_map(seq).collect();
        assert!(
            numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "{numbers:?}"
        );
        let said = thoughts(seen);
        let counted: Vec<u32> = said
            .iter()
            .filter_map(|said| said.split_once(" by build")?.0.parse().ok())
            .collect();
        assert_eq!(counted, (1..=number).collect::<Vec<_>>());
        moved += said
            .iter()
            .filter(|said| said.starts_with("moved to"))
            .count();
    }
    assert!(
        moved >= all.len(),
        "only {moved} moves of {} sessions",
        all.len()
    );
    println!(
        "{moved} moves of {} sessions; from a file's change to the first session on it:",
        all.len()
    );
    for (what, mut took) in [("compiled", took), ("from the cache", again)] {
        took.sort_unstable();
        let p95 = took[(took.len() * 95).div_ceil(100) - 1];
        println!("{what}: p50 {:?}, p95 {p95:?}", took[took.len() / 2]);
    }
    // All sessions are over, so all builds but the last are gone.
    let after = own_memory(host.pid());
    println!("memory before {before}, after {after}");
    assert!(after < before + (64 << 20), "{before} bytes became {after}");
}

fn counting_build(number: u32) -> Vec<u8> {
    counting(number, "good")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_appears_takes_effect_and_one_that_goes_does_not() {
    let files = Files::new();
    std::fs::remove_file(files.path("lucid.toml")).unwrap();
    let missing: &Path = &files.path("elsewhere.toml");
    // A manifest that is named must be there; the one that is looked for need not.
    let refused = lucid_tests::command(files.folder.path(), &["check"])
        .env("LUCID_MANIFEST", missing)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let host = files.host().unset("LUCID_MANIFEST").start();
    let asked = json!({"task": "t", "policy": "counting"});
    let refused = host.post("alice", "/api/v1/sessions", asked.clone()).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let own = host.folder().join("lucid.toml");
    let component = files.path("counting.wasm");
    let manifest = MANIFEST.replace("counting.wasm", component.to_str().unwrap());
    std::fs::write(&own, manifest).unwrap();
    eventually("the manifest to be taken", async || {
        let answer = host.post("alice", "/api/v1/sessions", asked.clone()).await;
        (answer.status == 200).then_some(())
    })
    .await;

    // Its end does not: without it there would be other providers under the same names.
    std::fs::remove_file(own).unwrap();
    eventually("the reason", async || {
        host.log().contains("the manifest is gone").then_some(())
    })
    .await;
    assert_eq!(begins_with(&host).await, "build-0001");
}
