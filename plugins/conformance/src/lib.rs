//! The conformance suite for provider adapters, a dev-dependency of each adapter's crate.
//!
//! The suite knows no provider. What a provider sends is in a folder of recorded bodies, written
//! after its public documentation. What it accepts is a function that says what is wrong with a
//! request. Events are split by the same crate that the host uses.
//!
//! The folder holds
//! - `NAME.json`, the meaning of a response (see [`Expected`]), and beside it `NAME.sse`, the
//!   response streamed, or `NAME.whole.json`, the response in one piece, or both;
//! - `errors.json`, a list of refusals (see [`Refusal`]).
//!
//! ```no_run
//! # use lucid_plugin::llm::Adapter;
//! # fn checks<MyAdapter: Adapter>(valid: lucid_conformance::Valid) {
//! let suite = lucid_conformance::Suite::<MyAdapter>::new("tests/recorded", valid);
//! suite.answers();
//! suite.mutated_answers();
//! suite.refusals();
//! suite.requests();
//! suite.any_transcript();
//! # }
//! ```

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

mod answers;
mod errors;
mod requests;
mod transcripts;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use lucid_plugin::llm::{Adapter, CompletionRequest};
use lucid_plugin::types::{ErrorKind, Header, Message};
use serde::Deserialize;
use serde_json::Value;

pub use answers::{CompletionWithDeltas, cut, decode};
pub use transcripts::transcript;

/// Checks a request's body after the provider's documentation.
pub type Valid = fn(&Value) -> Result<(), InvalidRequest>;

/// What a provider would refuse about a request. Providers have rules of their own, so it is a text.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidRequest(String);

impl From<String> for InvalidRequest {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for InvalidRequest {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidRequest {}

/// The suite for one adapter.
pub struct Suite<A> {
    folder: PathBuf,
    valid: Valid,
    adapter: PhantomData<A>,
}

/// The meaning of a response.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// In order: `{"text"}`, `{"thinking","signature"?}`, `{"call":{"id","name","arguments"}}` or
    /// `{"other":{"kind","body"}}`.
    pub content: Vec<Value>,
    /// The stop reason as in the WIT, such as `end-turn`.
    pub stop: String,
    /// Tokens: input, output, read from a cache, written to a cache.
    pub usage: [u64; 4],
}

/// The meaning of a refusal.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The HTTP status. 0 for an error in the middle of a stream, whose event is `body`.
    pub status: u16,
    /// Headers by name.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body: JSON, or a text that is not JSON.
    pub body: Value,
    /// The error kind as in the WIT, such as `rate-limited`.
    pub kind: String,
    /// The provider's own code, if the adapter must find it.
    pub code: Option<String>,
    /// The delay of a retry in milliseconds, if the provider names one.
    pub retry_after_ms: Option<u64>,
}

/// Kinds of refusal that each provider has, and that an adapter must distinguish.
const KINDS: [&str; 8] = [
    "invalid-input",
    "unauthenticated",
    "forbidden",
    "not-found",
    "rate-limited",
    "overloaded",
    "context-too-long",
    "upstream",
];
/// A key that a server repeats in its refusal.
const KEY: &str = "sk-the-key-of-the-tests-0123456789";

impl<A: Adapter> Suite<A> {
    /// A suite over a folder of recorded bodies. The path is relative to the crate's own folder.
    pub fn new(folder: impl AsRef<Path>, valid: Valid) -> Self {
        Self {
            folder: folder.as_ref().into(),
            valid,
            adapter: PhantomData,
        }
    }

    /// Checks that every refusal is classified correctly, and that none repeats the key.
    pub fn refusals(&self) {
        let text = self.read("errors.json");
        let refusals: Vec<Refusal> = serde_json::from_str(&text).unwrap();
        for refusal in &refusals {
            let error = if refusal.status == 0 {
                let stream = format!("data: {}\n\n", refusal.body);
                decode::<A>(cut(&[stream.as_bytes()])).expect_err("an error was passed over")
            } else {
                let headers: Vec<Header> = refusal
                    .headers
                    .iter()
                    .map(|(name, value)| Header {
                        name: name.clone(),
                        value: value.clone(),
                    })
                    .collect();
                let body = match &refusal.body {
                    Value::String(text) => text.clone(),
                    json => json.to_string(),
                };
                A::classify(refusal.status, &headers, body.as_bytes())
            };
            assert_eq!(kind(error.kind), refusal.kind, "{refusal:?}: {error:?}");
            assert_eq!(error.retry_after_ms, refusal.retry_after_ms, "{refusal:?}");
            if refusal.code.is_some() {
                assert_eq!(error.code, refusal.code, "{refusal:?}");
            }
            assert!(
                !error.message.trim().is_empty() && !error.message.contains('<'),
                "{error:?}"
            );
            assert!(!error.message.contains(KEY), "{error:?}");
        }
        self.errors_within();
        for wanted in KINDS {
            assert!(
                refusals.iter().any(|refusal| refusal.kind == wanted),
                "no refusal of kind {wanted} is recorded"
            );
        }
        let key = refusals.iter().any(|r| r.body.to_string().contains(KEY));
        assert!(key, "no recorded refusal repeats the key {KEY}");
    }

    fn read(&self, name: &str) -> String {
        let path = self.folder.join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

/// A request for the adapter's default model.
pub fn request<A: Adapter>(messages: Vec<Message>) -> CompletionRequest {
    CompletionRequest {
        model: A::describe().default_model,
        messages,
        tools: Vec::new(),
        max_output_tokens: None,
        params: "{}".into(),
        streaming: true,
    }
}

fn kind(kind: ErrorKind) -> String {
    let mut name = String::new();
    for c in format!("{kind:?}")
        .trim_start_matches("ErrorKind::")
        .chars()
    {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}
