//! Loads a component of unknown kind and detects the kind from its exports.
//!
//! # Invariants
//! - The component is admitted under the rules of its kind.

use super::admission::{Kind, LoadError};
use super::call_stats::CallFigures;
use super::engine::Engine;
use super::git::GitPlugin;
use super::limits::Limits;
use super::llm::LlmPlugin;
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
pub enum AnyError {
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
        limits: &Limits,
    ) -> Result<Self, AnyError> {
        for kind in Kind::ALL {
            match Self::load_as(engine, *kind, name, wasm, limits).await {
                Ok(plugin) => return Ok(plugin),
                // Without the interface it is of another kind. An interface that is there but
                // incomplete is an error, and names a function after `#`.
                Err(LoadError::MissingExport { missing, .. }) if !missing.contains('#') => {}
                Err(why) => return Err(why.into()),
            }
        }
        Err(AnyError::NoKind)
    }

    /// Like [`load`](Self::load), for a component whose kind is known.
    pub async fn load_as(
        engine: &Engine,
        kind: Kind,
        name: &str,
        wasm: &[u8],
        limits: &Limits,
    ) -> Result<Self, LoadError> {
        match kind {
            Kind::Policy => {
                let loaded = PolicyPlugin::load(engine, name, wasm, limits);
                Box::pin(loaded).await.map(Self::Policy)
            }
            Kind::Llm => {
                let loaded = LlmPlugin::load(engine, name, wasm, limits);
                Box::pin(loaded).await.map(Self::Llm)
            }
            Kind::Tools => {
                let loaded = ToolsPlugin::load(engine, name, wasm, limits);
                Box::pin(loaded).await.map(Self::Tools)
            }
            Kind::Git => {
                let loaded = GitPlugin::load(engine, name, wasm, limits);
                Box::pin(loaded).await.map(Self::Git)
            }
        }
    }

    /// The plugin's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Policy(_) => Kind::Policy,
            Self::Llm(_) => Kind::Llm,
            Self::Tools(_) => Kind::Tools,
            Self::Git(_) => Kind::Git,
        }
    }

    /// The name it was loaded under.
    pub fn name(&self) -> &str {
        match self {
            Self::Policy(plugin) => plugin.name(),
            Self::Llm(plugin) => plugin.name(),
            Self::Tools(plugin) => plugin.name(),
            Self::Git(plugin) => plugin.name(),
        }
    }

    /// The name in the plugin's own descriptor.
    pub fn own_name(&self) -> &str {
        match self {
            Self::Policy(plugin) => &plugin.descriptor().name,
            Self::Llm(plugin) => &plugin.descriptor().name,
            Self::Tools(plugin) => &plugin.descriptor().name,
            Self::Git(plugin) => &plugin.descriptor().name,
        }
    }

    /// The version in the plugin's own descriptor.
    pub fn version(&self) -> &str {
        match self {
            Self::Policy(plugin) => &plugin.descriptor().version,
            Self::Llm(plugin) => &plugin.descriptor().version,
            Self::Tools(plugin) => &plugin.descriptor().version,
            Self::Git(plugin) => &plugin.descriptor().version,
        }
    }

    /// The description in the plugin's own descriptor.
    pub fn description(&self) -> &str {
        match self {
            Self::Policy(plugin) => &plugin.descriptor().description,
            Self::Llm(plugin) => &plugin.descriptor().description,
            Self::Tools(plugin) => &plugin.descriptor().description,
            Self::Git(plugin) => &plugin.descriptor().description,
        }
    }

    /// The JSON schema of the plugin's settings, if it has one.
    pub fn settings_schema(&self) -> Option<&str> {
        match self {
            Self::Policy(plugin) => plugin.descriptor().settings_schema.as_deref(),
            Self::Llm(plugin) => plugin.descriptor().settings_schema.as_deref(),
            Self::Tools(plugin) => plugin.descriptor().settings_schema.as_deref(),
            Self::Git(plugin) => plugin.descriptor().settings_schema.as_deref(),
        }
    }

    /// The component's SHA-256, in lower-case hex.
    pub fn digest(&self) -> &str {
        match self {
            Self::Policy(plugin) => plugin.digest(),
            Self::Llm(plugin) => plugin.digest(),
            Self::Tools(plugin) => plugin.digest(),
            Self::Git(plugin) => plugin.digest(),
        }
    }

    /// The names of everything that the component imports.
    pub fn imports(&self) -> Vec<String> {
        match self {
            Self::Policy(plugin) => plugin.imports(),
            Self::Llm(plugin) => plugin.imports(),
            Self::Tools(plugin) => plugin.imports(),
            Self::Git(plugin) => plugin.imports(),
        }
    }

    /// The limits of one call.
    pub fn limits(&self) -> &Limits {
        match self {
            Self::Policy(plugin) => plugin.limits(),
            Self::Llm(plugin) => plugin.limits(),
            Self::Tools(plugin) => plugin.limits(),
            Self::Git(plugin) => plugin.limits(),
        }
    }

    /// Statistics of the calls since the plugin was loaded, by function.
    pub fn figures(&self) -> Vec<CallFigures> {
        match self {
            Self::Policy(plugin) => plugin.figures(),
            Self::Llm(plugin) => plugin.figures(),
            Self::Tools(plugin) => plugin.figures(),
            Self::Git(plugin) => plugin.figures(),
        }
    }
}
