//! Owns a plugin of which nobody said what it is for: what it exports says so.
//!
//! What always holds: it is let in as one of its kind is.

use super::admission::{Kind, LoadError};
use super::engine::Engine;
use super::limits::Limits;
use super::llm::LlmPlugin;
use super::policy::PolicyPlugin;
use super::tally::CallFigures;

/// A plugin of any kind that was let in.
#[derive(Debug, Clone)]
pub enum AnyPlugin {
    /// An agent.
    Policy(PolicyPlugin),
    /// A model provider's API.
    Llm(LlmPlugin),
}

/// Why it was not.
#[derive(Debug, thiserror::Error)]
pub enum AnyError {
    /// It is none.
    #[error(
        "it exports neither lucid:policy/policy@0.1.0 nor lucid:llm/provider@0.1.0, so it is no plugin: end the crate in `export_policy!` or `export_llm!`"
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
        match Box::pin(PolicyPlugin::load(engine, name, wasm, limits)).await {
            Ok(plugin) => return Ok(Self::Policy(plugin)),
            Err(LoadError::MissingExport { missing, .. }) if !missing.contains('#') => {}
            Err(why) => return Err(why.into()),
        }
        match Box::pin(LlmPlugin::load(engine, name, wasm, limits)).await {
            Ok(plugin) => Ok(Self::Llm(plugin)),
            Err(LoadError::MissingExport { missing, .. }) if !missing.contains('#') => {
                Err(AnyError::NoKind)
            }
            Err(why) => Err(why.into()),
        }
    }

    /// What it is for.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Policy(_) => Kind::Policy,
            Self::Llm(_) => Kind::Llm,
        }
    }

    /// The name it was loaded under.
    pub fn name(&self) -> &str {
        match self {
            Self::Policy(plugin) => plugin.name(),
            Self::Llm(plugin) => plugin.name(),
        }
    }

    /// What it calls itself.
    pub fn own_name(&self) -> &str {
        match self {
            Self::Policy(plugin) => &plugin.descriptor().name,
            Self::Llm(plugin) => &plugin.descriptor().name,
        }
    }

    /// Its own version.
    pub fn version(&self) -> &str {
        match self {
            Self::Policy(plugin) => &plugin.descriptor().version,
            Self::Llm(plugin) => &plugin.descriptor().version,
        }
    }

    /// What it says it does.
    pub fn description(&self) -> &str {
        match self {
            Self::Policy(plugin) => &plugin.descriptor().description,
            Self::Llm(plugin) => &plugin.descriptor().description,
        }
    }

    /// The component's SHA-256, in lower-case hex.
    pub fn digest(&self) -> &str {
        match self {
            Self::Policy(plugin) => plugin.digest(),
            Self::Llm(plugin) => plugin.digest(),
        }
    }

    /// All that it imports, by name.
    pub fn imports(&self) -> Vec<String> {
        match self {
            Self::Policy(plugin) => plugin.imports(),
            Self::Llm(plugin) => plugin.imports(),
        }
    }

    /// What one call may use.
    pub fn limits(&self) -> &Limits {
        match self {
            Self::Policy(plugin) => plugin.limits(),
            Self::Llm(plugin) => plugin.limits(),
        }
    }

    /// What its calls used since it was loaded, by function.
    pub fn figures(&self) -> Vec<CallFigures> {
        match self {
            Self::Policy(plugin) => plugin.figures(),
            Self::Llm(plugin) => plugin.figures(),
        }
    }
}
