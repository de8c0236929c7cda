//! Classification of refusals that providers have in common.
//!
//! # Invariants
//!
//! - The message about a rejected key is never passed on, because servers repeat the key in it.

use serde_json::Value;

use super::header;
use crate::cut;
use crate::types::{Error, ErrorKind, Header};

/// The message for a rejected key.
const BAD_KEY: &str = "The provider does not accept the API key.";

/// The error kind of a status, if the body does not say more.
pub fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        401 => ErrorKind::Unauthenticated,
        402 | 403 => ErrorKind::Forbidden,
        404 => ErrorKind::NotFound,
        413 => ErrorKind::ContextTooLong,
        408 | 409 | 425 => ErrorKind::Upstream,
        429 => ErrorKind::RateLimited,
        503 | 529 => ErrorKind::Overloaded,
        400..=499 => ErrorKind::InvalidInput,
        _ => ErrorKind::Upstream,
    }
}

/// Whether a message says that the prompt does not fit. Few servers have a code for it, and a
/// policy can act on it.
pub fn says_too_long(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "maximum context",
        "context window",
        "context length",
        "context_length",
        "context limit",
        "context size",
        "max_model_len",
        "exceeds the context",
        "exceed context",
        "exceeds the maximum number of tokens",
        "exceeded model token limit",
        "exceeds model token limit",
        "prompt is too long",
        "prompt too long",
        "prompt length",
        "input is too long",
        "input too long",
        "input length",
        "input token count",
        "reduce the length",
        "too many tokens",
        "too many input tokens",
        "request too large for model",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// The time of a retry, from the headers. A date, the header's other form, would need a clock, so
/// it is ignored.
pub fn retry_after_ms(headers: &[Header]) -> Option<u64> {
    let number = |name| header(headers, name)?.trim().parse::<f64>().ok();
    let ms = number("retry-after-ms").or_else(|| number("retry-after").map(|s| s * 1_000.0))?;
    (ms.is_finite() && ms >= 0.0).then_some(ms as u64)
}

/// The error for a response without a success status. `said` is the provider's message, if its body
/// has one.
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
        // Most likely a proxy's page.
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

/// A server's error report, wherever it is in its JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The server's code: a textual code, else a type, else a number.
    pub code: Option<String>,
    /// An HTTP status in the report.
    pub status: Option<u16>,
    /// The message.
    pub said: String,
}

impl Report {
    /// Parses JSON that is known to be an error.
    pub fn of(value: &Value) -> Self {
        let outer = value.get(0).unwrap_or(value);
        let error = match outer.get("error") {
            Some(error) if is_told(error) => error,
            _ => outer,
        };
        let word = |name: &str| match error.get(name).or_else(|| outer.get(name)) {
            Some(Value::String(word)) if !word.is_empty() => Some(word.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let numbers = ["code", "status", "status_code"].into_iter();
        let status = numbers
            .filter_map(word)
            .filter_map(|word| word.parse().ok())
            .find(|status| (400..600).contains(status));
        let is_word = |code: &String| code.parse::<u64>().is_err();
        // `error` says nothing.
        let kind = word("type").filter(|kind| kind != "error");
        let code = word("code")
            .filter(is_word)
            .or(kind)
            .or_else(|| word("code"));
        Self {
            code,
            status,
            said: sentence(error, 0)
                .or_else(|| sentence(outer, 0))
                .unwrap_or_default(),
        }
    }

    /// Parses a piece of a response that began as a success, if it is an error instead: one that
    /// says so, or that has a server's message and none of a response's `members`.
    pub fn within(value: &Value, members: &[&str]) -> Option<Self> {
        let value = value.get(0).unwrap_or(value);
        let object = value.as_object()?;
        let named = |name: &str, word: &str| {
            let found = object.get(name).and_then(Value::as_str);
            found.is_some_and(|found| found.eq_ignore_ascii_case(word))
        };
        let told = object.get("error").is_some_and(is_told);
        let kind = object
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let is_kind = kind.to_ascii_lowercase().ends_with("error");
        if told || is_kind || named("object", "error") {
            return Some(Self::of(value));
        }
        if is_answer(value, members) {
            return None;
        }
        let report = Self::of(value);
        (!report.said.is_empty()).then_some(report)
    }

    /// The resulting error, of this kind if the message does not say more.
    pub fn error(&self, kind: Option<ErrorKind>) -> Error {
        let kind = kind.or(self.status.map(kind_of_status));
        let kind = kind.or(lasts(&self.said).then_some(ErrorKind::InvalidInput));
        broken_off(
            kind.unwrap_or(ErrorKind::Upstream),
            self.code.clone(),
            &self.said,
        )
    }
}

/// Whether a piece has a non-empty member of a response.
pub fn is_answer(value: &Value, members: &[&str]) -> bool {
    let value = value.get(0).unwrap_or(value);
    let has = |name: &&str| value.get(*name).is_some_and(|member| !member.is_null());
    members.iter().any(has)
}

/// Words for transient errors.
const PASSES: [&str; 21] = [
    "502",
    "503",
    "504",
    "520",
    "522",
    "524",
    "bad gateway",
    "unavailable",
    "time-out",
    "timeout",
    "timed out",
    "temporar",
    "try again",
    "later",
    "maintenance",
    "overload",
    "just a moment",
    "upstream",
    "connect",
    "rate limit",
    "too many requests",
];
/// Words for errors that a retry does not fix.
const LASTS: [&str; 17] = [
    "balance",
    "billing",
    "quota",
    "not found",
    "does not exist",
    "doesn't exist",
    "no such",
    "unauthorized",
    "unauthorised",
    "log in",
    "no access",
    "denied",
    "forbidden",
    "not supported",
    "field required",
    "is required",
    "invalid",
];

fn passes(said: &str) -> bool {
    PASSES.iter().any(|word| said.contains(word))
}

/// Whether a message without a code says that the same request would fail again.
fn lasts(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    LASTS.iter().any(|words| said.contains(words)) && !passes(&said)
}

/// Whether a member `error` is a real one: some servers have it in each response.
fn is_told(error: &Value) -> bool {
    match error {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

/// Members in which a server may put its message, the best first.
const SENTENCES: [&str; 13] = [
    "message",
    "detail",
    "msg",
    "error_message",
    "error_msg",
    "errorMessage",
    "error_description",
    "status_msg",
    "faultstring",
    "fault",
    "base_resp",
    "errors",
    "error",
];
/// The maximum depth of nested messages.
const DEEPEST: usize = 6;

fn sentence(value: &Value, depth: usize) -> Option<String> {
    if depth > DEEPEST {
        return None;
    }
    match value {
        Value::String(text) => {
            let text = text.trim();
            // A gateway may forward the original error text.
            let inner = text
                .starts_with(['{', '['])
                .then(|| super::json::whole(text).ok());
            let inner = inner
                .flatten()
                .and_then(|inner| sentence(&inner, depth + 1));
            inner.or_else(|| (!text.is_empty()).then(|| text.to_owned()))
        }
        Value::Array(items) => {
            let all: Vec<_> = items
                .iter()
                .take(3)
                .filter_map(|item| sentence(item, depth + 1))
                .collect();
            (!all.is_empty()).then(|| all.join("; "))
        }
        Value::Object(members) => {
            let mut said = SENTENCES
                .iter()
                .filter_map(|name| sentence(members.get(*name)?, depth + 1));
            let said = said.next()?;
            // The message of a gateway's upstream server, and the position of an invalid member.
            if let Some(raw) = value.pointer("/metadata/raw")
                && let Some(raw) = sentence(raw, depth + 1)
            {
                return Some(format!("{said}: {raw}"));
            }
            let place = members.get("loc").and_then(Value::as_array).map(|place| {
                let parts = place.iter().map(|part| {
                    part.as_str()
                        .map_or_else(|| part.to_string(), str::to_owned)
                });
                parts.collect::<Vec<_>>().join(".")
            });
            Some(match place {
                Some(place) if !place.is_empty() => format!("{place}: {said}"),
                _ => said,
            })
        }
        _ => None,
    }
}

/// The state of a response that may not be completed.
#[derive(Debug, Default)]
pub struct Begun {
    /// Whether it had a piece of a response.
    is_answer: bool,
    /// The first piece that was none.
    other: String,
}

impl Begun {
    /// Takes one piece. `members` are those of a response.
    pub fn take(&mut self, piece: &Value, members: &[&str]) {
        if is_answer(piece, members) {
            self.is_answer = true;
        } else if self.other.is_empty() {
            self.other = piece.to_string();
        }
    }

    /// The error for a response without an end.
    pub fn broke_off(&self) -> Error {
        match self.is_answer {
            true => Error::upstream("The answer broke off before its end."),
            false => no_json(&self.other),
        }
    }
}

/// The error for a body that should be a response but is not JSON.
pub fn no_json(body: &str) -> Error {
    let text = body.trim();
    if text.is_empty() {
        return Error::upstream("The provider's answer was empty.");
    }
    if !text.starts_with('<') {
        let kind = match says_too_long(text) {
            true => ErrorKind::ContextTooLong,
            false => ErrorKind::Upstream,
        };
        let text = format!(
            "The provider's answer cannot be read; it begins with: {}",
            cut(text, 300)
        );
        return Error::new(kind, text).with_code("unreadable");
    }
    let words = page_words(text);
    let lower = words.to_ascii_lowercase();
    let (kind, advice) = match passes(&lower) {
        true => (ErrorKind::Upstream, ""),
        // Retrying will not turn the wrong page into a response.
        false => (ErrorKind::InvalidInput, " Check the provider's base URL."),
    };
    let said = match words.is_empty() {
        true => "The server answered with a web page in place of a model's answer.".to_owned(),
        false => format!(
            "The server answered with a web page in place of a model's answer: {}.",
            words.trim_end_matches('.')
        ),
    };
    Error::new(kind, format!("{said}{advice}")).with_code("web-page")
}

/// A page's title, or its first heading, or its first words.
fn page_words(page: &str) -> String {
    let lower = page.to_ascii_lowercase();
    let between = |name: &str| {
        let open = lower.find(&format!("<{name}"))?;
        let start = open + lower[open..].find('>')? + 1;
        let end = start + lower[start..].find(&format!("</{name}"))?;
        let words = plain(&page[start..end]);
        (!words.is_empty()).then_some(words)
    };
    let words = between("title")
        .or_else(|| between("h1"))
        .or_else(|| between("body"));
    cut(&words.unwrap_or_else(|| plain(page)), 200)
}

/// A page's text without its tags.
fn plain(page: &str) -> String {
    let mut text = String::new();
    let mut within = false;
    for c in page.chars() {
        match c {
            '<' => within = true,
            '>' => {
                within = false;
                text.push(' ');
            }
            c if !within => text.push(c),
            _ => {}
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An error in the middle of a response that began as a success.
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
