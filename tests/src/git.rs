//! Real git repositories, served over smart HTTP by git itself.

use std::path::Path;
use std::process::{Command, Stdio};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, Uri};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

/// Bare repositories below a folder, each at `/{name}.git`.
pub struct GitServer {
    /// Where the server is, such as `http://127.0.0.1:4711`.
    pub url: String,
    root: TempDir,
}

impl GitServer {
    /// Starts one with no repository.
    pub async fn start() -> Self {
        let root = tempfile::Builder::new()
            .prefix("lucid-git-")
            .tempdir()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let path = root.path().to_owned();
        let router = Router::new().fallback(
            move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                let path = path.clone();
                async move { backend(&path, &method, &uri, &headers, &body).await }
            },
        );
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, root }
    }

    /// Publishes a repository, and gives its address.
    pub fn publish(&self, name: &str, repository: &Path) -> String {
        let bare = self.root.path().join(format!("{name}.git"));
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

fn git(folder: &Path, arguments: &[&str]) {
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
