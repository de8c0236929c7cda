//! The life of one container, from its creation to its removal.
//!
//! # Invariants
//! - A container that was created is removed again, even if the caller that asked for it no longer
//!   waits.
//! - One that the engine cannot remove now is removed when the engine answers again.
//! - The container's folder, by which a later host finds it, is removed after the container, though
//!   its contents for the container may go before.
//! - A host that is shutting down creates no more containers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bollard::models::ContainerSummary;
use futures::FutureExt;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::container_spec::{ContainerSpec, ContainerTemplate, INSTANCE, OWNER};
use super::engine::{DockerEngine, DockerError};
use super::removal::Reaper;
use super::state_dir::{ContainerDir, ContainerRecord, DirIdentity, StateDir};
use super::transport::{ContainerSocket, attach};
use crate::connection::{Connection, EndReasonLookup};
use crate::error::SandboxError;
use crate::settings::Transport;
use lucid_types::ids::SessionId;
use lucid_types::sanitize::sanitize;

/// How long a running container may take to become ready.
const READY: Duration = Duration::from_secs(20);
/// The same while it is unknown whether a socket passes between host and container.
const FIRST_READY: Duration = Duration::from_secs(8);
/// How long the engine may take to notice the end of a container whose connection was lost.
const SEEN: Duration = Duration::from_secs(3);
/// The most characters of a container's log that an error repeats.
const LOG: usize = 1000;
/// How many containers are created concurrently: an engine asked for fifty serves all of them late.
const AT_A_TIME: u32 = 6;

/// The state shared by all containers.
pub(super) struct DockerContext {
    pub(super) engine: DockerEngine,
    pub(super) root: StateDir,
    pub(super) template: ContainerTemplate,
    /// The target of `python` in containers whose image has it under another name only.
    pub(super) python: Option<String>,
    creation_slots: Semaphore,
    /// Set when no more containers may be created.
    closing: AtomicBool,
    pub(super) reaper: Arc<Reaper>,
}

/// A container that is ready.
pub(super) struct ReadyContainer {
    pub(super) connection: Connection,
    pub(super) container: Container,
    pub(super) transport: Transport,
}

/// A container. Dropping it removes it.
pub(super) struct Container {
    context: Arc<DockerContext>,
    id: String,
    folder: ContainerDir,
    removed: bool,
}

impl DockerContext {
    pub(super) fn new(
        engine: DockerEngine,
        root: StateDir,
        template: ContainerTemplate,
        python: Option<String>,
    ) -> Self {
        let reaper = Reaper::new(engine.clone(), template.instance.clone());
        Self {
            engine,
            root,
            template,
            python,
            creation_slots: Semaphore::new(AT_A_TIME as usize),
            closing: AtomicBool::new(false),
            reaper: Arc::new(reaper),
        }
    }

    /// Creates a container and waits until it is ready: for a session, over its workspace, or for
    /// nobody yet, over a new one of its own. `how` is the transport known to work here.
    pub(super) async fn open(
        self: &Arc<Self>,
        session: Option<(SessionId, PathBuf)>,
        how: Option<Transport>,
    ) -> Result<ReadyContainer, SandboxError> {
        let context = Arc::clone(self);
        // In a task of its own: the caller may go away, and what was created by then must be
        // removed.
        let opening = tokio::spawn(async move { context.create_and_connect(session, how).await });
        opening.await.unwrap_or_else(|error| {
            Err(SandboxError::Start(format!(
                "the task that makes its container failed: {error}"
            )))
        })
    }

    async fn create_and_connect(
        self: Arc<Self>,
        session: Option<(SessionId, PathBuf)>,
        how: Option<Transport>,
    ) -> Result<ReadyContainer, SandboxError> {
        let folder = self.root.create_container_dir(self.python.as_deref())?;
        let made = async {
            let (session, workspace) = match session {
                Some((session, workspace)) => {
                    folder.record(&ContainerRecord {
                        session,
                        workspace: workspace.clone(),
                        identity: DirIdentity::of(&workspace)?,
                    })?;
                    (Some(session), workspace)
                }
                None => (None, folder.make_workspace()?),
            };
            let listener = listener(&folder, how)?;
            let _turn = self.creation_permit().await?;
            let id = self.create(&folder, session, &workspace, how).await?;
            Ok((id, listener))
        };
        let (id, listener) = match made.await {
            Ok(made) => made,
            Err(error) => {
                self.reaper.clean_up_failed(folder, &error);
                return Err(error);
            }
        };
        let container = Container {
            context: Arc::clone(&self),
            id,
            folder,
            removed: false,
        };
        let opened = async {
            {
                let _turn = self.creation_permit().await?;
                self.engine.start(&container.id).await?;
            }
            container.connect(listener, how).await
        };
        match opened.await {
            Ok((connection, transport)) => Ok(ReadyContainer {
                connection,
                container,
                transport,
            }),
            Err(error) => {
                container.remove().await;
                Err(error)
            }
        }
    }

    async fn creation_permit(&self) -> Result<SemaphorePermit<'_>, SandboxError> {
        match self.creation_slots.acquire().await {
            Ok(turn) if !self.closing.load(Ordering::SeqCst) => Ok(turn),
            _ => Err(SandboxError::Start("this host is ending".to_owned())),
        }
    }

    /// Creates no container from now on, and waits for those being created, so that the engine
    /// knows them all.
    pub(super) async fn stop_creating(&self) {
        self.closing.store(true, Ordering::SeqCst);
        // Holding all permits means that nothing else is being created.
        let _ = self.creation_slots.acquire_many(AT_A_TIME).await;
    }

    async fn create(
        &self,
        folder: &ContainerDir,
        session: Option<SessionId>,
        workspace: &Path,
        how: Option<Transport>,
    ) -> Result<String, SandboxError> {
        let lucid = folder.lucid();
        let wanted = ContainerSpec {
            name: folder.name(),
            owner: self.root.owner().name(),
            transport: how,
            session,
            lucid: &lucid,
            workspace,
        };
        let body = self.template.body(&wanted)?;
        let name = match session {
            Some(session) => self.template.container_name(session),
            None => self
                .template
                .container_name(format_args!("ready-{}", folder.name())),
        };
        match self.engine.create(&name, body.clone()).await {
            Err(error) if error.is_conflict() => {}
            other => return Ok(other?),
        }
        // The session's last container, which is being removed, or died with an earlier host.
        self.clear(&name).await;
        match self.engine.create(&name, body.clone()).await {
            Err(error) if error.is_conflict() => {
                let name = other_name(&name, folder);
                Ok(self.engine.create(&name, body).await?)
            }
            other => Ok(other?),
        }
    }

    /// Removes the container of that name, if this host created it.
    async fn clear(&self, name: &str) {
        let Ok(found) = self.engine.inspect(name).await else {
            return;
        };
        let labels = found.config.and_then(|config| config.labels);
        let ours =
            labels.is_some_and(|labels| labels.get(INSTANCE) == Some(&self.template.instance));
        if let (true, Some(id)) = (ours, found.id)
            && let Err(error) = self.engine.remove(&id).await
        {
            tracing::warn!(name, %error, "a container that is in the way cannot be removed");
        }
    }
}

/// The name to use when the first choice belongs to another container.
fn other_name(name: &str, folder: &ContainerDir) -> String {
    let own: String = folder.name().chars().take(8).collect();
    format!("{name}-{own}")
}

impl DockerContext {
    /// The containers that any process of this host created.
    pub(super) async fn containers(&self) -> Result<Vec<ContainerSummary>, DockerError> {
        let labels = [(INSTANCE, self.template.instance.as_str())];
        self.engine.labelled(&labels).await
    }

    /// The containers that one process of this host created.
    pub(super) async fn containers_of(
        &self,
        owner: &str,
    ) -> Result<Vec<ContainerSummary>, DockerError> {
        let labels = [(INSTANCE, self.template.instance.as_str()), (OWNER, owner)];
        self.engine.labelled(&labels).await
    }
}

/// A listening socket, unless frames are known not to pass through one.
fn listener(
    folder: &ContainerDir,
    how: Option<Transport>,
) -> Result<Option<ContainerSocket>, SandboxError> {
    match how {
        Some(Transport::Exec) => Ok(None),
        Some(Transport::Socket) | None => ContainerSocket::bind(&folder.lucid()).map(Some),
    }
}

impl Container {
    /// Wraps a container that was running before this host started.
    pub(super) fn existing(context: Arc<DockerContext>, id: String, folder: ContainerDir) -> Self {
        Self {
            context,
            id,
            folder,
            removed: false,
        }
    }

    pub(super) fn folder(&self) -> &ContainerDir {
        &self.folder
    }

    /// Connects to the exec server of a running container that has already run commands.
    pub(super) async fn reconnect(&self, how: Transport) -> Result<Connection, SandboxError> {
        let server = self.context.template.server_place();
        let listener = listener(&self.folder, Some(how))?;
        let listener = listener.map(|socket| socket.with_untrusted_peers(server));
        let (connection, _) = self.connect(listener, Some(how)).await?;
        Ok(connection)
    }

    async fn connect(
        &self,
        listener: Option<ContainerSocket>,
        how: Option<Transport>,
    ) -> Result<(Connection, Transport), SandboxError> {
        let patience = if how.is_some() { READY } else { FIRST_READY };
        if let Some(listener) = listener {
            let accepted = tokio::select! {
                accepted = tokio::time::timeout(patience, listener.accept(patience, self.end_reason_lookup())) => accepted,
                () = self.context.engine.stopped(&self.id) => return Err(self.complaint("it ended at once").await),
            };
            match accepted {
                Ok(accepted) => return Ok((accepted?, Transport::Socket)),
                Err(_) if how.is_some() => {
                    let problem = format!("it was not ready after {} seconds", patience.as_secs());
                    return Err(self.complaint(&problem).await);
                }
                Err(_) => tracing::warn!(
                    "no socket passes between this host and containers of the Docker engine: commands go through docker exec"
                ),
            }
        }
        let context = &self.context;
        attach(
            &context.engine,
            &self.id,
            &context.template,
            READY,
            self.end_reason_lookup(),
        )
        .await
        .map(|connection| (connection, Transport::Exec))
    }

    async fn complaint(&self, problem: &str) -> SandboxError {
        // Commands may have written there as well.
        let log = sanitize(&self.context.engine.log(&self.id).await, LOG);
        SandboxError::Start(if log.is_empty() {
            problem.to_owned()
        } else {
            format!("{problem}. It said: {log}")
        })
    }

    /// Asks the engine what became of the container, once its connection is lost.
    fn end_reason_lookup(&self) -> EndReasonLookup {
        let (context, id) = (Arc::clone(&self.context), self.id.clone());
        async move {
            // Connection and engine notice the end independently, the engine later.
            let _ = tokio::time::timeout(SEEN, context.engine.stopped(&id)).await;
            match context.engine.inspect(&id).await {
                Err(DockerError::Down { .. }) => {
                    Some("The Docker engine is gone, and its containers with it.".to_owned())
                }
                Err(DockerError::Refused { .. }) => {
                    Some("Its container was removed by somebody else.".to_owned())
                }
                Ok(found) => {
                    let state = found.state?;
                    if state.running == Some(true) {
                        return None;
                    }
                    // The engine does not say whether memory was the cause, or ran out once before.
                    let memory = match state.oom_killed {
                        Some(true) => ", after it had run out of memory",
                        _ => "",
                    };
                    Some(match state.exit_code {
                        Some(137 | 143) => format!("Its container was killed{memory}."),
                        Some(code) => format!("Its container ended with code {code}{memory}."),
                        None => format!("Its container ended{memory}."),
                    })
                }
            }
        }
        .boxed()
    }

    /// Renames the container after its session. Only for people's sake, so it may fail.
    pub(super) fn rename_later(&self, session: SessionId) {
        let (context, id) = (Arc::clone(&self.context), self.id.clone());
        let name = context.template.container_name(session);
        let other = other_name(&name, &self.folder);
        tokio::spawn(async move {
            let mut renamed = context.engine.rename(&id, &name).await;
            if renamed.as_ref().is_err_and(DockerError::is_conflict) {
                renamed = context.engine.rename(&id, &other).await;
            }
            if let Err(error) = renamed
                && !error.is_missing()
            {
                tracing::debug!(name, %error, "a container keeps its old name");
            }
        });
    }

    /// Kills everything that runs in it, and removes it and its folder.
    pub(super) async fn remove(mut self) {
        self.removed = true;
        // In a task of its own: a caller that gives up must not leave it half done.
        let _ = tokio::spawn(self.removal()).await;
    }

    fn removal(&self) -> impl Future<Output = ()> + use<> {
        Arc::clone(&self.context.reaper).remove(self.id.clone(), self.folder.clone())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.removal());
        }
    }
}
