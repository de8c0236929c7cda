//! A real `git http-backend` on loopback, cloned from inside real boxes without a network.

use std::process::Stdio;
use std::sync::Mutex;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::IntoResponse;
use base64::Engine;
use lucid_exec::protocol::{GitOpen, VERSION};
use tokio::net::UnixStream;

use super::*;
use crate::sandbox::tests::Ground;
use crate::sandbox::{Choice, ExecRequest, Sandbox, read_frame};

const TOKEN: &str = "ghp_very-secret-token";

#[derive(Clone)]
struct Server {
    root: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
}

/// CGI, as far as git needs it. A repository named `private` wants the token.
async fn backend(State(server): State<Server>, request: Request) -> impl IntoResponse {
    let (request, body) = request.into_parts();
    let header = |name: HeaderName| {
        request
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let authorization = header(AUTHORIZATION);
    server.seen.lock().unwrap().push(format!(
        "{} {} {authorization}",
        request.method, request.uri
    ));
    let path = request.uri.path().to_owned();
    let wanted = format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{TOKEN}"))
    );
    if path.starts_with("/private") && authorization != wanted {
        return (StatusCode::UNAUTHORIZED, HeaderMap::new(), Vec::new());
    }
    let mut command = tokio::process::Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &server.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env(
            "GIT_PROTOCOL",
            header(HeaderName::from_static("git-protocol")),
        )
        .env("REQUEST_METHOD", request.method.as_str())
        .env("QUERY_STRING", request.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header(CONTENT_TYPE))
        .env("PATH_INFO", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    let mut child = command
        .env("CONTENT_LENGTH", body.len().to_string())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = tokio::spawn(async move { stdin.write_all(&body).await });
    let output = child.wait_with_output().await.unwrap().stdout;
    let _ = feed.await;
    let end = output
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .unwrap_or(output.len() - 4);
    let mut status = StatusCode::OK;
    let mut headers = HeaderMap::new();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "Status" {
            status = value[..3].parse().unwrap();
        } else {
            headers.insert(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
    }
    (status, headers, output[end + 4..].to_vec())
}

fn git_here(folder: &Path, arguments: &[&str]) {
    let output = std::process::Command::new("git")
        .args([
            "-c",
            "user.name=Test",
            "-c",
            "user.email=test@example.org",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

struct World {
    base: String,
    seen: Arc<Mutex<Vec<String>>>,
    _root: tempfile::TempDir,
}

/// Serves two repositories with some history, a branch and a megabyte that does not compress.
async fn world() -> World {
    let root = tempfile::tempdir().unwrap();
    let work = root.path().join("work");
    std::fs::create_dir(&work).unwrap();
    git_here(&work, &["init", "-q"]);
    let noise: Vec<u8> = (0..32_768)
        .flat_map(|_| uuid::Uuid::new_v4().into_bytes())
        .collect();
    std::fs::write(work.join("noise"), noise).unwrap();
    for number in 0..20 {
        std::fs::write(work.join("file"), format!("{number}\n")).unwrap();
        git_here(&work, &["add", "."]);
        git_here(&work, &["commit", "-q", "-m", &format!("Change {number}")]);
    }
    git_here(&work, &["branch", "other", "HEAD~5"]);
    for name in ["public.git", "private.git"] {
        git_here(root.path(), &["clone", "-q", "--bare", "work", name]);
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let server = Server {
        root: root.path().to_owned(),
        seen: Arc::clone(&seen),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        axum::serve(
            listener,
            axum::Router::new().fallback(backend).with_state(server),
        )
        .await
    });
    World {
        base,
        seen,
        _root: root,
    }
}

async fn gateway(sandbox: &Sandbox, url: &str, token: Option<&str>) -> Gateway {
    let token = token.map(|token| SecretString::from(token.to_owned()));
    Gateway::start(
        sandbox.runtime_dir(),
        url,
        token,
        true,
        client(true).unwrap(),
    )
    .unwrap()
}

async fn output(sandbox: &Sandbox, command: &str) -> String {
    sandbox
        .exec(ExecRequest::shell(command), |_| {})
        .await
        .unwrap()
        .output
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_cloned_and_fetched_and_the_token_is_nowhere_in_the_box() {
    let world = world().await;
    for choice in [Choice::Bubblewrap, Choice::Landlock] {
        let ground = Ground::new(choice).await;
        let url = format!("{}/private.git", world.base);
        let with_user = url.replace("http://", "http://someone:password@");
        let sandbox = ground.start("one", Some(&url)).await;
        let _gateway = gateway(&sandbox, &url, Some(TOKEN)).await;
        clone_into(
            &sandbox,
            &with_user,
            Some("other"),
            Some("A Name"),
            Some("a@example.org"),
        )
        .await
        .unwrap();
        assert_eq!(
            output(
                &sandbox,
                "cat file; git log --oneline | wc -l; git branch --show-current"
            )
            .await,
            "14\n15\nother\n"
        );
        assert_eq!(output(&sandbox, "git config user.name; git remote get-url origin --all; git config remote.origin.url").await.lines().last().unwrap(), url);
        assert_eq!(
            output(
                &sandbox,
                "git fetch origin main && git rev-list --count FETCH_HEAD 2>/dev/null"
            )
            .await
            .lines()
            .last()
            .unwrap(),
            "20"
        );
        let searched = format!(
            "(grep -r 'secret-token\\|password' . $HOME $TMPDIR; env | grep secret; grep -a {TOKEN} $(dirname $LUCID_GIT_SOCKET)/* 2>/dev/null) | grep -v FETCH"
        );
        assert_eq!(output(&sandbox, &searched).await, "", "{choice:?}");
        let pushed = output(
            &sandbox,
            "git commit -q --allow-empty -m x && git push origin other 2>&1; echo $?",
        )
        .await;
        assert!(!pushed.ends_with("\n0\n"), "a push went through: {pushed}");
        sandbox.close().await;
    }
    assert!(
        !world
            .seen
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains("receive-pack"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_sessions_own_repository_is_reached_and_errors_are_sentences() {
    let world = world().await;
    let ground = Ground::new(Choice::Bubblewrap).await;
    let private = format!("{}/private", world.base);
    let sandbox = ground.start("one", Some(&private)).await;
    let error = clone_into(&sandbox, &private, None, None, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("gateway cannot be reached"), "{error}");

    let open = gateway(&sandbox, &private, None).await;
    let error = clone_into(&sandbox, &private, None, None, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("refused access"), "{error}");
    drop(open);

    let open = gateway(&sandbox, &private, Some(TOKEN)).await;
    let seen = world.seen.lock().unwrap().len();
    let error = output(
        &sandbox,
        &format!("git ls-remote lucid::{}/public.git 2>&1", world.base),
    )
    .await;
    assert!(error.contains("no other repository"), "{error}");
    assert_eq!(
        world.seen.lock().unwrap().len(),
        seen,
        "the server was asked"
    );
    drop(open);

    let missing = format!("{}/none.git", world.base);
    let other = ground.start("two", Some(&missing)).await;
    let _open = gateway(&other, &missing, None).await;
    let error = clone_into(&other, &missing, None, None, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("no such repository"), "{error}");
    assert!(matches!(
        clone_into(&other, &missing, Some("--upload-pack=x"), None, None).await,
        Err(CloneError::Branch(_))
    ));
    other.close().await;
    sandbox.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_without_the_sessions_key_is_refused() {
    let world = world().await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("{}/public.git", world.base);
    let _gateway = Gateway::start(folder.path(), &url, None, true, client(true).unwrap()).unwrap();
    let mut connection = UnixStream::connect(folder.path().join("git.sock"))
        .await
        .unwrap();
    let open = GitOpen {
        version: VERSION,
        key: "guess".to_owned(),
        url,
    };
    connection
        .write_all(&Frame::json(Kind::GitOpen, 0, &open).unwrap().encode())
        .await
        .unwrap();
    let answer = read_frame(&mut connection).await.unwrap();
    assert_eq!(answer.kind, Kind::GitError);
    assert!(world.seen.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_the_hosts_own_networks_are_refused_by_name_and_by_number() {
    let world = world().await;
    let ground = Ground::new(Choice::Bubblewrap).await;
    let by_name = world.base.replace("127.0.0.1", "localhost");
    for base in [&world.base, &by_name] {
        let url = format!("{base}/public.git");
        let sandbox = ground.start("one", Some(&url)).await;
        let _gateway = Gateway::start(
            sandbox.runtime_dir(),
            &url,
            None,
            false,
            client(false).unwrap(),
        )
        .unwrap();
        let error = clone_into(&sandbox, &url, None, None, None)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("private network"), "{error}");
        sandbox.close().await;
    }
    assert!(world.seen.lock().unwrap().is_empty());
}
