//! What a refusal means: from status and body to an error the host can act on.
//!
//! Always holds: the provider's own code decides before the status does, because the same status
//! means "wait" for one code and "never" for another.

use lucid_plugin::llm::refusal::{broken_off, kind_of_status, refusal, says_too_long};
use lucid_plugin::types::{Error, ErrorKind, Header};
use serde_json::Value;

/// An answer whose status is not a success.
pub(crate) fn response(status: u16, headers: &[Header], body: &[u8]) -> Error {
    let body = String::from_utf8_lossy(body);
    let value: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
    let (code, said) = code_and_sentence(&value);
    let kind = of_words(code.as_deref(), &said).unwrap_or_else(|| kind_of_status(status));
    refusal(status, headers, &body, kind, code, &said)
}

/// An `error` in the middle of a response that began as a success.
pub(crate) fn midway(value: &Value) -> Error {
    let (code, said) = code_and_sentence(&serde_json::json!({ "error": value }));
    let status = code.as_deref().and_then(|c| c.parse::<u16>().ok());
    let kind = of_words(code.as_deref(), &said)
        .or(status.map(kind_of_status))
        .unwrap_or(ErrorKind::Upstream);
    broken_off(kind, code, &said)
}

/// The other side's word and sentence, wherever it put them.
fn code_and_sentence(value: &Value) -> (Option<String>, String) {
    let error = match value.get("error") {
        Some(error) if !error.is_null() => error,
        _ => value,
    };
    let word = |name: &str| match error.get(name) {
        Some(Value::String(s)) if !s.is_empty() => Some(s.clone()),
        Some(Value::Number(n)) => Some(n.to_string()),
        _ => None,
    };
    let sentence = match error {
        Value::String(text) => text.clone(),
        _ => word("message")
            .or_else(|| word("detail"))
            .unwrap_or_default(),
    };
    // A number repeats the status; the type says more.
    let code = word("code").filter(|code| code.parse::<u16>().is_err());
    (
        code.or_else(|| word("type")).or_else(|| word("code")),
        sentence,
    )
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
            // A single request above the limit a minute never passes.
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
