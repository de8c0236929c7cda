//! The state that plugins of all kinds have.

use std::sync::Arc;

use wasmtime::component::Component;

use super::call_stats::CallStats;
use super::engine::Engine;
use super::extensions::Extensions;
use super::kind::PluginKind;
use super::limits::PluginLimits;
use lucid_types::digest::Digest;

/// The state common to admitted plugins of every kind.
#[derive(Debug)]
pub struct PluginCore {
    pub(super) engine: Engine,
    pub(super) kind: PluginKind,
    pub(super) name: Arc<str>,
    pub(super) digest: Digest,
    pub(super) limits: PluginLimits,
    pub(super) stats: CallStats,
    pub(super) component: Component,
    pub(super) about: PluginMetadata,
    pub(super) extensions: Extensions,
}

/// What the descriptors of all kinds say.
#[derive(Debug, Clone, Default)]
pub struct PluginMetadata {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) description: String,
    pub(super) settings_schema: Option<String>,
}
