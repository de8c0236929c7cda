//! An HTTP server that records its requests and answers as the test says.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;

/// One request as the server saw it.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// The path and query.
    pub uri: String,
    /// The headers, in the order of the wire.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl RecordedRequest {
    /// The values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str()).collect()
    }
}

/// The requests so far, oldest first.
pub type RecordedRequests = Arc<Mutex<Vec<RecordedRequest>>>;

type Answers = Arc<dyn Fn(&RecordedRequest, usize) -> Response + Send + Sync>;

/// Starts a server on a free port of the loopback interface. It answers each request by what it is and
/// its number, from 0. Returns its base URL, which ends in `/v1`.
pub async fn record_requests(
    answer: impl Fn(&RecordedRequest, usize) -> Response + Send + Sync + 'static,
) -> (String, RecordedRequests) {
    let requests = RecordedRequests::default();
    let answers: Answers = Arc::new(answer);
    let router = Router::new()
        .fallback(respond)
        .with_state((answers, requests.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, requests)
}

async fn respond(
    State((answers, requests)): State<(Answers, RecordedRequests)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
    let headers = parts.headers.iter().map(|(name, value)| {
        let value = value.to_str().unwrap_or_default();
        (name.to_string(), value.to_owned())
    });
    let recorded = RecordedRequest {
        uri: parts.uri.to_string(),
        headers: headers.collect(),
        body,
    };
    let number = {
        let mut requests = requests.lock().unwrap();
        requests.push(recorded.clone());
        requests.len() - 1
    };
    answers(&recorded, number)
}
