//! What a refusal means: from status and body to an error the host can act on.
//!
//! Always holds: the provider's own code decides before the status does, because the same status
//! means "wait" for one code and "never" for another; the text on a refused key is never passed on,
//! because servers repeat the key in it.

use lucid_plugin::cut;
use lucid_plugin::llm::header;
use lucid_plugin::types::{Error, ErrorKind, Header};
use serde_json::Value;

/// An answer whose status is not a success.
pub(crate) fn response(status: u16, headers: &[Header], body: &[u8]) -> Error {
    let text = String::from_utf8_lossy(body);
    let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let (code, message) = code_and_message(&value);
    let kind = of_words(code.as_deref(), &message).unwrap_or_else(|| of_status(status));
    let said = match () {
        () if kind == ErrorKind::Unauthenticated => {
            "The provider does not accept the API key.".into()
        }
        () if !message.is_empty() => message,
        // Some proxy's page, most likely.
        () if text.trim_start().starts_with('<') || text.trim().is_empty() => {
            format!("The provider answered with status {status} and gave no reason.")
        }
        () => format!(
            "The provider answered with status {status}: {}",
            cut(text.trim(), 300)
        ),
    };
    Error {
        kind,
        code: Some(code.unwrap_or_else(|| status.to_string())),
        message: said,
        retry_after_ms: retry_after(headers),
    }
}

/// An `error` in the middle of a response that began as a success.
pub(crate) fn midway(value: &Value) -> Error {
    let wrapped = serde_json::json!({ "error": value });
    let (code, message) = code_and_message(&wrapped);
    let status = code.as_deref().and_then(|c| c.parse::<u16>().ok());
    let kind = of_words(code.as_deref(), &message)
        .or(status.map(of_status))
        .unwrap_or(ErrorKind::Upstream);
    let message = if kind == ErrorKind::Unauthenticated {
        "The provider does not accept the API key.".into()
    } else if message.is_empty() {
        "The provider broke the answer off with an error.".into()
    } else {
        message
    };
    Error {
        kind,
        code,
        message,
        retry_after_ms: None,
    }
}

/// The other side's word and sentence, wherever it put them.
fn code_and_message(value: &Value) -> (Option<String>, String) {
    let error = match value.get("error") {
        Some(error) if !error.is_null() => error,
        _ => value,
    };
    let word = |name: &str| match error.get(name) {
        Some(Value::String(s)) if !s.is_empty() => Some(s.clone()),
        Some(Value::Number(n)) => Some(n.to_string()),
        _ => None,
    };
    let message = match error {
        Value::String(text) => text.clone(),
        _ => word("message")
            .or_else(|| word("detail"))
            .unwrap_or_default(),
    };
    (
        word("code").or_else(|| word("type")),
        cut(message.trim(), 1_000),
    )
}

fn of_words(code: Option<&str>, message: &str) -> Option<ErrorKind> {
    let by_code = match code.unwrap_or_default() {
        "insufficient_quota" | "billing_hard_limit_reached" | "billing_not_active" => {
            Some(ErrorKind::Forbidden)
        }
        "context_length_exceeded" | "string_above_max_length" => Some(ErrorKind::ContextTooLong),
        "invalid_api_key" | "account_deactivated" => Some(ErrorKind::Unauthenticated),
        "rate_limit_exceeded" | "rate_limit_error" | "tokens" | "requests" => {
            Some(ErrorKind::RateLimited)
        }
        "model_not_found" => Some(ErrorKind::NotFound),
        "content_filter" | "content_policy_violation" => Some(ErrorKind::Refused),
        "overloaded_error" | "engine_overloaded" | "server_overloaded" => {
            Some(ErrorKind::Overloaded)
        }
        "server_error" | "internal_error" => Some(ErrorKind::Upstream),
        _ => None,
    };
    by_code.or_else(|| {
        // Other servers send no code for this one, and a policy can act on it.
        let message = message.to_ascii_lowercase();
        [
            "maximum context length",
            "context window",
            "context length",
            "prompt is too long",
        ]
        .iter()
        .any(|words| message.contains(words))
        .then_some(ErrorKind::ContextTooLong)
    })
}

fn of_status(status: u16) -> ErrorKind {
    match status {
        401 => ErrorKind::Unauthenticated,
        402 | 403 => ErrorKind::Forbidden,
        404 => ErrorKind::NotFound,
        413 => ErrorKind::ContextTooLong,
        408 | 409 => ErrorKind::Upstream,
        429 => ErrorKind::RateLimited,
        503 | 529 => ErrorKind::Overloaded,
        400..=499 => ErrorKind::InvalidInput,
        _ => ErrorKind::Upstream,
    }
}

/// A date, the header's other form, would need a clock: it counts as not given.
fn retry_after(headers: &[Header]) -> Option<u64> {
    let number = |name| header(headers, name)?.trim().parse::<f64>().ok();
    let ms = number("retry-after-ms").or_else(|| number("retry-after").map(|s| s * 1_000.0))?;
    (ms.is_finite() && ms >= 0.0).then_some(ms as u64)
}
