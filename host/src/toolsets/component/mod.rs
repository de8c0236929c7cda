//! The tool components of a deployment: where each sends its requests, with which key, which
//! sessions have its tools, and how a call is carried out in a session.
//!
//! # Invariants
//!
//! - A key is the one that the manifest names for that very entry, and goes to the base URL beside
//!   it.
//! - An address that a component supplies itself must be on the public network.

pub mod call;
mod host;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use url::Url;

use self::call::call_tool;
use self::host::SessionToolHost;
use super::{OpenToolSource, ToolSource, ToolSourceError};
use crate::config::{Config, ConfigError};
use crate::manifest::{LoadedTools, Manifest, ManifestProblem, ManifestProblems};
use lucid_net::egress::{Egress, EgressError, EgressLimits, Endpoint, KeyInjection};
use lucid_session::{
    Environment, EventDraft, SEPARATOR, ToolOutput, ToolResultWithEvent, ToolsSpec,
};
use lucid_types::secret::Secret;
use lucid_types::wit::types::{Error, ToolCall, ToolDefinition, ToolResult};
use lucid_wasm::{Plugin, ToolsPlugin};

/// The default time limit of a call.
const CALL_TIME: Duration = Duration::from_secs(120);
/// The maximum size of a response passed to a component, in bytes.
const LARGEST_ANSWER: u64 = 4 << 20;

/// The tool components of this deployment.
pub(crate) struct ToolComponents {
    /// Ordered by name.
    all: Vec<Arc<ToolComponent>>,
    egress: Egress,
}

/// A tool component and what it is given.
pub(crate) struct ToolComponent {
    pub(super) plugin: ToolsPlugin,
    /// Its settings, as JSON.
    settings: String,
    /// Its tools, by their own names.
    definitions: Vec<ToolDefinition>,
    /// The endpoint of its requests. `None` if it can make none.
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) key: Option<Secret>,
    /// The variable that the key is from, or is missing from.
    pub(crate) variable: Option<String>,
    pub(crate) time: Duration,
    /// The policies whose sessions have the tools. `None` for all.
    pub(crate) policies: Option<Vec<String>>,
    /// Shared by all components.
    egress: Egress,
}

impl ToolComponents {
    /// The loaded components, and warnings for the operator. Connections of those `before` are
    /// reused where possible.
    pub(crate) fn new(
        loaded: Vec<LoadedTools>,
        manifest: &Manifest,
        config: &Config,
        before: Option<&Self>,
    ) -> Result<(Self, Vec<String>), ManifestProblems> {
        let (mut wrong, mut warnings) = (Vec::new(), Vec::new());
        let mut named_endpoints = Vec::new();
        for tools in loaded {
            match site(&tools, config) {
                Ok(endpoint) => named_endpoints.push((tools, endpoint)),
                Err(why) => {
                    let at = tools.entry.plugin.at;
                    wrong.push(ManifestProblem::at(
                        manifest.path.as_deref(),
                        at,
                        why.to_string(),
                    ));
                }
            }
        }
        ManifestProblems::unless_none(wrong)?;
        let limits = EgressLimits {
            response: LARGEST_ANSWER,
            ..EgressLimits::default()
        };
        let endpoints = named_endpoints
            .iter()
            .filter_map(|(_, endpoint)| endpoint.endpoint.as_ref());
        let endpoints: Vec<_> = endpoints.collect();
        let before = before.map(|before| &before.egress);
        let egress = Egress::reuse_or_new(before, limits, &endpoints)
            .map_err(|why| ManifestProblem::plain(format!("no tool can ask a server: {why}")))?;
        let mut all = Vec::new();
        for (tools, endpoint) in named_endpoints {
            let LoadedTools {
                plugin,
                settings,
                definitions,
                entry,
            } = tools;
            let variable = entry.key.map(|key| key.value);
            if let (Some(variable), None) = (&variable, &endpoint.key) {
                warnings.push(format!(
                    "{variable} is not set, so the tools `{}` have no key.",
                    plugin.name()
                ));
            }
            all.push(Arc::new(ToolComponent {
                plugin,
                settings,
                definitions,
                endpoint: endpoint.endpoint,
                key: endpoint.key,
                variable,
                time: entry.time.unwrap_or(CALL_TIME),
                policies: entry.policies,
                egress: egress.clone(),
            }));
        }
        Ok((Self { all, egress }, warnings))
    }

    /// All components, as tool sources for sessions.
    pub(crate) fn sources(&self) -> Vec<Arc<dyn ToolSource>> {
        let all = self.all.iter().cloned();
        all.map(|one| Arc::new(ComponentToolSource(one)) as Arc<dyn ToolSource>)
            .collect()
    }

    /// The component of this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<ToolComponent>> {
        self.all.iter().find(|one| one.plugin.name() == name)
    }
}

impl ToolComponent {
    /// Whether sessions of this policy have its tools.
    pub(crate) fn is_for(&self, policy: &str) -> bool {
        let named = self.policies.as_ref();
        named.is_none_or(|names| names.iter().any(|name| name == policy))
    }

    /// The names under which models call its tools.
    pub(crate) fn tool_names(&self) -> Vec<String> {
        let names = self.definitions.iter().map(|tool| &tool.name);
        names.map(|name| self.whole_name(name)).collect()
    }

    fn whole_name(&self, tool: &str) -> String {
        format!("{}{SEPARATOR}{tool}", self.plugin.name())
    }
}

/// A component as a tool source.
struct ComponentToolSource(Arc<ToolComponent>);

/// A component for one session. The component is shared by all sessions, so only the environment is
/// the session's own.
struct OpenComponent {
    component: Arc<ToolComponent>,
    environment: Option<Arc<dyn Environment>>,
}

impl ToolSource for ComponentToolSource {
    fn name(&self) -> &str {
        self.0.plugin.name()
    }

    fn identity(&self) -> String {
        let one = &self.0;
        let to = one.endpoint.as_ref();
        let to = to.map(|to| (to.base_url().as_str(), to.injection()));
        format!(
            "component {} {:?} {} {to:?} {:?} {:?} {:?}",
            one.plugin.digest(),
            one.plugin.limits(),
            one.settings,
            one.variable,
            one.time,
            one.policies,
        )
    }

    fn serves(&self, policy: &str) -> bool {
        self.0.is_for(policy)
    }

    fn describe(&self, tool: &str, arguments: &str) -> EventDraft {
        let name = self.0.whole_name(tool);
        EventDraft::text("CmdRunAction", format!("{name} {arguments}"))
    }

    fn open(
        &self,
        _: ToolsSpec,
        environment: Option<Arc<dyn Environment>>,
    ) -> BoxFuture<'static, Result<Arc<dyn OpenToolSource>, ToolSourceError>> {
        let opened = OpenComponent {
            component: self.0.clone(),
            environment,
        };
        std::future::ready(Ok(Arc::new(opened) as Arc<dyn OpenToolSource>)).boxed()
    }
}

impl OpenToolSource for OpenComponent {
    fn definitions(&self) -> Vec<ToolDefinition> {
        self.component.definitions.clone()
    }

    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        output: ToolOutput,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>> {
        let component = self.component.clone();
        let host = SessionToolHost {
            component: component.clone(),
            place: self.environment.clone(),
            output,
        };
        async move {
            let time = timeout_ms.map_or(component.time, |ms| {
                component.time.min(Duration::from_millis(ms.into()))
            });
            let ToolComponent {
                plugin, settings, ..
            } = &*component;
            let called = call_tool(plugin, settings, &call, &host, time).await;
            tracing::debug!(
                plugin = plugin.name(),
                tool = call.name,
                steps = called.steps,
                fuel = called.usage.fuel,
                micros = called.usage.micros,
                "a tool was called"
            );
            let reply = called.reply;
            let event_type = if reply.is_error {
                "AgentErrorObservation"
            } else {
                "CmdOutputObservation"
            };
            Ok(ToolResultWithEvent {
                event: EventDraft::text(event_type, &reply.text),
                result: ToolResult {
                    call_id: call.id,
                    is_error: reply.is_error,
                    text: reply.text,
                    exit_code: None,
                    blobs: Vec::new(),
                },
                notices: Vec::new(),
            })
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

/// The endpoint of a component's requests, and its key.
struct ToolEndpoint {
    endpoint: Option<Endpoint>,
    key: Option<Secret>,
}

/// An error that makes a component's endpoint unusable.
#[derive(Debug, thiserror::Error)]
enum ToolEndpointError {
    /// The endpoint, or the placement of the key, is invalid.
    #[error("the tools `{name}` cannot be used: {source}")]
    Egress { name: String, source: EgressError },
    /// The component names an invalid URL.
    #[error(
        "the tools `{0}` have a base URL of their own that cannot be read; report it to their author, or set `base_url`"
    )]
    BaseUrl(String),
    /// The key is invalid.
    #[error(transparent)]
    Key(#[from] ConfigError),
}

fn site(tools: &LoadedTools, config: &Config) -> Result<ToolEndpoint, ToolEndpointError> {
    let LoadedTools { plugin, entry, .. } = tools;
    let name = plugin.name();
    let descriptor = plugin.descriptor();
    let unusable = |source| ToolEndpointError::Egress {
        name: name.to_owned(),
        source,
    };
    let injection = match &entry.key_place {
        Some(environment) => environment.clone(),
        None => KeyInjection::of(&descriptor.key.clone().into()).map_err(unusable)?,
    };
    let endpoint = match (&entry.base_url, &descriptor.default_base_url) {
        (Some(stated), _) => Some(Endpoint::new(stated.value.clone(), injection)),
        (None, Some(usual)) => {
            let url = Url::parse(usual).map_err(|_| ToolEndpointError::BaseUrl(name.to_owned()))?;
            Some(Endpoint::public(url, injection))
        }
        (None, None) => None,
    };
    let key = match &entry.key {
        Some(variable) => config.variables.key(&variable.value)?,
        None => None,
    };
    Ok(ToolEndpoint {
        endpoint: endpoint.transpose().map_err(unusable)?,
        key,
    })
}

#[cfg(test)]
mod tests;
