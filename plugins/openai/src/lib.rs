//! OpenAI chat completions, and the many servers that imitate them.
//!
//! Always holds: a request carries no credential and no host (both are the deployment's), and what
//! comes back is read leniently, since the imitators differ in what they leave out.

mod classify;
mod decode;
mod encode;

use lucid_plugin::llm::{Adapter, CompletionRequest, Descriptor, Encoded, ModelInfo};
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
            default_model: "gpt-5".into(),
        }
    }

    fn models(_: &str) -> Vec<ModelInfo> {
        // Pictures: a plugin sees a blob's digest, not its bytes, so none can be sent from here.
        let model = |id: &str, name: &str, context_tokens, output_tokens| ModelInfo {
            id: id.into(),
            display_name: name.into(),
            context_tokens,
            output_tokens,
            tools: true,
            images: false,
            thinking: false,
        };
        vec![
            model("gpt-5", "GPT-5", 400_000, 128_000),
            model("gpt-5-mini", "GPT-5 mini", 400_000, 128_000),
            model("gpt-5-nano", "GPT-5 nano", 400_000, 128_000),
            model("gpt-4.1", "GPT-4.1", 1_047_576, 32_768),
            model("gpt-4.1-mini", "GPT-4.1 mini", 1_047_576, 32_768),
            model("gpt-4o", "GPT-4o", 128_000, 16_384),
            model("o4-mini", "o4-mini", 200_000, 100_000),
        ]
    }

    fn probe(_: &str) -> Option<HttpRequest> {
        Some(HttpRequest {
            method: "GET".into(),
            path: "/models".into(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Vec::new(),
        })
    }

    fn encode(settings: &str, request: CompletionRequest) -> Result<Encoded, Error> {
        encode::encode(settings, request)
    }

    fn classify(status: u16, headers: &[Header], body: &[u8]) -> Error {
        classify::response(status, headers, body)
    }
}

lucid_plugin::export_llm!(OpenAi);
