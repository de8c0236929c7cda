//! Assigns policies to sessions, and connects the engine to a policy's component.
//!
//! # Invariants
//!
//! - A name that is not offered is an error before anything is created.
//! - A step that fails returns the message that the plugin's front made of the failure.
//! - A session keeps its build while that is still available, and otherwise continues with the
//!   active one.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Map, Value};

use super::probation::{BuildCounts, Probation, ProbationStats, Probations};
use crate::config::{Config, DefaultPolicy};
use crate::manifest::{
    LoadedPolicy, LoadedSecondBuild, Manifest, ManifestProblem, SecondBuildRole, suggest,
};
use lucid_session::{
    BuildAssignment, CreateError, MigrateError, Policies, PolicyInfo, SessionPolicy, StepError,
    StepOutcome, StepVerdict, TrafficSplit,
};
use lucid_types::digest::Digest;
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;
use lucid_types::wit::policy::{Context, Input, Snapshot};
use lucid_wasm::{Plugin, PluginKind, PolicyPlugin};

/// The policy that plays a script and calls no model.
const REHEARSAL: &str = "mock";
/// The default agent.
const AGENT: &str = "coder";
/// The value that selects the default automatically.
const AUTO: &str = "auto";
/// The maximum length at which a requested name is repeated, in characters.
const MAX_SHOWN: usize = 64;

/// The policies of this deployment.
pub(crate) struct PolicyRegistry {
    by_name: BTreeMap<String, PolicyBuilds>,
    default: String,
    manifest: Arc<Manifest>,
}

/// The builds of one policy.
struct PolicyBuilds {
    active: Arc<PolicyBuild>,
    counts: Arc<BuildCounts>,
    second: Option<SecondPolicyBuild>,
    /// The probation of the candidate, or else of the active build.
    probation: Option<Probation>,
}

/// A second build.
struct SecondPolicyBuild {
    build: Arc<PolicyBuild>,
    counts: Arc<BuildCounts>,
    /// The traffic split of a candidate. `None` for a previous build.
    share: Option<Arc<TrafficSplit>>,
}

impl PolicyRegistry {
    /// Registers all loaded policies. `models` says whether a model can be called.
    ///
    /// # Errors
    ///
    /// Fails if the default policy is ambiguous.
    pub(crate) fn new(
        loaded: Vec<LoadedPolicy>,
        manifest: &Arc<Manifest>,
        config: &Config,
        models: bool,
        probations: &Probations,
    ) -> Result<Self, ManifestProblem> {
        let delay = u64::try_from(config.mock_step_delay.as_millis()).unwrap_or(u64::MAX);
        let component = |plugin: PolicyPlugin, settings: &Map<String, Value>, builtin| {
            let mock = builtin == Some(REHEARSAL);
            let mut settings = settings.clone();
            if mock {
                settings
                    .entry("delay_ms")
                    .or_insert_with(|| Value::from(delay));
            }
            let info = info(&plugin, Value::Object(settings).to_string(), mock);
            Arc::new(PolicyBuild { plugin, info })
        };
        let builds = |policy: LoadedPolicy| {
            let settings = &policy.settings;
            let active = component(policy.plugin, settings, policy.builtin);
            let name = active.info.name.clone();
            let of = |build: &PolicyBuild, since| (name.clone(), build.info.digest, since);
            let probation = manifest
                .upload(PluginKind::Policy, &name)
                .and_then(|one| one.probation);
            // Without a previous build there is nothing to compare it with.
            let is_before = |one: &LoadedSecondBuild| one.role == SecondBuildRole::Previous;
            let probation = probation.filter(|_| policy.second.as_ref().is_some_and(is_before));
            let counts = probations.counts(&of(&active, probation));
            let mut on_probation = None;
            let second_build = policy.second.map(|second| {
                let LoadedSecondBuild {
                    plugin,
                    role,
                    builtin,
                    ..
                } = second;
                let build = component(plugin, settings, builtin);
                // The traffic split continues after its probation.
                let (since, share) = match role {
                    SecondBuildRole::Candidate { share } => {
                        let turns = probations.traffic_split(&of(&build, None), share);
                        (second.probation, Some(turns))
                    }
                    SecondBuildRole::Previous => (None, None),
                };
                let counting = of(&build, since);
                let counts_of_it = probations.counts(&counting);
                on_probation = match (role, since, probation) {
                    (SecondBuildRole::Candidate { .. }, Some(since), _) => {
                        Some(probations.probation(&counting, since, &counts))
                    }
                    (SecondBuildRole::Previous, _, Some(since)) => {
                        Some(probations.probation(&of(&active, probation), since, &counts_of_it))
                    }
                    _ => None,
                };
                SecondPolicyBuild {
                    build,
                    counts: counts_of_it,
                    share,
                }
            });
            let builds = PolicyBuilds {
                active,
                counts,
                second: second_build,
                probation: on_probation,
            };
            (name, builds)
        };
        let by_name: BTreeMap<_, _> = loaded.into_iter().map(builds).collect();
        let default = default(&by_name, manifest, config, models)?;
        Ok(Self {
            by_name,
            default,
            manifest: manifest.clone(),
        })
    }

    /// The policy of a session that names none.
    pub(crate) fn default(&self) -> &str {
        &self.default
    }

    /// Whether that policy is a real agent.
    pub(crate) fn default_is_real(&self) -> bool {
        let default = self.by_name.get(&self.default);
        default.is_some_and(|policy| !policy.active.info.mock)
    }

    /// The counts of a policy's build on probation, and of the one it is compared with.
    pub(crate) fn probation_stats(&self, name: &str) -> Option<(ProbationStats, ProbationStats)> {
        Some(self.by_name.get(name)?.probation.as_ref()?.stats())
    }
}

/// The default policy: the manifest's, else the environment's, else the one that fits.
fn default(
    by_name: &BTreeMap<String, PolicyBuilds>,
    manifest: &Manifest,
    config: &Config,
    models: bool,
) -> Result<String, ManifestProblem> {
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
    by_name: &BTreeMap<String, PolicyBuilds>,
    name: &str,
) -> Result<String, ManifestProblem> {
    if by_name.contains_key(name) {
        return Ok(name.to_owned());
    }
    Err(ManifestProblem::plain(format!(
        "DEFAULT_POLICY is {name}, and the manifest has no such policy: name one in its `[defaults]`"
    )))
}

/// The agent if a model can be called, else the rehearsal. Among custom policies, the only one with
/// the same requirements, or the only one.
fn fitting(
    by_name: &BTreeMap<String, PolicyBuilds>,
    manifest: &Manifest,
    models: bool,
) -> Result<String, ManifestProblem> {
    let usual = if models { AGENT } else { REHEARSAL };
    if by_name.contains_key(usual) {
        return Ok(usual.to_owned());
    }
    let only = |fits: &dyn Fn(&PolicyBuild) -> bool| {
        let mut names = by_name.iter().filter(|(_, one)| fits(&one.active));
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
            Some(path) => ManifestProblem::of_file(path, what),
            None => ManifestProblem::plain(what),
        }
    })
}

impl PolicyRegistry {
    fn builds(&self, name: Option<&str>) -> Result<&PolicyBuilds, CreateError> {
        let name = name.unwrap_or(&self.default);
        let unknown = || {
            let there = self.by_name.keys().map(String::as_str);
            let name: String = name.chars().take(MAX_SHOWN).collect();
            let there = suggest(&name, there);
            CreateError::UnknownPolicy(name, there)
        };
        self.by_name.get(name).ok_or_else(unknown)
    }
}

impl Policies for PolicyRegistry {
    fn find(&self, name: Option<&str>) -> Result<Arc<dyn SessionPolicy>, CreateError> {
        Ok(self.builds(name)?.active.clone())
    }

    fn assign(&self, name: Option<&str>) -> Result<BuildAssignment, CreateError> {
        let PolicyBuilds { active, second, .. } = self.builds(name)?;
        let candidate = second
            .as_ref()
            .and_then(|one| Some((&one.build, one.share.as_ref()?)));
        let Some((candidate, share)) = candidate else {
            let active: Arc<dyn SessionPolicy> = active.clone();
            return Ok(active.into());
        };
        let turn = share.assign();
        let policy = if turn.is_candidates() {
            candidate
        } else {
            active
        };
        Ok(BuildAssignment {
            policy: policy.clone(),
            slot: Some(turn),
        })
    }

    fn successor(&self, name: &str, digest: Option<Digest>) -> Option<Arc<dyn SessionPolicy>> {
        let PolicyBuilds { active, second, .. } = self.by_name.get(name)?;
        let candidate = second.as_ref().filter(|one| one.share.is_some());
        match candidate.filter(|one| Some(one.build.info.digest) == digest) {
            Some(candidate) => Some(candidate.build.clone()),
            None => Some(active.clone()),
        }
    }

    fn fallback(&self, name: &str, digest: Digest) -> Option<Arc<dyn SessionPolicy>> {
        let PolicyBuilds {
            active,
            second,
            probation,
            ..
        } = self.by_name.get(name)?;
        let second = second.as_ref().filter(|_| probation.is_some())?;
        let (new, before) = match second.share {
            Some(_) => (&second.build, active),
            None => (active, &second.build),
        };
        (new.info.digest == digest).then(|| before.clone() as Arc<dyn SessionPolicy>)
    }

    fn record_step(&self, name: &str, digest: Digest, session: SessionId, verdict: StepVerdict) {
        let Some(builds) = self.by_name.get(name) else {
            return;
        };
        let second = builds.second.as_ref().map(|one| (&one.build, &one.counts));
        let mut all = std::iter::once((&builds.active, &builds.counts)).chain(second);
        if let Some((_, counts)) = all.find(|(build, _)| build.info.digest == digest) {
            counts.count(session, verdict);
        }
        if let Some(probation) = &builds.probation {
            probation.evaluate();
        }
    }

    fn assigned(&self, user: &UserId, project: Option<&str>) -> Option<&str> {
        self.manifest.assigned(user, project)
    }
}

/// A build that no session has, for the engine.
pub(super) fn build(plugin: PolicyPlugin) -> Arc<dyn SessionPolicy> {
    let info = info(&plugin, String::new(), false);
    Arc::new(PolicyBuild { plugin, info })
}

fn info(plugin: &PolicyPlugin, settings: String, mock: bool) -> PolicyInfo {
    let descriptor = plugin.descriptor();
    PolicyInfo {
        name: plugin.name().to_owned(),
        digest: plugin.digest(),
        calls_models: descriptor.calls_models,
        needs_sandbox: descriptor.needs_sandbox,
        mock,
        settings,
        schema: descriptor.schema,
        oldest_schema: descriptor.oldest_schema,
    }
}

struct PolicyBuild {
    plugin: PolicyPlugin,
    info: PolicyInfo,
}

impl SessionPolicy for PolicyBuild {
    fn info(&self) -> &PolicyInfo {
        &self.info
    }

    fn step<'a>(
        &'a self,
        context: &'a Context,
        state: Option<&'a Snapshot>,
        inputs: &'a [Input],
    ) -> BoxFuture<'a, StepOutcome> {
        async move {
            let called = self.plugin.step(context, state, inputs).await;
            StepOutcome {
                result: called.result.map_err(StepError::call),
                fuel: called.usage.fuel,
                memory: called.usage.memory_bytes,
                micros: called.usage.micros,
            }
        }
        .boxed()
    }

    fn migrate<'a>(&'a self, old: &'a Snapshot) -> BoxFuture<'a, Result<Snapshot, MigrateError>> {
        let migrated = async move {
            let called = self.plugin.migrate(old).await;
            called.result.map_err(MigrateError::call)
        };
        migrated.boxed()
    }
}
