//! Answers count as their user's for as long as they are in memory and not taken.
//!
//! # Invariants
//!
//! - An answer that would be too much is replaced by a refusal, and its memory is free at once.
//! - What is made piece by piece while the client takes it is not counted.

use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::problem::Problem;
use crate::listener::ConnectionSlot;

/// A smaller answer fits into the buffers of its connection, in bytes.
const SMALL: u64 = 16 << 10;

/// Holds the answer of a request for its user.
pub(super) async fn hold(request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<ConnectionSlot>().cloned();
    let mut response = next.run(request).await;
    let size = response.body().size_hint().lower();
    let Some(connection) = connection.filter(|_| size > SMALL) else {
        return response;
    };
    match connection.hold(size) {
        Ok(held) => {
            held.map(|held| response.extensions_mut().insert(held));
            response
        }
        Err(error) => Problem::from(error).into_response(),
    }
}
