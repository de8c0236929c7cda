//! Classifies refusals: from status and body to an error the host can act on.
//!
//! # Invariants
//!
//! - The provider's own code takes precedence over the status, because the same status means "wait"
//!   for one code and "never" for another.

use lucid_plugin::llm::json;
use lucid_plugin::llm::refusal::{Report, kind_of_status, refusal, says_too_long};
use lucid_plugin::types::{Error, ErrorKind, Header};
use serde_json::Value;

/// The error for a response without a success status.
pub(crate) fn response(status: u16, headers: &[Header], body: &[u8]) -> Error {
    let body = String::from_utf8_lossy(body);
    let report = Report::of(&json::whole(&body).unwrap_or(Value::Null));
    let kind =
        of_words(report.code.as_deref(), &report.said).unwrap_or_else(|| kind_of_status(status));
    refusal(status, headers, &body, kind, report.code, &report.said)
}

/// The error for one in the middle of a response that began as a success.
pub(crate) fn midway(report: &Report) -> Error {
    report.error(of_words(report.code.as_deref(), &report.said))
}

fn of_words(code: Option<&str>, said: &str) -> Option<ErrorKind> {
    let by_code = match code.unwrap_or_default() {
        "insufficient_quota" | "billing_hard_limit_reached" | "billing_not_active" => {
            Some(ErrorKind::Forbidden)
        }
        "context_length_exceeded" | "string_above_max_length" | "exceed_context_size_error" => {
            Some(ErrorKind::ContextTooLong)
        }
        "invalid_api_key" | "account_deactivated" | "authentication_error" => {
            Some(ErrorKind::Unauthenticated)
        }
        "rate_limit_exceeded" | "rate_limit_error" | "tokens" | "requests" => {
            // A single request above the limit per minute never succeeds.
            (!says_too_long(said)).then_some(ErrorKind::RateLimited)
        }
        "model_not_found" => Some(ErrorKind::NotFound),
        "content_filter" | "content_policy_violation" => Some(ErrorKind::Refused),
        "overloaded_error" | "engine_overloaded" | "server_overloaded" | "unavailable_error" => {
            Some(ErrorKind::Overloaded)
        }
        "server_error" | "internal_error" => Some(ErrorKind::Upstream),
        _ => None,
    };
    by_code.or_else(|| says_too_long(said).then_some(ErrorKind::ContextTooLong))
}
