//! Removes containers, including those that the engine cannot remove now.
//!
//! # Invariants
//! - A container that may still exist is retried until the engine says it is gone, independently of
//!   the others, and its folder stays until then.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;

use super::container_spec::{CONTAINER_LABEL, INSTANCE};
use super::engine::{DockerEngine, DockerError};
use super::state_dir::ContainerDir;
use crate::error::SandboxError;

/// How many containers are removed concurrently.
pub(super) const AT_A_TIME: usize = 8;
/// The pause before an engine that did not answer is asked again. It is on this machine and asked for little, so the
/// pause does not grow.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Removes containers of one host.
pub(super) struct Reaper {
    engine: DockerEngine,
    /// The host's label on its containers.
    instance: String,
    /// Folders of containers that could not be removed yet.
    pending: Mutex<Vec<ContainerDir>>,
}

impl Reaper {
    pub(super) fn new(engine: DockerEngine, instance: String) -> Self {
        Self {
            engine,
            instance,
            pending: Mutex::default(),
        }
    }

    /// Removes a container and its folder, now or when the engine answers again.
    pub(super) async fn remove(self: Arc<Self>, id: String, folder: ContainerDir) {
        match self.engine.remove(&id).await {
            Ok(()) => folder.remove(),
            Err(error) => {
                tracing::warn!(%error, "a container cannot be removed now, and will be later");
                self.schedule_removal(folder);
            }
        }
    }

    /// Removes what is left of a container whose creation failed. An engine that stopped answering
    /// may have created it all the same.
    pub(super) fn clean_up_failed(self: &Arc<Self>, folder: ContainerDir, error: &SandboxError) {
        if matches!(error, SandboxError::Engine(_)) {
            self.schedule_removal(folder);
        } else {
            folder.remove();
        }
    }

    /// Schedules a removal for when the engine can do it.
    fn schedule_removal(self: &Arc<Self>, folder: ContainerDir) {
        let mut pending = self.pending.lock();
        pending.push(folder);
        if pending.len() > 1 {
            return;
        }
        drop(pending);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let reaper = Arc::downgrade(self);
        runtime.spawn(async move {
            loop {
                // Nothing signals that an engine is back: it has to be asked.
                tokio::time::sleep(RETRY_INTERVAL).await;
                let Some(reaper) = reaper.upgrade() else {
                    return;
                };
                if reaper.retry_removals().await {
                    return;
                }
            }
        });
    }

    /// Tries each once, and returns whether none is left.
    async fn retry_removals(&self) -> bool {
        let pending = self.pending.lock().clone();
        let removing = futures::stream::iter(pending);
        removing
            .for_each_concurrent(AT_A_TIME, async |folder| {
                match self.remove_container(&folder).await {
                    Ok(_) => {
                        let mut pending = self.pending.lock();
                        pending.retain(|other| other.name() != folder.name());
                    }
                    Err(error) => tracing::debug!(%error, "a container still cannot be removed"),
                }
            })
            .await;
        self.pending.lock().is_empty()
    }

    /// Removes all containers that belong to a folder, and the folder: now, or when the engine can.
    /// Returns how many were removed now.
    pub(super) async fn remove_eventually(self: &Arc<Self>, folder: ContainerDir) -> usize {
        match self.remove_container(&folder).await {
            Ok(removed) => removed,
            Err(error) => {
                tracing::warn!(%error, "a container cannot be removed now, and will be later");
                self.schedule_removal(folder);
                0
            }
        }
    }

    async fn remove_container(&self, folder: &ContainerDir) -> Result<usize, DockerError> {
        let labels = [
            (INSTANCE, self.instance.as_str()),
            (CONTAINER_LABEL, folder.name()),
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
