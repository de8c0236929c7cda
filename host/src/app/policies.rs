//! Owns which policy a session gets, and how the engine reaches a policy's component.
//!
//! What always holds: a name that is not offered is an error before anything is made; a step that
//! fails, fails with the sentence that the plugin's front made of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::config::{Config, DefaultPolicy};
use crate::deployment::{LoadedPolicy, Manifest, Problem};
use crate::plugins::PolicyPlugin;
use crate::plugins::policy_types::{Context, Input, Snapshot};
use crate::session::{CreateError, Policies, Policy, PolicyInfo, Stepped};

/// The policy that plays a script and calls no model.
const REHEARSAL: &str = "mock";
/// The agent.
const AGENT: &str = "coder";
/// The default that is none: the one that fits.
const AUTO: &str = "auto";
/// A name that was sent is repeated only so far, in characters.
const SHOWN: usize = 64;

/// The policies of this deployment.
pub(super) struct Offered {
    by_name: BTreeMap<String, Arc<Component>>,
    default: String,
    manifest: Arc<Manifest>,
}

impl Offered {
    /// All that were loaded. `models` says whether there is a model to ask. Fails where nothing says
    /// which of them is the default.
    pub(super) fn new(
        loaded: Vec<LoadedPolicy>,
        manifest: &Arc<Manifest>,
        config: &Config,
        models: bool,
    ) -> Result<Self, Problem> {
        let delay = u64::try_from(config.mock_step_delay.as_millis()).unwrap_or(u64::MAX);
        let component = |policy: LoadedPolicy| {
            let LoadedPolicy {
                plugin,
                mut settings,
                builtin,
            } = policy;
            let mock = builtin == Some(REHEARSAL);
            if mock {
                settings
                    .entry("delay_ms")
                    .or_insert_with(|| Value::from(delay));
            }
            let info = info(&plugin, Value::Object(settings).to_string(), mock);
            (info.name.clone(), Arc::new(Component { plugin, info }))
        };
        let by_name: BTreeMap<_, _> = loaded.into_iter().map(component).collect();
        let default = default(&by_name, manifest, config, models)?;
        Ok(Self {
            by_name,
            default,
            manifest: manifest.clone(),
        })
    }

    /// The policy of a session that names none.
    pub(super) fn default(&self) -> &str {
        &self.default
    }

    /// That policy is a real agent.
    pub(super) fn default_is_real(&self) -> bool {
        let default = self.by_name.get(&self.default);
        default.is_some_and(|policy| !policy.info.mock)
    }
}

/// What the manifest says comes first, then the environment, then what fits.
fn default(
    by_name: &BTreeMap<String, Arc<Component>>,
    manifest: &Manifest,
    config: &Config,
    models: bool,
) -> Result<String, Problem> {
    let stated = manifest.default_policy.as_ref();
    match (
        stated.map(|name| name.value.as_str()),
        config.default_policy,
    ) {
        (Some(AUTO), _) | (None, DefaultPolicy::Auto) => fitting(by_name, manifest, models),
        (Some(name), _) => Ok(name.to_owned()),
        (None, DefaultPolicy::Coder) => of_environment(by_name, AGENT),
        (None, DefaultPolicy::Mock) => of_environment(by_name, REHEARSAL),
    }
}

fn of_environment(
    by_name: &BTreeMap<String, Arc<Component>>,
    name: &str,
) -> Result<String, Problem> {
    if by_name.contains_key(name) {
        return Ok(name.to_owned());
    }
    Err(Problem::plain(format!(
        "DEFAULT_POLICY is {name}, and the manifest has no such policy: name one in its `[defaults]`"
    )))
}

/// The agent where a model can be asked, else the rehearsal; of others the only one that does the same,
/// or the only one.
fn fitting(
    by_name: &BTreeMap<String, Arc<Component>>,
    manifest: &Manifest,
    models: bool,
) -> Result<String, Problem> {
    let usual = if models { AGENT } else { REHEARSAL };
    if by_name.contains_key(usual) {
        return Ok(usual.to_owned());
    }
    let only = |fits: &dyn Fn(&Component) -> bool| {
        let mut names = by_name.iter().filter(|(_, one)| fits(one));
        let first = names.next().map(|(name, _)| name.clone());
        first.filter(|_| names.next().is_none())
    };
    let found = only(&|one| one.info.calls_models == models).or_else(|| only(&|_| true));
    found.ok_or_else(|| {
        let names: Vec<&str> = by_name.keys().map(String::as_str).collect();
        let what = format!(
            "nothing says which policy a session gets that names none: set `policy` in `[defaults]` to one of {}",
            names.join(", ")
        );
        match &manifest.path {
            Some(path) => Problem::of_file(path, what),
            None => Problem::plain(what),
        }
    })
}

impl Policies for Offered {
    fn find(&self, name: Option<&str>) -> Result<Arc<dyn Policy>, CreateError> {
        let name = name.unwrap_or(&self.default);
        match self.by_name.get(name) {
            Some(found) => Ok(found.clone()),
            None => Err(CreateError::UnknownPolicy(
                name.chars().take(SHOWN).collect(),
            )),
        }
    }

    fn assigned(&self, user: &str, project: Option<&str>) -> Option<&str> {
        self.manifest.assigned(user, project)
    }
}

/// A build that no session has, as the engine reaches one.
pub(super) fn build(plugin: PolicyPlugin) -> Arc<dyn Policy> {
    let info = info(&plugin, String::new(), false);
    Arc::new(Component { plugin, info })
}

fn info(plugin: &PolicyPlugin, settings: String, mock: bool) -> PolicyInfo {
    let descriptor = plugin.descriptor();
    PolicyInfo {
        name: plugin.name().to_owned(),
        digest: plugin.digest().to_owned(),
        calls_models: descriptor.calls_models,
        needs_sandbox: descriptor.needs_sandbox,
        mock,
        settings,
        schema: descriptor.schema,
        oldest_schema: descriptor.oldest_schema,
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

    fn migrate<'a>(&'a self, old: &'a Snapshot) -> BoxFuture<'a, Result<Snapshot, String>> {
        let migrated = async move {
            let called = self.plugin.migrate(old).await;
            called.result.map_err(|error| error.to_string())
        };
        migrated.boxed()
    }
}
