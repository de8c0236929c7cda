//! The set of plugins that are loaded, by kind and name.
//!
//! # Invariants
//! - A set never changes; a new generation of the deployment has a set of its own.

use std::collections::BTreeMap;

use super::admission::LoadError;
use super::any_plugin::AnyPlugin;
use super::engine::Engine;
use super::git::GitPlugin;
use super::kind::PluginKind;
use super::limits::PluginLimits;
use super::llm::LlmPlugin;
use super::plugin::Plugin;
use super::policy::PolicyPlugin;
use super::tools::ToolsPlugin;
use lucid_types::digest::Digest;

/// The loaded plugins, by kind and name. Immutable once built.
#[derive(Debug, Clone, Default)]
pub struct Plugins {
    policies: BTreeMap<String, PolicyPlugin>,
    llms: BTreeMap<String, LlmPlugin>,
    tools: BTreeMap<String, ToolsPlugin>,
    /// Second builds of policies.
    second_builds: BTreeMap<String, PolicyPlugin>,
    gits: BTreeMap<String, GitPlugin>,
}

/// Information about a loaded plugin.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginInfo {
    /// Its kind.
    pub kind: PluginKind,
    /// The name it was loaded under.
    pub name: String,
    /// The version in its own descriptor.
    pub version: String,
    /// The component's digest.
    pub digest: Digest,
}

impl Plugins {
    /// Starts building a set.
    pub fn builder(engine: Engine) -> PluginsBuilder {
        PluginsBuilder {
            engine,
            limits: PluginLimits::default(),
            requested: Vec::new(),
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
        Self {
            policies: by_name(policies),
            llms: by_name(llms),
            tools: by_name(tools),
            second_builds: BTreeMap::new(),
            gits: by_name(gits),
        }
    }

    /// Sets the second builds of some of its policies.
    #[must_use]
    pub fn with_second_builds(
        mut self,
        second_builds: impl IntoIterator<Item = PolicyPlugin>,
    ) -> Self {
        self.second_builds = by_name(second_builds);
        self
    }

    /// The second build of a policy.
    pub fn second_build(&self, name: &str) -> Option<&PolicyPlugin> {
        self.second_builds.get(name)
    }

    /// All builds of a policy.
    pub fn builds(&self, name: &str) -> impl Iterator<Item = &PolicyPlugin> {
        self.policy(name).into_iter().chain(self.second_build(name))
    }

    /// Whether both sets have the same components under the same names.
    pub fn is_same(&self, other: &Self) -> bool {
        let second_builds = |plugins: &Self| -> Vec<(String, Digest)> {
            let all = plugins.second_builds.iter();
            all.map(|(name, plugin)| (name.clone(), plugin.digest()))
                .collect()
        };
        self.list() == other.list() && second_builds(self) == second_builds(other)
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
        let policies = self.policies.values().map(info);
        let llms = self.llms.values().map(info);
        let tools = self.tools.values().map(info);
        let gits = self.gits.values().map(info);
        policies.chain(llms).chain(tools).chain(gits).collect()
    }
}

fn by_name<P: Plugin>(plugins: impl IntoIterator<Item = P>) -> BTreeMap<String, P> {
    let named = plugins.into_iter();
    named
        .map(|plugin| (plugin.name().to_owned(), plugin))
        .collect()
}

fn info(plugin: &impl Plugin) -> PluginInfo {
    PluginInfo {
        kind: plugin.kind(),
        name: plugin.name().to_owned(),
        version: plugin.version().to_owned(),
        digest: plugin.digest(),
    }
}

/// Builds a set of plugins.
#[derive(Debug)]
pub struct PluginsBuilder {
    engine: Engine,
    limits: PluginLimits,
    requested: Vec<(PluginKind, String, Vec<u8>)>,
}

impl PluginsBuilder {
    /// Sets the limits of one call, for every plugin.
    #[must_use]
    pub fn limits(mut self, limits: PluginLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds a policy.
    #[must_use]
    pub fn policy(mut self, name: impl Into<String>, wasm: impl Into<Vec<u8>>) -> Self {
        self.requested
            .push((PluginKind::Policy, name.into(), wasm.into()));
        self
    }

    /// Adds a model adapter.
    #[must_use]
    pub fn llm(mut self, name: impl Into<String>, wasm: impl Into<Vec<u8>>) -> Self {
        self.requested
            .push((PluginKind::Llm, name.into(), wasm.into()));
        self
    }

    /// Adds a component with tools.
    #[must_use]
    pub fn tools(mut self, name: impl Into<String>, wasm: impl Into<Vec<u8>>) -> Self {
        self.requested
            .push((PluginKind::Tools, name.into(), wasm.into()));
        self
    }

    /// Adds a git provider's integration.
    #[must_use]
    pub fn git(mut self, name: impl Into<String>, wasm: impl Into<Vec<u8>>) -> Self {
        self.requested
            .push((PluginKind::Git, name.into(), wasm.into()));
        self
    }

    /// Loads all plugins.
    ///
    /// # Errors
    /// The first [`LoadError`], if a plugin cannot be loaded.
    pub async fn build(self) -> Result<Plugins, LoadError> {
        let mut plugins = Plugins::default();
        for (kind, name, wasm) in self.requested {
            let (engine, limits) = (&self.engine, &self.limits);
            let loaded = AnyPlugin::load_as(engine, kind, &name, &wasm, limits).await?;
            let key = name.clone();
            let taken = match loaded {
                AnyPlugin::Policy(plugin) => plugins.policies.insert(key, plugin).is_some(),
                AnyPlugin::Llm(plugin) => plugins.llms.insert(key, plugin).is_some(),
                AnyPlugin::Tools(plugin) => plugins.tools.insert(key, plugin).is_some(),
                AnyPlugin::Git(plugin) => plugins.gits.insert(key, plugin).is_some(),
            };
            if taken {
                return Err(LoadError::SameName { plugin: name, kind });
            }
        }
        Ok(plugins)
    }
}
