//! Why a plugin does not pass a check.
//!
//! What is violated is read by the plugin's author and by nobody's code, so a rule is the text that says it. What a
//! plugin, a file or a library says is kept as the cause.

use std::io;
use std::path::PathBuf;

use crate::toolsets::component::call::ActionError;
use lucid_net::egress::EgressError;
use lucid_wasm::CallError;

/// The first thing that is wrong with a plugin.
#[derive(Debug, thiserror::Error)]
pub(super) enum Violation {
    /// It does not keep a rule, in the words of the rule.
    #[error("{0}")]
    Rule(String),
    /// A call failed that must not.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A host would not do what it asks.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// A host would not send what it asks.
    #[error(transparent)]
    Request(#[from] EgressError),
    /// What must be JSON is not.
    #[error("{what} must be a JSON object: {source}")]
    Json {
        /// What it is.
        what: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// What is recorded cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something is wrong in one of many cases.
    #[error("{case}: {source}")]
    In {
        /// The case.
        case: String,
        /// What is wrong in it.
        source: Box<Violation>,
    },
}

impl Violation {
    /// The same violation, with the case that it was found in.
    pub(super) fn within(self, case: impl Into<String>) -> Self {
        Self::In {
            case: case.into(),
            source: Box::new(self),
        }
    }
}

/// The violation of a rule, given as to [`format!`].
macro_rules! violation {
    ($($text:tt)+) => {
        $crate::cli::plugin::check::violation::Violation::Rule(format!($($text)+))
    };
}
pub(super) use violation;
