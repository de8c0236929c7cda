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

/// The version of the API that this adapter was written for.
const VERSION: &str = "2023-06-01";
/// What a block of reasoning that may not be read is kept as; the body is its data as JSON text.
const REDACTED: &str = "anthropic.redacted-thinking";
/// What stands behind reasoning that came without a proof; the body is an [`Unsigned`].
const UNSIGNED: &str = "anthropic.unsigned-thinking";
/// How long the API lets a call's id be.
const LONGEST_ID: usize = 64;

/// Reasoning came without a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Unsigned {
    /// There was a member for it, with nothing in it.
    blank: bool,
}

/// What the API lets a call's id be made of.
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
