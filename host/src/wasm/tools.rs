//! A component with tools, which a team gives its agents, as a plain async type.
//!
//! # Invariants
//! - Each function call runs in a store of its own, so a step knows its arguments and nothing else.
//! - A list of tools that is returned was validated and is one that models accept.

use std::sync::Arc;

use super::admission::{Kind, LoadError, other_types};
use super::engine::{Engine, PoolClass};
use super::host_state::Guest;
use super::instance::{PluginCore, boxed, call, front, not_begun};
use super::limits::{CallError, Called, Limits};
use super::tool_schema;
use super::{compile, described};
use lucid_types::unicode::paired_text;
use lucid_types::wit::tools::{Descriptor, Progress, Turn};
use lucid_types::wit::tools_world::ToolsPluginPre;
use lucid_types::wit::types::{Error, ErrorKind, ToolCall, ToolDefinition};

/// An admitted component with tools. A clone is the same one.
#[derive(Clone)]
pub struct ToolsPlugin(Arc<Inner>);

struct Inner {
    loaded: PluginCore,
    pre: ToolsPluginPre<Guest>,
    descriptor: Descriptor,
}

front!(ToolsPlugin);

impl ToolsPlugin {
    /// Compiles a component, checks it, and calls for its descriptor.
    pub async fn load(
        engine: &Engine,
        name: &str,
        wasm: &[u8],
        limits: &Limits,
    ) -> Result<Self, LoadError> {
        let admitted = compile(engine, Kind::Tools, name, wasm).await?;
        let pre = ToolsPluginPre::new(admitted.pre)
            .map_err(|error| other_types(name, Kind::Tools, &error))?;
        let loaded = PluginCore::new(engine, name, admitted.digest, limits);
        let mut descriptor = describe(&loaded, &pre).await?;
        described(
            name,
            &descriptor.name,
            &descriptor.version,
            &mut descriptor.description,
        )?;
        Ok(Self(Arc::new(Inner {
            loaded,
            pre,
            descriptor,
        })))
    }

    /// The tools available with these settings, by their own names. A list that no model would
    /// accept is the plugin's error.
    pub async fn definitions(&self, settings: &str) -> Called<Vec<ToolDefinition>> {
        let Inner { loaded, pre, .. } = &*self.0;
        let settings = settings.to_owned();
        let called = boxed(async move {
            let mut live = match loaded.open(PoolClass::Call, "definitions").await {
                Ok(live) => live,
                Err(error) => return not_begun(error),
            };
            call!(loaded, live, "definitions", {
                let plugin = pre.instantiate_async(&mut live.store).await?;
                let tools = plugin.lucid_tools_tools();
                tools.call_definitions(&mut live.store, &settings).await
            })
        })
        .await;
        let Called { result, figures } = called;
        let checked = |mut tools: Vec<ToolDefinition>| {
            for ToolDefinition { input_schema, .. } in &mut tools {
                *input_schema = paired_text(input_schema).into_owned();
            }
            tool_schema::check(&tools).map(|()| tools).map_err(|why| {
                let error = Error {
                    kind: ErrorKind::Unsupported,
                    code: Some("tool-definition".to_owned()),
                    message: why,
                    retry_after_ms: None,
                };
                let at = loaded.place("definitions");
                CallError::Plugin { at, error }
            })
        };
        Called {
            result: result.and_then(checked),
            figures,
        }
    }

    /// Runs one step of a call, which says what the host is to do next. The first has no progress.
    pub async fn step(
        &self,
        settings: &str,
        call: &ToolCall,
        progress: Option<&Progress>,
    ) -> Called<Turn> {
        let Inner { loaded, pre, .. } = &*self.0;
        let settings = settings.to_owned();
        boxed(async move {
            let mut live = match loaded.open(PoolClass::Call, "step").await {
                Ok(live) => live,
                Err(error) => return not_begun(error),
            };
            call!(loaded, live, "step", {
                let plugin = pre.instantiate_async(&mut live.store).await?;
                let tools = plugin.lucid_tools_tools();
                let stepped = tools.call_step(&mut live.store, &settings, call, progress);
                stepped.await
            })
        })
        .await
    }
}

async fn describe(
    loaded: &PluginCore,
    pre: &ToolsPluginPre<Guest>,
) -> Result<Descriptor, LoadError> {
    boxed(async move {
        let mut live = loaded.open(PoolClass::Call, "describe").await?;
        let called = call!(loaded, live, "describe", {
            let plugin = pre.instantiate_async(&mut live.store).await?;
            let tools = plugin.lucid_tools_tools();
            tools.call_describe(&mut live.store).await.map(Ok)
        });
        Ok(called.result?)
    })
    .await
}
