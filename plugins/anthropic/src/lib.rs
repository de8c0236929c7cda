//! The provider adapter for Anthropic's Messages API.
//!
//! # Invariants
//!
//! - A request carries no credential and no host, since both are the deployment's.
//! - A model's reasoning goes back unmodified and in its place, or not at all.
//! - An unknown event, block or member is ignored.

mod classify;
mod decode;
mod encode;
mod models;

use lucid_plugin::llm::{
    self, Adapter, CompletionRequest, Descriptor, Encoded, KeyPlace, ModelInfo, get,
};
use lucid_plugin::types::{Error, Header, HttpRequest};
use serde::{Deserialize, Serialize};

pub use decode::EventDecoder;

/// The API version that this adapter was written for.
const VERSION: &str = "2023-06-01";
/// The kind of a redacted reasoning block. Its body is the block's data as JSON text.
const REDACTED: &str = "anthropic.redacted-thinking";
/// The kind of the piece after reasoning without a signature. Its body is an [`Unsigned`].
const UNSIGNED: &str = "anthropic.unsigned-thinking";
/// The API's maximum length of a call's id.
const LONGEST_ID: usize = 64;

/// A mark for reasoning without a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Unsigned {
    /// Whether the member was present but empty.
    blank: bool,
}

/// Whether the API accepts a character in a call's id.
fn is_in_id(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// The adapter.
pub struct Anthropic;

impl Adapter for Anthropic {
    type Decoder = EventDecoder;

    fn describe() -> Descriptor {
        Descriptor {
            name: "anthropic".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "Anthropic's Messages API.".into(),
            default_base_url: "https://api.anthropic.com".into(),
            default_model: "claude-opus-5-5".into(),
            small_model: "claude-haiku-5-5".into(),
            key: KeyPlace::Header("x-api-key".into()),
            settings_schema: Some(llm::NO_SETTINGS.into()),
        }
    }

    fn models(_: &str) -> Vec<ModelInfo> {
        models::all()
    }

    fn probe(_: &str) -> Option<HttpRequest> {
        let mut request = get("/v1/models");
        request.query = vec![("limit".into(), "1".into())];
        request.headers = vec![version()];
        Some(request)
    }

    fn encode(_: &str, request: CompletionRequest) -> Result<Encoded, Error> {
        encode::encode(&request)
    }

    fn classify(status: u16, headers: &[Header], body: &[u8]) -> Error {
        classify::response(status, headers, body)
    }
}

fn version() -> Header {
    Header {
        name: "anthropic-version".into(),
        value: VERSION.into(),
    }
}

lucid_plugin::export_llm!(Anthropic);
