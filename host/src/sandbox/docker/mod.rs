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
mod tests;
mod transport;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;

pub use self::adoption::TakenOver;
use self::container_spec::Plan;
use self::state_dir::{BoxFolder, Identity, Owner, Root};
use super::connection::Connection;
use super::{SandboxError, Spec};
use container::{Container, Core, Opened};
use engine::Engine;
use pool::Pool;
pub use transport::Transport;

/// How long an engine that fell silent is waited for: it may only be restarted.
const RESTART: Duration = Duration::from_secs(15);
/// How often it is asked.
const ASKED: Duration = Duration::from_millis(200);

/// What containers are made with, beside [`super::Settings`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the engine listens, as `DOCKER_HOST` says it; the usual socket where absent.
    pub host: Option<String>,
    /// The image of every container. It needs a shell, and must be there already.
    pub image: String,
    /// How many processors a container may use up; more than there are means all.
    pub cpus: f64,
    /// How many processes and threads a container may have.
    pub processes: u32,
    /// Goes before the session's id in a container's name.
    pub prefix: String,
    /// The engine's network that containers join where they may have one; its default where absent.
    pub network: Option<String>,
    /// The folder of all workspaces as this host has it, and as the engine's machine has it.
    pub host_path: Option<(PathBuf, PathBuf)>,
    /// How many containers wait for sessions. They wait only after [`super::Sandboxes::take_over`].
    pub pool: usize,
    /// How to speak with containers. Absent in every deployment: it is found out, as the fall-back is
    /// to be taken only where no socket passes. Tests and the benchmark set it, to have either way.
    pub transport: Option<Transport>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: None,
            image: "lucid-sandbox:bookworm".to_owned(),
            cpus: 2.0,
            processes: 512,
            prefix: "lucid-".to_owned(),
            network: None,
            host_path: None,
            pool: 0,
            transport: None,
        }
    }
}

/// A container that is a session's, and how to speak with it.
pub(super) struct Ready {
    pub(super) connection: Connection,
    pub(super) container: Held,
    /// The folder that the container has as `/run/lucid`.
    pub(super) dir: PathBuf,
    pub(super) shell: &'static str,
    /// It stands for one that a host before this one left, and that ended since.
    pub(super) lost: bool,
}

/// A session's container. Dropping it removes it.
pub(super) struct Held {
    container: Container,
    transport: Transport,
}

impl Held {
    pub(super) async fn remove(self) {
        self.container.remove().await;
    }

    /// Whether the container reaches sockets that the host makes in its folder.
    pub(super) fn reaches_sockets(&self) -> bool {
        self.transport == Transport::Socket
    }
}

/// An engine that works, and the containers of this host on it.
pub(super) struct Backend {
    core: Arc<Core>,
    transport: Transport,
    shell: &'static str,
    pool: Arc<Pool>,
    /// By session: containers of the host before this one.
    left: Mutex<HashMap<String, Container>>,
    /// By session: containers whose workspace was given to it, and that were not asked for yet.
    prepared: Mutex<HashMap<String, Opened>>,
    /// Of the folders whose boxes are this process's: its own, and those of the dead it took over
    /// from. The containers of each are labelled with the owner's name.
    owned: Mutex<Vec<(Owner, File)>>,
    /// Held by the process that took over.
    lock: Mutex<Option<File>>,
    /// Since when the engine does not answer, as far as was seen.
    silent_since: Mutex<Option<Instant>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    /// Looks for an engine and really runs a container on it. `exec` is the installed exec server,
    /// `workspace` an empty folder to try with. An error is a sentence on what to do.
    pub(super) async fn find(
        common: &super::Settings,
        exec: &Path,
        workspace: &Path,
    ) -> Result<Self, SandboxError> {
        let own = common.docker.clone().unwrap_or_default();
        let engine = Engine::connect(own.host.as_deref()).await?;
        let info = engine.info().await?;
        for (limit, there) in [
            ("memory", info.memory_limit),
            ("processes", info.pids_limit),
            ("processors", info.cpu_cfs_quota),
        ] {
            if there == Some(false) {
                return Err(SandboxError::Start(format!(
                    "this Docker engine cannot limit {limit}: its kernel lacks the control group for that."
                )));
            }
        }
        if info.swap_limit == Some(false) {
            tracing::warn!(
                "this Docker engine cannot limit swap: beyond its memory a container can fill this machine's. Turn swap off (`swapoff -a`), or start the kernel with swapaccount=1."
            );
        }
        let brought = image::brought(&engine, &own.image).await?;
        let (root, life) = Root::open(&common.run_dir, exec)?;
        let owner = root.owner().clone();
        let plan = Plan::new(common, &own, root.instance()?, info.ncpu, &brought);
        let core = Arc::new(Core::new(engine, root, plan, None));
        let tried = core
            .open(
                Some((
                    format!("probe-{}", uuid::Uuid::new_v4()),
                    workspace.to_owned(),
                )),
                own.transport,
            )
            .await?;
        let transport = tried.transport;
        let looked = image::look(&tried.connection, &core.plan.workspace_mount).await;
        tried.container.remove().await;
        let image = looked?;

        let mut plan = core.plan.clone();
        if let Some(bash) = &image.bash {
            plan.set_shell(bash);
        }
        let (engine, root) = (core.engine.clone(), core.root.clone());
        let core = Arc::new(Core::new(engine, root, plan, image.python));
        Ok(Self {
            pool: Arc::new(Pool::new(Arc::clone(&core), own.pool)),
            core,
            transport,
            shell: if image.bash.is_some() { "bash" } else { "sh" },
            left: Mutex::default(),
            prepared: Mutex::default(),
            owned: Mutex::new(vec![(owner, life)]),
            lock: Mutex::default(),
            silent_since: Mutex::default(),
        })
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// Whether the engine answers and still has the image.
    pub(super) async fn check(&self) -> Result<(), SandboxError> {
        self.core.engine.ping().await?;
        image::brought(&self.core.engine, self.core.plan.image())
            .await
            .map(drop)
    }

    /// The container of a session: the one that was prepared for it, or that a dead host left it, or
    /// a new one.
    pub(super) async fn start(&self, spec: Spec<'_>) -> Result<Ready, SandboxError> {
        let open = || {
            let session = (spec.session.to_owned(), spec.workspace.to_owned());
            self.core.open(Some(session), Some(self.transport))
        };
        let kept = locked(&self.left).contains_key(spec.session);
        let waiting = self.waiting(spec).await;
        let lost = kept && waiting.is_none();
        let opened = match waiting {
            Some(opened) => opened,
            None => match open().await {
                Err(SandboxError::Engine(_)) if self.engine_is_back().await => open().await?,
                opened => {
                    let opened = opened?;
                    // Whatever silence there was is over: the next one is waited for anew.
                    *locked(&self.silent_since) = None;
                    opened
                }
            },
        };
        Ok(Ready {
            connection: opened.connection,
            dir: opened.container.folder().lucid(),
            container: Held {
                container: opened.container,
                transport: opened.transport,
            },
            shell: self.shell,
            lost,
        })
    }

    /// Waits some time for an engine that fell silent, the first time it is met.
    async fn engine_is_back(&self) -> bool {
        let since = *locked(&self.silent_since).get_or_insert_with(Instant::now);
        loop {
            if self.core.engine.ping().await.is_ok() {
                *locked(&self.silent_since) = None;
                return true;
            }
            if since.elapsed() >= RESTART {
                return false;
            }
            tokio::time::sleep(ASKED).await;
        }
    }

    /// Whether there is a container of the host before this one, or a prepared one, for a session.
    pub(super) fn holds(&self, session: &str) -> bool {
        locked(&self.left).contains_key(session) || locked(&self.prepared).contains_key(session)
    }

    async fn waiting(&self, spec: Spec<'_>) -> Option<Opened> {
        let prepared = locked(&self.prepared).remove(spec.session);
        if let Some(opened) = prepared {
            if opened.connection.is_alive() && has(opened.container.folder(), spec) {
                return Some(opened);
            }
            opened.container.remove().await;
        }
        let container = locked(&self.left).remove(spec.session)?;
        if !has(container.folder(), spec) {
            container.remove().await;
            return None;
        }
        match container.reconnect(self.transport).await {
            Ok(connection) => Some(Opened {
                connection,
                container,
                transport: self.transport,
            }),
            Err(error) => {
                tracing::warn!(session = spec.session, %error, "a container that was left cannot be taken over");
                container.remove().await;
                None
            }
        }
    }

    /// Gives a session that has no workspace yet the one of a container that waits.
    pub(super) fn prepare(&self, session: &str, workspace: &Path) -> bool {
        if self.transport != Transport::Socket || workspace.exists() {
            return false;
        }
        let Some(opened) = self.pool.take() else {
            return false;
        };
        match pool::give(&opened.container, session, workspace) {
            Ok(()) => {
                opened.container.rename_later(session);
                let before = locked(&self.prepared).insert(session.to_owned(), opened);
                drop(before);
                true
            }
            Err(error) => {
                tracing::warn!(session, %error, "a container that waited cannot be given away");
                false
            }
        }
    }

    /// Removes what waits for a session that will not come.
    pub(super) async fn discard(&self, session: &str) {
        let left = locked(&self.left).remove(session);
        let prepared = locked(&self.prepared).remove(session);
        for container in left
            .into_iter()
            .chain(prepared.map(|opened| opened.container))
        {
            container.remove().await;
        }
    }

    /// Removes containers, and says how many it could.
    async fn remove_all(&self, ids: impl IntoIterator<Item = String>) -> usize {
        let removed = AtomicUsize::new(0);
        futures::stream::iter(ids)
            .for_each_concurrent(removal::AT_A_TIME, async |id| {
                match self.core.engine.remove(&id).await {
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

    /// Removes every container of this process, whoever has it.
    pub(super) async fn shut_down(&self) {
        self.pool.close();
        // What is being made now would be missed below.
        self.core.stop_making().await;
        locked(&self.left).drain().for_each(drop);
        locked(&self.prepared).drain().for_each(drop);
        let owners: Vec<String> = locked(&self.owned)
            .iter()
            .map(|(owner, _)| owner.name().to_owned())
            .collect();
        for owner in owners {
            match self.core.containers_of(&owner).await {
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

impl Drop for Backend {
    fn drop(&mut self) {
        for (owner, _life) in locked(&self.owned).drain(..) {
            owner.remove_if_empty();
        }
    }
}

/// Whether a box has the workspace that the session has now.
fn has(folder: &BoxFolder, spec: Spec<'_>) -> bool {
    folder.recorded().is_some_and(|record| {
        record.session == spec.session
            && Identity::of(spec.workspace).is_ok_and(|now| now == record.identity)
    })
}
