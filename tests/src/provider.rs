//! A git provider's API as GitHub has it, for one token: who it is, what it reaches, pull requests.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The API, on a port of its own.
pub struct GitApi {
    /// Where it is.
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    token: String,
    repositories: Vec<Value>,
    pulls: Vec<Value>,
    seen: Vec<String>,
    broken: bool,
}

impl GitApi {
    /// Starts one that knows this token alone.
    pub async fn start(token: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            token: token.to_owned(),
            ..State::default()
        }));
        let own = state.clone();
        let router = Router::new().fallback(
            async move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                own.lock().unwrap().answer(&method, &uri, &headers, &body)
            },
        );
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, state }
    }

    /// Lets the token reach so many repositories.
    pub fn has_repositories(&self, count: usize) {
        let one = |n: usize| {
            json!({"id": n, "name": format!("r{n}"), "full_name": format!("team/r{n}"), "private": n.is_multiple_of(2),
                "html_url": format!("https://git.example/team/r{n}"), "default_branch": "main",
                "clone_url": format!("https://git.example/team/r{n}.git"), "description": null})
        };
        self.state.lock().unwrap().repositories = (0..count).map(one).collect();
    }

    /// From now on it fails, or no longer does.
    pub fn breaks(&self, broken: bool) {
        self.state.lock().unwrap().broken = broken;
    }

    /// The pull requests that were opened.
    pub fn pulls(&self) -> Vec<Value> {
        self.state.lock().unwrap().pulls.clone()
    }

    /// What was asked, as `GET /user`.
    pub fn seen(&self) -> Vec<String> {
        self.state.lock().unwrap().seen.clone()
    }
}

impl State {
    fn answer(
        &mut self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Response {
        self.seen.push(format!("{method} {uri}"));
        if self.broken {
            return said(502, json!({"message": "Server Error"}));
        }
        let given = headers.get("authorization");
        let wanted = format!("Bearer {}", self.token);
        if given.is_none_or(|given| given.as_bytes() != wanted.as_bytes()) {
            return said(401, json!({"message": "Bad credentials"}));
        }
        // GitHub's API, and as much of GitLab's as an account needs.
        let path = uri.path().trim_start_matches("/api/v4");
        let path: Vec<&str> = path.trim_matches('/').split('/').collect();
        let number = |name: &str| -> usize {
            let query = uri.query().unwrap_or_default().split('&');
            let mut pairs = query.filter_map(|pair| pair.split_once('='));
            let found = pairs.find(|(known, _)| *known == name);
            found.map_or(1, |(_, value)| value.parse().unwrap())
        };
        match (method.as_str(), path.as_slice()) {
            ("GET", ["user"]) => {
                let mut answer = said(
                    200,
                    json!({"id": 7, "login": "octocat", "username": "octocat", "name": "The Octocat"}),
                );
                let headers = answer.headers_mut();
                headers.insert("x-oauth-scopes", "repo, read:user".parse().unwrap());
                answer
            }
            ("GET", ["user", "repos"]) => {
                let (page, size) = (number("page"), number("per_page"));
                let all = self.repositories.chunks(size).nth(page - 1);
                let mut answer = said(200, json!(all.unwrap_or_default()));
                if page * size < self.repositories.len() {
                    let link = format!("<https://x/user/repos?page={}>; rel=\"next\"", page + 1);
                    answer.headers_mut().insert("link", link.parse().unwrap());
                }
                answer
            }
            ("GET", ["projects"]) => said(200, json!([])),
            ("GET", ["repos", _, _]) => said(200, json!({"id": 1, "default_branch": "main"})),
            ("GET", ["repos", _, _, "pulls"]) => said(200, json!(self.pulls)),
            ("POST", ["repos", owner, name, "pulls"]) => {
                let wanted: Value = serde_json::from_slice(body).unwrap();
                let same = |pull: &Value| pull["head"]["ref"] == wanted["head"];
                if self.pulls.iter().any(same) {
                    let message = "A pull request already exists for team:x.";
                    return said(
                        422,
                        json!({"message": "Validation Failed", "errors": [{"code": "custom", "message": message}]}),
                    );
                }
                let number = self.pulls.len() + 1;
                let pull = json!({"number": number, "state": "open", "title": wanted["title"],
                    "html_url": format!("https://git.example/{owner}/{name}/pull/{number}"),
                    "head": {"ref": wanted["head"]}, "base": {"ref": wanted["base"]},
                    "draft": wanted["draft"], "body": wanted["body"]});
                self.pulls.push(pull.clone());
                said(201, pull)
            }
            _ => said(404, json!({"message": "Not Found"})),
        }
    }
}

fn said(status: u16, body: Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, axum::Json(body)).into_response()
}
