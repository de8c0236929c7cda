//! Users' git accounts over the running host: connected, used, forgotten; and the whole way from a task to
//! the change that is opened of it.

use std::path::Path;

use serde_json::{Value, json};

use lucid_tests::{
    GitApi, GitServer, Host, HostBuilder, Model, Socket, call, find, kinds, repository,
};

const TOKEN: &str = "ghp_e2e0123456789abcdefghijklmnop";
const KEY: &str = "sk-the-tests-own-key-0123456789";

/// A host whose GitHub is the test's own.
fn host(folder: &Path, web_url: &str, api: &GitApi) -> HostBuilder {
    let manifest = folder.join("lucid.toml");
    let text = format!(
        "[git.github]\ncomponent = \"builtin:github\"\nweb_url = \"{web_url}\"\nbase_url = \"{}\"\n\n[git.gitlab]\ncomponent = \"builtin:gitlab\"\n",
        api.url
    );
    std::fs::write(&manifest, text).unwrap();
    Host::with_defaults().set("LUCID_MANIFEST", manifest.to_str().unwrap())
}

async fn connect(host: &Host, user: &str) -> Value {
    let body = json!({"provider": "github", "token": TOKEN});
    host.post(user, "/api/v1/integrations", body).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_connected_used_and_forgotten_by_its_user_alone() {
    let (folder, api) = (tempfile::tempdir().unwrap(), GitApi::start(TOKEN).await);
    api.has_repositories(250);
    let host = host(folder.path(), "https://git.example", &api).start();
    assert_eq!(
        connect(&host, "alice").await,
        json!({"status": "connected", "provider": "github", "username": "octocat", "message": "Connected as octocat."})
    );
    // Once more is the same account.
    connect(&host, "alice").await;
    let listed = host.get("alice", "/api/v1/integrations").await;
    let all = listed.ok();
    let all = all["integrations"].as_array().unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["provider"], "github");
    assert_eq!(all[0]["externalUsername"], "octocat");
    assert_eq!(all[0]["scopes"], "repo,read:user");
    assert_eq!(all[0]["connected"], true);
    assert!(all[0]["id"].is_string() && all[0]["createdAt"].is_string());

    let path = "/api/v1/integrations/github/repos";
    let found = host.get("alice", path).await.ok();
    assert_eq!(
        (&found["provider"], &found["count"]),
        (&json!("github"), &json!(250))
    );
    assert_eq!(found["repos"].as_array().unwrap().len(), 250);
    assert_eq!(
        found["repos"][249],
        json!({"name": "r249", "fullName": "team/r249", "url": "https://git.example/team/r249",
            "cloneUrl": "https://git.example/team/r249.git", "defaultBranch": "main", "private": false, "description": null})
    );

    let pr = "/api/v1/integrations/github/pr";
    let wanted = json!({"repoUrl": "https://git.example/team/r1.git", "branch": "lucid/fix", "title": "Fix"});
    let opened = host.post("alice", pr, wanted.clone()).await.ok();
    let mut same = json!({"status": "created", "provider": "github", "prUrl": "https://git.example/team/r1/pull/1",
        "prNumber": 1, "title": "Fix", "state": "open", "existed": false});
    assert_eq!(opened, same);
    assert_eq!(api.pulls()[0]["base"]["ref"], "main");
    same["existed"] = true.into();
    assert_eq!(host.post("alice", pr, wanted.clone()).await.ok(), same);

    // Nobody else has it.
    let none = "No github token saved. Connect the account first.";
    assert_eq!(
        host.get("bob", "/api/v1/integrations").await.ok(),
        json!({"integrations": []})
    );
    host.get("bob", path).await.refused(404, none);
    host.post("bob", pr, wanted.clone())
        .await
        .refused(404, none);
    host.delete("bob", "/api/v1/integrations/github")
        .await
        .refused(404, none);

    let asked = api.seen().len();
    let elsewhere =
        json!({"repoUrl": "https://other.example/team/r1", "branch": "b", "title": "t"});
    let answer = host.post("alice", pr, elsewhere).await;
    assert!(
        answer.problem(422).contains("no repository on git.example"),
        "{answer:?}"
    );
    assert_eq!(
        api.seen().len(),
        asked,
        "the token went along for a repository that is elsewhere"
    );

    // The token is nowhere: not in an answer, not in the log, not in the database.
    assert!(!host.log().contains(TOKEN));
    let files = walk(&host.folder().join("storage"));
    assert!(
        files.iter().any(|file| file.ends_with("lucid.db")),
        "{files:?}"
    );
    for file in &files {
        let bytes = std::fs::read(file).unwrap_or_default();
        let found = bytes
            .windows(TOKEN.len())
            .any(|part| part == TOKEN.as_bytes());
        assert!(!found, "{} holds the token", file.display());
    }

    assert_eq!(
        host.delete("alice", "/api/v1/integrations/github")
            .await
            .ok(),
        json!({"status": "disconnected", "provider": "github"})
    );
    host.get("alice", path).await.refused(404, none);
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path()),
            Ok(kind) if kind.is_file() => vec![entry.path()],
            _ => Vec::new(),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_connected_or_asked_is_said_in_a_sentence() {
    let (folder, api) = (tempfile::tempdir().unwrap(), GitApi::start(TOKEN).await);
    let mut host = host(folder.path(), "https://git.example", &api)
        .set("ALLOW_PRIVATE_REPOSITORIES", "false")
        .set("ENCRYPTION_KEY", "the-first-key-of-this-deployment")
        .start();
    let integrations = "/api/v1/integrations";
    let post = async |body: Value| host.post("alice", integrations, body).await;
    let answer = post(json!({"provider": "bitbucket", "token": TOKEN})).await;
    answer.refused(
        400,
        "Unsupported provider 'bitbucket'. There are: github, gitlab.",
    );
    let wrong = "ghp_wrong0123456789";
    let answer = post(json!({"provider": "GitHub", "token": wrong})).await;
    let said = answer.problem(422);
    assert!(said.starts_with("Token validation failed"), "{said}");
    assert!(!answer.text.contains(wrong), "{}", answer.text);
    for token in ["", "  ", "a token", "tök", "line\nbreak"] {
        let said = post(json!({"provider": "github", "token": token}))
            .await
            .problem(422);
        assert!(
            said.starts_with("Token validation failed"),
            "{token}: {said}"
        );
    }
    post(json!({"provider": "github"})).await.problem(422);
    // A user's own server is none of this host's network.
    let before = api.seen().len();
    for url in [
        &api.url,
        "https://127.0.0.1",
        "https://localhost:1",
        "http://169.254.169.254",
        "https://u:p@x.example",
    ] {
        let answer = post(json!({"provider": "gitlab", "token": TOKEN, "gitlabUrl": url})).await;
        assert!([422, 502].contains(&answer.status), "{url}: {answer:?}");
        assert!(!answer.text.contains(TOKEN), "{url}");
    }
    assert_eq!(
        api.seen().len(),
        before,
        "a server of the host's network was asked"
    );
    // An old client sends the field for every provider.
    let body = json!({"provider": "github", "token": TOKEN, "gitlabUrl": "https://gitlab.com"});
    post(body).await.ok();

    api.breaks(true);
    let answer = host.get("alice", "/api/v1/integrations/github/repos").await;
    let said = answer.problem(502);
    assert!(said.contains("failed (HTTP 502)"), "{said}");
    let answer = post(json!({"provider": "github", "token": TOKEN})).await;
    answer.problem(502);
    api.breaks(false);

    // With another key the rows do not open, and nothing is sent anywhere.
    host.stop().await;
    let asked = api.seen().len();
    host.set("ENCRYPTION_KEY", "another-key-of-this-deployment");
    host.start_again();
    let answer = host.get("alice", "/api/v1/integrations/github/repos").await;
    let said = answer.problem(409);
    assert!(said.contains("ENCRYPTION_KEY is not the one"), "{said}");
    assert_eq!(api.seen().len(), asked, "garbage was sent to the provider");
    host.says("a saved git token does not open").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_the_server_in_an_accounts_row_does_not_get_its_token() {
    let folder = tempfile::tempdir().unwrap();
    let start = || GitApi::start(TOKEN);
    let (deployment, house, evil) = (start().await, start().await, start().await);
    let manifest = folder.path().join("lucid.toml");
    let text = format!(
        "[git.gitlab]\ncomponent = \"builtin:gitlab\"\nweb_url = \"{}\"\n",
        deployment.url
    );
    std::fs::write(&manifest, text).unwrap();
    let mut host = Host::with_defaults()
        .set("LUCID_MANIFEST", manifest.to_str().unwrap())
        .set("ALLOW_PRIVATE_REPOSITORIES", "true")
        .start();
    let (accounts, repos) = ("/api/v1/integrations", "/api/v1/integrations/gitlab/repos");
    let own = json!({"provider": "gitlab", "token": TOKEN, "gitlabUrl": house.url});
    host.post("alice", accounts, own).await.ok();
    host.get("alice", repos).await.ok();
    let listed = host.get("alice", accounts).await.ok();
    assert_eq!(listed["integrations"][0]["url"], house.url);
    assert_eq!((house.seen().len(), deployment.seen().len()), (2, 0));

    host.stop().await;
    let database = find(&host.folder().join("storage"), "lucid.db").unwrap();
    let database = rusqlite::Connection::open(database).unwrap();
    let changed = format!("||{}", evil.url);
    let change = "UPDATE integrations SET scopes = ?1";
    assert_eq!(database.execute(change, [changed]).unwrap(), 1);
    drop(database);
    host.start_again();
    // The account is still there, and its token goes nowhere.
    let said = host.get("alice", repos).await.problem(409);
    assert!(said.ends_with("Connect the account again."), "{said}");
    let listed = host.get("alice", accounts).await.ok();
    assert!(listed["integrations"][0].get("url").is_none(), "{listed}");
    let seen = [&evil, &house, &deployment].map(|server| server.seen().len());
    assert_eq!(seen, [0, 2, 0]);
    host.says("names a server without having been connected to it here")
        .await;
    let own = json!({"provider": "gitlab", "token": TOKEN, "gitlabUrl": house.url});
    host.post("alice", accounts, own).await.ok();
    host.get("alice", repos).await.ok();
}

/// An agent that pushes a branch, changes nothing, and then pushes more twice.
async fn agent() -> Model {
    let push = |first: &str| {
        let command = format!(
            "{first} && echo b >> b.txt && git add b.txt && git commit -q -m 'By the agent' && \
             git push -q -u origin lucid/fix 2>&1; echo pushed $?"
        );
        call("terminal", json!({ "command": command }))
    };
    let finish = |said: &str| call("finish", json!({ "message": said }));
    Model::start(move |number, _| match number {
        0 => push("git switch -q -c lucid/fix"),
        1 => finish("b.txt says b now."),
        2 => finish("There was nothing to do."),
        3 | 5 => push("true"),
        _ => finish("b.txt says more."),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_change_of_what_an_agent_pushed_is_opened_and_its_link_is_shown() {
    let git = GitServer::with_token(TOKEN).await;
    let source = repository(&[("a.txt", "a\n")]);
    let url = git.publish("team/own", source.path());
    let (folder, api, model) = (
        tempfile::tempdir().unwrap(),
        GitApi::start(TOKEN).await,
        agent().await,
    );
    let host = host(folder.path(), &git.url, &api)
        .set("LLM_API_KEY", KEY)
        .set("LLM_BASE_URL", &model.url)
        .set("SANDBOX_NETWORK", "none")
        .start();
    let first = json!({"task": "Make b\n\nand nothing else", "repoUrl": url, "gitToken": TOKEN, "openChange": "draft",
        "gitUserName": "An Agent", "gitUserEmail": "agent@example.com", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let frames = socket
        .until("the change", |frame| frame["eventType"] == "ChangeMessage")
        .await;
    let opened = frames.last().unwrap();
    assert_eq!(opened["event"], "observation");
    assert_eq!(opened["url"], "https://git.example/team/own/pull/1");
    let text = opened["content"].as_str().unwrap();
    assert!(
        text.contains("#1 Make b") && text.contains("https://git.example/team/own/pull/1"),
        "{text}"
    );
    // It is there because the branch is.
    assert_eq!(git.git("team/own", &["show", "lucid/fix:b.txt"]), "b");
    let pulls = api.pulls();
    assert_eq!(pulls.len(), 1);
    assert_eq!(pulls[0]["head"]["ref"], "lucid/fix");
    assert_eq!(pulls[0]["base"]["ref"], "main");
    assert_eq!(
        (&pulls[0]["draft"], &pulls[0]["title"]),
        (&json!(true), &json!("Make b"))
    );
    assert_eq!(pulls[0]["body"], "b.txt says b now.");

    // A task that pushes nothing opens nothing.
    socket.say("Look once more.").await;
    let frames = socket.completed().await;
    assert!(
        !kinds(&frames).contains(&"ChangeMessage".to_owned()),
        "{frames:?}"
    );
    assert_eq!(api.pulls().len(), 1);

    // One that cannot be opened is said to be so, and the session goes on.
    api.breaks(true);
    socket.say("Push more.").await;
    let failed = |frame: &Value| frame["eventType"] == "AgentErrorObservation";
    let frames = socket.until("that it failed", failed).await;
    let text = frames.last().unwrap()["content"].as_str().unwrap();
    assert!(
        text.starts_with("The change could not be opened: GitHub failed"),
        "{text}"
    );
    api.breaks(false);
    socket.say("Push more.").await;
    let opened = |frame: &Value| frame["eventType"] == "ChangeMessage";
    let frames = socket.until("the change", opened).await;
    let text = frames.last().unwrap()["content"].as_str().unwrap();
    assert!(text.starts_with("The change is open already: #1"), "{text}");
    assert_eq!(api.pulls().len(), 1);

    let chats = host.get("alice", "/api/v1/chats").await.ok();
    let id = chats["chats"][0]["id"].as_str().unwrap();
    let chat = host.get("alice", &format!("/api/v1/chats/{id}")).await;
    assert!(
        chat.text.contains("/team/own/pull/1"),
        "the record has no link: {}",
        chat.text
    );
    assert!(!chat.text.contains(TOKEN) && !host.log().contains(TOKEN));
}
