//! Classifies refusals: from status and body to an error the host can act on.
//!
//! # Invariants
//!
//! - The API's own error type takes precedence over the status.

use lucid_plugin::llm::json;
use lucid_plugin::llm::refusal::{Report, kind_of_status, refusal, says_too_long};
use lucid_plugin::types::{Error, ErrorKind, Header};
use serde_json::Value;

/// The error for a response without a success status.
pub(crate) fn response(status: u16, headers: &[Header], body: &[u8]) -> Error {
    let body = String::from_utf8_lossy(body);
    let report = Report::of(&json::whole(&body).unwrap_or(Value::Null));
    let kind = kind(report.code.as_deref(), &report.said).unwrap_or_else(|| kind_of_status(status));
    refusal(status, headers, &body, kind, report.code, &report.said)
}

/// The error for one in the middle of a response.
pub(crate) fn midway(report: &Report) -> Error {
    report.error(kind(report.code.as_deref(), &report.said))
}

fn kind(code: Option<&str>, said: &str) -> Option<ErrorKind> {
    Some(match code.unwrap_or_default() {
        "invalid_request_error" if says_too_long(said) => ErrorKind::ContextTooLong,
        "invalid_request_error" if said.contains("credit balance") => ErrorKind::Forbidden,
        "invalid_request_error" if said.contains("content filtering policy") => ErrorKind::Refused,
        "invalid_request_error" => ErrorKind::InvalidInput,
        "authentication_error" => ErrorKind::Unauthenticated,
        "billing_error" | "permission_error" => ErrorKind::Forbidden,
        "not_found_error" => ErrorKind::NotFound,
        "request_too_large" => ErrorKind::ContextTooLong,
        "rate_limit_error" => ErrorKind::RateLimited,
        "overloaded_error" => ErrorKind::Overloaded,
        "timeout_error" | "api_error" => ErrorKind::Upstream,
        _ => return says_too_long(said).then_some(ErrorKind::ContextTooLong),
    })
}
