//! Removes containers, including those that the engine cannot remove now.
//!
//! # Invariants
//! - A container that may still exist is retried until the engine says it is gone, independently of
//!   the others, and its folder stays until then.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;

use super::container::DockerContext;
use super::container_spec::{BOX, INSTANCE};
use super::engine::DockerError;
use super::state_dir::ContainerDir;
use crate::SandboxError;

/// How many containers are removed concurrently.
pub(super) const AT_A_TIME: usize = 8;
/// The pause before an engine that did not answer is asked again. It is on this machine and asked for little, so the
/// pause does not grow.
const AGAIN: Duration = Duration::from_secs(5);

/// Folders of containers that could not be removed yet.
#[derive(Default)]
pub(super) struct PendingRemovals(Mutex<Vec<ContainerDir>>);

impl PendingRemovals {}

impl DockerContext {
    /// Removes what is left of a container whose creation failed. An engine that stopped answering
    /// may have created it all the same.
    pub(super) fn undo(self: &Arc<Self>, folder: ContainerDir, error: &SandboxError) {
        if matches!(error, SandboxError::Engine(_)) {
            self.doom(folder);
        } else {
            folder.remove();
        }
    }

    /// Schedules a removal for when the engine can do it.
    fn doom(self: &Arc<Self>, folder: ContainerDir) {
        let mut doomed = self.doomed.0.lock();
        doomed.push(folder);
        if doomed.len() > 1 {
            return;
        }
        drop(doomed);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let core = Arc::downgrade(self);
        runtime.spawn(async move {
            loop {
                // Nothing signals that an engine is back: it has to be asked.
                tokio::time::sleep(AGAIN).await;
                let Some(core) = core.upgrade() else { return };
                if core.remove_doomed().await {
                    return;
                }
            }
        });
    }

    /// Tries each once, and returns whether none is left.
    async fn remove_doomed(&self) -> bool {
        let doomed = self.doomed.0.lock().clone();
        let removing = futures::stream::iter(doomed);
        removing
            .for_each_concurrent(AT_A_TIME, async |folder| {
                match self.remove_box(&folder).await {
                    Ok(_) => {
                        let mut doomed = self.doomed.0.lock();
                        doomed.retain(|other| other.name() != folder.name());
                    }
                    Err(error) => tracing::debug!(%error, "a container still cannot be removed"),
                }
            })
            .await;
        self.doomed.0.lock().is_empty()
    }

    /// Removes all containers that belong to a folder, and the folder: now, or when the engine can.
    /// Returns how many were removed now.
    pub(super) async fn remove_box_in_the_end(self: &Arc<Self>, folder: ContainerDir) -> usize {
        match self.remove_box(&folder).await {
            Ok(removed) => removed,
            Err(error) => {
                tracing::warn!(%error, "a container cannot be removed now, and will be later");
                self.doom(folder);
                0
            }
        }
    }

    async fn remove_box(&self, folder: &ContainerDir) -> Result<usize, DockerError> {
        let labels = [
            (INSTANCE, self.plan.instance.as_str()),
            (BOX, folder.name()),
        ];
        let mut removed = 0;
        for container in self.engine.labelled(&labels).await? {
            if let Some(id) = container.id {
                self.engine.remove(&id).await?;
                removed += 1;
            }
        }
        folder.remove();
        Ok(removed)
    }
}

/// Removes a container and its folder, now or when the engine answers again.
pub(super) async fn remove(core: Arc<DockerContext>, id: String, folder: ContainerDir) {
    match core.engine.remove(&id).await {
        Ok(()) => folder.remove(),
        Err(error) => {
            tracing::warn!(%error, "a container cannot be removed now, and will be later");
            core.doom(folder);
        }
    }
}
