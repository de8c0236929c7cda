//! The HTTP transport to an MCP server on the network, over the host's egress.
//!
//! # Invariants
//!
//! - Everything goes to the one URL that the manifest names, with the key beside it there, under
//!   the egress rules for addresses, redirects and sizes.
//! - The key is redacted from a response before anything reads it.
//! - Only the host sends requests: no stream is held open for messages that a server initiates.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::StatusCode;
use reqwest::header::{HeaderName, HeaderValue};
use rmcp::model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::Sse;

use lucid_net::egress::{
    Egress, EgressError, Endpoint, ErrorResponse, RawResponse, ResponseFrames,
};
use lucid_types::sanitize::sanitize;
use lucid_types::secret::Secret;
use lucid_types::unicode::{paired_text, readable_json};
use lucid_types::wit::llm::Frame;
use lucid_types::wit::types::Header;

const SESSION: &str = "mcp-session-id";
/// The maximum length of a session id, in bytes.
const LONGEST_SESSION: usize = 1024;
/// The maximum length of a displayed refusal, in characters.
const MAX_SHOWN: usize = 300;

type HttpFailure = StreamableHttpError<EgressError>;

/// The protocol's HTTP client.
#[derive(Clone)]
pub(crate) struct McpHttp {
    /// The egress that sends its requests.
    pub(crate) egress: Egress,
    /// The server's endpoint.
    pub(crate) endpoint: Endpoint,
    /// The key.
    pub(crate) key: Option<Secret>,
}

impl McpHttp {
    async fn send(
        &self,
        method: &str,
        session: Option<Arc<str>>,
        others: HashMap<HeaderName, HeaderValue>,
        body: Vec<u8>,
    ) -> Result<RawResponse, EgressError> {
        let header = |name: &str, value: &str| Header {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let mut headers = vec![
            header("accept", "application/json, text/event-stream"),
            header("content-type", "application/json"),
        ];
        headers.extend(session.map(|session| header(SESSION, &session)));
        let others = others.iter().filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            Some(header(name.as_str(), value))
        });
        headers.extend(others);
        let key = self.key.as_ref();
        let sent = self
            .egress
            .stream(&self.endpoint, key, method, &headers, body);
        sent.await
    }
}

impl StreamableHttpClient for McpHttp {
    type Error = EgressError;

    async fn post_message(
        &self,
        _: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, HttpFailure> {
        let in_session = session.is_some();
        let body = serde_json::to_vec(&message)?;
        let opened = self.send("POST", session, headers, body).await;
        match opened.map_err(HttpFailure::Client)? {
            RawResponse::Refused(refusal)
                if refusal.status == StatusCode::NOT_FOUND && in_session =>
            {
                Err(HttpFailure::SessionExpired)
            }
            RawResponse::Refused(refusal) => refused(&refusal),
            RawResponse::Accepted { status, .. }
                if status == StatusCode::ACCEPTED || status == StatusCode::NO_CONTENT =>
            {
                Ok(StreamableHttpPostResponse::Accepted)
            }
            RawResponse::Accepted {
                headers, frames, ..
            } => {
                let session = session_of(&headers)?;
                read_response(frames, session).await
            }
        }
    }

    async fn delete_session(
        &self,
        _: Arc<str>,
        session: Arc<str>,
        _: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), HttpFailure> {
        let sent = self.send("DELETE", Some(session), headers, Vec::new());
        // A server need not support ending a session: it then ends it itself.
        sent.await.map(drop).map_err(HttpFailure::Client)
    }

    async fn get_stream(
        &self,
        _: Arc<str>,
        _: Option<Arc<str>>,
        _: Option<String>,
        _: Option<String>,
        _: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, HttpFailure> {
        Err(HttpFailure::ServerDoesNotSupportSse)
    }
}

fn session_of(headers: &[Header]) -> Result<Option<String>, HttpFailure> {
    let session = headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case(SESSION));
    let Some(session) = session else {
        return Ok(None);
    };
    let plain = session.value.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain || session.value.len() > LONGEST_SESSION {
        return Err(unexpected("it named a session that cannot be named back"));
    }
    Ok(Some(session.value.clone()))
}

fn unexpected(what: impl Into<Cow<'static, str>>) -> HttpFailure {
    HttpFailure::UnexpectedServerResponse(what.into())
}

/// A refusal may be a protocol message. Otherwise its status is reported.
fn refused(refusal: &ErrorResponse) -> Result<StreamableHttpPostResponse, HttpFailure> {
    if let Ok(error @ JsonRpcMessage::Error(_)) =
        serde_json::from_slice::<ServerJsonRpcMessage>(&readable_json(&refusal.body))
    {
        return Ok(StreamableHttpPostResponse::Json(error, None));
    }
    let detail = sanitize(&String::from_utf8_lossy(&refusal.body), MAX_SHOWN);
    let detail = match detail.trim() {
        "" => String::new(),
        detail => format!(": {detail}"),
    };
    Err(unexpected(format!(
        "it answered with HTTP {}{detail}",
        refusal.status
    )))
}

/// Reads one JSON message, or a stream of events.
async fn read_response(
    mut frames: ResponseFrames,
    session: Option<String>,
) -> Result<StreamableHttpPostResponse, HttpFailure> {
    let first = match frames.next().await {
        Some(first) => first.map_err(HttpFailure::Client)?,
        None => return Err(unexpected("its answer holds nothing")),
    };
    if let Frame::Body(body) = first {
        let message = serde_json::from_slice(&readable_json(&body))?;
        return Ok(StreamableHttpPostResponse::Json(message, session));
    }
    let all = futures::stream::once(std::future::ready(Ok(first))).chain(frames);
    let events = all.filter_map(|frame| {
        std::future::ready(match frame {
            Ok(Frame::Sse(event)) => Some(Ok(Sse {
                event: event.event,
                data: Some(paired_text(&event.data).into_owned()),
                id: event.id,
                retry: None,
            })),
            Ok(_) => None,
            Err(error) => Some(Err(SseError::Body(Box::new(error)))),
        })
    });
    Ok(StreamableHttpPostResponse::Sse(events.boxed(), session))
}
