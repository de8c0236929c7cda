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

/// A plugin of any kind that was let in.
#[derive(Debug, Clone)]
pub enum AnyPlugin {
    /// An agent.
    Policy(PolicyPlugin),
    /// A model provider's API.
    Llm(LlmPlugin),
    /// Tools of a team's own.
    Tools(ToolsPlugin),
    /// A git provider's API.
    Git(GitPlugin),
}

/// Why it was not.
#[derive(Debug, thiserror::Error)]
pub enum AnyError {
    /// It is none.
    #[error(
        "it exports none of lucid:policy/policy@0.1.0, lucid:llm/provider@0.1.0, lucid:tools/tools@0.1.0 and lucid:git/provider@0.1.0, so it is no plugin: end the crate in `export_policy!`, `export_llm!`, `export_tools!` or `export_git!`"
    )]
    NoKind,
    /// As one of its kind.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl AnyPlugin {
    /// Compiles a component, checks it, and asks what it is.
    pub async fn load(
        engine: &Engine,
        name: &str,
        wasm: &[u8],
        limits: &Limits,
    ) -> Result<Self, AnyError> {
        for kind in Kind::ALL {
            match Self::load_as(engine, *kind, name, wasm, limits).await {
                Ok(plugin) => return Ok(plugin),
                // It is of another kind, unless it has the interface and not all of it.
                Err(LoadError::MissingExport { missing, .. }) if !missing.contains('#') => {}
                Err(why) => return Err(why.into()),
            }
        }
        Err(AnyError::NoKind)
    }

    /// The same for one of which somebody said what it is for.
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

    /// What it is for.
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

    /// What it calls itself.
    pub fn own_name(&self) -> &str {
        match self {
            Self::Policy(plugin) => &plugin.descriptor().name,
            Self::Llm(plugin) => &plugin.descriptor().name,
            Self::Tools(plugin) => &plugin.descriptor().name,
            Self::Git(plugin) => &plugin.descriptor().name,
        }
    }

    /// Its own version.
    pub fn version(&self) -> &str {
        match self {
            Self::Policy(plugin) => &plugin.descriptor().version,
            Self::Llm(plugin) => &plugin.descriptor().version,
            Self::Tools(plugin) => &plugin.descriptor().version,
            Self::Git(plugin) => &plugin.descriptor().version,
        }
    }

    /// What it says it does.
    pub fn description(&self) -> &str {
        match self {
            Self::Policy(plugin) => &plugin.descriptor().description,
            Self::Llm(plugin) => &plugin.descriptor().description,
            Self::Tools(plugin) => &plugin.descriptor().description,
            Self::Git(plugin) => &plugin.descriptor().description,
        }
    }

    /// The JSON schema of the settings it takes, where it gives one.
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

    /// All that it imports, by name.
    pub fn imports(&self) -> Vec<String> {
        match self {
            Self::Policy(plugin) => plugin.imports(),
            Self::Llm(plugin) => plugin.imports(),
            Self::Tools(plugin) => plugin.imports(),
            Self::Git(plugin) => plugin.imports(),
        }
    }

    /// What one call may use.
    pub fn limits(&self) -> &Limits {
        match self {
            Self::Policy(plugin) => plugin.limits(),
            Self::Llm(plugin) => plugin.limits(),
            Self::Tools(plugin) => plugin.limits(),
            Self::Git(plugin) => plugin.limits(),
        }
    }

    /// What its calls used since it was loaded, by function.
    pub fn figures(&self) -> Vec<CallFigures> {
        match self {
            Self::Policy(plugin) => plugin.figures(),
            Self::Llm(plugin) => plugin.figures(),
            Self::Tools(plugin) => plugin.figures(),
            Self::Git(plugin) => plugin.figures(),
        }
    }
}
