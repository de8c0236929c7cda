//! Loads a component of unknown kind and detects the kind from its exports.
//!
//! # Invariants
//! - The component is admitted under the rules of its kind.

use super::admission::LoadError;
use super::core::PluginCore;
use super::engine::Engine;
use super::exports::MissingExport;
use super::git::GitPlugin;
use super::kind::PluginKind;
use super::limits::PluginLimits;
use super::llm::LlmPlugin;
use super::plugin::Plugin;
use super::policy::PolicyPlugin;
use super::tools::ToolsPlugin;

/// An admitted plugin of any kind.
#[derive(Debug, Clone)]
pub enum AnyPlugin {
    /// An agent's policy.
    Policy(PolicyPlugin),
    /// A model provider's API.
    Llm(LlmPlugin),
    /// A team's own tools.
    Tools(ToolsPlugin),
    /// A git provider's API.
    Git(GitPlugin),
}

/// An error in loading a component of unknown kind.
#[derive(Debug, thiserror::Error)]
pub enum AnyPluginError {
    /// It exports the interface of no kind.
    #[error(
        "it exports none of lucid:policy/policy@0.1.0, lucid:llm/provider@0.1.0, lucid:tools/tools@0.1.0 and lucid:git/provider@0.1.0, so it is no plugin: end the crate in `export_policy!`, `export_llm!`, `export_tools!` or `export_git!`"
    )]
    NoKind,
    /// It was refused as a plugin of its kind.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl AnyPlugin {
    /// Compiles a component, checks it, detects its kind and calls for its descriptor.
    pub async fn load(
        engine: &Engine,
        name: &str,
        wasm: &[u8],
        limits: &PluginLimits,
    ) -> Result<Self, AnyPluginError> {
        for kind in PluginKind::ALL {
            match Self::load_as(engine, *kind, name, wasm, limits).await {
                Ok(plugin) => return Ok(plugin),
                // Without the interface it is of another kind. An interface that is there but
                // incomplete is an error.
                Err(LoadError::MissingExport {
                    missing: MissingExport::Interface(_),
                    ..
                }) => {}
                Err(why) => return Err(why.into()),
            }
        }
        Err(AnyPluginError::NoKind)
    }

    /// Like [`load`](Self::load), for a component whose kind is known.
    pub async fn load_as(
        engine: &Engine,
        kind: PluginKind,
        name: &str,
        wasm: &[u8],
        limits: &PluginLimits,
    ) -> Result<Self, LoadError> {
        match kind {
            PluginKind::Policy => {
                let loaded = PolicyPlugin::load(engine, name, wasm, limits);
                Box::pin(loaded).await.map(Self::Policy)
            }
            PluginKind::Llm => {
                let loaded = LlmPlugin::load(engine, name, wasm, limits);
                Box::pin(loaded).await.map(Self::Llm)
            }
            PluginKind::Tools => {
                let loaded = ToolsPlugin::load(engine, name, wasm, limits);
                Box::pin(loaded).await.map(Self::Tools)
            }
            PluginKind::Git => {
                let loaded = GitPlugin::load(engine, name, wasm, limits);
                Box::pin(loaded).await.map(Self::Git)
            }
        }
    }
}

impl Plugin for AnyPlugin {
    fn core(&self) -> &PluginCore {
        match self {
            Self::Policy(plugin) => plugin.core(),
            Self::Llm(plugin) => plugin.core(),
            Self::Tools(plugin) => plugin.core(),
            Self::Git(plugin) => plugin.core(),
        }
    }
}
