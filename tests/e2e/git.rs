//! Git in a session: what the agent commits lands on the server, and the token that lets it is found
//! nowhere but there.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use lucid_tests::docker::{self, ContainerNames, Containers};
use lucid_tests::{
    GitServer, Host, HostBuilder, Model, ModelTurn, Socket, call, calls, eventually, repository,
};

const KEY: &str = "sk-the-tests-own-key-0123456789";
/// With what a URL encodes, and what a shell reads in no other way.
const TOKEN: &str = "ghp_e2e+0123/4567=89abcdef";
const URL_ENCODED: &str = "ghp_e2e%2B0123%2F4567%3D89abcdef";

/// What is searched for: the token, as it is and as it is written elsewhere.
fn forms() -> Vec<String> {
    vec![
        TOKEN.to_owned(),
        URL_ENCODED.to_owned(),
        URL_ENCODED.to_ascii_lowercase(),
        STANDARD.encode(TOKEN).trim_end_matches('=').to_owned(),
        // Behind a user name, at every place that it can have in base64.
        STANDARD.encode(format!("x-access-token:{TOKEN}")),
        STANDARD.encode(TOKEN)[4..28].to_owned(),
        STANDARD.encode(&TOKEN[1..])[..28].to_owned(),
        STANDARD.encode(&TOKEN[2..])[..28].to_owned(),
    ]
}

/// Looks for texts in all that a command in a sandbox can read: its environment, the command lines and
/// environments of all processes, git's settings and remotes, and files. The texts do not stand in
/// it, nor do they when it runs, so that it does not find itself.
fn search(texts: &[String]) -> String {
    let one_by_one = |text: &String| text.chars().map(|c| format!("[{c}]")).collect::<String>();
    let patterns: Vec<String> = texts
        .iter()
        .map(|text| format!("-e '{}'", one_by_one(text)))
        .collect();
    let patterns = patterns.join(" ");
    format!(
        "list=$HOME/list; \
         {{ env; git config --list --show-origin; git remote -v; git log --all; \
            for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/environ; tr '\\0' '\\n' <$p/cmdline; done; \
         }} >$list 2>/dev/null; \
         echo \"listed $(wc -l <$list) lines\"; \
         for place in /*; do case $place in /proc|/sys|/dev|/usr|/bin|/sbin|/lib*|/boot) ;; *) \
            find $place -type f -exec grep -a -o -H {patterns} {{}} + 2>/dev/null;; \
         esac; done; echo searched"
    )
}

fn settings(host: HostBuilder, model: &Model) -> HostBuilder {
    host.set("LLM_API_KEY", KEY)
        .set("LLM_BASE_URL", &model.url)
        .set("SANDBOX_NETWORK", "none")
}

fn first(url: &str, token: &str) -> Value {
    json!({"task": "Work on it", "repoUrl": url, "gitToken": token, "gitUserName": "An Agent",
        "gitUserEmail": "agent@example.com", "modelProvider": "openai", "projectId": "git"})
}

/// What the model was shown of its commands, in order.
fn outputs(model: &Model) -> Vec<String> {
    let asked = model.completions();
    asked.last().unwrap().messages("tool")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_work_is_pushed_and_the_token_is_found_nowhere() {
    pushed_and_searched(async |model| {
        let host = Host::with_defaults();
        (settings(host, model).start(), None)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_container_too_the_work_is_pushed_and_the_token_is_found_nowhere() {
    let Some(engine) = docker::engine().await else {
        return;
    };
    pushed_and_searched(async |model| {
        let site = ContainerNames::new(engine).await;
        let site = site.set("LLM_API_KEY", KEY).set("LLM_BASE_URL", &model.url);
        let (host, containers) = site.start();
        (host, Some(containers))
    })
    .await;
}

async fn pushed_and_searched(start: impl AsyncFnOnce(&Model) -> (Host, Option<Containers>)) {
    let git = GitServer::with_token(TOKEN).await;
    let source = repository(&[("a.txt", "a\n")]);
    let url = git.publish("team/own", source.path());
    let other = git.publish("team/other", source.path());
    let before = git.git("team/other", &["for-each-ref"]);

    // Something that is there to be found, put where a token might be: whoever searches finds it.
    let canary = "canary-7b1e";
    let plant = "half=7b1e; echo \"canary-$half\" > planted.txt; \
                 SEEN=\"canary-$half\" sh -c 'echo $$ > $HOME/pid; exec sleep 1000' & \
                 while [ ! -s $HOME/pid ]; do :; done; echo planted";
    // While git talks to the host, too.
    let during = "git fetch -q --unshallow origin main 2>/dev/null & git ls-remote -q >$HOME/refs & \
                  while kill -0 $! 2>/dev/null; do cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; done \
                  >$HOME/during 2>/dev/null; wait; cat $HOME/refs";
    let mut texts = forms();
    texts.push(canary.to_owned());
    let searched = search(&texts);
    let commit = "git switch -q -c lucid/work && echo b > b.txt && git add b.txt && \
                  git commit -q -m 'By the agent' && git push -q -u origin lucid/work 2>&1; echo pushed $?";
    let elsewhere = format!(
        "git push lucid::{other} HEAD:refs/heads/stolen 2>&1; echo gateway $?; \
         git push {other} HEAD:refs/heads/stolen 2>&1; echo directly $?"
    );
    let commands: Vec<String> = [plant, during, commit, &elsewhere, &searched]
        .map(str::to_owned)
        .into();
    let model = Model::start(move |number, _| match commands.get(number) {
        Some(command) => call("terminal", json!({"command": command})),
        None => call("finish", json!({"message": "Pushed."})),
    })
    .await;
    let (host, _containers) = start(&model).await;
    let mut socket = Socket::open(&host, "alice", first(&url, TOKEN)).await;
    socket.completed().await;

    let said = outputs(&model);
    // The last is what the agent says of the file that is not committed.
    assert_eq!(said.len(), 6, "{said:#?}");
    assert!(said[5].contains("planted.txt"), "{}", said[5]);
    assert!(said[1].contains("refs/heads/main"), "{}", said[1]);
    assert!(said[2].contains("pushed 0"), "{}", said[2]);
    assert_eq!(
        git.git(
            "team/own",
            &["log", "-1", "--format=%s|%an|%ae", "lucid/work"]
        ),
        "By the agent|An Agent|agent@example.com"
    );
    assert_eq!(git.git("team/own", &["show", "lucid/work:b.txt"]), "b");

    assert!(
        said[3].contains("this session may reach") && said[3].contains("and no other repository"),
        "{}",
        said[3]
    );
    for refused in ["gateway 0", "directly 0"] {
        assert!(!said[3].contains(refused), "{}", said[3]);
    }
    assert_eq!(git.git("team/other", &["for-each-ref"]), before);
    assert!(!git.seen().iter().any(|seen| seen.uri.contains("other")));

    // The search went everywhere, and found what was put there and nothing else.
    let found: Vec<&str> = said[4].lines().filter(|line| line.contains(':')).collect();
    assert!(said[4].contains("searched"), "{}", said[4]);
    for place in ["planted.txt", "/list"] {
        let hit = |line: &&str| line.contains(place) && line.ends_with(canary);
        assert!(
            found.iter().any(hit),
            "{place} was not searched: {}",
            said[4]
        );
    }
    assert!(
        found.iter().all(|line| line.ends_with(canary)),
        "the token is in the sandbox: {}",
        said[4]
    );

    // Nor outside of it: frames, the chat, the log, the database and all else that is stored.
    let chats = host.get("alice", "/api/v1/chats").await.ok();
    let id = chats["chats"][0]["id"].as_str().unwrap().to_owned();
    let chat = eventually("the whole chat", async || {
        let chat = host.get("alice", &format!("/api/v1/chats/{id}")).await;
        let outputs = chat.text.matches("\"CmdOutputObservation\"").count();
        // The model's five, and what git said to the agent, twice.
        (outputs == 7).then_some(chat.text)
    })
    .await;
    let asked: String = model
        .seen()
        .iter()
        .map(|seen| format!("{seen:?}"))
        .collect();
    let frames: String = socket.frames.iter().map(Value::to_string).collect();
    for (place, text) in [
        ("the chat", &chat),
        ("a frame", &frames),
        ("the host's log", &host.log()),
        ("a model call", &asked),
    ] {
        for form in forms() {
            assert!(!text.contains(&form), "{place} holds {form}");
        }
    }
    let stored = host.folder().join("storage");
    for form in forms() {
        assert_eq!(holding(&stored, form.as_bytes()), Vec::<PathBuf>::new());
    }
    assert!(
        !holding(&stored, b"By the agent").is_empty(),
        "the storage was not searched"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_cloned_ends_the_session_with_one_sentence() {
    let git = GitServer::with_token(TOKEN).await;
    let noise: String = (0..60_000u32)
        .map(|number| {
            format!(
                "{:x}",
                u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            )
        })
        .collect();
    let small = git.publish("team/small", repository(&[("a", "a\n")]).path());
    let large = git.publish(
        "team/large",
        repository(&[("noise", &noise.repeat(3))]).path(),
    );
    let missing = format!("{}/team/none", git.url);
    let model = Model::start(|_, _| ModelTurn::Say("Never asked.".into())).await;
    let host = settings(Host::with_defaults(), &model)
        .set("GIT_SIZE_LIMIT", "1m")
        .start();
    let with_branch = |branch: &str| {
        let mut first = first(&small, TOKEN);
        first["branch"] = branch.into();
        first
    };
    for (first, told) in [
        (
            first("ftp://example.org/a/b", TOKEN),
            "must begin with https:// or http://",
        ),
        (
            first(&small, "ghp_wrong"),
            "the git server refused the token",
        ),
        (
            first(&missing, TOKEN),
            "the git server knows no such repository",
        ),
        (
            with_branch("nowhere"),
            "has no branch or tag \"nowhere\". It has main.",
        ),
        (first(&large, TOKEN), "1 MiB"),
    ] {
        let mut socket = Socket::open(&host, "alice", first).await;
        let read = socket
            .until("an error", |frame| frame["type"] == "error")
            .await;
        let sentence = read.last().unwrap()["message"].as_str().unwrap();
        assert!(sentence.contains(told), "{sentence}");
        for unwanted in [TOKEN, "ghp_wrong", "fatal:", "git-remote-lucid", "\n"] {
            assert!(!sentence.contains(unwanted), "{sentence}");
        }
    }
    assert!(model.completions().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_pushes_to_the_branches_that_the_operator_named_and_to_nothing_else() {
    let git = GitServer::with_token(TOKEN).await;
    let source = repository(&[("a.txt", "a\n")]);
    for (number, setting) in [None, Some("*")].into_iter().enumerate() {
        let name = format!("team/own{number}");
        let url = git.publish(&name, source.path());
        // The last brings a pack that is larger than what the gateway keeps.
        let commands = [
            "git commit -q --allow-empty -m Work && git push origin HEAD:main 2>&1; echo main $?",
            "git tag v1 && git push origin v1 2>&1; echo tag $?",
            "git push -q origin HEAD:lucid/x 2>&1; echo own $?",
            "git push origin HEAD:lucid/x HEAD:main -o merge_request.create 2>&1; echo options $?",
            "git push -q origin :lucid/x HEAD:lucid/y 2>&1; echo deleted $?",
            "head -c 3000000 /dev/urandom >noise && git add noise && git commit -qm Noise && \
             git push origin HEAD:release 2>&1; echo large $?",
        ];
        let model = Model::start(move |number, _| match commands.get(number) {
            Some(command) => call("terminal", json!({"command": command})),
            None => call("finish", json!({"message": "Pushed."})),
        })
        .await;
        let mut host = settings(Host::with_defaults(), &model);
        if let Some(setting) = setting {
            host = host.set("GIT_PUSH_BRANCHES", setting);
        }
        let host = host.start();
        let mut socket = Socket::open(&host, "alice", first(&url, TOKEN)).await;
        socket.completed().await;

        let said = outputs(&model);
        let every = setting.is_some();
        // The model knew before it tried.
        let prompt = model.completions()[0].messages("system").join("\n");
        let pushes = format!("these branches only: {}.", setting.unwrap_or("lucid/*"));
        for told in [pushes.as_str(), "the last 20 commits", "through the host"] {
            assert!(prompt.contains(told), "no word of {told:?}: {prompt}");
        }
        for (said, what) in [(&said[0], "main"), (&said[5], "large")] {
            assert_eq!(said.contains(&format!("{what} 0")), every, "{said}");
            let sentence = "a session may push here only to branches named lucid/*";
            assert_eq!(said.contains(sentence), !every, "{said}");
            assert_eq!(said.contains("[remote rejected]"), !every, "{said}");
        }
        assert!(
            said[1].contains("tag 1") && said[1].contains("to no tag"),
            "{}",
            said[1]
        );
        assert!(said[2].contains("own 0"), "{}", said[2]);
        assert!(!said[3].contains("options 0"), "{}", said[3]);
        assert!(said[4].contains("deleted 0"), "{}", said[4]);

        let subject = |branch: &str| git.git(&name, &["log", "-1", "--format=%s", branch]);
        assert_eq!(subject("lucid/y"), "Work");
        assert_eq!(subject("main") == "Work", every, "{said:#?}");
        let release = ["branch", "--list", "release", "lucid/x"];
        assert_eq!(git.git(&name, &release), if every { "release" } else { "" });
        assert_eq!(git.git(&name, &["tag"]), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_on_an_empty_repository_makes_its_first_commit() {
    let git = GitServer::with_token(TOKEN).await;
    let url = git.publish_empty("team/new");
    let model = Model::start(|number, _| match number {
        0 => calls([
            (
                "file_editor",
                json!({"command": "create", "path": "/workspace/README.md", "file_text": "# New\n"}),
            ),
            (
                "terminal",
                json!({"command": "git add . && git commit -q -m Begin && git push 2>&1; echo $?"}),
            ),
        ]),
        _ => call("finish", json!({"message": "Begun."})),
    })
    .await;
    // The first branch of all is no agent's own.
    let host = settings(Host::with_defaults(), &model)
        .set("GIT_PUSH_BRANCHES", "*")
        .start();
    // Who commits is not said: git commits all the same.
    let mut first = first(&url, TOKEN);
    for name in ["gitUserName", "gitUserEmail"] {
        first.as_object_mut().unwrap().remove(name);
    }
    let mut socket = Socket::open(&host, "alice", first).await;
    socket.completed().await;
    assert_eq!(
        git.git("team/new", &["show", "main:README.md"]),
        "# New",
        "{:#?}",
        outputs(&model)
    );
    let who = git.git("team/new", &["log", "-1", "--format=%an <%ae>", "main"]);
    assert_eq!(who, "Lucid <lucid@localhost>");
}

/// The files below a folder that hold some bytes.
fn holding(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
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
