//! The Rust side of the WIT packages: one set of types for every plugin kind.
//!
//! The build writes them from the WIT (`build.rs`). With the feature `component` they are what wasmtime passes to
//! a component and takes from it; without it they are plain values, so that the session engine needs no wasmtime.
//!
//! # Invariants
//!
//! - No type here is written by hand.
//! - An error, a message or a usage is the same Rust type whichever plugin it came from.
//! - All of them can be written as JSON and read back, since the session engine logs them.

use std::fmt;

include!(concat!(env!("OUT_DIR"), "/wit.rs"));

impl fmt::Display for types::Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for types::Error {}

impl types::Error {
    /// An error of a kind, with a message.
    pub fn new(kind: types::ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: None,
            message: message.into(),
            retry_after_ms: None,
        }
    }

    /// The same error with a code of who reports it.
    #[must_use]
    pub fn with_code(self, code: impl Into<String>) -> Self {
        Self {
            code: Some(code.into()),
            ..self
        }
    }

    /// A fault of the host itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(types::ErrorKind::Internal, message)
    }

    /// A request that will fail again.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(types::ErrorKind::InvalidInput, message)
    }

    /// A failure of the other side.
    pub fn upstream(message: impl Into<String>) -> Self {
        Self::new(types::ErrorKind::Upstream, message)
    }
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
