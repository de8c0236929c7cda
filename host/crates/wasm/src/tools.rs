//! A component with tools, which a team gives its agents, as a plain async type.
//!
//! # Invariants
//! - Each function call runs in a store of its own, so a step knows its arguments and nothing else.
//! - A list of tools that is returned was validated and is one that models accept.

use wasmtime::Store;

use super::admission::{DescriptorError, LoadError};
use super::core::{PluginCore, PluginMetadata};
use super::exports::{ComponentExports, InstanceExports};
use super::host_state::HostState;
use super::instance::fresh;
use super::kind::PluginKind;
use super::limits::{CallError, CallOutcome};
use super::plugin::{Plugin, TypedPlugin, World, about};
use super::tool_schema;
use lucid_types::unicode::paired_text;
use lucid_types::wit::tools::{Descriptor, Progress, Turn};
use lucid_types::wit::types::{Error, ErrorKind, ToolCall, ToolDefinition};

/// An admitted component with tools. A clone is the same one.
pub type ToolsPlugin = TypedPlugin<ToolsWorld>;

type StepParams<'a> = (&'a str, &'a ToolCall, Option<&'a Progress>);

/// The world of components with tools.
#[derive(Debug)]
pub enum ToolsWorld {}

impl World for ToolsWorld {
    const KIND: PluginKind = PluginKind::Tools;
    type Descriptor = Descriptor;
    type Known = ();

    fn check_types(
        plugin: &InstanceExports<'_>,
        store: &mut Store<HostState>,
    ) -> wasmtime::Result<()> {
        plugin.function::<(&str,), Result<Vec<ToolDefinition>, Error>>(store, "definitions")?;
        plugin.function::<StepParams<'_>, Result<Turn, Error>>(store, "step")?;
        Ok(())
    }

    fn about(descriptor: &mut Descriptor) -> PluginMetadata {
        about!(descriptor)
    }

    fn check(_: &mut Descriptor) -> Result<(), DescriptorError> {
        Ok(())
    }

    async fn known(_: &PluginCore, _: &ComponentExports) -> Result<(), LoadError> {
        Ok(())
    }
}

impl ToolsPlugin {
    /// The tools available with these settings, by their own names. A list that no model would
    /// accept is the plugin's error.
    pub async fn definitions(&self, settings: &str) -> CallOutcome<Vec<ToolDefinition>> {
        let settings = settings.to_owned();
        let called = fresh!(self, "definitions", |plugin, store| {
            plugin
                .call(store, "definitions", (settings.as_str(),))
                .await
        });
        let CallOutcome {
            result,
            usage: figures,
        } = called;
        let checked = |mut tools: Vec<ToolDefinition>| {
            for ToolDefinition { input_schema, .. } in &mut tools {
                *input_schema = paired_text(input_schema).into_owned();
            }
            tool_schema::check(&tools).map(|()| tools).map_err(|why| {
                let error = Error::new(ErrorKind::Unsupported, why.to_string())
                    .with_code("tool-definition");
                let at = self.core().call_site("definitions");
                CallError::Plugin { at, error }
            })
        };
        CallOutcome {
            result: result.and_then(checked),
            usage: figures,
        }
    }

    /// Runs one step of a call, which says what the host is to do next. The first has no progress.
    pub async fn step(
        &self,
        settings: &str,
        call: &ToolCall,
        progress: Option<&Progress>,
    ) -> CallOutcome<Turn> {
        let settings = settings.to_owned();
        fresh!(self, "step", |plugin, store| {
            plugin
                .call(store, "step", (settings.as_str(), call, progress))
                .await
        })
    }
}
