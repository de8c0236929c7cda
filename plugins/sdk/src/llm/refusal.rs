//! What providers' refusals have in common.
//!
//! Always holds: the text of a refused key is never passed on, because servers repeat the key in it.

use super::header;
use crate::cut;
use crate::types::{Error, ErrorKind, Header};

/// What a refused key is told as.
const BAD_KEY: &str = "The provider does not accept the API key.";

/// What a status means where the body does not say more.
pub fn kind_of_status(status: u16) -> ErrorKind {
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

/// Whether a sentence says that the prompt does not fit. Few servers have a code for it, and a policy
/// can act on it.
pub fn says_too_long(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "maximum context length",
        "context window",
        "context length",
        "context limit",
        "context size",
        "prompt is too long",
        "input token count",
        "too many tokens",
        "request too large for model",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// When to try again, by the headers. A date, the header's other form, would need a clock: it counts
/// as not given.
pub fn retry_after_ms(headers: &[Header]) -> Option<u64> {
    let number = |name| header(headers, name)?.trim().parse::<f64>().ok();
    let ms = number("retry-after-ms").or_else(|| number("retry-after").map(|s| s * 1_000.0))?;
    (ms.is_finite() && ms >= 0.0).then_some(ms as u64)
}

/// An answer whose status is not a success. `said` is the provider's sentence, where its body has one.
pub fn refusal(
    status: u16,
    headers: &[Header],
    body: &str,
    kind: ErrorKind,
    code: Option<String>,
    said: &str,
) -> Error {
    let body = body.trim();
    let message = match () {
        () if kind == ErrorKind::Unauthenticated => BAD_KEY.into(),
        () if !said.trim().is_empty() => cut(said.trim(), 1_000),
        // Some proxy's page, most likely.
        () if body.starts_with('<') || body.is_empty() || body == "null" => {
            format!("The provider answered with status {status} and gave no reason.")
        }
        () => format!(
            "The provider answered with status {status}: {}",
            cut(body, 300)
        ),
    };
    Error {
        kind,
        code: Some(code.unwrap_or_else(|| status.to_string())),
        message,
        retry_after_ms: retry_after_ms(headers),
    }
}

/// An error in the middle of an answer that began as a success.
pub fn broken_off(kind: ErrorKind, code: Option<String>, said: &str) -> Error {
    let message = match () {
        () if kind == ErrorKind::Unauthenticated => BAD_KEY.into(),
        () if said.trim().is_empty() => "The provider broke the answer off with an error.".into(),
        () => cut(said.trim(), 1_000),
    };
    Error {
        kind,
        code,
        message,
        retry_after_ms: None,
    }
}
