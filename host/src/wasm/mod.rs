//! The plugin runtime: WebAssembly components that turn values into values, and the set that is
//! loaded.
//!
//! A plugin computes and the host acts. `engine` has the engine, its pool and its epoch clock,
//! `admission` the checks before a component runs, `instance` and `limits` a call,
//! `host_state` the host's data for one instance, `call_stats` the statistics, `progress` what is being
//! compiled, `log_label` the
//! label of its log lines, `wasi` and `stdio` what a guest of another toolchain finds, `policy`,
//! `llm`, `tools` and `git` the API of each kind, `tool_schema` the rules for a plugin's tools, and
//! `any_plugin` a plugin of unknown kind.
//!
//! # Invariants
//! - No component reaches a clock, a file, the network or a secret, and one that wants to is not
//!   admitted.
//! - No component can block or bring down the host or another session: each call has limits, and
//!   exceeding one is an ordinary error of that call.

mod admission;
mod any_plugin;
mod call_stats;
mod engine;
mod git;
mod host_state;
mod instance;
pub(crate) mod limits;
pub(crate) mod llm;
mod log_label;
mod policy;
mod progress;
mod stdio;
#[cfg(test)]
pub(crate) mod tests;
mod tool_schema;
pub(crate) mod tools;
mod wasi;

use std::collections::BTreeMap;

pub use self::any_plugin::{AnyError, AnyPlugin};
pub use self::call_stats::CallFigures;
pub use self::log_label::LOG_TARGET;
pub use self::progress::{Doing, Work};
pub use admission::{ALLOWED_IMPORTS, Kind, LoadError};
pub use engine::{Engine, EngineError, EngineOptions};
pub use git::GitPlugin;
pub use limits::{CallError, CallSite, CallUsage, Called, Limits};
pub use llm::{DecoderSession, LlmPlugin};
pub use policy::PolicyPlugin;
pub use tools::ToolsPlugin;

use lucid_types::sanitize;

/// The loaded plugins, by kind and name. Immutable once built.
#[derive(Debug, Clone, Default)]
pub struct Plugins {
    policies: BTreeMap<String, PolicyPlugin>,
    llms: BTreeMap<String, LlmPlugin>,
    tools: BTreeMap<String, ToolsPlugin>,
    /// Second builds of policies.
    beside: BTreeMap<String, PolicyPlugin>,
    gits: BTreeMap<String, GitPlugin>,
}

/// Information about a loaded plugin.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginInfo {
    /// Its kind.
    pub kind: Kind,
    /// The name it was loaded under.
    pub name: String,
    /// The version in its own descriptor.
    pub version: String,
    /// The component's SHA-256, in lower-case hex.
    pub digest: String,
}

impl Plugins {
    /// Starts building a set.
    pub fn builder(engine: Engine) -> PluginsBuilder {
        PluginsBuilder {
            engine,
            limits: Limits::default(),
            wanted: Vec::new(),
        }
    }

    /// A set of plugins that were loaded individually. Of two with the same name the last one
    /// counts.
    pub fn of(
        policies: impl IntoIterator<Item = PolicyPlugin>,
        llms: impl IntoIterator<Item = LlmPlugin>,
        tools: impl IntoIterator<Item = ToolsPlugin>,
        gits: impl IntoIterator<Item = GitPlugin>,
    ) -> Self {
        let policies = policies.into_iter();
        let llms = llms.into_iter();
        let tools = tools.into_iter();
        let gits = gits.into_iter();
        Self {
            policies: policies
                .map(|plugin| (plugin.name().to_owned(), plugin))
                .collect(),
            llms: llms
                .map(|plugin| (plugin.name().to_owned(), plugin))
                .collect(),
            tools: tools
                .map(|plugin| (plugin.name().to_owned(), plugin))
                .collect(),
            beside: BTreeMap::new(),
            gits: gits
                .map(|plugin| (plugin.name().to_owned(), plugin))
                .collect(),
        }
    }

    /// Sets the second builds of some of its policies.
    #[must_use]
    pub fn with_beside(mut self, beside: impl IntoIterator<Item = PolicyPlugin>) -> Self {
        let beside = beside.into_iter();
        self.beside = beside
            .map(|plugin| (plugin.name().to_owned(), plugin))
            .collect();
        self
    }

    /// The second build of a policy.
    pub fn beside(&self, name: &str) -> Option<&PolicyPlugin> {
        self.beside.get(name)
    }

    /// All builds of a policy.
    pub fn builds(&self, name: &str) -> impl Iterator<Item = &PolicyPlugin> {
        self.policy(name).into_iter().chain(self.beside(name))
    }

    /// Whether both sets have the same components under the same names.
    pub fn are_like(&self, other: &Self) -> bool {
        let beside = |plugins: &Self| -> Vec<(String, String)> {
            let all = plugins.beside.iter();
            all.map(|(name, plugin)| (name.clone(), plugin.digest().to_owned()))
                .collect()
        };
        self.list() == other.list() && beside(self) == beside(other)
    }

    /// The policy of this name.
    pub fn policy(&self, name: &str) -> Option<&PolicyPlugin> {
        self.policies.get(name)
    }

    /// The model adapter of this name.
    pub fn llm(&self, name: &str) -> Option<&LlmPlugin> {
        self.llms.get(name)
    }

    /// The component with tools of this name.
    pub fn tools(&self, name: &str) -> Option<&ToolsPlugin> {
        self.tools.get(name)
    }

    /// The git provider's integration of this name.
    pub fn git(&self, name: &str) -> Option<&GitPlugin> {
        self.gits.get(name)
    }

    /// All policies, by name.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyPlugin> {
        self.policies.values()
    }

    /// All model adapters, by name.
    pub fn llms(&self) -> impl Iterator<Item = &LlmPlugin> {
        self.llms.values()
    }

    /// All components with tools, by name.
    pub fn all_tools(&self) -> impl Iterator<Item = &ToolsPlugin> {
        self.tools.values()
    }

    /// All git providers' integrations, by name.
    pub fn gits(&self) -> impl Iterator<Item = &GitPlugin> {
        self.gits.values()
    }

    /// All plugins, by kind and then by name.
    pub fn list(&self) -> Vec<PluginInfo> {
        let policies = self.policies.values().map(|plugin| PluginInfo {
            kind: Kind::Policy,
            name: plugin.name().to_owned(),
            version: plugin.descriptor().version.clone(),
            digest: plugin.digest().to_owned(),
        });
        let llms = self.llms.values().map(|plugin| PluginInfo {
            kind: Kind::Llm,
            name: plugin.name().to_owned(),
            version: plugin.descriptor().version.clone(),
            digest: plugin.digest().to_owned(),
        });
        let tools = self.tools.values().map(|plugin| PluginInfo {
            kind: Kind::Tools,
            name: plugin.name().to_owned(),
            version: plugin.descriptor().version.clone(),
            digest: plugin.digest().to_owned(),
        });
        let gits = self.gits.values().map(|plugin| PluginInfo {
            kind: Kind::Git,
            name: plugin.name().to_owned(),
            version: plugin.descriptor().version.clone(),
            digest: plugin.digest().to_owned(),
        });
        policies.chain(llms).chain(tools).chain(gits).collect()
    }
}

/// Builds a set of plugins.
#[derive(Debug)]
pub struct PluginsBuilder {
    engine: Engine,
    limits: Limits,
    wanted: Vec<(Kind, String, Vec<u8>)>,
}

impl PluginsBuilder {
    /// Sets the limits of one call, for every plugin.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds a policy.
    #[must_use]
    pub fn policy(mut self, name: impl Into<String>, wasm: impl Into<Vec<u8>>) -> Self {
        self.wanted.push((Kind::Policy, name.into(), wasm.into()));
        self
    }

    /// Adds a model adapter.
    #[must_use]
    pub fn llm(mut self, name: impl Into<String>, wasm: impl Into<Vec<u8>>) -> Self {
        self.wanted.push((Kind::Llm, name.into(), wasm.into()));
        self
    }

    /// Adds a component with tools.
    #[must_use]
    pub fn tools(mut self, name: impl Into<String>, wasm: impl Into<Vec<u8>>) -> Self {
        self.wanted.push((Kind::Tools, name.into(), wasm.into()));
        self
    }

    /// Adds a git provider's integration.
    #[must_use]
    pub fn git(mut self, name: impl Into<String>, wasm: impl Into<Vec<u8>>) -> Self {
        self.wanted.push((Kind::Git, name.into(), wasm.into()));
        self
    }

    /// Loads all plugins.
    ///
    /// # Errors
    /// The first [`LoadError`], if a plugin cannot be loaded.
    pub async fn build(self) -> Result<Plugins, LoadError> {
        let mut plugins = Plugins::default();
        for (kind, name, wasm) in self.wanted {
            let (engine, limits) = (&self.engine, &self.limits);
            let taken = match kind {
                Kind::Policy => {
                    let plugin = PolicyPlugin::load(engine, &name, &wasm, limits).await?;
                    plugins.policies.insert(name.clone(), plugin).is_some()
                }
                Kind::Llm => {
                    let plugin = LlmPlugin::load(engine, &name, &wasm, limits).await?;
                    plugins.llms.insert(name.clone(), plugin).is_some()
                }
                Kind::Tools => {
                    let plugin = ToolsPlugin::load(engine, &name, &wasm, limits).await?;
                    plugins.tools.insert(name.clone(), plugin).is_some()
                }
                Kind::Git => {
                    let plugin = GitPlugin::load(engine, &name, &wasm, limits).await?;
                    plugins.gits.insert(name.clone(), plugin).is_some()
                }
            };
            if taken {
                return Err(LoadError::SameName { plugin: name, kind });
            }
        }
        Ok(plugins)
    }
}

/// Admits a component on a thread that may be busy for a while.
async fn compile(
    engine: &Engine,
    kind: Kind,
    name: &str,
    wasm: &[u8],
) -> Result<admission::Admitted, LoadError> {
    let (engine, plugin, wasm) = (engine.clone(), name.to_owned(), wasm.to_vec());
    tokio::task::spawn_blocking(move || admission::admit(&engine, kind, &plugin, &wasm))
        .await
        .unwrap_or_else(|_| {
            Err(LoadError::Interrupted {
                plugin: name.to_owned(),
            })
        })
}

/// Validates a plugin's descriptor and sanitizes it for display.
fn described(
    plugin: &str,
    name: &str,
    version: &str,
    description: &mut String,
) -> Result<(), LoadError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let wrong = if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        "its name must be 1 to 64 lower-case letters, digits and hyphens".to_owned()
    } else if version.is_empty() || version.len() > 64 || version.chars().any(char::is_control) {
        "its version must be 1 to 64 characters".to_owned()
    } else {
        *description = sanitize::clean(description, 500);
        return Ok(());
    };
    Err(LoadError::Descriptor {
        plugin: plugin.to_owned(),
        detail: wrong,
    })
}
