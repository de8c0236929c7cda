//! The id of a request: `X-Request-Id`, which is on its answer, in its problem, and on each line of the log about it.
//!
//! # Invariants
//!
//! - Every request has one: the client's, or one of ours.
//! - A client's is short and of characters that mean nothing in a log, a header or JSON. Any other is replaced.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

/// The header that carries it, in both directions.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The most characters of a client's id.
const LONGEST: usize = 128;

tokio::task_local! {
    static CURRENT: RequestId;
}

/// The id of one request.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(Arc<str>);

impl RequestId {
    /// Makes an id. Later ones are greater.
    pub(crate) fn new() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// Takes a client's id, if it is one that can be repeated anywhere.
    fn parse(header: &HeaderValue) -> Option<Self> {
        let text = header.to_str().ok()?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
        let fits = !text.is_empty() && text.len() <= LONGEST && text.bytes().all(is_plain);
        fits.then(|| Self(text.into()))
    }

    /// The id of the request that the present task answers, if it answers one.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// The id.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Gives a request its id, and its answer the same one.
pub(super) async fn identify(mut request: Request, next: Next) -> Response {
    let sent = request.headers().get(X_REQUEST_ID);
    let id = sent
        .and_then(RequestId::parse)
        .unwrap_or_else(RequestId::new);
    request.extensions_mut().insert(id.clone());
    let mut response = CURRENT.scope(id.clone(), next.run(request)).await;
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Option<RequestId> {
        RequestId::parse(&HeaderValue::from_bytes(text).ok()?)
    }

    #[test]
    fn a_clients_id_is_taken_if_it_can_be_repeated_anywhere() {
        for id in [
            "1",
            "0197a3c2-7b1e-7c31-9d1f-0242ac120002",
            "Root=1-67891233-abcdef012345678912345678",
            "req_011CSHoEeqs5C35K2UUqR7Fy",
            "a.b:c/d+e",
            &"x".repeat(LONGEST),
        ] {
            let taken = parse(id.as_bytes());
            assert_eq!(taken.expect(id).as_str(), id);
        }
    }

    #[test]
    fn an_id_that_is_long_or_means_something_elsewhere_is_not_taken() {
        let long = "x".repeat(LONGEST + 1);
        for id in [
            "",
            " ",
            "two words",
            "a\tb",
            "\"quoted\"",
            "a\\b",
            "<b>",
            "{}",
            "%00",
            "\u{1b}[31m",
            "é",
            long.as_str(),
        ] {
            assert!(parse(id.as_bytes()).is_none(), "{id:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_the_same_in_a_header_in_json_and_in_a_log(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(id) = parse(&text) {
                prop_assert_eq!(id.as_str().as_bytes(), text.as_slice());
                prop_assert_eq!(serde_json::to_string(id.as_str()).unwrap(), format!("\"{}\"", id.as_str()));
                prop_assert!(id.as_str().len() <= LONGEST);
            }
        }
    }
}
