//! The provider adapter for Google's Gemini API.
//!
//! # Invariants
//!
//! - A request carries no credential and no host, since both are the deployment's.
//! - A thought signature goes back with the piece it came with.
//! - An unknown part, reason or member is ignored.

mod classify;
mod decode;
mod encode;
mod models;
mod schema;

use lucid_plugin::llm::{
    self, Adapter, CompletionRequest, Descriptor, Encoded, KeyPlace, ModelInfo, get,
};
use lucid_plugin::types::{Error, Header, HttpRequest};

pub use decode::ChunkDecoder;

/// The kind of the piece that keeps a thought signature, before the piece it belongs to. The body
/// is a JSON object: `signature`, and `alone` if it came with an empty text.
const SIGNATURE: &str = "google.thought-signature";
/// The maximum length of an id that was made elsewhere.
const LONGEST_ID: usize = 256;
/// The prefix of the ids that this adapter makes, since most models send none. The API never sees
/// them.
const OWN_ID: &str = "lucid_";

/// The adapter.
pub struct Google;

impl Adapter for Google {
    type Decoder = ChunkDecoder;

    fn describe() -> Descriptor {
        Descriptor {
            name: "google".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "Google's Gemini API.".into(),
            default_base_url: "https://generativelanguage.googleapis.com".into(),
            default_model: "gemini-3.8-flash".into(),
            small_model: "gemini-3.5-flash-lite".into(),
            key: KeyPlace::Header("x-goog-api-key".into()),
            settings_schema: Some(llm::NO_SETTINGS.into()),
        }
    }

    fn models(_: &str) -> Vec<ModelInfo> {
        models::all()
    }

    fn probe(_: &str) -> Option<HttpRequest> {
        let mut request = get("/v1beta/models");
        request.query = vec![("pageSize".into(), "1".into())];
        Some(request)
    }

    fn encode(_: &str, request: CompletionRequest) -> Result<Encoded, Error> {
        encode::encode(&request)
    }

    fn classify(status: u16, headers: &[Header], body: &[u8]) -> Error {
        classify::response(status, headers, body)
    }
}

lucid_plugin::export_llm!(Google);
