//! Sandboxes that are containers of a Docker engine.
//!
//! # Invariants
//! - Every container belongs to one process of one host, which is identified by an id in its data
//!   folder. Nobody touches what belongs to a living process.
//! - A container belongs to one session for as long as it lives.
//! - What a dead host left behind is adopted where its session lives on, and removed otherwise.

mod adoption;
mod container;
mod container_spec;
mod engine;
mod image;
mod pool;
mod removal;
mod state_dir;
#[cfg(test)]
pub(crate) mod tests;
mod transport;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use parking_lot::Mutex;

pub use self::adoption::Adopted;
use self::container_spec::ContainerTemplate;
use self::state_dir::{ContainerDir, DirIdentity, OwnerDir, StateDir};
use crate::connection::Connection;
use crate::error::SandboxError;
pub use crate::settings::{DockerSettings, Transport};
use crate::settings::{SandboxSettings, SandboxSpec};
use container::{Container, DockerContext, ReadyContainer};
use engine::DockerEngine;
use lucid_types::ids::SessionId;
use pool::WarmPool;

/// How long to wait for an engine that stopped answering: it may only be restarting.
const RESTART: Duration = Duration::from_secs(15);
/// The interval at which it is asked meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A session's container, and the connection to it.
pub(super) struct ConnectedContainer {
    pub(super) connection: Connection,
    pub(super) container: SessionContainer,
    /// The folder that the container sees as `/run/lucid`.
    pub(super) dir: PathBuf,
    pub(super) shell: &'static str,
    /// Whether it replaces a container that a previous host left and that has ended since.
    pub(super) replaced: bool,
}

/// A session's container. Dropping it removes it.
pub(super) struct SessionContainer {
    container: Container,
    transport: Transport,
}

impl SessionContainer {
    pub(super) async fn remove(self) {
        self.container.remove().await;
    }

    /// Whether the container reaches sockets that the host creates in its folder.
    pub(super) fn reaches_sockets(&self) -> bool {
        self.transport == Transport::Socket
    }
}

/// A working engine, and the containers of this host on it.
pub(super) struct DockerBackend {
    context: Arc<DockerContext>,
    transport: Transport,
    shell: &'static str,
    pool: Arc<WarmPool>,
    /// Containers of the previous host, by session.
    adopted: Mutex<HashMap<SessionId, Container>>,
    /// Containers whose workspace was given to a session that has not asked for them yet, by
    /// session.
    claimed: Mutex<HashMap<SessionId, ReadyContainer>>,
    /// The owner folders of this process's containers: its own, and those of the dead processes it
    /// took over from. Each container is labelled with its owner's name.
    owner_dirs: Mutex<Vec<(OwnerDir, File)>>,
    /// Held by the process that took over.
    lock: Mutex<Option<File>>,
    /// Since when the engine does not answer, as far as was observed.
    silent_since: Mutex<Option<Instant>>,
    /// Why containers have no interface to the host though one is wanted.
    no_interface: Option<String>,
}

impl DockerBackend {
    /// Looks for an engine and really runs a container on it. `exec` is the installed exec server,
    /// `workspace` an empty folder to try with. An error is a sentence that says what to do.
    pub(super) async fn find(
        common: &SandboxSettings,
        exec: &Path,
        workspace: &Path,
    ) -> Result<Self, SandboxError> {
        let own = common.docker.clone().unwrap_or_default();
        let engine = DockerEngine::connect(own.host.as_deref()).await?;
        let info = engine.info().await?;
        for (limit, there) in [
            ("memory", info.memory_limit),
            ("processes", info.pids_limit),
            ("processors", info.cpu_cfs_quota),
        ] {
            if there == Some(false) {
                return Err(SandboxError::Start(format!(
                    "this Docker engine cannot limit {limit}: its kernel lacks the control group for that"
                )));
            }
        }
        if info.swap_limit == Some(false) {
            tracing::warn!(
                "this Docker engine cannot limit swap: beyond its memory a container can fill this machine's. Turn swap off (`swapoff -a`), or start the kernel with swapaccount=1."
            );
        }
        let image_config = image::image_config(&engine, &own.image).await?;
        let (root, life) = StateDir::open(&common.run_dir, exec)?;
        let owner = root.owner().clone();
        let template =
            ContainerTemplate::new(common, &own, root.instance()?, info.ncpu, &image_config);
        let context = Arc::new(DockerContext::new(engine, root, template, None));
        let (context, tried, no_interface) =
            Box::pin(first_container(context, workspace, own.transport)).await?;
        let transport = tried.transport;
        let looked = image::probe_image(&tried.connection, &context.template.workspace_mount).await;
        tried.container.remove().await;
        let image = looked?;

        let mut template = context.template.clone();
        if let Some(bash) = &image.bash {
            template.set_shell(bash);
        }
        let (engine, root) = (context.engine.clone(), context.root.clone());
        let context = Arc::new(DockerContext::new(engine, root, template, image.python));
        Ok(Self {
            pool: Arc::new(WarmPool::new(Arc::clone(&context), own.pool)),
            context,
            transport,
            shell: if image.bash.is_some() { "bash" } else { "sh" },
            adopted: Mutex::default(),
            claimed: Mutex::default(),
            owner_dirs: Mutex::new(vec![(owner, life)]),
            lock: Mutex::default(),
            silent_since: Mutex::default(),
            no_interface,
        })
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// Whether containers have an interface to the host.
    pub(super) fn has_interfaces(&self) -> bool {
        self.context.template.has_interfaces()
    }

    /// Why they have none, where this engine's machine could have told.
    pub(super) fn no_interface(&self) -> Option<String> {
        self.no_interface.clone()
    }

    /// Checks that the engine answers and still has the image.
    pub(super) async fn check(&self) -> Result<(), SandboxError> {
        self.context.engine.ping().await?;
        image::image_config(&self.context.engine, self.context.template.image())
            .await
            .map(drop)
    }

    /// The container of a session: the one prepared for it, the one a dead host left it, or a new
    /// one.
    pub(super) async fn start(
        &self,
        spec: SandboxSpec<'_>,
    ) -> Result<ConnectedContainer, SandboxError> {
        let open = || {
            let session = (spec.session, spec.workspace.to_owned());
            self.context.open(Some(session), Some(self.transport))
        };
        let kept = self.adopted.lock().contains_key(&spec.session);
        let waiting = self.waiting(spec).await;
        let lost = kept && waiting.is_none();
        let opened = match waiting {
            Some(opened) => opened,
            None => match open().await {
                Err(SandboxError::Engine(_)) if self.wait_for_engine().await => open().await?,
                opened => {
                    let opened = opened?;
                    // Any outage is over: the next one is waited for anew.
                    *self.silent_since.lock() = None;
                    opened
                }
            },
        };
        Ok(ConnectedContainer {
            connection: opened.connection,
            dir: opened.container.folder().lucid(),
            container: SessionContainer {
                container: opened.container,
                transport: opened.transport,
            },
            shell: self.shell,
            replaced: lost,
        })
    }

    /// Waits a while for an engine that stopped answering, the first time that is noticed.
    async fn wait_for_engine(&self) -> bool {
        let since = *self.silent_since.lock().get_or_insert_with(Instant::now);
        loop {
            if self.context.engine.ping().await.is_ok() {
                *self.silent_since.lock() = None;
                return true;
            }
            if since.elapsed() >= RESTART {
                return false;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether a session has a prepared container, or one of the previous host.
    pub(super) fn has_container(&self, session: SessionId) -> bool {
        self.adopted.lock().contains_key(&session) || self.claimed.lock().contains_key(&session)
    }

    async fn waiting(&self, spec: SandboxSpec<'_>) -> Option<ReadyContainer> {
        let prepared = self.claimed.lock().remove(&spec.session);
        if let Some(opened) = prepared {
            if opened.connection.is_alive() && contains_label(opened.container.folder(), spec) {
                return Some(opened);
            }
            opened.container.remove().await;
        }
        let container = self.adopted.lock().remove(&spec.session)?;
        if !contains_label(container.folder(), spec) {
            container.remove().await;
            return None;
        }
        match container.reconnect(self.transport).await {
            Ok(connection) => Some(ReadyContainer {
                connection,
                container,
                transport: self.transport,
            }),
            Err(error) => {
                tracing::warn!(session = %spec.session, %error, "a container that was left cannot be taken over");
                container.remove().await;
                None
            }
        }
    }

    /// Gives a session without a workspace the one of a waiting container.
    pub(super) fn claim_warm(&self, session: SessionId, workspace: &Path) -> bool {
        if self.transport != Transport::Socket || workspace.exists() {
            return false;
        }
        let Some(opened) = self.pool.take() else {
            return false;
        };
        match pool::claim(&opened.container, session, workspace) {
            Ok(()) => {
                opened.container.rename_later(session);
                let before = self.claimed.lock().insert(session, opened);
                drop(before);
                true
            }
            Err(error) => {
                tracing::warn!(%session, %error, "a container that waited cannot be given away");
                false
            }
        }
    }

    /// Removes what waits for a session that will not come.
    pub(super) async fn discard(&self, session: SessionId) {
        let left = self.adopted.lock().remove(&session);
        let prepared = self.claimed.lock().remove(&session);
        for container in left
            .into_iter()
            .chain(prepared.map(|opened| opened.container))
        {
            container.remove().await;
        }
    }

    /// Removes containers, and returns how many were removed.
    async fn remove_all(&self, ids: impl IntoIterator<Item = String>) -> usize {
        let removed = AtomicUsize::new(0);
        futures::stream::iter(ids)
            .for_each_concurrent(removal::AT_A_TIME, async |id| {
                match self.context.engine.remove(&id).await {
                    Ok(()) => {
                        removed.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a container cannot be removed before the next start");
                    }
                }
            })
            .await;
        removed.into_inner()
    }

    /// Removes every container of this process, whoever uses it.
    pub(super) async fn shut_down(&self) {
        self.pool.close();
        // Containers being created now would be missed below.
        self.context.stop_creating().await;
        self.adopted.lock().drain().for_each(drop);
        self.claimed.lock().drain().for_each(drop);
        let owners: Vec<String> = self
            .owner_dirs
            .lock()
            .iter()
            .map(|(owner, _)| owner.name().to_owned())
            .collect();
        for owner in owners {
            match self.context.containers_of(&owner).await {
                Ok(all) => {
                    self.remove_all(all.into_iter().filter_map(|found| found.id))
                        .await;
                }
                Err(error) => {
                    tracing::warn!(%error, "containers stay behind, until the next start")
                }
            }
        }
    }
}

impl Drop for DockerBackend {
    fn drop(&mut self) {
        for (owner, _life) in self.owner_dirs.lock().drain(..) {
            owner.remove_if_empty();
        }
    }
}

/// Runs a container over an empty workspace. If one with an interface to the host is wanted and cannot be
/// had, containers do without, for the reason that is returned.
async fn first_container(
    context: Arc<DockerContext>,
    workspace: &Path,
    transport: Option<Transport>,
) -> Result<(Arc<DockerContext>, ReadyContainer, Option<String>), SandboxError> {
    let open = |context: Arc<DockerContext>| {
        let session = Some((SessionId::new(), workspace.to_owned()));
        async move { context.open(session, transport).await }
    };
    let tried = open(Arc::clone(&context)).await;
    if !context.template.has_interfaces() {
        return Ok((context, tried?, None));
    }
    let reason = match tried {
        Ok(tried) if tried.connection.has_interface() => return Ok((context, tried, None)),
        Ok(tried) => {
            let reason = tried.connection.no_interface();
            tried.container.remove().await;
            reason
        }
        Err(SandboxError::Start(reason)) => Some(reason),
        Err(SandboxError::Engine(error)) => Some(error),
        Err(error) => return Err(error),
    };
    let template = context.template.clone().without_interfaces();
    let (engine, root) = (context.engine.clone(), context.root.clone());
    let context = Arc::new(DockerContext::new(engine, root, template, None));
    let tried = open(Arc::clone(&context)).await?;
    Ok((context, tried, reason))
}

/// Whether a container has the workspace that the session has now.
fn contains_label(folder: &ContainerDir, spec: SandboxSpec<'_>) -> bool {
    folder.recorded().is_some_and(|record| {
        record.session == spec.session
            && DirIdentity::of(spec.workspace).is_ok_and(|now| now == record.identity)
    })
}
