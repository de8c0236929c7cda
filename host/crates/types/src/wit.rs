//! The Rust side of the WIT packages: one set of types for every plugin kind.
//!
//! # Invariants
//!
//! - Nothing here is written by hand that the WIT could say.
//! - `lucid:types` is generated once, so an error, a message or a usage is the same Rust type
//!   whichever plugin it came from.
//! - All of them can be written as JSON and read back, since the session engine logs them.

pub mod policy_world {
    #![allow(missing_docs, clippy::all, reason = "generated; documented in the WIT")]
    wasmtime::component::bindgen!({
        path: ["../../../wit/types", "../../../wit/host", "../../../wit/policy"],
        world: "lucid:policy/policy-plugin",
        exports: { default: async },
        additional_derives: [serde::Serialize, serde::Deserialize, PartialEq],
    });
}

pub mod llm_world {
    #![allow(missing_docs, clippy::all, reason = "generated; documented in the WIT")]
    wasmtime::component::bindgen!({
        path: ["../../../wit/types", "../../../wit/host", "../../../wit/llm"],
        world: "lucid:llm/llm-plugin",
        exports: { default: async },
        additional_derives: [serde::Serialize, serde::Deserialize, PartialEq],
        with: {
            "lucid:types/types@0.1.0": super::policy_world::lucid::types::types,
            "lucid:host/log@0.1.0": super::policy_world::lucid::host::log,
        },
    });
}

pub mod tools_world {
    #![allow(missing_docs, clippy::all, reason = "generated; documented in the WIT")]
    wasmtime::component::bindgen!({
        path: ["../../../wit/types", "../../../wit/host", "../../../wit/tools"],
        world: "lucid:tools/tools-plugin",
        exports: { default: async },
        additional_derives: [serde::Serialize, serde::Deserialize, PartialEq],
        with: {
            "lucid:types/types@0.1.0": super::policy_world::lucid::types::types,
            "lucid:host/log@0.1.0": super::policy_world::lucid::host::log,
        },
    });
}

pub mod git_world {
    #![allow(missing_docs, clippy::all, reason = "generated; documented in the WIT")]
    wasmtime::component::bindgen!({
        path: ["../../../wit/types", "../../../wit/host", "../../../wit/git"],
        world: "lucid:git/git-plugin",
        exports: { default: async },
        additional_derives: [serde::Serialize, serde::Deserialize, PartialEq],
        with: {
            "lucid:types/types@0.1.0": super::policy_world::lucid::types::types,
            "lucid:host/log@0.1.0": super::policy_world::lucid::host::log,
        },
    });
}

pub use policy_world::lucid::host::log;

/// The vocabulary that all plugins share, from `wit/types`.
pub mod types {
    pub use super::policy_world::lucid::types::types::*;
}

/// The types between the host and a policy, from `wit/policy`.
pub mod policy {
    pub use super::policy_world::exports::lucid::policy::policy::{
        Answer, Command, Context, Descriptor, Event, Failure, Input, ModelCall, ModelOffer,
        ModelReply, Outcome, Part, Question, Snapshot, Span, Start, Timer, ToolReply, ToolRun,
        Transition, UserMessage,
    };
}

/// The types between the host and a provider adapter, from `wit/llm`.
pub mod llm {
    pub use super::llm_world::exports::lucid::llm::provider::{
        Completion, CompletionRequest, Delta, Descriptor, Encoded, Frame, Framing, KeyPlace,
        ModelInfo, Placed, Prices, Sse, ToolCallArguments, ToolCallStart,
    };
}

impl From<git::KeyPlace> for llm::KeyPlace {
    fn from(place: git::KeyPlace) -> Self {
        match place {
            git::KeyPlace::Bearer => Self::Bearer,
            git::KeyPlace::Header(name) => Self::Header(name),
        }
    }
}

impl From<tools::KeyPlace> for llm::KeyPlace {
    fn from(place: tools::KeyPlace) -> Self {
        match place {
            tools::KeyPlace::Bearer => Self::Bearer,
            tools::KeyPlace::Header(name) => Self::Header(name),
        }
    }
}

/// The types between the host and a tool component, from `wit/tools`.
pub mod tools {
    pub use super::tools_world::exports::lucid::tools::tools::{
        Action, Answer, Command, Descriptor, KeyPlace, Output, Program, Progress, Reply, Turn,
    };
}

/// The types between the host and a git provider plugin, from `wit/git`.
pub mod git {
    pub use super::git_world::exports::lucid::git::provider::{
        Account, Change, Descriptor, KeyPlace, NewChange, Next, Operation, Page, Reply, Repository,
        RepositoryPage, Sending,
    };
}
