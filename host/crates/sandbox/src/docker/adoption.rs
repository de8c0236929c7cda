//! Adopts what dead processes of this host left on the engine.
//!
//! # Invariants
//! - The folder of a container outlives the container, so one that cannot be removed now is found
//!   again, by this process or the next.
//! - A container that has no folder is removed too.
//! - A failure with one container does not keep the others from being handled.

use std::collections::HashMap;
use std::sync::Arc;

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum};
use futures::StreamExt;

use super::container::Container;
use super::container_spec::{CONTAINER_LABEL, OWNER, SHAPE};
use super::state_dir::{ContainerDir, DirIdentity, OwnerDir};
use super::{DockerBackend, removal};
use crate::error::SandboxError;
use crate::settings::Transport;
use lucid_types::ids::SessionId;

/// The result of adopting a dead host's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Adopted {
    /// Containers kept for sessions that go on.
    pub kept: usize,
    /// Containers removed. Those that the engine cannot remove now are not counted, and are
    /// retried.
    pub removed: usize,
}

impl DockerBackend {
    /// Adopts the containers of the previous host in this folder, and keeps a pool from now on.
    ///
    /// # Errors
    /// If another process does so already.
    pub(crate) async fn adopt(
        &self,
        is_alive: impl Fn(SessionId) -> bool,
    ) -> Result<Adopted, SandboxError> {
        let Some(lock) = self.context.root.lock()? else {
            return Err(SandboxError::Start(
                "another process of this host looks after its containers".to_owned(),
            ));
        };
        *self.lock.lock() = Some(lock);
        let mut left = self.containers_by_owner().await;
        // After the engine was asked: by now every container in its answer has its folder.
        let mut done = Adopted::default();
        for owner in self.context.root.others() {
            let containers = left.remove(owner.name()).unwrap_or_default();
            match owner.lock_if_dead() {
                Ok(None) => {}
                Ok(Some(life)) => {
                    self.adopt_from(&owner, containers, &is_alive, &mut done)
                        .await;
                    owner.remove_if_empty();
                    self.owner_dirs.lock().push((owner, life));
                }
                Err(error) => {
                    tracing::warn!(owner = owner.name(), %error, "what a process of this host left is not taken over");
                }
            }
        }
        left.remove(self.context.root.owner().name());
        // Of processes that have no folder any more.
        let orphans = left.into_values().flatten();
        done.removed += self.remove_all(orphans.filter_map(|found| found.id)).await;
        if self.transport == Transport::Socket {
            self.pool.keep_full();
        }
        Ok(done)
    }

    /// This host's containers, by the names of the processes that created them.
    async fn containers_by_owner(&self) -> HashMap<String, Vec<ContainerSummary>> {
        let mut left: HashMap<_, Vec<_>> = HashMap::new();
        match self.context.containers().await {
            Ok(all) => {
                for found in all {
                    let owner = label(&found, OWNER).unwrap_or_default().to_owned();
                    left.entry(owner).or_default().push(found);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "no container of the host before can be kept: they are removed later");
            }
        }
        left
    }

    async fn adopt_from(
        &self,
        owner: &OwnerDir,
        containers: Vec<ContainerSummary>,
        is_alive: impl Fn(SessionId) -> bool,
        done: &mut Adopted,
    ) {
        let (mut kept, mut without_folder) = (Vec::new(), Vec::new());
        for found in containers {
            let folder = label(&found, CONTAINER_LABEL).and_then(|name| owner.find(name));
            let Some(folder) = folder else {
                without_folder.extend(found.id);
                continue;
            };
            if let Some((session, id)) = self.adoptable(&found, &folder, &is_alive) {
                kept.push(folder.name().to_owned());
                let container = Container::existing(Arc::clone(&self.context), id, folder);
                self.adopted.lock().insert(session, container);
            }
        }
        done.kept += kept.len();
        done.removed += self.remove_all(without_folder).await;
        let mut folders = owner.container_dirs();
        folders.retain(|folder| !kept.iter().any(|name| name == folder.name()));
        let removed = futures::stream::iter(folders)
            .map(|folder| self.context.reaper.remove_eventually(folder))
            .buffer_unordered(removal::AT_A_TIME);
        done.removed += removed.fold(0, async |sum, one| sum + one).await;
    }

    /// The session that can go on in a container, and the container's id.
    fn adoptable(
        &self,
        found: &ContainerSummary,
        folder: &ContainerDir,
        is_alive: impl Fn(SessionId) -> bool,
    ) -> Option<(SessionId, String)> {
        let id = found.id.clone()?;
        let record = folder.recorded()?;
        let fits = found.state == Some(ContainerSummaryStateEnum::RUNNING)
            && label(found, SHAPE) == Some(self.context.template.fingerprint().as_str())
            && folder.lucid().is_dir()
            && DirIdentity::of(&record.workspace).is_ok_and(|now| now == record.identity)
            && is_alive(record.session)
            && !self.adopted.lock().contains_key(&record.session);
        fits.then_some((record.session, id))
    }
}

fn label<'a>(found: &'a ContainerSummary, name: &str) -> Option<&'a str> {
    found.labels.as_ref()?.get(name).map(String::as_str)
}
