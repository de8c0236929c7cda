//! Real git repositories, served over smart HTTP by git itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, Method, Response, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

/// A request as it reached the server.
#[derive(Debug, Clone)]
pub struct GitRequest {
    /// Path and query.
    pub uri: String,
    /// Whether it came with an `Authorization` header.
    pub authorized: bool,
    /// What it was answered with.
    pub status: u16,
}

/// Bare repositories below a folder, each at `/{name}.git`.
pub struct GitServer {
    /// Where the server is, such as `http://127.0.0.1:4711`.
    pub url: String,
    root: TempDir,
    seen: Arc<Mutex<Vec<GitRequest>>>,
    moved: Arc<Mutex<Vec<(String, String)>>>,
}

impl GitServer {
    /// Starts one with no repository, open to everybody, also to push to.
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// Starts one that wants this token as the password of `x-access-token`, as GitHub takes it.
    pub async fn with_token(token: &str) -> Self {
        let pair = STANDARD.encode(format!("x-access-token:{token}"));
        Self::serve(Some(format!("Basic {pair}"))).await
    }

    async fn serve(wanted: Option<String>) -> Self {
        let root = tempfile::Builder::new()
            .prefix("lucid-git-")
            .tempdir()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let moved = Arc::new(Mutex::new(Vec::<(String, String)>::new()));
        let (path, noted, away) = (root.path().to_owned(), seen.clone(), moved.clone());
        let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let (path, wanted, noted) = (path.clone(), wanted.clone(), noted.clone());
            let target = away.lock().unwrap().iter().find_map(|(from, to)| {
                let rest = uri.path_and_query()?.as_str().strip_prefix(from.as_str())?;
                Some(format!("{to}{rest}"))
            });
            async move {
                let given = headers.get("authorization");
                let given = given.map(|value| value.to_str().unwrap().to_owned());
                let response = if let Some(target) = target {
                    Response::builder()
                        .status(301)
                        .header("location", target)
                        .body(Body::empty())
                        .unwrap()
                } else if wanted.is_some() && given != wanted {
                    Response::builder()
                        .status(401)
                        .header("www-authenticate", "Basic realm=\"git\"")
                        .body(Body::empty())
                        .unwrap()
                } else {
                    backend(&path, &method, &uri, &headers, &body).await
                };
                noted.lock().unwrap().push(GitRequest {
                    uri: uri.to_string(),
                    authorized: given.is_some(),
                    status: response.status().as_u16(),
                });
                response
            }
        };
        let router = Router::new()
            .fallback(answer)
            .layer(DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            root,
            seen,
            moved,
        }
    }

    /// Publishes a repository, and gives its address. The name may have folders: `team/project`.
    pub fn publish(&self, name: &str, repository: &Path) -> String {
        let bare = self.bare(name);
        git(
            self.root.path(),
            &[
                "clone",
                "--quiet",
                "--bare",
                repository.to_str().unwrap(),
                bare.to_str().unwrap(),
            ],
        );
        format!("{}/{name}.git", self.url)
    }

    /// Publishes a repository that has no commit, its branch to be `main`.
    pub fn publish_empty(&self, name: &str) -> String {
        let bare = self.bare(name);
        git(
            self.root.path(),
            &[
                "init",
                "--quiet",
                "--bare",
                "--initial-branch=main",
                bare.to_str().unwrap(),
            ],
        );
        format!("{}/{name}.git", self.url)
    }

    /// What git prints in a published repository, trimmed.
    pub fn git(&self, name: &str, arguments: &[&str]) -> String {
        git(&self.bare(name), arguments)
    }

    /// From now on sends every request below one path (`/old`) on to another place: a path, or a URL.
    pub fn redirect(&self, from: &str, to: &str) {
        let redirect = (from.to_owned(), to.to_owned());
        self.moved.lock().unwrap().push(redirect);
    }

    /// The requests so far, in the order of their answers.
    pub fn seen(&self) -> Vec<GitRequest> {
        self.seen.lock().unwrap().clone()
    }

    fn bare(&self, name: &str) -> PathBuf {
        self.root.path().join(format!("{name}.git"))
    }
}

/// A repository with these files in one commit on `main`.
pub fn repository(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::Builder::new()
        .prefix("lucid-repository-")
        .tempdir()
        .unwrap();
    git(folder.path(), &["init", "--quiet", "--initial-branch=main"]);
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    git(folder.path(), &["add", "--all"]);
    git(
        folder.path(),
        &["commit", "--quiet", "--message", "As it was"],
    );
    folder
}

/// Runs git in a folder, as somebody with a name, and gives what it printed, trimmed.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .args([
            "-c",
            "user.name=Test",
            "-c",
            "user.email=test@example.com",
            "-c",
            "safe.directory=*",
        ])
        .args(arguments)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// `git http-backend` as a CGI program (RFC 3875).
async fn backend(
    root: &Path,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
) -> Response<Body> {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let mut child = tokio::process::Command::new("git")
        .args(["-c", "safe.directory=*", "http-backend"])
        // Whoever has a name may push, where the repository does not say `http.receivepack=false`.
        .env("REMOTE_USER", "somebody")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let body = body.clone();
    let feed = async move {
        stdin.write_all(&body).await.ok();
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.unwrap().stdout;
    let end = output
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or(output.len());
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        response = match name {
            "Status" => response.status(
                value
                    .trim()
                    .split(' ')
                    .next()
                    .unwrap()
                    .parse::<u16>()
                    .unwrap(),
            ),
            _ => response.header(name, value.trim()),
        };
    }
    let body = output.get(end + 4..).unwrap_or_default().to_vec();
    response.body(Body::from(body)).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_published_repository_can_be_cloned() {
        let server = GitServer::start().await;
        let source = repository(&[("folder/a.txt", "a\n")]);
        let url = server.publish("one", source.path());
        let into = tempfile::tempdir().unwrap();
        let target = into.path().join("clone");
        let mut clone = tokio::process::Command::new("git");
        clone
            .args(["clone", "--quiet", "--branch", "main", &url])
            .arg(&target);
        assert!(clone.status().await.unwrap().success());
        assert_eq!(
            std::fs::read_to_string(target.join("folder/a.txt")).unwrap(),
            "a\n"
        );
    }
}
