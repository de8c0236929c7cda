//! The contents of a manifest after reading and validation.
//!
//! # Invariants
//!
//! - Nothing here changes.
//! - A reference within the manifest (a default, an assignment) points to something that exists.
//! - Every value that can turn out to be wrong later knows its position in the file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::mcp::McpEntry;
use super::overrides::Uploads;
use super::problem::At;
use super::registries::RegistryEntry;
use crate::builtin;
use crate::net::egress::Injection;
use crate::net::oci::{Brought, Reference, Registry};
use crate::types::wit::llm::Prices;
use crate::wasm::Limits;

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub at: At,
}

/// A deployment, as its manifest describes it. The default one is empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    /// Which file it was read from; none for the empty one.
    pub path: Option<PathBuf>,
    /// `[policies.NAME]`. None at all stand for the built-in ones.
    pub policies: BTreeMap<String, PluginEntry>,
    /// `[providers.NAME]`. None at all stand for the built-in ones.
    pub providers: BTreeMap<String, ProviderEntry>,
    /// `[tools.NAME]`.
    pub tools: BTreeMap<String, ToolsEntry>,
    /// `[mcp.NAME]`.
    pub mcp: BTreeMap<String, McpEntry>,
    /// `[git.NAME]`. None at all stand for the built-in ones.
    pub git: BTreeMap<String, GitEntry>,
    /// `policy` of `[defaults]`, which may be `auto`: the one that fits.
    pub default_policy: Option<Located<String>>,
    /// `provider` of `[defaults]`.
    pub default_provider: Option<Located<String>>,
    /// `[[assign]]`, in their order.
    pub assignments: Vec<Assignment>,
    /// `[registries.HOST]`.
    pub registries: BTreeMap<Registry, RegistryEntry>,
    /// What came of the components that it names in registries; nothing as it is read.
    pub brought: Brought,
    /// What was uploaded in place of components that it names; nothing as it is read.
    pub uploads: Uploads,
}

/// A component and what it is given.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginEntry {
    /// Where its table begins.
    pub at: At,
    /// `component`.
    pub component: Located<Source>,
    /// `digest`.
    pub digest: Option<Located<Digest>>,
    /// `settings`.
    pub settings: Settings,
    /// `limits`.
    pub limits: Bounds,
}

/// Where a component comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `builtin:NAME`, which is in this binary.
    Builtin(&'static str),
    /// A file, below the manifest's folder where its path is not absolute.
    File(PathBuf),
    /// `oci://…`: an artifact in a registry.
    Registry(Reference),
}

/// The SHA-256 of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// In lower-case hex.
    pub hex: String,
}

/// A plugin's settings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// What is set.
    pub values: serde_json::Map<String, serde_json::Value>,
    /// Where it begins.
    pub at: At,
    /// Where each value in it is, by JSON pointer.
    pub places: BTreeMap<String, At>,
}

/// What of the usual limits of a call is set to something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// `fuel`.
    pub fuel: Option<u64>,
    /// `memory`, in bytes.
    pub memory: Option<usize>,
    /// `output`, in bytes.
    pub output: Option<usize>,
    /// `time`.
    pub time: Option<Duration>,
}

impl Bounds {
    /// The limits of one call.
    pub fn limits(self) -> Limits {
        let usual = Limits::default();
        Limits {
            fuel: self.fuel.unwrap_or(usual.fuel),
            memory_bytes: self.memory.unwrap_or(usual.memory_bytes),
            output_bytes: self.output.unwrap_or(usual.output_bytes),
            wall: self.time.unwrap_or(usual.wall),
        }
    }
}

/// A model provider.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderEntry {
    /// Its adapter.
    pub plugin: PluginEntry,
    /// `base_url`, where it is not the adapter's own.
    pub base_url: Option<Located<Url>>,
    /// `key`, or the name that a provider's variable usually has.
    pub key: KeyVariable,
    /// `key_place`, where it is not the adapter's own.
    pub key_place: Option<Injection>,
    /// `models`: those that may be chosen, none for what the environment or the adapter says.
    pub models: Option<Vec<String>>,
    /// `model`: for a session that names none.
    pub model: Option<String>,
    /// `small_model`: a cheaper one, for summaries and the like.
    pub small_model: Option<String>,
    /// `prices`.
    pub prices: PriceOf,
    /// `silence`: how long its server may say nothing, before its answer and within it.
    pub silence: Option<Duration>,
}

/// A component with tools.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolsEntry {
    /// The component.
    pub plugin: PluginEntry,
    /// `base_url`, where its requests go; without one where the component says, and never with a key.
    pub base_url: Option<Located<Url>>,
    /// `key`: the variable that holds one. No other stands in for it.
    pub key: Option<Located<String>>,
    /// `key_place`, where it is not the component's own.
    pub key_place: Option<Injection>,
    /// `time`: what one call of a tool may take, all its commands and requests together.
    pub time: Option<Duration>,
    /// `policies`: those whose sessions have the tools; none for all of them.
    pub policies: Option<Vec<String>>,
}

/// A git provider.
#[derive(Debug, Clone, PartialEq)]
pub struct GitEntry {
    /// Its integration.
    pub plugin: PluginEntry,
    /// `base_url`: where its API is, where not where the integration says.
    pub base_url: Option<Located<Url>>,
    /// `web_url`: where its repositories are.
    pub web_url: Option<Located<Url>>,
}

/// The environment variable that holds a provider's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyVariable {
    /// Its name; empty where no key is needed.
    pub name: String,
    /// Where `key` names it. Without one the variable is the usual one, and `LLM_API_KEY` may stand in.
    pub stated: Option<At>,
    /// False for `key = false`: the server wants no key, and none is sent but a user's own.
    pub is_needed: bool,
}

/// What models cost, in millionths of a US dollar for a million tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PriceOf {
    /// By the model's name.
    pub by_model: BTreeMap<String, Prices>,
    /// `"*"`: of all models whose price nobody else says.
    pub others: Option<Prices>,
}

/// Who gets a policy when they name none.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// The policy.
    pub policy: Located<String>,
    /// Users by their ids, as their tokens have them (`sub`).
    pub users: Vec<String>,
    /// Projects by their ids, as requests name them.
    pub projects: Vec<String>,
}

impl Manifest {
    /// The names of the policies there are.
    pub fn policy_names(&self) -> Vec<&str> {
        if self.policies.is_empty() {
            return builtin::POLICIES.iter().map(|(name, _)| *name).collect();
        }
        self.policies.keys().map(String::as_str).collect()
    }

    /// The files that components are in.
    pub fn files(&self) -> Vec<PathBuf> {
        self.entries()
            .filter_map(|plugin| match &plugin.component.value {
                Source::Builtin(_) | Source::Registry(_) => None,
                Source::File(path) => Some(path.clone()),
            })
            .collect()
    }

    /// All components that it names, with what each is given.
    pub(super) fn entries(&self) -> impl Iterator<Item = &PluginEntry> {
        let providers = self.providers.values().map(|provider| &provider.plugin);
        let tools = self.tools.values().map(|tools| &tools.plugin);
        let git = self.git.values().map(|git| &git.plugin);
        let all = self.policies.values().chain(providers);
        all.chain(tools).chain(git)
    }

    /// The names of the git providers there are.
    pub fn git_names(&self) -> Vec<&str> {
        if self.git.is_empty() {
            return builtin::GIT.iter().map(|(name, _)| *name).collect();
        }
        self.git.keys().map(String::as_str).collect()
    }

    /// The names of the providers there are.
    pub fn provider_names(&self) -> Vec<&str> {
        if self.providers.is_empty() {
            return builtin::PROVIDERS.iter().map(|(name, _)| *name).collect();
        }
        self.providers.keys().map(String::as_str).collect()
    }

    /// The policy that a user, or else a project, is given: that of the first entry which names either.
    pub fn assigned(&self, user: &str, project: Option<&str>) -> Option<&str> {
        let given = self.assignments.iter().find(|one| {
            let of_project = |project: &str| one.projects.iter().any(|named| named == project);
            one.users.iter().any(|named| named == user) || project.is_some_and(of_project)
        });
        given.map(|one| one.policy.value.as_str())
    }
}

impl PluginEntry {
    /// A built-in plugin as it is without a manifest.
    pub(crate) fn builtin(name: &'static str) -> Self {
        Self::plain(Source::Builtin(name))
    }

    /// A component with nothing set.
    pub(super) fn plain(value: Source) -> Self {
        let at = At::default();
        Self {
            at,
            component: Located { value, at },
            digest: None,
            settings: Settings::default(),
            limits: Bounds::default(),
        }
    }
}
