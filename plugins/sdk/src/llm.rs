//! Provider adapters: the traits they implement, and the glue to the exported interface.
//!
//! # Invariants
//!
//! - One decoder reads one response, and `finish` ends it: any call after `finish` or after an
//!   error returns an error, so a decoder need not guard against that itself.

pub mod conversation;
pub mod extra;
pub mod files;
pub mod json;
mod params;
pub mod refusal;
pub mod schema;
pub mod spoken;
pub mod thoughts;

use std::cell::RefCell;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::bindings::llm::exports::lucid::llm::provider as wit;
use crate::types::{Error, Header, HttpRequest, ToolCall};

pub use params::{Effort, Params, Thinking};
pub use wit::{
    Completion, CompletionRequest, Delta, Descriptor, Encoded, Frame, Framing, KeyPlace, ModelInfo,
    Placed, Prices, Sse, ToolCallArguments, ToolCallStart,
};

/// A model provider's API: encodes requests and interprets responses.
pub trait Adapter: 'static {
    /// The decoder of one response.
    type Decoder: Decoder;

    /// Describes this adapter.
    fn describe() -> Descriptor;

    /// The known models. Others may work as well.
    fn models(settings: &str) -> Vec<ModelInfo>;

    /// A cheap request that succeeds only with a valid key. `None` if the provider has none.
    fn probe(_settings: &str) -> Option<HttpRequest> {
        None
    }

    /// Encodes a request in the provider's format.
    fn encode(settings: &str, request: CompletionRequest) -> Result<Encoded, Error>;

    /// Classifies a refusal.
    fn classify(status: u16, headers: &[Header], body: &[u8]) -> Error;
}

/// Decodes one response, frame by frame.
pub trait Decoder: Sized + 'static {
    /// A decoder for a response of this model.
    fn new(model: String) -> Self;

    /// Takes the next frame. An error ends the response.
    fn push(&mut self, frame: Frame, deltas: &mut Vec<Delta>) -> Result<(), Error>;

    /// Ends the response. An incomplete one is an error of kind `upstream`.
    fn finish(self) -> Result<Completion, Error>;
}

/// The schema of an adapter without settings.
pub const NO_SETTINGS: &str = r#"{"type": "object", "additionalProperties": false}"#;

/// Parses an adapter's settings. An empty text gives the defaults.
pub fn parse_settings<T: DeserializeOwned + Default>(settings: &str) -> Result<T, Error> {
    let text = settings.trim();
    if text.is_empty() || text == "null" {
        return Ok(T::default());
    }
    serde_json::from_str(text)
        .map_err(|e| Error::invalid(format!("The adapter's settings cannot be read: {e}.")))
}

/// A header's value, by its case-insensitive name.
pub fn header<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|h| h.name.eq_ignore_ascii_case(name))
        .map(|h| h.value.as_str())
}

/// A tool call's arguments as an object, the only form providers accept. Anything else that a model
/// wrote is wrapped in one, so the model sees it again.
pub fn arguments(call: &ToolCall) -> serde_json::Value {
    match serde_json::from_str(&call.arguments) {
        Ok(object @ serde_json::Value::Object(_)) => object,
        _ if call.arguments.trim().is_empty() => serde_json::json!({}),
        _ => serde_json::json!({ "not_an_object": call.arguments }),
    }
}

/// A model's prices, in millionths of a dollar per million tokens.
pub const fn prices(input: u64, output: u64, cache_read: u64, cache_write: u64) -> Prices {
    Prices {
        input,
        output,
        cache_read,
        cache_write,
    }
}

/// A GET request that needs a valid key.
pub fn get(path: &str) -> HttpRequest {
    HttpRequest {
        method: "GET".into(),
        path: path.into(),
        query: Vec::new(),
        headers: Vec::new(),
        body: Vec::new(),
    }
}

/// A POST request whose headers and body [`files::encoded`] fills in.
pub fn post(path: impl Into<String>) -> HttpRequest {
    HttpRequest {
        method: "POST".into(),
        path: path.into(),
        ..get("")
    }
}

/// A JSON member that is a non-empty text.
pub fn text_at<'a>(value: &'a serde_json::Value, name: &str) -> Option<&'a str> {
    value
        .get(name)
        .and_then(serde_json::Value::as_str)
        .filter(|text| !text.is_empty())
}

/// A whole body as JSON, or the error that it contains instead.
pub fn whole_json(body: &[u8]) -> Result<serde_json::Value, Error> {
    let text = String::from_utf8_lossy(body);
    json::whole(&text).map_err(|error| {
        if error.is_eof() && !text.trim().is_empty() {
            return Error::upstream("The provider's answer is not whole: it broke off.");
        }
        refusal::no_json(&text)
    })
}

/// Whether an event is an error by its name alone, whatever its data.
fn is_error_event(sse: &Sse) -> bool {
    sse.event
        .as_deref()
        .is_some_and(|name| name.eq_ignore_ascii_case("error"))
}

impl Sse {
    /// The event's JSON. `None` for an event without content (`[DONE]`, or no data), an error of
    /// kind `upstream` if it is not JSON.
    pub fn json(&self) -> Result<Option<serde_json::Value>, Error> {
        let piece = self.piece()?;
        Ok(piece.map(|piece| json::mended(piece.value, piece.marked)))
    }

    /// As [`Self::json`], for a piece of a response, whose texts may end within a character: see
    /// [`json`]. An event named an error is an error even if it is not JSON.
    pub fn piece(&self) -> Result<Option<json::ResponsePiece>, Error> {
        let data = self.data.trim();
        if data.is_empty() || data == "[DONE]" {
            return Ok(None);
        }
        match json::piece(data) {
            Ok(piece) => Ok(Some(piece)),
            Err(_) if is_error_event(self) => Ok(Some(json::ResponsePiece {
                value: serde_json::json!({ "error": data }),
                marked: false,
            })),
            Err(why) if data.starts_with(['{', '[']) => Err(Error::upstream(format!(
                "The provider sent a piece that is not JSON: {why}."
            ))),
            Err(_) => Err(refusal::no_json(data)),
        }
    }

    /// Whether the event is named an error, in whatever form its data is.
    pub fn is_error(&self) -> bool {
        is_error_event(self)
    }
}

/// The type that `export_llm!` exports for an adapter.
#[doc(hidden)]
pub struct ExportedAdapter<A>(PhantomData<A>);

/// A decoder behind the shared reference that a resource's methods get. `None` once it has ended.
#[doc(hidden)]
pub struct ExportedDecoder<D>(RefCell<Option<D>>);

impl<A: Adapter> wit::Guest for ExportedAdapter<A> {
    type Decoder = ExportedDecoder<A::Decoder>;

    fn describe() -> Descriptor {
        crate::panics::tell();
        A::describe()
    }

    fn models(settings: String) -> Vec<ModelInfo> {
        crate::panics::tell();
        A::models(&settings)
    }

    fn probe(settings: String) -> Option<HttpRequest> {
        crate::panics::tell();
        A::probe(&settings)
    }

    fn encode(settings: String, request: CompletionRequest) -> Result<Encoded, Error> {
        crate::panics::tell();
        A::encode(&settings, request)
    }

    fn classify(status: u16, headers: Vec<Header>, body: Vec<u8>) -> Error {
        crate::panics::tell();
        A::classify(status, &headers, &body)
    }
}

impl<D: Decoder> wit::GuestDecoder for ExportedDecoder<D> {
    fn new(model: String) -> Self {
        crate::panics::tell();
        Self(RefCell::new(Some(D::new(model))))
    }

    fn push(&self, frames: Vec<Frame>) -> Result<Vec<Delta>, Error> {
        let mut decoder = self.0.borrow_mut();
        let mut deltas = Vec::new();
        for frame in frames {
            let pushed = decoder.as_mut().ok_or_else(over)?.push(frame, &mut deltas);
            if let Err(error) = pushed {
                *decoder = None;
                return Err(error);
            }
        }
        Ok(deltas)
    }

    fn finish(&self) -> Result<Completion, Error> {
        self.0.borrow_mut().take().ok_or_else(over)?.finish()
    }
}

fn over() -> Error {
    Error::internal("This response is over already.")
}

/// Exports an [`Adapter`] as the component's own. Used once in a crate. Does nothing natively.
#[macro_export]
macro_rules! export_llm {
    ($adapter:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type ExportedAdapter = $crate::llm::ExportedAdapter<$adapter>;
            $crate::bindings::llm::export_llm_world!(
                ExportedAdapter with_types_in $crate::bindings::llm
            );
        };
    };
}
