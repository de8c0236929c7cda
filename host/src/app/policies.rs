//! Owns which policy a session gets, and how the engine reaches a policy's component.
//!
//! What always holds: a name that is not offered is an error before anything is made; a step that
//! fails, fails with the sentence that the plugin's front made of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;

use crate::config::{Config, DefaultPolicy};
use crate::plugins::policy_types::{Context, Input, Snapshot};
use crate::plugins::{Plugins, PolicyPlugin};
use crate::session::{CreateError, Policies, Policy, PolicyInfo, Stepped};

/// The policy that plays a script and calls no model.
const REHEARSAL: &str = "mock";
/// The agent.
const AGENT: &str = "coder";
/// A name that was sent is repeated only so far, in characters.
const SHOWN: usize = 64;

/// The policies of this deployment.
pub(super) struct Offered {
    by_name: BTreeMap<String, Arc<Component>>,
    default: &'static str,
}

impl Offered {
    /// All that are loaded. `models` says whether there is a model to ask.
    pub(super) fn new(plugins: &Plugins, config: &Config, models: bool) -> Self {
        let default = match config.default_policy {
            DefaultPolicy::Auto if models => AGENT,
            DefaultPolicy::Auto | DefaultPolicy::Mock => REHEARSAL,
            DefaultPolicy::Coder => AGENT,
        };
        let delay = u64::try_from(config.mock_step_delay.as_millis()).unwrap_or(u64::MAX);
        let component = |plugin: &PolicyPlugin| {
            let descriptor = plugin.descriptor();
            let mock = plugin.name() == REHEARSAL;
            let settings = if mock {
                json!({ "delay_ms": delay })
            } else {
                json!({})
            };
            let info = PolicyInfo {
                name: plugin.name().to_owned(),
                digest: plugin.digest().to_owned(),
                calls_models: descriptor.calls_models,
                needs_sandbox: descriptor.needs_sandbox,
                mock,
                settings: settings.to_string(),
            };
            (
                plugin.name().to_owned(),
                Arc::new(Component {
                    plugin: plugin.clone(),
                    info,
                }),
            )
        };
        Self {
            by_name: plugins.policies().map(component).collect(),
            default,
        }
    }

    /// The policy of a session that names none.
    pub(super) fn default(&self) -> &'static str {
        self.default
    }

    /// That policy is a real agent.
    pub(super) fn default_is_real(&self) -> bool {
        self.default != REHEARSAL
    }
}

impl Policies for Offered {
    fn find(&self, name: Option<&str>) -> Result<Arc<dyn Policy>, CreateError> {
        let name = name.unwrap_or(self.default);
        match self.by_name.get(name) {
            Some(found) => Ok(found.clone()),
            None => Err(CreateError::UnknownPolicy(
                name.chars().take(SHOWN).collect(),
            )),
        }
    }
}

struct Component {
    plugin: PolicyPlugin,
    info: PolicyInfo,
}

impl Policy for Component {
    fn info(&self) -> &PolicyInfo {
        &self.info
    }

    fn step<'a>(
        &'a self,
        context: &'a Context,
        state: Option<&'a Snapshot>,
        inputs: &'a [Input],
    ) -> BoxFuture<'a, Stepped> {
        async move {
            let called = self.plugin.step(context, state, inputs).await;
            Stepped {
                result: called.result.map_err(|error| error.to_string()),
                fuel: called.figures.fuel,
                memory: called.figures.memory_bytes,
                micros: called.figures.micros,
            }
        }
        .boxed()
    }
}
