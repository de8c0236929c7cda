//! The API against its own description: whatever can be asked by the document is answered as the document
//! says, for a user and for an administrator.

use serde_json::json;

use lucid_tests::{GitApi, Host, Socket, claims_token, schemathesis, token};

/// For each of both roles; they run side by side.
const SECONDS: u32 = 55;

/// A host whose GitHub is the test's own, so that nothing is asked outside this machine.
async fn host(api: &GitApi) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("lucid.toml");
    let text = format!(
        "[git.github]\ncomponent = \"builtin:github\"\nweb_url = \"https://git.example\"\nbase_url = \"{}\"\n",
        api.url
    );
    std::fs::write(&manifest, text).unwrap();
    let host = Host::with_defaults()
        .set("LUCID_MANIFEST", manifest.to_str().unwrap())
        .set("SANDBOX_BACKEND", "none")
        .set("MAX_SESSIONS_PER_USER", "10000")
        .start();
    (folder, host)
}

/// Whatever requests there are, nothing is found.
async fn tried(host: Host, token: String, more: &'static [&'static str]) {
    let (host, told) = tokio::task::spawn_blocking(move || {
        let told = schemathesis(&host, &token, SECONDS, more);
        (host, told)
    })
    .await
    .unwrap();
    if let Err(told) = told {
        panic!("the API is not as its description says:\n{told}");
    }
    drop(host);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_no_administrator_by_any_route_of_theirs() {
    let host = Host::with_defaults().start();
    let description = host.send("GET", "/openapi.json", &[], None).await.ok();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["tags"] != json!(["plugins"]) {
                continue;
            }
            assert!(operation["responses"]["403"].is_object(), "{method} {path}");
            let path = path.replace("{kind}", "policy").replace("{name}", "coder");
            let answer = host
                .call("alice", &method.to_uppercase(), &path, None)
                .await;
            answer.problem(403);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_answered_as_the_description_says() {
    let api = GitApi::start("ghp_e2e0123456789abcdefghijklmnop").await;
    let (_folder, host) = host(&api).await;
    // Something to find: a session that played, its chat, and its files.
    let mut socket = Socket::open(&host, "alice", json!({"task": "Say hello"})).await;
    socket.completed().await;
    tried(host, token("alice"), &["--exclude-tag", "plugins"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_is_answered_as_the_description_says() {
    let api = GitApi::start("ghp_e2e0123456789abcdefghijklmnop").await;
    let (_folder, host) = host(&api).await;
    let token = claims_token(json!({"sub": "root", "lucid_admin": true}));
    tried(host, token, &["--include-tag", "plugins"]).await;
}
