//! The state that plugins of all kinds have.

use std::sync::Arc;

use wasmtime::component::Component;

use super::call_stats::CallStats;
use super::engine::Engine;
use super::extensions::Extensions;
use super::kind::Kind;
use super::limits::Limits;

/// The state common to admitted plugins of every kind.
#[derive(Debug)]
pub struct PluginCore {
    pub(super) engine: Engine,
    pub(super) kind: Kind,
    pub(super) name: Arc<str>,
    pub(super) digest: Arc<str>,
    pub(super) limits: Limits,
    pub(super) tally: CallStats,
    pub(super) component: Component,
    pub(super) about: About,
    pub(super) extensions: Extensions,
}

/// What the descriptors of all kinds say.
#[derive(Debug, Clone, Default)]
pub struct About {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) description: String,
    pub(super) settings_schema: Option<String>,
}
