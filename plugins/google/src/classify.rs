//! Classifies refusals: from status and body to an error the host can act on.
//!
//! # Invariants
//!
//! - If the body says when to retry, that is passed on. The headers of this API mostly do not.

use lucid_plugin::llm::refusal::{Report, kind_of_status, refusal, says_too_long};
use lucid_plugin::llm::{json, text_at};
use lucid_plugin::types::{Error, ErrorKind, Header};
use serde_json::Value;

/// The error for a response without a success status.
pub(crate) fn response(status: u16, headers: &[Header], body: &[u8]) -> Error {
    let body = String::from_utf8_lossy(body);
    let value = json::whole(&body).unwrap_or(Value::Null);
    let error = error_in(&value);
    let report = Report::of(&value);
    let kind = kind(&error, &report.said).unwrap_or_else(|| kind_of_status(status));
    let code = code(&error).or(report.code);
    let mut refused = refusal(status, headers, &body, kind, code, &report.said);
    refused.retry_after_ms = retry_delay_ms(&error).or(refused.retry_after_ms);
    refused
}

/// The error for one in the middle of a response.
pub(crate) fn midway(value: &Value) -> Error {
    let error = error_in(value);
    let report = Report::of(value);
    let mut broken = report.error(kind(&error, &report.said));
    broken.code = code(&error).or(broken.code);
    broken.retry_after_ms = retry_delay_ms(&error);
    broken
}

/// Unwraps an error. The API wraps it in a list where the response would be one.
fn error_in(value: &Value) -> Value {
    let value = value.get(0).unwrap_or(value);
    value.get("error").unwrap_or(value).clone()
}

/// The most specific code: a detail's reason, else the status.
fn code(error: &Value) -> Option<String> {
    reason(error)
        .or_else(|| text_at(error, "status"))
        .map(Into::into)
}

fn details(error: &Value) -> impl Iterator<Item = &Value> {
    error
        .get("details")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn reason(error: &Value) -> Option<&str> {
    details(error).find_map(|detail| text_at(detail, "reason"))
}

fn kind(error: &Value, said: &str) -> Option<ErrorKind> {
    // A bad key is an invalid argument here.
    if matches!(reason(error), Some("API_KEY_INVALID" | "API_KEY_EXPIRED"))
        || said.contains("API key not valid")
    {
        return Some(ErrorKind::Unauthenticated);
    }
    Some(match text_at(error, "status").unwrap_or_default() {
        "INVALID_ARGUMENT" | "OUT_OF_RANGE" if says_too_long(said) => ErrorKind::ContextTooLong,
        "INVALID_ARGUMENT" | "OUT_OF_RANGE" => ErrorKind::InvalidInput,
        // An unsupported region or an account without billing.
        "FAILED_PRECONDITION" | "PERMISSION_DENIED" => ErrorKind::Forbidden,
        "UNAUTHENTICATED" => ErrorKind::Unauthenticated,
        "NOT_FOUND" => ErrorKind::NotFound,
        "RESOURCE_EXHAUSTED" => ErrorKind::RateLimited,
        "UNAVAILABLE" => ErrorKind::Overloaded,
        "INTERNAL" | "UNKNOWN" | "DEADLINE_EXCEEDED" | "ABORTED" | "CANCELLED" => {
            ErrorKind::Upstream
        }
        "UNIMPLEMENTED" => ErrorKind::Unsupported,
        _ => return says_too_long(said).then_some(ErrorKind::ContextTooLong),
    })
}

/// Parses a delay such as `"retryDelay": "34.074s"`.
fn retry_delay_ms(error: &Value) -> Option<u64> {
    let delay = details(error).find_map(|detail| text_at(detail, "retryDelay"))?;
    let seconds: f64 = delay.strip_suffix('s')?.parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then_some((seconds * 1_000.0) as u64)
}
