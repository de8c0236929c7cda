//! Why a server does not start.

use std::path::PathBuf;

use crate::auth::JwksError;
use crate::config::ConfigError;
use crate::manifest::ManifestProblems;
use lucid_sandbox::SandboxError;
use lucid_sandbox::git::GitGatewayError;
use lucid_store::{ChatStoreError, StoreError};
use lucid_types::log::LogError;
use lucid_types::sentence::{full_stop, sentence, with_advice};
use lucid_types::transient::TransientFailure;
use lucid_wasm::EngineError;

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The identity provider's keys.
    #[error("the keys that tokens are checked with cannot be used: {0}")]
    Jwks(#[from] JwksError),
    /// The plugins' engine.
    #[error("the plugins cannot be run: {0}")]
    Engine(#[from] EngineError),
    /// The manifest, a plugin, or a model provider. A line for each thing that is wrong.
    #[error("{0}")]
    Deployment(#[from] ManifestProblems),
    /// The database.
    #[error("the store cannot be used: {0}")]
    Store(#[from] StoreError),
    /// The session log.
    #[error("the store cannot be used: {0}")]
    Log(#[from] LogError),
    /// Supabase.
    #[error("SUPABASE_URL cannot be used: {0}")]
    Supabase(#[from] ChatStoreError),
    /// Git's gateway.
    #[error("{0}")]
    Git(#[from] GitGatewayError),
    /// The sandbox that was asked for.
    #[error("{0}")]
    Sandbox(#[from] SandboxError),
    /// The threads for users' blocking work.
    #[error("no threads can be started: {0}")]
    Threads(#[source] std::io::Error),
    /// The folder everything is in.
    #[error("the folder {path} cannot be made ({cause})")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

impl StartError {
    /// The error as the operator reads it.
    pub(crate) fn sentence(&self) -> String {
        match self {
            // Its first word may be a path's.
            Self::Config(error) => full_stop(error),
            // Lines that each begin with a position.
            Self::Deployment(problems) => problems.to_string(),
            Self::Folder { .. } => with_advice(
                self,
                Some("Is WORKSPACE_BASE_PATH a place this user can write to?"),
            ),
            other => sentence(other),
        }
    }

    /// Whether the same start may succeed later: a disk is full, or another process holds the database's
    /// lock. What may not be written at all stays so.
    pub fn is_transient(&self) -> bool {
        lucid_store::transient_cause(self)
            .is_some_and(|reason| reason != TransientFailure::ReadOnly)
    }
}
