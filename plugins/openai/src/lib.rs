//! The provider adapter for OpenAI chat completions, and the many servers that imitate them.
//!
//! # Invariants
//!
//! - A request carries no credential and no host, since both are the deployment's.
//! - Responses are read leniently, since the imitators differ in what they leave out.

mod classify;
mod decode;
mod encode;
mod kept;
mod models;
mod roles;

use lucid_plugin::llm::{
    Adapter, CompletionRequest, Descriptor, Encoded, KeyPlace, ModelInfo, get,
};
use lucid_plugin::types::{Error, Header, HttpRequest};

pub use decode::ChunkDecoder;

/// The adapter.
pub struct OpenAi;

impl Adapter for OpenAi {
    type Decoder = ChunkDecoder;

    fn describe() -> Descriptor {
        Descriptor {
            name: "openai".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "OpenAI chat completions, and servers that speak the same.".into(),
            default_base_url: "https://api.openai.com/v1".into(),
            default_model: "gpt-6.1-sol".into(),
            small_model: "gpt-6-luna".into(),
            key: KeyPlace::Bearer,
            settings_schema: Some(encode::SETTINGS.into()),
        }
    }

    fn models(_: &str) -> Vec<ModelInfo> {
        models::all()
    }

    fn probe(_: &str) -> Option<HttpRequest> {
        Some(get("/models"))
    }

    fn encode(settings: &str, request: CompletionRequest) -> Result<Encoded, Error> {
        encode::encode(settings, &request)
    }

    fn classify(status: u16, headers: &[Header], body: &[u8]) -> Error {
        classify::response(status, headers, body)
    }
}

lucid_plugin::export_llm!(OpenAi);
