//! The administrator's view of the deployment's plugins.
//!
//! # Invariants
//!
//! - It shows what is running, not what the manifest file says by now.
//! - No key is in it, only the name of the variable that holds one.

use std::collections::HashMap;
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};

use super::view::figures_of;
use crate::api::{
    ActivationView, BuildView, CandidateView, GrantsView, KeptView, LastErrorView, LoadedView,
    LoadingView, PluginsView, ProbationView, ProblemView, RolledBackView, TakenBackView,
};
use crate::deployment::manager::{DeploymentManager, DeploymentStatus};
use crate::deployment::uploads::{Activation, Activations, StoredUpload};
use crate::manifest::{ComponentSource, Manifest, SecondBuildRole, UploadOverride};
use lucid_net::egress::KeyInjection;
use lucid_session::{SessionPlugins, Sessions};
use lucid_types::digest::Digest;
use lucid_wasm::{Activity, AnyPlugin, Plugin, PluginKind};

impl DeploymentManager {
    /// The complete view. Reads the upload store's folder, so it is not for an executor thread.
    pub(crate) fn overview(&self, sessions: &Sessions) -> PluginsView {
        let now = self.now();
        let upload_store = self.upload_store();
        let runs = sessions.count_by_plugins();
        let mut warnings = now.snapshot.warnings.clone();
        let record = upload_store.record().unwrap_or_else(|error| {
            warnings.push(format!("{error}."));
            Activations::default()
        });
        let plugins = all(&now)
            .iter()
            .map(|plugin| loaded(&now, plugin, &record, &runs))
            .collect();
        PluginsView {
            generation: now.number,
            since: format_time(now.since),
            plugins,
            uploads: upload_store.list().into_iter().map(kept).collect(),
            last_error: last_error(&now),
            warnings,
            loading: self
                .engine()
                .activities()
                .list()
                .into_iter()
                .map(work)
                .collect(),
        }
    }

    /// The currently loaded plugin of a name, and its origin.
    pub(crate) fn loaded(&self, kind: PluginKind, name: &str) -> Option<(AnyPlugin, &'static str)> {
        let now = self.now();
        let found = all(&now).into_iter();
        let mut found = found.filter(|plugin| plugin.kind() == kind && plugin.name() == name);
        let plugin = found.next()?;
        Some((plugin, source(&now.snapshot.manifest, kind, name).0))
    }

    /// The candidate of a plugin, and its share.
    pub(crate) fn candidate(&self, kind: PluginKind, name: &str) -> Option<(Digest, u8)> {
        let snapshot = self.now().snapshot;
        let found = (kind == PluginKind::Policy).then(|| candidate(&snapshot.manifest, name));
        let (upload, share) = found.flatten()?;
        Some((upload.digest, share))
    }

    /// The problems of the last load, if it failed.
    pub(crate) fn last_error(&self) -> Option<LastErrorView> {
        last_error(&self.now())
    }
}

/// A policy's candidate, and its share of new sessions.
fn candidate<'m>(manifest: &'m Manifest, policy: &str) -> Option<(&'m UploadOverride, u8)> {
    let second = manifest.second_build(policy)?;
    match second.role {
        SecondBuildRole::Candidate { share } => Some((second.upload.as_ref()?, share)),
        SecondBuildRole::Previous => None,
    }
}

fn all(now: &DeploymentStatus) -> Vec<AnyPlugin> {
    let plugins = &now.snapshot.plugins;
    let policies = plugins.policies().cloned().map(AnyPlugin::Policy);
    let llms = plugins.llms().cloned().map(AnyPlugin::Llm);
    let tools = plugins.all_tools().cloned().map(AnyPlugin::Tools);
    let gits = plugins.gits().cloned().map(AnyPlugin::Git);
    policies.chain(llms).chain(tools).chain(gits).collect()
}

fn loaded(
    now: &DeploymentStatus,
    plugin: &AnyPlugin,
    record: &Activations,
    runs: &HashMap<SessionPlugins, usize>,
) -> LoadedView {
    let (kind, name) = (plugin.kind(), plugin.name());
    let (source, component) = source(&now.snapshot.manifest, kind, name);
    let (sessions, mut other_builds) = sessions(now, plugin, runs);
    let is_policy = kind == PluginKind::Policy;
    let candidate = is_policy.then(|| candidate_view(now, name, record, &mut other_builds));
    let probation = is_policy.then(|| now.snapshot.policies.probation_stats(name));
    let taken_back = record.auto_rollbacks(kind, name).iter().rev();
    let rolled_back = record.rollbacks(kind, name).iter().rev();
    let activated = record.builds(kind, name).iter().rev();
    LoadedView {
        kind: kind.to_string(),
        name: name.to_owned(),
        own_name: plugin.own_name().to_owned(),
        version: plugin.version().to_owned(),
        description: plugin.description().to_owned(),
        digest: plugin.digest().to_string(),
        source: source.to_owned(),
        component,
        imports: plugin.imports(),
        grants: grants(now, plugin),
        limits: plugin.limits().into(),
        sessions,
        other_builds,
        calls: figures_of(plugin),
        activated: activated.map(activation).collect(),
        candidate: candidate.flatten(),
        probation: probation.flatten().map(|(new, before)| ProbationView {
            steps: new.steps,
            failed: new.failed,
            sessions: new.sessions,
            failed_in: new.failed_in,
            steps_before: before.steps,
            failed_before: before.failed,
        }),
        taken_back: taken_back
            .map(|taken| TakenBackView {
                digest: taken.digest.to_string(),
                at: format_time(taken.at.into()),
                why: taken.why.clone(),
            })
            .collect(),
        rolled_back: rolled_back
            .map(|rolled| RolledBackView {
                digest: rolled.digest.to_string(),
                by: rolled.by.clone(),
                at: format_time(rolled.at.into()),
            })
            .collect(),
    }
}

fn work(work: Activity) -> LoadingView {
    LoadingView {
        what: work.subject,
        doing: work.kind.name().to_owned(),
        since: format_time(work.since),
    }
}

/// A policy's candidate, whose sessions are removed from those on other builds.
fn candidate_view(
    now: &DeploymentStatus,
    name: &str,
    record: &Activations,
    others: &mut Vec<BuildView>,
) -> Option<CandidateView> {
    let (_, share) = candidate(&now.snapshot.manifest, name)?;
    let plugin = now.snapshot.plugins.second_build(name)?;
    let digest = plugin.digest();
    let at = others
        .iter()
        .position(|other| other.digest == digest.to_string());
    let sessions = at.map_or(0, |at| others.remove(at).sessions);
    let written = record
        .candidate(PluginKind::Policy, name)
        .map(|one| &one.build);
    let written = written.filter(|build| build.digest == digest);
    Some(CandidateView {
        digest: digest.to_string(),
        version: plugin.descriptor().version.clone(),
        share,
        sessions,
        calls: figures_of(plugin),
        by: written.map(|build| build.by.clone()),
        at: written.map(|build| format_time(build.at.into())),
    })
}

/// The origin of a plugin, and the component the manifest names.
fn source(manifest: &Manifest, kind: PluginKind, name: &str) -> (&'static str, Option<String>) {
    let stated = manifest.entry(kind, name);
    let stated = stated.map(|entry| match entry.component.value {
        ComponentSource::Builtin(name) => ("builtin", format!("builtin:{name}")),
        ComponentSource::File(path) => ("file", path.display().to_string()),
        ComponentSource::Registry(reference) => ("registry", reference.to_string()),
    });
    let uploaded = manifest.upload(kind, name).is_some();
    match stated {
        Some((_, component)) if uploaded => ("upload", Some(component)),
        Some((source, component)) => (source, Some(component)),
        None => ("upload", None),
    }
}

/// The number of sessions on this very build, and the other builds that sessions have. Tools count
/// the sessions of the policies that have them.
fn sessions(
    now: &DeploymentStatus,
    plugin: &AnyPlugin,
    runs: &HashMap<SessionPlugins, usize>,
) -> (usize, Vec<BuildView>) {
    let name = plugin.name();
    let count = |theirs: &dyn Fn(&SessionPlugins) -> bool| {
        let theirs = runs.iter().filter(|(runs, _)| theirs(runs));
        (theirs.map(|(_, count)| count).sum(), Vec::new())
    };
    let policy = match plugin {
        AnyPlugin::Policy(policy) => policy,
        AnyPlugin::Llm(_) => return count(&|runs| runs.provider == name),
        // It serves users, independently of their sessions.
        AnyPlugin::Git(_) => return count(&|_| false),
        AnyPlugin::Tools(_) => {
            let tools = now.snapshot.components.find(name);
            return count(&|runs| tools.is_some_and(|tools| tools.is_for(&runs.policy)));
        }
    };
    let mut builds: HashMap<Digest, usize> = HashMap::new();
    for (runs, count) in runs.iter().filter(|(runs, _)| runs.policy == policy.name()) {
        *builds.entry(runs.digest).or_default() += count;
    }
    let own = builds.remove(&policy.digest()).unwrap_or_default();
    let mut others: Vec<BuildView> = builds
        .into_iter()
        .map(|(digest, sessions)| BuildView {
            digest: digest.to_string(),
            sessions,
        })
        .collect();
    others.sort_by(|a, b| (b.sessions, &a.digest).cmp(&(a.sessions, &b.digest)));
    (own, others)
}

fn grants(now: &DeploymentStatus, plugin: &AnyPlugin) -> GrantsView {
    match plugin {
        AnyPlugin::Policy(policy) => GrantsView {
            calls_models: Some(policy.descriptor().calls_models),
            needs_sandbox: Some(policy.descriptor().needs_sandbox),
            ..GrantsView::default()
        },
        AnyPlugin::Git(git) => match now.snapshot.git.addresses(git.name()) {
            None => GrantsView::default(),
            Some((base_url, web_url)) => GrantsView {
                base_url: Some(base_url),
                web_url: Some(web_url),
                ..GrantsView::default()
            },
        },
        AnyPlugin::Llm(llm) => match now.snapshot.providers.status(llm.name()) {
            None => GrantsView::default(),
            Some(grants) => GrantsView {
                base_url: Some(grants.base_url),
                key_place: Some(place(&grants.key_place)),
                key_variable: Some(grants.variable),
                has_key: Some(grants.has_key),
                models: Some(grants.models),
                ..GrantsView::default()
            },
        },
        AnyPlugin::Tools(tools) => match now.snapshot.components.find(tools.name()) {
            None => GrantsView::default(),
            Some(one) => GrantsView {
                base_url: one.endpoint.as_ref().map(|to| to.base_url().to_string()),
                key_place: one
                    .endpoint
                    .as_ref()
                    .filter(|_| one.variable.is_some())
                    .map(|to| place(to.injection())),
                key_variable: one.variable.clone(),
                has_key: one.variable.as_ref().map(|_| one.key.is_some()),
                tools: Some(one.tool_names()),
                policies: one.policies.clone(),
                call_time: Some(one.time.as_secs_f64()),
                ..GrantsView::default()
            },
        },
    }
}

fn place(of_key: &KeyInjection) -> String {
    match of_key {
        KeyInjection::Bearer => "bearer".to_owned(),
        KeyInjection::Header(name) => name.to_string(),
    }
}

fn activation(build: &Activation) -> ActivationView {
    ActivationView {
        digest: build.digest.to_string(),
        by: build.by.clone(),
        at: format_time(build.at.into()),
    }
}

fn kept(kept: StoredUpload) -> KeptView {
    let label = kept.label;
    KeptView {
        digest: kept.digest.to_string(),
        size: kept.size,
        kind: label.as_ref().map(|label| label.kind.clone()),
        own_name: label.as_ref().map(|label| label.name.clone()),
        version: label.as_ref().map(|label| label.version.clone()),
        by: label.as_ref().map(|label| label.by.clone()),
        at: label.map(|label| format_time(label.at.into())),
    }
}

fn last_error(now: &DeploymentStatus) -> Option<LastErrorView> {
    let (at, problems) = now.last_failure.as_ref()?;
    Some(LastErrorView {
        at: format_time(*at),
        problems: problems.iter().map(ProblemView::from).collect(),
    })
}

fn format_time(at: SystemTime) -> String {
    DateTime::<Utc>::from(at).to_rfc3339_opts(SecondsFormat::Millis, true)
}
