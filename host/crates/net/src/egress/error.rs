//! Errors between the host and a provider, and their messages.
//!
//! # Invariants
//! - An error names the host that was asked, never the whole URL, whose query a plugin wrote.
//! - An error says whether the same request may succeed later.

use std::time::Duration;

use super::redact::Redactor;
use crate::client::error_message;
use crate::resolver;
use lucid_types::wit::types;

/// A request without a response, or without a complete one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// The HTTP client could not be created.
    #[error("the HTTP client cannot be made: {detail}")]
    Client {
        /// The cause.
        detail: String,
    },
    /// The deployment's base URL cannot be used.
    #[error("the provider's base URL cannot be used: {reason}")]
    BaseUrl {
        /// The problem with it.
        reason: &'static str,
    },
    /// The deployment's key cannot be sent.
    #[error(
        "the provider's key has characters that no header can hold; it may have been cut or quoted when it was copied"
    )]
    Key,
    /// The header in which the adapter wants the key cannot be used.
    #[error("the adapter wants its key in the header `{name}`, which cannot hold one")]
    KeyHeader {
        /// The header's name, sanitized and truncated.
        name: String,
    },
    /// The host resolves to a blocked address.
    #[error(
        "{host} is at an address that is not asked: a metadata service's, or a private one that no base URL names"
    )]
    Address {
        /// The host that was to be asked.
        host: String,
    },
    /// The plugin's path is refused.
    #[error("the plugin asked for the path `{path}`, which is not allowed: {reason}")]
    Path {
        /// The path, sanitized and truncated.
        path: String,
        /// The problem with it.
        reason: &'static str,
    },
    /// The plugin's method is refused.
    #[error(
        "the plugin asked with the method `{method}`; GET, POST, PUT, PATCH and DELETE are allowed"
    )]
    Method {
        /// The method, sanitized and truncated.
        method: String,
    },
    /// The plugin set a header that belongs to the host.
    #[error("the plugin set the header `{name}`, which is the host's own")]
    HostHeader {
        /// The header's name, in lower case.
        name: String,
    },
    /// The plugin set an invalid header, or too many of them.
    #[error("the plugin set the header `{name}`, which cannot be sent: {reason}")]
    Header {
        /// The header's name, sanitized and truncated.
        name: String,
        /// The problem with it.
        reason: &'static str,
    },
    /// The connection failed.
    #[error("{host} cannot be reached: {detail}")]
    Connect {
        /// The host that was asked.
        host: String,
        /// The system's message.
        detail: String,
    },
    /// The response did not begin in time.
    #[error("{host} did not begin to answer within {} s", .limit.as_secs())]
    FirstByte {
        /// The host that was asked.
        host: String,
        /// The time limit.
        limit: Duration,
    },
    /// The response stalled.
    #[error("the answer paused for longer than {} s", .limit.as_secs())]
    Idle {
        /// The time limit.
        limit: Duration,
    },
    /// The server sent a redirect that is not followed.
    #[error(
        "{host} answered with a redirect (HTTP {status}) that is not followed, since the key would go along: only one within the same server is, and only one that keeps the method; correct the base URL"
    )]
    Redirected {
        /// The host that was asked.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// The response is too large.
    #[error("the answer has more than the {limit} bytes that are taken")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The response is not of the expected form.
    #[error("the answer cannot be read: {detail}")]
    Unreadable {
        /// The cause, sanitized and truncated.
        detail: String,
    },
    /// The response ended early.
    #[error("the connection broke before the answer was whole: {detail}")]
    Broken {
        /// The system's message.
        detail: String,
    },
}

impl EgressError {
    /// The error for a request that got no response.
    pub(super) fn unsent(host: String, cause: reqwest::Error) -> Self {
        if resolver::was_refused(&cause) {
            return Self::Address { host };
        }
        let connect = cause.is_connect() || cause.is_timeout();
        let detail = error_message(cause);
        if connect {
            Self::Connect { host, detail }
        } else {
            Self::Broken { detail }
        }
    }

    /// The same error with the key redacted.
    #[must_use]
    pub(super) fn redacted(mut self, redactor: &Redactor) -> Self {
        match &mut self {
            Self::Client { detail: text }
            | Self::KeyHeader { name: text }
            | Self::Path { path: text, .. }
            | Self::Method { method: text }
            | Self::HostHeader { name: text }
            | Self::Header { name: text, .. }
            | Self::Connect { detail: text, .. }
            | Self::Unreadable { detail: text }
            | Self::Broken { detail: text } => *text = redactor.text(text).into_owned(),
            Self::BaseUrl { .. }
            | Self::Key
            | Self::Address { .. }
            | Self::FirstByte { .. }
            | Self::Idle { .. }
            | Self::Redirected { .. }
            | Self::TooLarge { .. } => {}
        }
        self
    }
}

impl From<EgressError> for types::Error {
    /// Converts to the error type that policies and clients know. The kind says whether to retry.
    fn from(error: EgressError) -> Self {
        use types::ErrorKind::{
            Deadline, Forbidden, Internal, InvalidInput, Unauthenticated, Unsupported, Upstream,
        };
        let (kind, code) = match &error {
            EgressError::Client { .. } => (Internal, "client"),
            EgressError::BaseUrl { .. } => (InvalidInput, "base-url"),
            EgressError::Key => (Unauthenticated, "key"),
            EgressError::KeyHeader { .. } => (Internal, "key-header"),
            EgressError::Address { .. } => (Forbidden, "address"),
            EgressError::Path { .. } => (Internal, "plugin-path"),
            EgressError::Method { .. } => (Internal, "plugin-method"),
            EgressError::HostHeader { .. } | EgressError::Header { .. } => {
                (Internal, "plugin-header")
            }
            EgressError::Connect { .. } => (Upstream, "connect"),
            EgressError::FirstByte { .. } => (Deadline, "first-byte"),
            EgressError::Idle { .. } => (Upstream, "idle"),
            EgressError::Redirected { .. } => (InvalidInput, "redirect"),
            EgressError::TooLarge { .. } => (Unsupported, "too-large"),
            EgressError::Unreadable { .. } => (Upstream, "unreadable"),
            EgressError::Broken { .. } => (Upstream, "broken"),
        };
        types::Error::new(kind, error.to_string()).with_code(code)
    }
}
