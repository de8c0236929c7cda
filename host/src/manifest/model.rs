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
use super::overrides::UploadOverrides;
use super::problem::SourcePosition;
use super::registries::RegistryEntry;
use crate::builtin;
use lucid_net::egress::KeyInjection;
use lucid_net::oci::{FetchResults, Reference, RegistryHost};
use lucid_types::digest::Digest;
use lucid_types::user::UserId;
use lucid_types::wit::llm::Prices;
use lucid_wasm::PluginLimits;

/// A value and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its position.
    pub at: SourcePosition,
}

/// A deployment, as described by its manifest. The default one is empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    /// The file it was read from. `None` for the empty one.
    pub path: Option<PathBuf>,
    /// `[policies.NAME]`. If empty, the built-in ones.
    pub policies: BTreeMap<String, PluginEntry>,
    /// `[providers.NAME]`. If empty, the built-in ones.
    pub providers: BTreeMap<String, ProviderEntry>,
    /// `[tools.NAME]`.
    pub tools: BTreeMap<String, ToolsEntry>,
    /// `[mcp.NAME]`.
    pub mcp: BTreeMap<String, McpEntry>,
    /// `[git.NAME]`. If empty, the built-in ones.
    pub git: BTreeMap<String, GitEntry>,
    /// `policy` of `[defaults]`, which may be `auto`: the one that fits.
    pub default_policy: Option<Located<String>>,
    /// `provider` of `[defaults]`.
    pub default_provider: Option<Located<String>>,
    /// `[[assign]]`, in order.
    pub assignments: Vec<PolicyAssignment>,
    /// `[registries.HOST]`.
    pub registries: BTreeMap<RegistryHost, RegistryEntry>,
    /// The components fetched from registries, and the failures. Empty after reading.
    pub fetched: FetchResults,
    /// The uploads that replace components. Empty after reading.
    pub uploads: UploadOverrides,
}

/// A component and what it is given.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginEntry {
    /// The position of its table.
    pub at: SourcePosition,
    /// `component`.
    pub component: Located<ComponentSource>,
    /// `digest`.
    pub digest: Option<Located<Digest>>,
    /// `settings`.
    pub settings: PluginSettings,
    /// `limits`.
    pub limits: LimitOverrides,
}

/// The origin of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ComponentSource {
    /// `builtin:NAME`, embedded in this binary.
    Builtin(&'static str),
    /// A file. A relative path is resolved against the manifest's folder.
    File(PathBuf),
    /// `oci://…`: an artifact in a registry.
    Registry(Reference),
}

/// A plugin's settings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PluginSettings {
    /// The configured values.
    pub values: serde_json::Map<String, serde_json::Value>,
    /// The position of the table.
    pub at: SourcePosition,
    /// The position of each value in it, by JSON pointer.
    pub places: BTreeMap<String, SourcePosition>,
}

/// The configured limits of a call, in place of the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitOverrides {
    /// `fuel`.
    pub fuel: Option<u64>,
    /// `memory`, in bytes.
    pub memory: Option<usize>,
    /// `output`, in bytes.
    pub output: Option<usize>,
    /// `time`.
    pub time: Option<Duration>,
}

impl LimitOverrides {
    /// The resulting limits of one call.
    pub fn limits(self) -> PluginLimits {
        let usual = PluginLimits::default();
        PluginLimits {
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
    /// `base_url`, if it is not the adapter's own.
    pub base_url: Option<Located<Url>>,
    /// `key`, or the default variable of the provider.
    pub key: KeyVariable,
    /// `key_place`, if it is not the adapter's own.
    pub key_place: Option<KeyInjection>,
    /// `models`: the models that may be chosen. `None` leaves this to the environment or the
    /// adapter.
    pub models: Option<Vec<String>>,
    /// `model`: the model for a session that names none.
    pub model: Option<String>,
    /// `small_model`: a cheaper model, for summaries and the like.
    pub small_model: Option<String>,
    /// `prices`.
    pub prices: ModelPrices,
    /// `silence`: how long its server may send nothing, before its response and during it.
    pub silence: Option<Duration>,
}

/// A tool component.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolsEntry {
    /// The component.
    pub plugin: PluginEntry,
    /// `base_url`, the server its requests go to. Without one the component decides, and is given
    /// no key.
    pub base_url: Option<Located<Url>>,
    /// `key`: the variable that holds one. There is no fallback.
    pub key: Option<Located<String>>,
    /// `key_place`, if it is not the component's own.
    pub key_place: Option<KeyInjection>,
    /// `time`: the time limit of one tool call, all its commands and requests together.
    pub time: Option<Duration>,
    /// `policies`: the policies whose sessions have the tools. `None` for all.
    pub policies: Option<Vec<String>>,
}

/// A git provider.
#[derive(Debug, Clone, PartialEq)]
pub struct GitEntry {
    /// Its plugin.
    pub plugin: PluginEntry,
    /// `base_url`: the address of its API, if not the plugin's own.
    pub base_url: Option<Located<Url>>,
    /// `web_url`: the address of its repositories.
    pub web_url: Option<Located<Url>>,
}

/// The environment variable that holds a provider's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyVariable {
    /// Its name. Empty if no key is needed.
    pub name: String,
    /// The position of `key`. `None` for the default variable, with `LLM_API_KEY` as a fallback.
    pub stated: Option<SourcePosition>,
    /// False for `key = false`: the server needs no key, and none is sent except a user's own.
    pub is_needed: bool,
}

/// Model prices, in millionths of a US dollar per million tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelPrices {
    /// Prices by model name.
    pub by_model: BTreeMap<String, Prices>,
    /// `"*"`: the price of all models without one from elsewhere.
    pub others: Option<Prices>,
}

/// A policy for users and projects that name none.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyAssignment {
    /// The policy.
    pub policy: Located<String>,
    /// Users by their ids, as in their tokens (`sub`).
    pub users: Vec<String>,
    /// Projects by their ids, as in requests.
    pub projects: Vec<String>,
}

impl Manifest {
    /// The names of the policies.
    pub fn policy_names(&self) -> Vec<&str> {
        if self.policies.is_empty() {
            return builtin::POLICIES.iter().map(|(name, _)| *name).collect();
        }
        self.policies.keys().map(String::as_str).collect()
    }

    /// The files of components.
    pub fn files(&self) -> Vec<PathBuf> {
        self.entries()
            .filter_map(|plugin| match &plugin.component.value {
                ComponentSource::Builtin(_) | ComponentSource::Registry(_) => None,
                ComponentSource::File(path) => Some(path.clone()),
            })
            .collect()
    }

    /// All components, with what each is given.
    pub(super) fn entries(&self) -> impl Iterator<Item = &PluginEntry> {
        let providers = self.providers.values().map(|provider| &provider.plugin);
        let tools = self.tools.values().map(|tools| &tools.plugin);
        let git = self.git.values().map(|git| &git.plugin);
        let all = self.policies.values().chain(providers);
        all.chain(tools).chain(git)
    }

    /// The names of the git providers.
    pub fn git_names(&self) -> Vec<&str> {
        if self.git.is_empty() {
            return builtin::GIT.iter().map(|(name, _)| *name).collect();
        }
        self.git.keys().map(String::as_str).collect()
    }

    /// The names of the model providers.
    pub fn provider_names(&self) -> Vec<&str> {
        if self.providers.is_empty() {
            return builtin::PROVIDERS.iter().map(|(name, _)| *name).collect();
        }
        self.providers.keys().map(String::as_str).collect()
    }

    /// The policy assigned to a user, or else to a project: that of the first entry which names
    /// either.
    pub fn assigned(&self, user: &UserId, project: Option<&str>) -> Option<&str> {
        let given = self.assignments.iter().find(|one| {
            let of_project = |project: &str| one.projects.iter().any(|named| named == project);
            one.users.iter().any(|named| named == user.as_str()) || project.is_some_and(of_project)
        });
        given.map(|one| one.policy.value.as_str())
    }
}

impl PluginEntry {
    /// A built-in plugin as it is without a manifest.
    pub(crate) fn builtin(name: &'static str) -> Self {
        Self::plain(ComponentSource::Builtin(name))
    }

    /// A component with nothing configured.
    pub(super) fn plain(value: ComponentSource) -> Self {
        let at = SourcePosition::default();
        Self {
            at,
            component: Located { value, at },
            digest: None,
            settings: PluginSettings::default(),
            limits: LimitOverrides::default(),
        }
    }
}
