//! Tests against a real `git http-backend` on loopback, cloned from and pushed to from inside real
//! sandboxes without a network, and against malicious servers.

#[cfg(test)]
mod helper;
#[cfg(test)]
pub(crate) mod push;
#[cfg(test)]
pub(crate) mod tracking;

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Response};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::*;
use crate::tests::SandboxFixture;
use crate::{BackendChoice, ExecRequest, Sandbox, read_frame};
use lucid_exec::protocol::{GitOpen, GitService, VERSION};
use lucid_tests::{GitServer, git, repository};
use lucid_types::secret::Secret;
use lucid_types::sentence::sentence;

const TOKEN: &str = "ghp_very-secret-token";
pub(super) const RULES: GitRules = GitRules {
    allow_private: true,
    allow_owner: false,
    branches: BranchPolicy::Any,
    depth: Some(3),
    largest: 64 << 20,
    longest: Duration::from_secs(120),
};

/// A repository of 30 commits on `main`, with a branch `other` five before the last.
pub(super) fn history() -> TempDir {
    let source = repository(&[("file", "0\n")]);
    for number in 1..30 {
        std::fs::write(source.path().join("file"), format!("{number}\n")).unwrap();
        let message = format!("Change {number}");
        git(source.path(), &["commit", "-q", "-a", "-m", &message]);
    }
    git(source.path(), &["branch", "other", "HEAD~5"]);
    source
}

/// A session: its sandbox and its gateway.
pub(super) struct Session {
    sandbox: Sandbox,
    _gateway: GitGateway,
    rules: GitRules,
    pub(super) url: String,
}

impl Session {
    pub(super) async fn open(
        fixture: &SandboxFixture,
        url: &str,
        token: Option<&str>,
        rules: GitRules,
    ) -> Self {
        let name = uuid::Uuid::new_v4().to_string();
        let reach = gateway_prefix(url, rules.allow_owner).unwrap();
        let sandbox = fixture.start(&name, Some(&reach)).await;
        let token = token.map(|token| Secret::from(token.to_owned()));
        let client = client(rules.allow_private).unwrap();
        Self {
            _gateway: GitGateway::start(
                sandbox.runtime_dir(),
                sandbox.user(),
                url,
                token.map(GitCredentials::from),
                rules.clone(),
                client,
            )
            .unwrap(),
            sandbox,
            rules,
            url: url.to_owned(),
        }
    }

    async fn clone(&self, branch: Option<&str>) -> Result<(), CloneError> {
        let wanted = Checkout {
            repository: &self.url,
            branch,
            user_name: Some("-A Name"),
            user_email: Some("a@example.org"),
        };
        self.cloned(wanted).await.map(|cloned| {
            assert!(cloned.empty || cloned.all_branches, "{cloned:?}");
        })
    }

    pub(super) async fn cloned(&self, wanted: Checkout<'_>) -> Result<CloneState, CloneError> {
        clone_into(&self.sandbox, wanted, &self.rules).await
    }

    /// The clone's error, checked to contain neither internals nor the token.
    async fn clone_failure(&self, branch: Option<&str>) -> String {
        let sentence = sentence(self.clone(branch).await.unwrap_err());
        for unwanted in ["git-remote-lucid", "fatal:", TOKEN, "os error", "\n"] {
            assert!(!sentence.contains(unwanted), "{sentence}");
        }
        sentence
    }

    pub(super) async fn run(&self, command: &str) -> (i32, String) {
        let ran = self.sandbox.exec(ExecRequest::shell(command), |_| {}).await;
        let ran = ran.unwrap();
        (ran.exit_code, ran.output)
    }

    /// The output of a command that must succeed.
    pub(super) async fn good(&self, command: &str) -> String {
        let (code, output) = self.run(command).await;
        assert_eq!(code, 0, "{command}: {output}");
        output.trim().to_owned()
    }

    /// The output of a command that must fail.
    pub(super) async fn bad(&self, command: &str) -> String {
        let (code, output) = self.run(command).await;
        assert_ne!(code, 0, "{command}: {output}");
        output
    }
}

/// A server that responds to everything in one way. Returns its address and the number of its
/// requests.
async fn hostile(
    answer: impl Fn(&Method, &str) -> Option<Response<Body>> + Clone + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let router = Router::new().fallback(move |method: Method, uri: axum::http::Uri| {
        count.fetch_add(1, Ordering::SeqCst);
        let answer = answer(&method, &uri.to_string());
        async move {
            match answer {
                Some(answer) => answer,
                // Never responds.
                None => std::future::pending().await,
            }
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/team/project.git", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

fn answer(kind: &str, body: impl Into<Body>) -> Option<Response<Body>> {
    let kind = format!("application/x-git-upload-pack-{kind}");
    Some(
        Response::builder()
            .header("content-type", kind)
            .body(body.into())
            .unwrap(),
    )
}

fn endless(part: &'static str) -> Body {
    let part = Bytes::from(part.repeat(1000));
    Body::from_stream(stream::repeat_with(move || {
        Ok::<_, Infallible>(part.clone())
    }))
}

/// The first response of a server that speaks version 2.
const VERSION_2: &str = "000eversion 2\n000cls-refs\n000afetch\n0000";

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_cloned_deepened_and_pushed_to_from_a_box_without_a_network() {
    let server = GitServer::with_token(TOKEN).await;
    let source = history();
    for choice in [BackendChoice::Bubblewrap, BackendChoice::Landlock] {
        let fixture = SandboxFixture::new(choice).await;
        let name = format!("team/{choice:?}");
        let url = server.publish(&name, source.path());
        let branch_at = |branch: &str| server.git(&name, &["log", "-1", "--format=%s", branch]);
        let session = Session::open(&fixture, &url, Some(TOKEN), RULES).await;
        session.clone(Some("other")).await.unwrap();

        assert_eq!(
            session
                .good("cat file; git rev-list --count HEAD; git branch --show-current")
                .await,
            "24\n3\nother"
        );
        assert_eq!(session.good("git config user.name").await, "-A Name");
        assert_eq!(session.good("git config remote.origin.url").await, url);

        // From a shallow clone, as the agent finds it.
        session
            .good("echo work > new.txt && git add . && git commit -qm Work && git push")
            .await;
        assert_eq!(branch_at("other"), "Work");
        session
            .good("git switch -qc topic && git commit -q --allow-empty -m Topic && git push")
            .await;
        assert_eq!(branch_at("topic"), "Topic");
        session
            .good("git switch -qc second && git push -u origin second")
            .await;
        let refused = session
            .bad("git commit -q --amend --allow-empty -m Again && git push 2>&1")
            .await;
        assert!(refused.contains("non-fast-forward"), "{refused}");
        session.good("git push --force-with-lease").await;
        assert_eq!(branch_at("second"), "Again");

        // Somebody else pushed in between.
        server.git(&name, &["update-ref", "refs/heads/second", "main"]);
        let refused = session
            .bad("git commit -q --amend --allow-empty -m Third && git push --force-with-lease 2>&1")
            .await;
        assert!(refused.contains("stale info"), "{refused}");
        assert_eq!(branch_at("second"), "Change 29");

        session.good("git push origin --delete second").await;
        assert_eq!(server.git(&name, &["branch", "--list", "second"]), "");
        // More than fits into one request of known length.
        session
            .good("git switch -q topic && head -c 3000000 /dev/urandom > noise && git add noise && git commit -qm Large && git push")
            .await;
        assert_eq!(branch_at("topic"), "Large");
        assert_eq!(
            server.git(&name, &["cat-file", "-s", "topic:noise"]),
            "3000000"
        );

        let deepened = "git fetch -q --unshallow && git rev-list --count origin/main && git blame -l file | cut -c1-1";
        let deepened = session.good(deepened).await;
        assert!(deepened.starts_with("30\n"), "{deepened}");
        assert_eq!(session.good("git fsck --no-progress 2>&1").await, "");
        session.sandbox.close().await;
    }
    assert!(server.seen().iter().all(|request| request.authorized));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_sessions_own_repository_is_reached() {
    let server = GitServer::start().await;
    let source = repository(&[("a", "a\n")]);
    let url = server.publish("team/own", source.path());
    let other = server.publish("team/own-and-more", source.path());
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let session = Session::open(&fixture, &url, Some(TOKEN), RULES).await;
    session.clone(None).await.unwrap();
    let asked = server.seen().len();
    for command in [
        format!("git ls-remote {other} 2>&1"),
        format!("git push {other} HEAD:refs/heads/stolen 2>&1"),
        format!(
            "git push lucid::{}/team/else.git HEAD:stolen 2>&1",
            server.url
        ),
        format!("git ls-remote lucid::{url}/../own-and-more.git 2>&1"),
        "git ls-remote lucid::http://169.254.169.254/team/own 2>&1".to_owned(),
    ] {
        let refused = session.bad(&command).await;
        assert!(
            refused.contains("and no other repository"),
            "{command}: {refused}"
        );
    }
    assert_eq!(server.seen().len(), asked, "the server was asked");
    // A repository that came here only for its name's prefix gets a hint about the way around.
    let told = session.bad(&format!("git ls-remote {other} 2>&1")).await;
    assert!(
        told.contains(&format!("git -c url.{other}.insteadOf={other}")),
        "{told}"
    );
    let around = format!("git -c url.{other}.insteadOf={other} ls-remote {other} 2>&1");
    let around = session.bad(&around).await;
    assert!(!around.contains("this session may reach"), "{around}");
    assert_eq!(
        server.git("team/own-and-more", &["branch", "--list", "stolen"]),
        ""
    );
    session.sandbox.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_owner_is_allowed_its_other_repositories_and_submodules_come_along() {
    let server = GitServer::with_token(TOKEN).await;
    let part = repository(&[("part.txt", "a part\n")]);
    server.publish("team/part", part.path());
    server.publish("others/part", part.path());
    let whole = repository(&[(
        ".gitmodules",
        "[submodule \"part\"]\n\tpath = part\n\turl = ../part.git\n\
         [submodule \"foreign\"]\n\tpath = foreign\n\turl = ../../others/part.git\n",
    )]);
    let commit = git(part.path(), &["rev-parse", "HEAD"]);
    for path in ["part", "foreign"] {
        let entry = format!("160000,{commit},{path}");
        git(
            whole.path(),
            &["update-index", "--add", "--cacheinfo", &entry],
        );
    }
    git(whole.path(), &["commit", "-q", "-m", "With parts"]);
    let url = server.publish("team/whole", whole.path());
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let rules = GitRules {
        allow_owner: true,
        ..RULES
    };
    let session = Session::open(&fixture, &url, Some(TOKEN), rules).await;
    session.clone(None).await.unwrap();
    assert_eq!(
        session.good("cat part/part.txt; ls foreign").await,
        "a part"
    );

    let beside = format!("{}/team/part.git", server.url);
    session
        .good(&format!(
            "git clone -q {beside} $HOME/part && cd $HOME/part && git push origin HEAD:beside"
        ))
        .await;
    assert!(
        !server
            .git("team/part", &["branch", "--list", "beside"])
            .is_empty()
    );
    let foreign = format!("{}/others/part.git", server.url);
    let refused = session
        .bad(&format!("git ls-remote lucid::{foreign} 2>&1"))
        .await;
    assert!(
        refused.contains("no repository but its owner's others"),
        "{refused}"
    );
    assert!(!server.seen().iter().any(|seen| seen.uri.contains("others")));
    session.sandbox.close().await;

    let session = Session::open(&fixture, &url, Some(TOKEN), RULES).await;
    session.clone(None).await.unwrap();
    assert_eq!(session.good("ls part").await, "");
    session.sandbox.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_is_one_sentence() {
    let server = GitServer::with_token(TOKEN).await;
    let source = repository(&[("a", "a\n")]);
    let url = server.publish("team/own", source.path());
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let wrong = Some("ghp_another-token");
    let missing = format!("{}/team/none.git", server.url);
    for (url, token, told) in [
        (
            &url,
            wrong,
            "refused the token: it is wrong, has expired, or may not read",
        ),
        (
            &url,
            None,
            "refused access without a token: connect an account",
        ),
        (
            &missing,
            Some(TOKEN),
            "knows no such repository, or the token may not see it",
        ),
    ] {
        let session = Session::open(&fixture, url, token, RULES).await;
        let sentence = session.clone_failure(None).await;
        assert!(
            sentence.starts_with("The repository could not be cloned: ") && sentence.contains(told),
            "{sentence}"
        );
        session.sandbox.close().await;
    }

    server.git("team/own", &["branch", "v2"]);
    let session = Session::open(&fixture, &url, Some(TOKEN), RULES).await;
    assert_eq!(
        session.clone_failure(Some("nowhere")).await,
        "The repository has no branch or tag \"nowhere\". It has main, v2."
    );
    assert_eq!(
        session.clone_failure(Some("--upload-pack=x")).await,
        "\"--upload-pack=x\" is not the name of a branch."
    );
    session.clone(Some("v2")).await.unwrap();
    server.git("team/own", &["config", "http.receivepack", "false"]);
    let refused = session
        .bad("git commit -q --allow-empty -m x && git push 2>&1")
        .await;
    assert!(
        refused.contains("git-remote-lucid: the git server refused the token: it is wrong, has expired, or may not write to the repository"),
        "{refused}"
    );
    session.sandbox.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_gateway_git_says_so() {
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let url = "http://127.0.0.1:1/team/own.git";
    let mut session = Session::open(&fixture, url, None, RULES).await;
    let sentence = session.clone_failure(None).await;
    assert!(
        sentence.contains("the connection to the git server failed"),
        "{sentence}"
    );
    let (folder, client) = (tempfile::tempdir().unwrap(), client(true).unwrap());
    session._gateway = GitGateway::start(folder.path(), None, url, None, RULES, client).unwrap();
    let sentence = session.clone(None).await.unwrap_err().to_string();
    assert!(sentence.contains("gateway cannot be reached"), "{sentence}");
    session.sandbox.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_commit_of_an_empty_repository_can_be_the_sessions() {
    let server = GitServer::with_token(TOKEN).await;
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    for (name, branch, expected) in [("team/a", None, "main"), ("team/b", Some("start"), "start")] {
        let url = server.publish_empty(name);
        let session = Session::open(&fixture, &url, Some(TOKEN), RULES).await;
        session.clone(branch).await.unwrap();
        session
            .good("echo first > a && git add a && git commit -qm First && git push")
            .await;
        assert_eq!(
            server.git(name, &["log", "--format=%s %an", expected]),
            "First -A Name"
        );
        session.sandbox.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_too_large_is_refused_before_it_fills_the_disk() {
    let server = GitServer::start().await;
    let noise: String = (0..100_000)
        .map(|_| uuid::Uuid::new_v4().to_string())
        .collect();
    let large = repository(&[("noise", &noise)]);
    let packed = repository(&[("zeros", &"0".repeat(40 << 20))]);
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let rules = GitRules {
        largest: 1 << 20,
        ..RULES
    };
    for (name, source, told) in [
        (
            "team/large",
            &large,
            "larger than 1 MiB, the most that one clone or fetch may bring here",
        ),
        (
            "team/packed",
            &packed,
            "too large: its files take more than 1 MiB on the disk",
        ),
    ] {
        let url = server.publish(name, source.path());
        let session = Session::open(&fixture, &url, None, rules.clone()).await;
        let sentence = session.clone_failure(None).await;
        assert!(sentence.contains(told), "{sentence}");
        let used: u64 = session.good("du -sk . | cut -f1").await.parse().unwrap();
        assert!(used < 3000, "{used} KiB are left in the workspace");
        session.sandbox.close().await;
    }

    let url = server.publish_empty("team/empty");
    let session = Session::open(&fixture, &url, None, rules.clone()).await;
    session.clone(None).await.unwrap();
    let refused = session
        .bad("head -c 9000000 /dev/urandom > a && git add a && git commit -qm Large && git push 2>&1")
        .await;
    assert!(
        refused.contains("this push is larger than 1 MiB"),
        "{refused}"
    );
    assert_eq!(server.git("team/empty", &["branch"]), "");
    session.sandbox.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_followed_on_the_same_server_and_the_token_goes_to_no_other() {
    let server = GitServer::with_token(TOKEN).await;
    let other = GitServer::start().await;
    let source = repository(&[("a", "a\n")]);
    server.publish("team/new", source.path());
    other.publish("team/new", source.path());
    server.redirect("/old/name", "/team/new.git");
    server.redirect("/away/name", &format!("{}/team/new.git", other.url));
    server.redirect("/metadata/name", "http://169.254.169.254/team/new.git");
    server.redirect("/round/name", "/round/name");
    server.redirect("/private/name/info/refs", "/users/sign_in");
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;

    let old = format!("{}/old/name", server.url);
    let session = Session::open(&fixture, &old, Some(TOKEN), RULES).await;
    session.clone(None).await.unwrap();
    session.good("git push origin HEAD:moved").await;
    assert!(
        !server
            .git("team/new", &["branch", "--list", "moved"])
            .is_empty()
    );
    session.sandbox.close().await;

    for (path, told) in [
        ("away", "sends on to another server"),
        ("metadata", "sends on to another server"),
        ("round", "without an end"),
        ("private", "refused the token"),
    ] {
        let url = format!("{}/{path}/name", server.url);
        let session = Session::open(&fixture, &url, Some(TOKEN), RULES).await;
        let sentence = session.clone_failure(None).await;
        assert!(sentence.contains(told), "{sentence}");
        session.sandbox.close().await;
    }
    assert!(other.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_server_ends_in_a_sentence() {
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let slowly = || {
        let drops = stream::repeat(Ok::<_, Infallible>(Bytes::from_static(b"0")));
        let drops = drops.then(async |drop| {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop
        });
        Body::from_stream(drops)
    };
    type Answer = Arc<dyn Fn(&Method, &str) -> Option<Response<Body>> + Send + Sync>;
    let servers: [(Answer, &str); 8] = [
        (
            Arc::new(|_, _| answer("advertisement", endless("000eversion 2\n"))),
            "first answer is too long",
        ),
        (
            Arc::new(|_, _| Some(Response::new(Body::from("<html>")))),
            "is not a git server",
        ),
        (
            Arc::new(|_, _| answer("advertisement", "\u{1b}[2J garbage")),
            "does not speak protocol version 2",
        ),
        (
            Arc::new(|_, _| {
                let mut bomb = answer("advertisement", vec![0x1f, 0x8b, 8, 0])?;
                bomb.headers_mut()
                    .insert("content-encoding", "gzip".parse().unwrap());
                Some(bomb)
            }),
            "a compression that it was not asked for",
        ),
        (
            Arc::new(|_, _| None),
            "did not answer in full within 2 seconds",
        ),
        (
            Arc::new(move |_, _| answer("advertisement", slowly())),
            "did not answer in full within 2 seconds",
        ),
        (
            Arc::new(|method, _| match *method {
                Method::GET => answer("advertisement", VERSION_2),
                _ => answer(
                    "result",
                    endless("003a1111111111111111111111111111111111111111 refs/heads/x\n"),
                ),
            }),
            "larger than 4 MiB",
        ),
        (
            Arc::new(|method, _| match *method {
                Method::GET => answer("advertisement", VERSION_2),
                _ => answer("result", "zzzz no packet line"),
            }),
            "protocol error",
        ),
    ];
    for (server, told) in servers {
        let (url, _) = hostile(move |method, uri| server(method, uri)).await;
        let rules = GitRules {
            largest: 4 << 20,
            longest: Duration::from_secs(if told.contains("seconds") { 2 } else { 60 }),
            ..RULES
        };
        let session = Session::open(&fixture, &url, Some(TOKEN), rules).await;
        // Tests the gateway's time limit, not the clone's, which is the same here.
        let sentence = if told.contains("seconds") {
            session.bad(&format!("git ls-remote {url} 2>&1")).await
        } else {
            session.clone_failure(None).await
        };
        assert!(sentence.contains(told), "{told}: {sentence}");
        session.sandbox.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_takes_too_long_is_ended() {
    let (url, _) = hostile(|_, _| None).await;
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let rules = GitRules {
        longest: Duration::from_secs(1),
        ..RULES
    };
    let session = Session::open(&fixture, &url, None, rules.clone()).await;
    let sentence = session.clone_failure(None).await;
    assert!(sentence.contains("within 1 second"), "{sentence}");
    session.sandbox.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_is_killed_gives_its_place_back_while_the_server_is_silent() {
    let (url, asked) = hostile(|method, _| match *method {
        Method::GET => answer("advertisement", VERSION_2),
        _ => None,
    })
    .await;
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let session = Session::open(&fixture, &url, None, RULES).await;
    let times = 2 * MAX_HELPERS;
    for _ in 0..times {
        // Until the server was asked for more than its capabilities.
        let before = asked.load(Ordering::SeqCst);
        let command = format!("setsid git ls-remote {url} & read _ < $HOME/go; kill -9 -$!; wait");
        session.good("rm -f $HOME/go; mkfifo $HOME/go").await;
        let killed = session.run(&command);
        let go = async {
            while asked.load(Ordering::SeqCst) < before + 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            session.good("echo > $HOME/go").await;
        };
        let both = async { tokio::join!(killed, go) };
        tokio::time::timeout(Duration::from_secs(60), both)
            .await
            .expect("a helper was not let in");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2 * times);
    session.sandbox.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_without_the_sessions_key_is_refused() {
    let server = GitServer::start().await;
    let source = repository(&[("a", "a\n")]);
    let url = server.publish("own", source.path());
    let folder = tempfile::tempdir().unwrap();
    let client = client(true).unwrap();
    let _gateway = GitGateway::start(folder.path(), None, &url, None, RULES, client).unwrap();
    let mut connection = UnixStream::connect(folder.path().join("git.sock"))
        .await
        .unwrap();
    let open = GitOpen {
        version: VERSION,
        key: "guess".to_owned(),
        url,
        service: GitService::Push,
    };
    connection
        .write_all(&Frame::json(FrameKind::GitOpen, 0, &open).unwrap().encode())
        .await
        .unwrap();
    let answer = read_frame(&mut connection).await.unwrap();
    assert_eq!(answer.kind, FrameKind::GitError);
    assert!(server.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_the_hosts_own_networks_are_refused_by_name_and_by_number() {
    let server = GitServer::start().await;
    let source = repository(&[("a", "a\n")]);
    let by_number = server.publish("own", source.path());
    let by_name = by_number.replace("127.0.0.1", "localhost");
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let rules = GitRules {
        allow_private: false,
        ..RULES
    };
    for url in [&by_number, &by_name] {
        let session = Session::open(&fixture, url, None, rules.clone()).await;
        let sentence = session.clone_failure(None).await;
        assert!(sentence.contains("private network"), "{sentence}");
        session.sandbox.close().await;
    }
    assert!(server.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_not_sent_without_encryption_to_other_peoples_servers() {
    let fixture = SandboxFixture::new(BackendChoice::Bubblewrap).await;
    let rules = GitRules {
        allow_private: false,
        ..RULES
    };
    // A documentation address, where no host exists.
    let url = "http://203.0.113.1/team/own.git";
    let session = Session::open(&fixture, url, Some(TOKEN), rules).await;
    let sentence = session.clone_failure(None).await;
    assert!(sentence.contains("sent only over https"), "{sentence}");
    session.sandbox.close().await;
}
