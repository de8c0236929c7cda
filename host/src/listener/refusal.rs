//! Connections for which there is no room.
//!
//! # Invariants
//!
//! - A refusal costs little: a few connections at a time are answered, for at most a second each, and
//!   any more are closed at once.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

use super::accept::OccasionalLine;

/// How many are answered at a time.
const ANSWERED: usize = 32;
/// How long an answer may take, with the client's request.
const PATIENCE: Duration = Duration::from_secs(1);
/// After how many seconds a client may come again.
const AGAIN: &str = "5";
/// What the answer is.
const PROBLEM: &str = "application/problem+json";
/// The name of the header with a request's id.
const REQUEST_ID: &str = "x-request-id";
/// What is wrong.
const DETAIL: &str = "The server has too many connections. Try again in a moment.";

/// The refusals of one listener.
pub(super) struct Refusals {
    answers: Arc<Semaphore>,
    line: OccasionalLine,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            answers: Arc::new(Semaphore::new(ANSWERED)),
            line: OccasionalLine::default(),
        }
    }
}

impl Refusals {
    /// Answers with 503, or only closes the connection.
    pub(super) fn refuse(&mut self, stream: TcpStream) {
        if let Some(times) = self.line.is_due(Instant::now()) {
            tracing::warn!(
                times,
                "connections are refused: there are as many as the limit of open files allows; `lucid doctor` says how many that is"
            );
        }
        let Ok(permit) = self.answers.clone().try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let _ = timeout(PATIENCE, answer(stream)).await;
        });
    }
}

/// The same answer, to a request that was read already.
pub(super) fn response() -> Response {
    let id = Uuid::now_v7();
    let headers = [
        (CONTENT_TYPE.as_str(), PROBLEM),
        (RETRY_AFTER.as_str(), AGAIN),
        (CONNECTION.as_str(), "close"),
        (REQUEST_ID, &id.to_string()),
    ];
    (StatusCode::SERVICE_UNAVAILABLE, headers, body(id)).into_response()
}

/// A problem, as all refusals of the API are.
fn body(id: Uuid) -> String {
    format!(
        r#"{{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"{DETAIL}","requestId":"{id}"}}"#
    )
}

/// Reads the request, since an answer to none is an error for many clients, and what is not read at the
/// end resets the connection before its client has the answer.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; 4096];
    if stream.read(&mut request).await? == 0 {
        return Ok(());
    }
    let id = Uuid::now_v7();
    let body = body(id);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {PROBLEM}\r\ncontent-length: {length}\r\nretry-after: {AGAIN}\r\n{REQUEST_ID}: {id}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await?;
    while stream.read(&mut request).await? > 0 {}
    Ok(())
}
