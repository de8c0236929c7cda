//! The plugins of a manifest once they are loaded, each with what it is given.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use url::Url;

use super::model::{ProviderEntry, ToolsEntry};
use super::overrides::SecondBuildRole;
use lucid_types::wit::llm::ModelInfo;
use lucid_types::wit::types::ToolDefinition;
use lucid_wasm::{GitPlugin, LlmPlugin, PolicyPlugin, ToolsPlugin};

/// The loaded plugins of a manifest, by name.
#[derive(Debug)]
pub struct LoadedPlugins {
    /// The policies.
    pub policies: Vec<LoadedPolicy>,
    /// The model providers.
    pub providers: Vec<LoadedProvider>,
    /// The components with tools.
    pub tools: Vec<LoadedTools>,
    /// The git providers.
    pub git: Vec<LoadedGit>,
}

/// A policy, and what it is given.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// The component.
    pub plugin: PolicyPlugin,
    /// Its settings, validated if it has a schema.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// The built-in component it is, if it is one.
    pub builtin: Option<&'static str>,
    /// A second build of it.
    pub second: Option<LoadedSecondBuild>,
    /// A warning for the operator. A sentence.
    pub warning: Option<String>,
}

/// A second build of a policy, which is given the same.
#[derive(Debug)]
pub struct LoadedSecondBuild {
    /// The component.
    pub plugin: PolicyPlugin,
    /// Its purpose.
    pub role: SecondBuildRole,
    /// The start of its probation, if it is on probation.
    pub probation: Option<DateTime<Utc>>,
    /// The built-in component it is, if it is one.
    pub builtin: Option<&'static str>,
}

/// A provider adapter, and what it is given.
#[derive(Debug)]
pub struct LoadedProvider {
    /// The component.
    pub plugin: LlmPlugin,
    /// Its settings as JSON, validated if it has a schema.
    pub settings: String,
    /// The models it knows with these settings.
    pub models: Vec<ModelInfo>,
    /// Its manifest entry. `None` without one.
    pub entry: Option<Arc<ProviderEntry>>,
    /// Whether it is built in, so that its address can be trusted.
    pub builtin: bool,
}

/// A tool component, and what it is given.
#[derive(Debug)]
pub struct LoadedTools {
    /// The component.
    pub plugin: ToolsPlugin,
    /// Its settings as JSON, validated if it has a schema.
    pub settings: String,
    /// Its tools with these settings, by their own names.
    pub definitions: Vec<ToolDefinition>,
    /// Its manifest entry.
    pub entry: ToolsEntry,
}

/// A git provider plugin, and what it is given.
#[derive(Debug)]
pub struct LoadedGit {
    /// The component.
    pub plugin: GitPlugin,
    /// Its settings as JSON, validated if it has a schema.
    pub settings: String,
    /// The address of its API, if the manifest names one.
    pub base_url: Option<Url>,
    /// The address of its repositories, if the manifest names one.
    pub web_url: Option<Url>,
    /// Whether it is built in, so that its addresses can be trusted.
    pub builtin: bool,
}
