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

mod change;
mod decisions;
mod error;
mod reload;
mod start;
mod upload;

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

pub use self::change::BuildChange;
pub use self::error::{BuildChangeError, UploadError};
use super::rollout::probation::{ProbationDecision, Probations};
use super::snapshot::DeploymentSnapshot;
use super::uploads::UploadStore;
use crate::config::Config;
use crate::manifest::ManifestProblems;
use lucid_net::oci::ComponentStore;
use lucid_session::{Deployment, Generation};
use lucid_store::blobs::Blobs;
use lucid_wasm::Engine;

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

impl DeploymentManager {
    /// The deployment, for sessions.
    pub(crate) fn deployment(&self) -> Deployment {
        self.0.generations.subscribe()
    }

    /// The current state.
    pub fn now(&self) -> DeploymentStatus {
        self.0.status.lock().clone()
    }

    /// The engine that runs the plugins.
    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// The upload store.
    pub(crate) fn upload_store(&self) -> &UploadStore {
        &self.0.upload_store
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

fn generation(number: u64, snapshot: &DeploymentSnapshot) -> Arc<Generation> {
    Arc::new(Generation {
        number,
        policies: snapshot.policies.clone(),
        models: snapshot.providers.clone(),
        tools: snapshot.toolsets.clone(),
    })
}
