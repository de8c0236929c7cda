//! The SDK for Lucid plugins: the WIT bindings, and a thin layer over what every plugin would
//! otherwise write itself.
//!
//! Nothing here reads a clock, randomness, a file or the network, so a plugin built on it imports
//! at most `lucid:host/log`. Everything also runs natively, which is how plugins are tested:
//! [`testing::Session`] plays a session with a policy, [`testing::Call`] a tool call, and
//! [`testing::decode`] decodes a recorded response with an adapter.
//!
//! [`turns`] has the loop that most agents are: model, tools, model. An agent is a type that
//! implements [`policy::Policy`]:
//!
//! ```
//! use lucid_plugin::policy::{Commands, Context, Descriptor, Input, Policy};
//! use lucid_plugin::types::Error;
//!
//! struct Parrot;
//!
//! impl Policy for Parrot {
//!     type State = u32;
//!     const SCHEMA: u32 = 1;
//!
//!     fn describe() -> Descriptor {
//!         lucid_plugin::policy::describe::<Self>("parrot", "0.1.0", "Says it again.")
//!     }
//!
//!     fn step(_: &Context, told: &mut u32, input: Input, out: &mut Commands) -> Result<(), Error> {
//!         if let Input::Started(start) = input {
//!             *told += 1;
//!             out.succeed(start.task);
//!         }
//!         Ok(())
//!     }
//! }
//!
//! lucid_plugin::export_policy!(Parrot);
//! ```
//!
//! Tool components implement [`tools::Tools`] and end in `export_tools!`: they turn a call into
//! commands and requests, which the host carries out.
//!
//! A provider adapter implements [`llm::Adapter`] and [`llm::Decoder`], and ends in `export_llm!`.
//! What every adapter needs is provided: [`llm::conversation`] makes any transcript one that a
//! provider accepts, [`llm::files`] writes a body with images, [`llm::Params`] reads a policy's
//! options, [`llm::refusal`] classifies errors, [`llm::Sse::json`] parses an event. The crate
//! `lucid-conformance` tests that an adapter keeps the promises of all adapters.
//!
//! A panic is a bug of the plugin: its message and location are written to the host's log, and are
//! part of the host's error for the failed call.
//!
//! A git provider plugin implements [`git::Provider`], a chain of requests for each operation, and
//! ends in `export_git!`. [`testing::Exchange`] plays the provider's server.

pub mod bindings;
pub mod git;
pub mod llm;
mod messages;
mod panics;
pub mod policy;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod tools;
pub mod turns;

/// The shared vocabulary: messages, tools, errors, HTTP.
pub mod types {
    pub use crate::bindings::shared::lucid::types::types::{
        BlobRef, Content, Custom, EffectId, Error, ErrorKind, Header, HttpRequest, HttpResponse,
        Json, Message, Role, SessionId, StopReason, Thinking, ToolCall, ToolDefinition, ToolResult,
        Usage,
    };
}

pub use messages::{NO_USAGE, cut, joined_text};

/// The severity of a log line.
pub use bindings::shared::lucid::host::log::Level;

/// Writes a line to the host's log, under the plugin's name. Does nothing off wasm, where there is
/// no host.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    bindings::shared::lucid::host::log::log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    let _ = (level, message);
}
