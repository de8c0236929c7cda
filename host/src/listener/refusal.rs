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

use super::accept::OccasionalLine;

/// How many are answered at a time.
const ANSWERED: usize = 32;
/// How long an answer may take, with the client's request.
const PATIENCE: Duration = Duration::from_secs(1);
/// After how many seconds a client may come again.
const AGAIN: &str = "5";
/// What `BODY` is.
const PROBLEM: &str = "application/problem+json";
/// A problem, as all refusals of the API are.
const BODY: &str = r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"The server has too many connections. Try again in a moment."}"#;

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
    let headers = [
        (CONTENT_TYPE, PROBLEM),
        (RETRY_AFTER, AGAIN),
        (CONNECTION, "close"),
    ];
    (StatusCode::SERVICE_UNAVAILABLE, headers, BODY).into_response()
}

/// Reads the request, since an answer to none is an error for many clients, and what is not read at the
/// end resets the connection before its client has the answer.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; 4096];
    if stream.read(&mut request).await? == 0 {
        return Ok(());
    }
    let length = BODY.len();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {PROBLEM}\r\ncontent-length: {length}\r\nretry-after: {AGAIN}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all((head + BODY).as_bytes()).await?;
    stream.shutdown().await?;
    while stream.read(&mut request).await? > 0 {}
    Ok(())
}
