//! An immutable snapshot of a deployment: its plugins, policies, providers and tools.
//!
//! # Invariants
//!
//! - It is built whole or not at all, and building it changes nothing that runs, so it can be built
//!   again at any time from the manifest of that moment.

use std::sync::Arc;

use super::load::load;
use super::rollout::policies::PolicyRegistry;
use super::rollout::probation::Probations;
use crate::config::Config;
use crate::git_providers::GitProviders;
use crate::manifest::{
    LoadedGit, LoadedPlugins, Manifest, ManifestProblem, ManifestProblems, SourcePosition,
};
use crate::models::{ProviderCheckError, ProviderReadiness, Providers};
use crate::toolsets::component::ToolComponents;
use crate::toolsets::{Toolsets, mcp};
use lucid_session::Policies;
use lucid_store::blobs::Blobs;
use lucid_wasm::{Engine, PluginKind, Plugins};

/// A deployment, ready for sessions.
pub(crate) struct DeploymentSnapshot {
    /// The manifest it was built from.
    pub(crate) manifest: Arc<Manifest>,
    /// All components.
    pub(crate) plugins: Plugins,
    pub(crate) policies: Arc<PolicyRegistry>,
    pub(crate) providers: Arc<Providers>,
    /// The git providers.
    pub(crate) git: Arc<GitProviders>,
    pub(super) toolsets: Arc<Toolsets>,
    pub(crate) components: Arc<ToolComponents>,
    /// Warnings for the operator, such as unused variables and missing keys. A sentence each.
    pub(crate) warnings: Vec<String>,
}

impl DeploymentSnapshot {
    /// Loads everything that the manifest and the environment configure, or reports every problem.
    /// `blobs` has the files of conversations. What is unchanged since `before` is reused. If
    /// `only` names one plugin, no other is looked at. `probations` counts how builds perform.
    pub(crate) async fn new(
        manifest: Arc<Manifest>,
        config: &Config,
        engine: &Engine,
        blobs: Blobs,
        before: Option<&Self>,
        only: Option<(PluginKind, &str)>,
        probations: &Probations,
    ) -> Result<Self, ManifestProblems> {
        let none = Plugins::default();
        let known = before.map_or(&none, |before| &before.plugins);
        let loaded = load(&manifest, engine, known, only).await?;
        let LoadedPlugins {
            policies,
            providers,
            tools,
            git,
        } = loaded;
        let plugins = Plugins::of(
            policies.iter().map(|one| one.plugin.clone()),
            providers.iter().map(|one| one.plugin.clone()),
            tools.iter().map(|one| one.plugin.clone()),
            git.iter().map(|one| one.plugin.clone()),
        );
        let seconds = policies.iter().filter_map(|one| one.second.as_ref());
        let plugins = plugins.with_second_builds(seconds.map(|one| one.plugin.clone()));
        let git_before = before.map(|before| &*before.git);
        let git = git_providers(git, &manifest, config, git_before)?;
        let providers_before = before.map(|before| &*before.providers);
        let made = Providers::new(providers, &manifest, config, blobs, providers_before)?;
        let (providers, mut warnings) = made;
        let tools_before = before.map(|before| &*before.components);
        let (components, of_tools) = ToolComponents::new(tools, &manifest, config, tools_before)?;
        warnings.extend(of_tools);
        warnings.extend(manifest.idle_uploads());
        let (servers, of_servers) = mcp::sources(&manifest, config)?;
        warnings.extend(of_servers);
        let sources = components.sources().into_iter().chain(servers).collect();
        warnings.extend(manifest.fetched.warnings.iter().cloned());
        warnings.extend(policies.iter().filter_map(|one| one.warning.clone()));
        let usable = providers.has_usable();
        let policies = PolicyRegistry::new(policies, &manifest, config, usable, probations)?;
        Ok(Self {
            manifest,
            plugins,
            policies: Arc::new(policies),
            providers: Arc::new(providers),
            git: Arc::new(git),
            toolsets: Arc::new(Toolsets::new(sources)),
            components: Arc::new(components),
            warnings,
        })
    }

    /// Whether both are made of the same parts, and so behave the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.manifest == other.manifest && self.plugins.is_same(&other.plugins)
    }

    /// Takes over the other's tools if they are the same, so that sessions keep what they have
    /// open.
    pub(super) fn with_tools_of(mut self, other: &Self) -> Self {
        if self.toolsets.is_same(&other.toolsets) {
            self.toolsets = other.toolsets.clone();
        }
        self
    }

    /// The status of each model provider, the default first.
    pub(crate) fn providers(&self) -> Vec<ProviderReadiness> {
        self.providers.readiness()
    }

    /// Whether the policy of a session that names none calls models.
    pub(crate) fn default_calls_models(&self) -> bool {
        let default = self.policies.find(Some(self.policies.default()));
        default.is_ok_and(|policy| policy.info().calls_models)
    }

    /// The policy of a session that names none, and the model it would call. Empty if there is
    /// none.
    pub(crate) fn defaults(&self) -> (&str, String) {
        (self.policies.default(), self.providers.default_model())
    }

    /// Checks that the default provider responds. The error says why not.
    pub(crate) async fn check_default_provider(&self) -> Result<(), ProviderCheckError> {
        self.providers.check_default().await
    }

    /// The defaults of a session in words, and whether it can call a model.
    pub(crate) fn describe_defaults(&self) -> (String, bool) {
        let policy = self.policies.default();
        let gets = format!("a session that names none gets the policy {policy}");
        match self.providers.usable_default() {
            Ok((provider, model)) => (
                format!("{gets}, and the model {model} of {provider} where the policy asks one"),
                true,
            ),
            Err(why) => (
                format!("{gets}; without a key of its own it can ask no model, since {why}"),
                false,
            ),
        }
    }
}

/// A problem of one of them is reported at its position in the manifest.
fn git_providers(
    loaded: Vec<LoadedGit>,
    manifest: &Manifest,
    config: &Config,
    before: Option<&GitProviders>,
) -> Result<GitProviders, ManifestProblems> {
    let made = GitProviders::new(loaded, config.allow_private_repositories, before);
    let wrong = match made {
        Ok(git) => return Ok(git),
        Err(wrong) => wrong,
    };
    let problem = |(name, why): (String, String)| {
        let at = manifest.git.get(&name);
        let at = at.map_or(SourcePosition::default(), |entry| entry.plugin.at);
        let what = format!("the git provider `{name}` cannot be used: {why}");
        ManifestProblem::at(manifest.path.as_deref(), at, what)
    };
    ManifestProblems::unless_none(wrong.into_iter().map(problem).collect())?;
    Err(ManifestProblem::plain("no git provider can be asked").into())
}
