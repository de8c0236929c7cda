//! Requests that the host itself makes to exactly an endpoint's URL, returning the response with
//! its head.
//!
//! # Invariants
//! - As for a plugin's request, nothing that comes back contains the key.

use bytes::Bytes;

use super::response::{self, ErrorResponse, ResponseFrames};
use super::{CheckedRequest, Egress, EgressError, Endpoint, Redactor, request};
use lucid_types::secret::Secret;
use lucid_types::wit::llm::Framing;
use lucid_types::wit::types::Header;

/// A response.
#[derive(Debug)]
pub enum RawResponse {
    /// The request was accepted.
    Accepted {
        /// The HTTP status.
        status: u16,
        /// The headers, without cookies.
        headers: Vec<Header>,
        /// The body: events, or one JSON document.
        frames: ResponseFrames,
    },
    /// The request was refused.
    Refused(ErrorResponse),
}

impl Egress {
    /// Sends to the endpoint's URL itself, and reads events or one JSON body. Dropping the future
    /// drops the request, and dropping the frames ends the response.
    pub async fn stream(
        &self,
        endpoint: &Endpoint,
        key: Option<&Secret>,
        method: &str,
        headers: &[Header],
        body: Vec<u8>,
    ) -> Result<RawResponse, EgressError> {
        let redactor = Redactor::new(key);
        let responded = async {
            let call = CheckedRequest {
                method: request::method(method)?,
                url: endpoint.base_url().clone(),
                headers: request::headers(headers, &endpoint.injection.header())?,
                body: Bytes::from(body),
            };
            self.send_checked(endpoint, key, call).await
        };
        let response = responded.await.map_err(|error| error.redacted(&redactor))?;
        if !response.status().is_success() {
            let refusal = response::refusal(response, &redactor, &self.limits).await;
            return Ok(RawResponse::Refused(refusal));
        }
        Ok(RawResponse::Accepted {
            status: response.status().as_u16(),
            headers: response::headers(&response, &redactor),
            frames: response::frames(response, Framing::ServerSentEvents, redactor, &self.limits),
        })
    }
}
