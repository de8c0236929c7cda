//! The deployment of a running server: its generations, and the transitions between them.
//!
//! An uploaded build changes one plugin of the deployment, and is recorded as active once it was
//! loaded and before a session gets it. If it no longer loads when the server starts, the server
//! still starts: the plugin falls back to the previous build, as in a rollback, or to the
//! manifest's component, and the reason is shown until the build can be loaded or is rolled back.
//!
//! A new build of a policy is on probation beside the previous one. The counts kept in
//! `rollout::probation` roll it back or confirm it, in transitions like any other.
//!
//! # Invariants
//!
//! - A generation is published whole or not at all, and never changes. A load that fails leaves the
//!   previous generation in place, and its reasons are kept until a load succeeds.
//! - One load runs at a time.
//! - A plugin that is the same in two generations is the same instance in both, so a transition
//!   costs only what changed.
//! - A generation is dropped when the last session leaves it.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::rollout::probation::{ProbationDecision, ProbationVerdict, Probations};
use super::snapshot::DeploymentSnapshot;
use super::uploads::{
    Activation, Activations, AutoRollback, Candidate, UploadMetadata, UploadStore,
    UploadStoreError, UploadStoreLock,
};
use super::watch::FileWatcher;
use crate::config::Config;
use crate::manifest::{
    Manifest, ManifestProblem, ManifestProblems, UploadOverrides, is_name, suggest,
};
use lucid_net::oci::{ComponentStore, TagResolution};
use lucid_session::{Deployment, Generation};
use lucid_store::blobs::Blobs;
use lucid_types::digest::Digest;
use lucid_types::sentence::with_advice;
use lucid_wasm::{
    ActivityKind, AnyPlugin, AnyPluginError, Engine, Plugin, PluginKind, PluginLimits, Plugins,
    PolicyPlugin,
};

/// The generations of this server's deployment. A clone is a handle of the same.
#[derive(Clone)]
pub struct DeploymentManager(Arc<Inner>);

struct Inner {
    config: Config,
    engine: Engine,
    blobs: Blobs,
    upload_store: UploadStore,
    components: ComponentStore,
    generations: watch::Sender<Arc<Generation>>,
    status: Mutex<DeploymentStatus>,
    /// Held while a generation is loaded.
    load_lock: tokio::sync::Mutex<()>,
    probations: Probations,
    /// Decisions about builds on probation. Taken by the task that applies them.
    decisions: Mutex<Option<mpsc::UnboundedReceiver<ProbationDecision>>>,
}

/// The current state of the deployment.
#[derive(Clone)]
pub struct DeploymentStatus {
    /// The generation's number, counted from 1 with each change since the server's start.
    pub number: u64,
    /// The deployment that new sessions get.
    pub(crate) snapshot: Arc<DeploymentSnapshot>,
    /// When it was published.
    pub since: SystemTime,
    /// The problems of the last load and its time. `None` if the current deployment was loaded
    /// last.
    pub last_failure: Option<(SystemTime, Arc<ManifestProblems>)>,
}

/// A change of one plugin's build.
#[derive(Debug, Clone)]
pub enum BuildChange {
    /// Activate this build, which was uploaded before.
    Activate {
        /// Its digest.
        digest: Digest,
        /// Who requested it.
        by: String,
        /// A percentage of new sessions, 1 to 99. `None` for all.
        share: Option<u8>,
        /// Whether a policy may be added under a new name.
        new: bool,
    },
    /// Return to the build before the active one, or to the active one alone if there is a
    /// candidate beside it.
    RollBack {
        /// Who requested it.
        by: String,
    },
    /// Roll back a build on probation that is worse than the previous one. Does nothing if it is
    /// gone.
    AutoRollBack {
        /// Its digest.
        digest: Digest,
        /// When it was activated.
        since: DateTime<Utc>,
        /// A sentence with the counts.
        why: String,
    },
    /// Confirm a build whose probation is over. Does nothing if it is on none any more.
    Confirm {
        /// Its digest.
        digest: Digest,
        /// When it was activated.
        since: DateTime<Utc>,
        /// A sentence with the counts.
        why: String,
    },
}

/// An error that leaves the build unchanged.
#[derive(Debug, thiserror::Error)]
pub enum BuildChangeError {
    /// The deployment has no such plugin.
    #[error("there is no {kind} plugin `{name}`; {available}")]
    NoSuchPlugin {
        /// Its kind.
        kind: PluginKind,
        /// The requested name.
        name: String,
        /// The name probably meant, and the available ones.
        available: String,
    },
    /// The deployment has none of that name, and nothing is to be added.
    #[error("there is no {kind} plugin `{name}`; {available}")]
    UnknownPlugin {
        /// Its kind.
        kind: PluginKind,
        /// The requested name.
        name: String,
        /// The name probably meant, and the available ones.
        available: String,
    },
    /// There is no policy of that name, and none was to be added.
    #[error("no policy is called `{name}`; {available}")]
    NotNew {
        /// The requested name.
        name: String,
        /// The name probably meant, and the available ones.
        available: String,
    },
    /// The name is invalid.
    #[error(
        "a plugin's name is 1 to 64 lower-case letters, digits, - and _, the first of them a letter or digit, and not `auto`"
    )]
    NoName,
    /// Sessions cannot be split between builds of another kind of plugin.
    #[error(
        "only a policy's build can get a share of new sessions: of any other plugin all sessions have the same build"
    )]
    NoShare,
    /// The share is not 1 to 99.
    #[error("a share is 1 to 99 of a hundred new sessions")]
    WrongShare,
    /// There is no active build for the remaining sessions.
    #[error("the policy `{0}` has no active build that could have the other sessions")]
    NoSecondBuild(String),
    /// All sessions get it already.
    #[error("this build is the active one of the policy `{0}` already, and has all new sessions")]
    IsActive(String),
    /// The upload store does not have it.
    #[error("no build sha256:{0} was uploaded, or it made room for later ones")]
    NotUploaded(Digest),
    /// There is no uploaded build to roll back from.
    #[error(
        "the {kind} plugin `{name}` has no uploaded build to go back from: it is the manifest's"
    )]
    NothingActive {
        /// Its kind.
        kind: PluginKind,
        /// Its name.
        name: String,
    },
    /// The deployment could not be loaded with it. The reasons are kept as the last error too.
    #[error("the deployment stays as it is: {}", format_problems(.0))]
    Refused(Arc<ManifestProblems>),
    /// It could not be recorded, so it did not take effect.
    #[error("the deployment stays as it is: {0}")]
    UploadStore(#[from] UploadStoreError),
    /// The server is shutting down.
    #[error("the server goes down, and the deployment may be the one before or the one after")]
    Interrupted,
}

/// A component was not stored.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// It is not a plugin, or not one that this host runs.
    #[error("the component was not kept: {0}")]
    NotAdmitted(#[from] AnyPluginError),
    /// It cannot be written.
    #[error("the component was not kept: {0}")]
    UploadStore(#[from] UploadStoreError),
    /// The server is shutting down.
    #[error("the server goes down, and the component may not have been kept")]
    Interrupted,
}

impl BuildChangeError {
    /// The text for an administrator: a sentence, and what to do.
    pub(crate) fn sentence(&self) -> String {
        with_advice(self, self.advice())
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NoSuchPlugin { .. } => Some(
                "A provider needs an entry in the manifest, which says where it is asked and with which key.",
            ),
            Self::NotNew { .. } => Some(
                "To add one under that name, say that it is new: `--new`, or `\"new\": true` in the request.",
            ),
            Self::NoShare => Some("Activate it without a share."),
            Self::WrongShare => Some("Activate the build without a share to give it all."),
            Self::NoSecondBuild(_) => Some("Activate the build without a share."),
            Self::NotUploaded(_) => Some("Upload it again."),
            Self::UnknownPlugin { .. }
            | Self::NoName
            | Self::IsActive(_)
            | Self::NothingActive { .. }
            | Self::Refused(_)
            | Self::UploadStore(_)
            | Self::Interrupted => None,
        }
    }

    /// The error for a name that the deployment does not have.
    pub(super) fn unknown_plugin(plugins: &Plugins, kind: PluginKind, name: &str) -> Self {
        let (name, there) = (name.to_owned(), available_names(plugins, kind, name));
        Self::UnknownPlugin {
            kind,
            name,
            available: there,
        }
    }
}

/// The name probably meant by an unknown one, and the available ones.
fn available_names(plugins: &Plugins, kind: PluginKind, name: &str) -> String {
    let list = plugins.list();
    let of_kind: Vec<&str> = list
        .iter()
        .filter(|one| one.kind == kind)
        .map(|one| one.name.as_str())
        .collect();
    suggest(name, of_kind.iter().copied())
}

fn format_problems(problems: &ManifestProblems) -> String {
    let all: Vec<String> = problems.iter().map(ManifestProblem::to_string).collect();
    all.join("; ")
}

impl DeploymentManager {
    /// Loads the first generation, from the current manifest, environment and upload store.
    pub(crate) async fn start(
        config: &Config,
        engine: Engine,
        blobs: Blobs,
        upload_store: UploadStore,
        components: ComponentStore,
    ) -> Result<Self, ManifestProblems> {
        let manifest = Manifest::find(config)?;
        let manifest = manifest
            .fetch_components(&components, &config.variables, TagResolution::Refresh)
            .await?;
        let record = upload_store.record().map_err(ManifestProblem::from)?;
        let uploads = upload_store.uploads(&record);
        let has_uploads = uploads != UploadOverrides::default();
        let (probations, decisions) = Probations::new();
        let whole = Arc::new(manifest.with(uploads));
        let made = DeploymentSnapshot::new(
            whole,
            config,
            &engine,
            blobs.clone(),
            None,
            None,
            &probations,
        );
        let (snapshot, refused) = match Box::pin(made).await {
            Ok(snapshot) => (snapshot, None),
            Err(problems) if !has_uploads => return Err(problems),
            Err(problems) => {
                let parts = (config, &engine, &blobs, &probations);
                let Some(left) =
                    Box::pin(load_fallback(&manifest, &upload_store, &record, parts)).await
                else {
                    return Err(problems);
                };
                for problem in problems.iter() {
                    tracing::error!("the server starts with the build before: {problem}");
                }
                (left, Some((SystemTime::now(), Arc::new(problems))))
            }
        };
        let snapshot = Arc::new(snapshot);
        Ok(Self(Arc::new(Inner {
            config: config.clone(),
            engine,
            blobs,
            upload_store,
            components,
            generations: watch::Sender::new(generation(1, &snapshot)),
            status: Mutex::new(DeploymentStatus {
                number: 1,
                snapshot,
                since: SystemTime::now(),
                last_failure: refused,
            }),
            load_lock: tokio::sync::Mutex::default(),
            probations,
            decisions: Mutex::new(Some(decisions)),
        })))
    }

    /// The deployment, for sessions.
    pub(crate) fn deployment(&self) -> Deployment {
        self.0.generations.subscribe()
    }

    /// The current state.
    pub fn now(&self) -> DeploymentStatus {
        self.0.status.lock().clone()
    }

    /// Reloads the manifest, the files and the registries' tags, and returns the number of the
    /// generation that is current from then on: a new one if something changed.
    pub async fn reload(&self) -> Result<u64, Arc<ManifestProblems>> {
        let found = self.manifest(TagResolution::Refresh).await;
        self.load(found).await
    }

    /// Reloads whenever the manifest or a component changes, until the handle is dropped.
    pub fn watch_manifest(&self) -> AbortOnDropHandle<()> {
        let deployment = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            // Nothing else is written to its own folder. The one above it has the log.
            deployment.0.upload_store.prepare();
            let mut watch = FileWatcher::new();
            let own = Manifest::path(&deployment.0.config);
            loop {
                // Another process may roll back.
                watch.watch_only([own.clone(), deployment.0.upload_store.record_file()]);
                let found = deployment.manifest(TagResolution::Cached).await;
                // A manifest that cannot be read may still name the previous files.
                let named = match &found {
                    Ok(manifest) => manifest.files(),
                    Err(_) => deployment.now().snapshot.manifest.files(),
                };
                watch.watch_also(named);
                // Problems are logged, and kept.
                let _ = deployment.load(found).await;
                watch.changed().await;
            }
        }))
    }

    /// Rolls back builds that fail on probation, and confirms those that do not, until the handle
    /// is dropped.
    pub fn watch_probations(&self) -> AbortOnDropHandle<()> {
        let deployment = self.clone();
        let decisions = deployment.0.decisions.lock().take();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let Some(mut decisions) = decisions else {
                return;
            };
            while let Some(decision) = decisions.recv().await {
                deployment.apply_decision(decision).await;
            }
        }))
    }

    async fn apply_decision(&self, decision: ProbationDecision) {
        let (digest, since) = (decision.digest, decision.since);
        let why = decision.why.clone();
        let change = match decision.verdict {
            ProbationVerdict::Undecided => return,
            ProbationVerdict::Confirmed => BuildChange::Confirm { digest, since, why },
            ProbationVerdict::RolledBack => BuildChange::AutoRollBack { digest, since, why },
        };
        if let Err(error) = self
            .change(PluginKind::Policy, &decision.name, change)
            .await
        {
            tracing::error!(
                name = decision.name,
                digest = %decision.digest,
                why = decision.why,
                "what a build's probation showed has no consequence yet: {error}"
            );
            decision.reopen();
        }
    }

    /// The engine that runs the plugins.
    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// The upload store.
    pub(crate) fn upload_store(&self) -> &UploadStore {
        &self.0.upload_store
    }

    /// Stores a component that is admitted as a plugin of its kind. No session runs on it yet.
    pub(crate) async fn upload(
        &self,
        wasm: impl AsRef<[u8]> + Send + 'static,
        by: &str,
    ) -> Result<AnyPlugin, UploadError> {
        let limits = self.now().snapshot.manifest.widest_limits();
        let loaded = AnyPlugin::load(&self.0.engine, "uploaded", wasm.as_ref(), &limits);
        let plugin = Box::pin(loaded).await?;
        let label = UploadMetadata {
            kind: plugin.kind().to_string(),
            name: plugin.own_name().to_owned(),
            version: plugin.version().to_owned(),
            by: by.to_owned(),
            at: Utc::now(),
        };
        let upload_store = self.0.upload_store.clone();
        let kept =
            tokio::task::spawn_blocking(move || upload_store.lock()?.store(wasm.as_ref(), &label))
                .await;
        kept.map_err(|_| UploadError::Interrupted)??;
        tracing::info!(by, kind = %plugin.kind(), name = plugin.own_name(), digest = %plugin.digest(), "a plugin was uploaded");
        Ok(plugin)
    }

    /// Changes one plugin's build, and returns the number of the generation with it. Runs to
    /// completion even if the caller no longer waits.
    pub(crate) async fn change(
        &self,
        kind: PluginKind,
        name: &str,
        change: BuildChange,
    ) -> Result<u64, BuildChangeError> {
        if !is_name(name) || name == "auto" {
            return Err(BuildChangeError::NoName);
        }
        let (this, name) = (self.clone(), name.to_owned());
        let changed = tokio::spawn(async move { this.apply_change(kind, &name, change).await });
        changed.await.unwrap_or(Err(BuildChangeError::Interrupted))
    }

    async fn apply_change(
        &self,
        kind: PluginKind,
        name: &str,
        change: BuildChange,
    ) -> Result<u64, BuildChangeError> {
        let Inner {
            config,
            engine,
            blobs,
            upload_store,
            probations,
            ..
        } = &*self.0;
        let turn = self.0.load_lock.lock().await;
        let _work = engine.activities().begin(name, ActivityKind::Loading);
        let writer = self.writer().await?;
        let mut record = upload_store.record()?;
        let before = self.now();
        // The running manifest, not the current file: a rollback must not wait until somebody has
        // corrected that.
        let manifest = &before.snapshot.manifest;
        let (back, what, by) = match change {
            BuildChange::Activate {
                digest,
                by,
                share,
                new,
            } => {
                let known = manifest.names(kind, name);
                let plugins = &before.snapshot.plugins;
                if !known && kind != PluginKind::Policy {
                    let (name, there) = (name.to_owned(), available_names(plugins, kind, name));
                    return Err(BuildChangeError::NoSuchPlugin {
                        kind,
                        name,
                        available: there,
                    });
                }
                if !known && !new && plugins.policy(name).is_none() {
                    let (name, there) = (name.to_owned(), available_names(plugins, kind, name));
                    return Err(BuildChangeError::NotNew {
                        name,
                        available: there,
                    });
                }
                if !upload_store.has(digest) {
                    return Err(BuildChangeError::NotUploaded(digest));
                }
                let active = before.snapshot.plugins.policy(name);
                let build = Activation {
                    digest,
                    by: by.clone(),
                    at: Utc::now(),
                    // If there is a build to return to.
                    probation: kind == PluginKind::Policy && active.is_some(),
                };
                match share {
                    None => {
                        record.push(kind, name, !known, build);
                        (false, "activated".to_owned(), by)
                    }
                    Some(share) => {
                        let share = shareable(kind, name, share, active, build.digest)?;
                        record.set_candidate(name, Candidate { build, share });
                        (
                            false,
                            format!("given {share} of a hundred new sessions"),
                            by,
                        )
                    }
                }
            }
            BuildChange::RollBack { by } => {
                let Some(taken) = record.roll_back(kind, name, &by, Utc::now()) else {
                    let plugins = &before.snapshot.plugins;
                    if !plugins
                        .list()
                        .iter()
                        .any(|one| one.kind == kind && one.name == name)
                    {
                        return Err(BuildChangeError::unknown_plugin(plugins, kind, name));
                    }
                    let name = name.to_owned();
                    return Err(BuildChangeError::NothingActive { kind, name });
                };
                let what = format!("rolled back (sha256:{})", taken.build().digest);
                (true, what, by)
            }
            BuildChange::AutoRollBack { digest, since, why } => {
                let what = format!("taken back by itself (sha256:{digest}): {why}");
                let at = Utc::now();
                let taken = AutoRollback { digest, at, why };
                if !record.auto_roll_back(name, since, taken) {
                    return Ok(before.number);
                }
                (true, what, String::new())
            }
            BuildChange::Confirm { digest, since, why } => {
                if !record.confirm(name, digest, since) {
                    return Ok(before.number);
                }
                (false, format!("settled: {why}"), String::new())
            }
        };
        let mut wrong = None;
        let (snapshot, digest) = loop {
            let active = record.builds(kind, name).last();
            let candidate = record.candidate(kind, name).map(|one| &one.build);
            let digest = candidate.or(active).map(|build| build.digest.to_string());
            let mut uploads = manifest.uploads.clone();
            upload_store.apply_active(&record, kind, name, &mut uploads);
            let (next, known) = (Arc::new(manifest.with(uploads)), Some(&*before.snapshot));
            let only = Some((kind, name));
            let made = DeploymentSnapshot::new(
                next,
                config,
                engine,
                blobs.clone(),
                known,
                only,
                probations,
            );
            match Box::pin(made).await {
                Ok(snapshot) => break (snapshot, digest),
                // The purpose of a rollback is to get away from a build, so it goes to the nearest
                // previous one that works.
                Err(problems)
                    if back && record.roll_back(kind, name, &by, Utc::now()).is_some() =>
                {
                    for problem in problems.iter() {
                        tracing::error!("a rollback passes a build over: {problem}");
                    }
                    wrong.get_or_insert(problems);
                }
                Err(problems) => {
                    let problems = wrong.unwrap_or(problems);
                    return Err(BuildChangeError::Refused(self.refuse(&before, problems)));
                }
            }
        };
        let writer = tokio::task::spawn_blocking(move || {
            let written = writer.write(&record);
            drop(writer);
            written
        });
        writer.await.map_err(|_| BuildChangeError::Interrupted)??;
        if back {
            tracing::warn!(%kind, name, digest, by, "a plugin's build was {what}");
        } else {
            tracing::info!(%kind, name, digest, by, "a plugin's build was {what}");
        }
        let unsettled = before.last_failure.is_some();
        let number = self.publish(before, snapshot, None);
        if !unsettled {
            return Ok(number);
        }
        // Earlier problems may persist, and a registry may be slow.
        drop(turn);
        let found = self.manifest(TagResolution::Cached).await;
        Ok(self.load(found).await.unwrap_or(number))
    }

    async fn writer(&self) -> Result<UploadStoreLock, BuildChangeError> {
        let upload_store = self.0.upload_store.clone();
        let locked = tokio::task::spawn_blocking(move || upload_store.lock()).await;
        Ok(locked.map_err(|_| BuildChangeError::Interrupted)??)
    }

    /// The current manifest file, with its components from registries fetched. Not called while the
    /// turn is held, since a registry may be slow.
    async fn manifest(&self, tags: TagResolution) -> Result<Arc<Manifest>, ManifestProblems> {
        let works = self.0.engine.activities();
        let _work = works.begin("the manifest's components", ActivityKind::Fetching);
        let config = self.0.config.clone();
        let found = tokio::task::spawn_blocking(move || Manifest::find(&config)).await;
        match found {
            Ok(found) => {
                let (components, variables) = (&self.0.components, &self.0.config.variables);
                let whole = found?.fetch_components(components, variables, tags).await?;
                Ok(Arc::new(whole))
            }
            // The runtime is shutting down, and no further generation is needed.
            Err(_) => Ok(self.now().snapshot.manifest.clone()),
        }
    }

    async fn load(
        &self,
        found: Result<Arc<Manifest>, ManifestProblems>,
    ) -> Result<u64, Arc<ManifestProblems>> {
        let _turn = self.0.load_lock.lock().await;
        self.load_serialized(found).await
    }

    async fn load_serialized(
        &self,
        found: Result<Arc<Manifest>, ManifestProblems>,
    ) -> Result<u64, Arc<ManifestProblems>> {
        let Inner {
            config,
            engine,
            blobs,
            upload_store,
            probations,
            ..
        } = &*self.0;
        let _work = engine
            .activities()
            .begin("the deployment", ActivityKind::Loading);
        let before = self.now();
        let known = Some(&*before.snapshot);
        let found = found.and_then(|manifest| match &before.snapshot.manifest.path {
            // Without the manifest there would be other providers, under the same names.
            Some(path) if manifest.path.is_none() => Err(ManifestProblems::from(ManifestProblem::of_file(
                path,
                "the manifest is gone: put it back, or start the server again to run without one",
            ))),
            _ => Ok(manifest),
        });
        let active = upload_store
            .record()
            .map(|record| upload_store.uploads(&record));
        let found =
            found.and_then(|manifest| Ok((manifest, active.map_err(ManifestProblem::from)?)));
        let (manifest, active) = match found {
            Ok(found) => found,
            Err(problems) => return Err(self.refuse(&before, problems)),
        };
        let make = async |uploads: UploadOverrides| {
            let manifest = Arc::new(manifest.with(uploads));
            let made = DeploymentSnapshot::new(
                manifest,
                config,
                engine,
                blobs.clone(),
                known,
                None,
                probations,
            );
            Box::pin(made).await
        };
        let running = before.snapshot.manifest.uploads.clone();
        let falls_back = active != running;
        let problems = match make(active).await {
            Ok(snapshot) => return Ok(self.publish(before, snapshot, None)),
            Err(problems) => problems,
        };
        // A build that could not be loaded at the start does not prevent other changes.
        if falls_back && let Ok(snapshot) = make(running).await {
            let refused = self.refuse(&before, problems);
            let refused = Some((SystemTime::now(), refused));
            return Ok(self.publish(before, snapshot, refused));
        }
        Err(self.refuse(&before, problems))
    }

    fn publish(
        &self,
        before: DeploymentStatus,
        snapshot: DeploymentSnapshot,
        refused: Option<(SystemTime, Arc<ManifestProblems>)>,
    ) -> u64 {
        let mut now = DeploymentStatus {
            last_failure: refused,
            ..before
        };
        if !now.snapshot.is_same(&snapshot) {
            now.number += 1;
            now.since = SystemTime::now();
            now.snapshot = Arc::new(snapshot.with_tools_of(&now.snapshot));
            tracing::info!(generation = now.number, "the deployment changed");
            for warning in &now.snapshot.warnings {
                tracing::warn!("{warning}");
            }
        } else if now.snapshot.warnings != snapshot.warnings {
            let known = |warning: &&String| !now.snapshot.warnings.contains(warning);
            for warning in snapshot.warnings.iter().filter(known) {
                tracing::warn!("{warning}");
            }
            // The same for sessions, which are not notified.
            now.snapshot = Arc::new(snapshot);
        }
        let number = now.number;
        let next = generation(number, &now.snapshot);
        *self.0.status.lock() = now;
        self.0.generations.send_if_modified(|current| {
            let newer = current.number != number;
            if newer {
                *current = next;
            }
            newer
        });
        number
    }

    fn refuse(
        &self,
        before: &DeploymentStatus,
        problems: ManifestProblems,
    ) -> Arc<ManifestProblems> {
        let known = before.last_failure.as_ref();
        let problems = match known.filter(|(_, known)| **known == problems) {
            Some((_, known)) => known.clone(),
            None => {
                for problem in problems.iter() {
                    tracing::error!(
                        generation = before.number,
                        "the deployment stays as it is: {problem}"
                    );
                }
                Arc::new(problems)
            }
        };
        let mut now = self.0.status.lock();
        now.last_failure = Some((SystemTime::now(), problems.clone()));
        problems
    }
}

/// Whether a build of a plugin can have a share beside the active one.
fn shareable(
    kind: PluginKind,
    name: &str,
    share: u8,
    active: Option<&PolicyPlugin>,
    digest: Digest,
) -> Result<u8, BuildChangeError> {
    if kind != PluginKind::Policy {
        return Err(BuildChangeError::NoShare);
    }
    if !(1..=99).contains(&share) {
        return Err(BuildChangeError::WrongShare);
    }
    match active {
        None => Err(BuildChangeError::NoSecondBuild(name.to_owned())),
        Some(active) if active.digest() == digest => {
            Err(BuildChangeError::IsActive(name.to_owned()))
        }
        Some(_) => Ok(share),
    }
}

/// The deployment without the builds that cannot be loaded, each replaced by its newest previous
/// build that can, or the manifest's component. `None` if that cannot be loaded either.
async fn load_fallback(
    manifest: &Manifest,
    upload_store: &UploadStore,
    record: &Activations,
    (config, engine, blobs, probations): (&Config, &Engine, &Blobs, &Probations),
) -> Option<DeploymentSnapshot> {
    let make = async |uploads: UploadOverrides, known: Option<&DeploymentSnapshot>, only| {
        let manifest = Arc::new(manifest.with(uploads));
        let made = DeploymentSnapshot::new(
            manifest,
            config,
            engine,
            blobs.clone(),
            known,
            only,
            probations,
        );
        Box::pin(made).await.ok()
    };
    let sound = async |kind, build: &Activation| {
        is_loadable(engine, kind, &upload_store.file(build.digest), build.digest).await
    };
    // As configured, without the builds that are themselves broken.
    let mut whole = UploadOverrides::default();
    for (kind, name, builds) in record.all() {
        let candidate = record.candidate(kind, name).map(|one| &one.build);
        let active = builds.first();
        let mut goes = true;
        for build in candidate.into_iter().chain(active.copied()) {
            goes &= sound(kind, build).await;
        }
        if goes {
            upload_store.apply_active(record, kind, name, &mut whole);
            continue;
        }
        for (at, build) in builds.iter().rev().enumerate().rev() {
            if sound(kind, build).await {
                upload_store.apply_build(record, (kind, name), Some(at), &mut whole);
                break;
            }
        }
    }
    if let Some(left) = make(whole, None, None).await {
        return Some(left);
    }
    // Some do not fit the manifest: add them one at a time.
    let mut left = make(UploadOverrides::default(), None, None).await?;
    for (kind, name, builds) in record.all() {
        let mut uploads = left.manifest.uploads.clone();
        upload_store.apply_active(record, kind, name, &mut uploads);
        let mut found = make(uploads, Some(&left), Some((kind, name))).await;
        for at in (0..builds.len()).rev() {
            if found.is_some() {
                break;
            }
            let mut uploads = left.manifest.uploads.clone();
            upload_store.apply_build(record, (kind, name), Some(at), &mut uploads);
            found = make(uploads, Some(&left), Some((kind, name))).await;
        }
        left = found.unwrap_or(left);
    }
    Some(left)
}

/// Whether an uploaded build is unmodified, and still a plugin of that kind.
async fn is_loadable(engine: &Engine, kind: PluginKind, file: &Path, digest: Digest) -> bool {
    let file = file.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    let Ok(Ok(wasm)) = read else {
        return false;
    };
    // The manifest's limits apply when it is loaded for good.
    let limits = PluginLimits::default();
    let loaded = Box::pin(AnyPlugin::load(engine, "uploaded", &wasm, &limits)).await;
    loaded.is_ok_and(|plugin| plugin.kind() == kind && plugin.digest() == digest)
}

fn generation(number: u64, snapshot: &DeploymentSnapshot) -> Arc<Generation> {
    Arc::new(Generation {
        number,
        policies: snapshot.policies.clone(),
        models: snapshot.providers.clone(),
        tools: snapshot.toolsets.clone(),
    })
}
