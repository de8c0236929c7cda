//! The shadow runs of this server: which build is being shadowed, and the result of the last run of
//! each policy.
//!
//! # Invariants
//!
//! - One runs at a time, in the background. It ends with the server, and its result is kept until
//!   the next run of its policy or the server's end.
//! - A shadowed build was uploaded, and is loaded beside the running deployment, so its calls are
//!   in no plugin's statistics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::policies;
use crate::deployment::manager::{BuildChangeError, DeploymentManager};
use lucid_session::{Sessions, ShadowBounds, ShadowReport};
use lucid_types::digest::Digest;
use lucid_types::log::LogError;
use lucid_types::log_label::PluginCaller;
use lucid_types::sentence::sentence;
use lucid_wasm::{LoadError, Plugin, PluginKind, PolicyPlugin};

/// The shadow runs. A clone is a handle of the same.
#[derive(Clone, Default)]
pub struct ShadowRuns(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// The last run of each policy.
    last: BTreeMap<String, Arc<ShadowRun>>,
    running: Option<StartedShadow>,
}

struct StartedShadow {
    name: String,
    shadow: Arc<ShadowRun>,
    task: AbortOnDropHandle<()>,
}

/// One shadow run.
pub(crate) struct ShadowRun {
    /// The digest of the shadowed build.
    pub(crate) digest: Digest,
    /// The build that new sessions had when it began.
    pub(crate) compared_with: Digest,
    /// Who requested it.
    pub(crate) by: String,
    /// When it began.
    pub(crate) begun: SystemTime,
    /// Its progress and result so far.
    pub(crate) progress: Mutex<ShadowReport>,
    /// When it ended, and the reason if it failed.
    end: Mutex<Option<(SystemTime, Option<String>)>>,
}

impl ShadowRun {
    /// Its progress and result so far.
    pub(crate) fn report(&self) -> ShadowReport {
        self.progress.lock().clone()
    }

    /// When it ended, with a sentence if its result says nothing about the build.
    pub(crate) fn end(&self) -> Option<(SystemTime, Option<String>)> {
        self.end.lock().clone()
    }
}

/// A shadow run could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ShadowError {
    /// The build could not be activated.
    #[error(transparent)]
    Change(#[from] BuildChangeError),
    /// Another run is in progress.
    #[error(
        "a build of the policy `{name}` is being shadowed ({done} of {total} sessions so far), and one is at a time: wait until it is done"
    )]
    Busy {
        /// Its policy.
        name: String,
        /// The number of sessions replayed.
        done: u64,
        /// The number of sessions to replay.
        total: u64,
    },
}

impl ShadowRuns {
    /// The last run of a policy, which may still be in progress.
    pub(crate) fn last(&self, name: &str) -> Option<Arc<ShadowRun>> {
        self.0.lock().last.get(name).cloned()
    }

    /// Starts a shadow run of an uploaded build over a number of a policy's sessions.
    pub(crate) fn begin(
        &self,
        (deployment, sessions): (&DeploymentManager, &Sessions),
        name: &str,
        digest: Digest,
        most: u64,
        by: &str,
    ) -> Result<Arc<ShadowRun>, ShadowError> {
        let now = deployment.now();
        let Some(beside) = now.snapshot.plugins.policy(name) else {
            let plugins = &now.snapshot.plugins;
            return Err(BuildChangeError::unknown_plugin(plugins, PluginKind::Policy, name).into());
        };
        if !deployment.upload_store().has(digest) {
            return Err(BuildChangeError::NotUploaded(digest).into());
        }
        let mut inner = self.0.lock();
        let runs = |one: &&StartedShadow| one.shadow.end().is_none() && !one.task.is_finished();
        if let Some(running) = inner.running.as_ref().filter(runs) {
            let progress = running.shadow.report();
            return Err(ShadowError::Busy {
                name: running.name.clone(),
                done: progress.sessions,
                total: progress.total,
            });
        }
        let shadow = Arc::new(ShadowRun {
            digest,
            compared_with: beside.digest(),
            by: by.to_owned(),
            begun: SystemTime::now(),
            progress: Mutex::default(),
            end: Mutex::default(),
        });
        let task = run(
            deployment.clone(),
            sessions.clone(),
            name.to_owned(),
            most,
            shadow.clone(),
        );
        inner.last.insert(name.to_owned(), shadow.clone());
        inner.running = Some(StartedShadow {
            name: name.to_owned(),
            shadow: shadow.clone(),
            task: AbortOnDropHandle::new(tokio::spawn(task)),
        });
        tracing::info!(name, %digest, by, "a build is shadowed");
        Ok(shadow)
    }
}

/// Why a shadow run ended before its end.
#[derive(Debug, thiserror::Error)]
enum ShadowRunError {
    #[error("the server goes down")]
    Closing,
    #[error("the uploaded build cannot be read: {0}. Upload it again")]
    Read(#[source] std::io::Error),
    #[error("the uploaded build cannot be used: {0}")]
    Load(#[from] LoadError),
    #[error("it is not what was uploaded: the file has sha256:{0}. Upload it again")]
    NotUploaded(Digest),
    #[error("the log cannot be read: {0}")]
    Log(#[source] LogError),
}

async fn run(
    deployment: DeploymentManager,
    sessions: Sessions,
    name: String,
    most: u64,
    shadow: Arc<ShadowRun>,
) {
    let ending = ShadowRunGuard(shadow.clone());
    let ended = async {
        let build = load(&deployment, &name, shadow.digest).await?;
        let build = policies::build(build);
        let bounds = ShadowBounds::default();
        let replayed = sessions.shadow(&name, &*build, most, bounds, &shadow.progress);
        Box::pin(replayed).await.map_err(ShadowRunError::Log)
    };
    let failed = PluginCaller::shadow().scope(ended).await.err();
    let failed = failed.map(|why: ShadowRunError| sentence(why));
    let progress = shadow.report();
    tracing::info!(
        name,
        digest = %shadow.digest,
        sessions = progress.sessions,
        different = progress.different,
        failed = progress.failed,
        not_migrated = progress.not_migrated,
        why = failed,
        "a build was shadowed"
    );
    ending.finish(failed);
}

/// Marks a run as ended if it panics, so that nobody waits for it.
struct ShadowRunGuard(Arc<ShadowRun>);

impl ShadowRunGuard {
    fn finish(&self, failed: Option<String>) {
        self.0.end.lock().get_or_insert((SystemTime::now(), failed));
    }
}

impl Drop for ShadowRunGuard {
    fn drop(&mut self) {
        self.finish(Some(
            "It came to grief inside the server, whose log says how.".to_owned(),
        ));
    }
}

/// Loads the build with the limits that it would have when active.
async fn load(
    deployment: &DeploymentManager,
    name: &str,
    digest: Digest,
) -> Result<PolicyPlugin, ShadowRunError> {
    let file = deployment.upload_store().file(digest);
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    let wasm = read
        .map_err(|_| ShadowRunError::Closing)?
        .map_err(ShadowRunError::Read)?;
    let manifest = deployment.now().snapshot.manifest.clone();
    let limits = manifest
        .entry(PluginKind::Policy, name)
        .map(|entry| entry.limits.limits());
    let limits = limits.unwrap_or_default();
    let loaded = PolicyPlugin::load(deployment.engine(), name, &wasm, &limits);
    let plugin = Box::pin(loaded).await?;
    if plugin.digest() != digest {
        return Err(ShadowRunError::NotUploaded(plugin.digest()));
    }
    Ok(plugin)
}
