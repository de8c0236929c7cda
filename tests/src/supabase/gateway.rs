//! The gateway in front of PostgREST: it has the prefix `/rest/v1`, and lets nobody in without an API
//! key. It remembers who came with what.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{anon_key, service_key};

/// A request that came through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRequest {
    /// Such as `POST`.
    pub method: String,
    /// Without the prefix, with the query.
    pub path: String,
    /// `anon` or `service`.
    pub key: &'static str,
    /// Of the Bearer token, its user.
    pub user: Option<String>,
    /// And its role.
    pub role: String,
    /// Its body.
    pub body: String,
    /// What came back.
    pub status: u16,
}

pub(super) struct SupabaseGateway {
    port: u16,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    upstream: Mutex<Option<u16>>,
    passed: Mutex<Vec<GatewayRequest>>,
    to_lose: AtomicUsize,
    client: reqwest::Client,
}

impl SupabaseGateway {
    pub(super) async fn start() -> Self {
        let shared = Arc::new(Shared {
            upstream: Mutex::new(None),
            passed: Mutex::new(Vec::new()),
            to_lose: AtomicUsize::new(0),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(pass).with_state(shared.clone());
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            port,
            shared,
            serving,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn points_to(&self, port: Option<u16>) {
        *self.shared.upstream.lock().unwrap() = port;
    }

    pub(super) fn lose_answers(&self, writes: usize) {
        self.shared.to_lose.store(writes, Ordering::SeqCst);
    }

    pub(super) fn passed(&self) -> Vec<GatewayRequest> {
        self.shared.passed.lock().unwrap().clone()
    }
}

impl Drop for SupabaseGateway {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn refused(status: StatusCode, message: &str) -> Response {
    let body = serde_json::json!({ "message": message }).to_string();
    (status, [("content-type", "application/json")], body).into_response()
}

/// What a Bearer token says.
fn claims(bearer: &str) -> Value {
    let payload = bearer.split('.').nth(1).unwrap_or_default();
    let payload = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    serde_json::from_slice(&payload).unwrap_or_default()
}

async fn pass(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    // A project that signs with its shared secret alone.
    if path == "/auth/v1/.well-known/jwks.json" {
        return axum::Json(serde_json::json!({"keys": []})).into_response();
    }
    let Some(path) = path.strip_prefix("/rest/v1/") else {
        return refused(StatusCode::NOT_FOUND, "no Route matched with those values");
    };
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let key = text("apikey");
    let key = if key == anon_key() {
        "anon"
    } else if key == service_key() {
        "service"
    } else {
        return refused(StatusCode::UNAUTHORIZED, "No API key found in request");
    };
    let upstream = *shared.upstream.lock().unwrap();
    let answer = async {
        let mut request = shared.client.request(
            method.clone(),
            format!("http://127.0.0.1:{}/{path}", upstream?),
        );
        for (name, value) in &headers {
            if !["host", "content-length", "connection", "apikey"].contains(&name.as_str()) {
                request = request.header(name, value);
            }
        }
        let answer = request.body(body.clone()).send().await.ok()?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        Some((status, headers, answer.bytes().await.ok()?))
    };
    let answer = answer.await;
    let claims = claims(&text("authorization"));
    shared.passed.lock().unwrap().push(GatewayRequest {
        method: method.to_string(),
        path: path.to_owned(),
        key,
        user: claims["sub"].as_str().map(str::to_owned),
        role: claims["role"].as_str().unwrap_or_default().to_owned(),
        body: String::from_utf8_lossy(&body).into_owned(),
        status: answer.as_ref().map_or(502, |(status, ..)| status.as_u16()),
    });
    let down = || {
        let message = "An invalid response was received from the upstream server";
        refused(StatusCode::BAD_GATEWAY, message)
    };
    let Some((status, headers, body)) = answer else {
        return down();
    };
    if method != Method::GET
        && shared
            .to_lose
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    {
        return down();
    }
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    for name in ["content-type", "content-range"] {
        if let Some(value) = headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}
