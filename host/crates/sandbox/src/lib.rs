//! Sandboxes that hostile code runs in: detecting the backend this machine supports, starting a
//! sandbox for a session, running commands in it, and removing everything at the end.
//!
//! Docker provides containers, bubblewrap namespaces, Landlock confines the files and sockets of
//! ordinary processes, and with `None` nothing is run at all. When the host dies, its sandboxes die
//! with it, except containers: the next host adopts or removes them.
//!
//! # Invariants
//! - A backend is used only after a sandbox of it really ran here.
//! - A sandbox sees one session's workspace and no other.
//! - Commands get an environment built from nothing.
//! - When a sandbox is closed, none of its processes lives on.

#![forbid(unsafe_code)]

mod backend;
mod bubblewrap;
mod command_env;
mod connection;
mod detect;
pub mod docker;
mod exec;
pub mod git;
mod handle;
mod landlock;
mod process;
mod runtime_dir;
mod system_mounts;
#[cfg(test)]
pub mod tests;
pub mod tools;
mod unlinked;
pub mod workspace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::backend::{BackendChoice, BackendKind, BackendStatus};
pub use self::handle::Sandbox;
use self::runtime_dir::RuntimeDir;
pub use connection::read_frame;
use detect::DetectedBackends;
use lucid_types::exec::ExecError;
pub use lucid_types::exec::{ExecRequest, ExecResult, LimitHit, Process};
use parking_lot::Mutex;
pub use unlinked::ProcessTable;

/// The network that a sandbox can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Nothing outside the sandbox.
    #[default]
    None,
    /// Everything the host reaches.
    Host,
}

/// Settings common to all sandboxes.
#[derive(Debug, Clone)]
pub struct SandboxSettings {
    /// The host's own folder for programs, sockets and temporary folders of sandboxes.
    pub run_dir: PathBuf,
    /// Memory that a command may use, in bytes, which is also the base for the sizes of temporary
    /// file systems.
    pub memory_bytes: u64,
    /// The network that sandboxes can reach.
    pub network: Network,
    /// The workspace's path as commands see it, with backends that can mount it.
    pub workspace_mount: String,
    /// Settings for containers; without them no engine is looked for.
    pub docker: Option<docker::DockerSettings>,
}

/// An error in starting or using a sandbox. Each is a sentence for the operator or the user.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The machine does not support what was asked for.
    #[error("No sandbox of the kind asked for works on this machine. {0}")]
    Unavailable(String),
    /// A sandbox could not be started.
    #[error("The sandbox could not be started: {0}")]
    Start(String),
    /// The sandbox no longer exists: it was closed, or it died.
    #[error("The sandbox is gone: {0}")]
    Gone(String),
    /// The Docker engine does not answer. Another backend may still work.
    #[error("{0}")]
    Engine(String),
    /// The sandbox works, but this command could not be started in it.
    #[error("{0}")]
    Refused(String),
    /// The sandbox has no room for another process.
    #[error("{0}")]
    Full(String),
    /// An operation on the host's own files failed.
    #[error("{what}: {cause}")]
    Io {
        /// The failed operation.
        what: String,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
}

impl From<SandboxError> for ExecError {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Refused(sentence) => Self::Refused(sentence),
            error => Self::Sandbox(Box::new(error)),
        }
    }
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> SandboxError {
    let what = what.into();
    move |cause| SandboxError::Io { what, cause }
}

/// A sandbox to start.
#[derive(Debug, Clone, Copy)]
pub struct SandboxSpec<'a> {
    /// The session's id; its runtime folder is named after it.
    pub session: &'a str,
    /// The session's workspace on the host.
    pub workspace: &'a Path,
    /// The repository that git in the sandbox reaches through the host's gateway.
    pub repository: Option<&'a str>,
}

/// State shared by all handles.
struct SandboxesShared {
    choice: BackendChoice,
    settings: SandboxSettings,
    runtime: RuntimeDir,
    /// The current findings.
    detected: Mutex<Arc<DetectedBackends>>,
    /// Held during a check, so that there is one at a time.
    checking: tokio::sync::Mutex<()>,
    /// Whether containers may wait for sessions: true in the process that serves.
    serves: AtomicBool,
}

impl SandboxesShared {
    fn detected(&self) -> Arc<DetectedBackends> {
        Arc::clone(&self.detected.lock())
    }
}

/// The sandboxes this machine supports.
#[derive(Clone)]
pub struct Sandboxes(Arc<SandboxesShared>);

impl Sandboxes {
    /// The backend of new sandboxes.
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        self.0.detected().kind
    }

    /// The reason why no sandbox can be started here, if none can.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.0.detected().refusal.clone()
    }

    /// The backends that were tried, and why those that failed did.
    #[must_use]
    pub fn findings(&self) -> Vec<BackendStatus> {
        self.0.detected().findings.clone()
    }

    /// Why new sandboxes do not have the backend that an automatic choice prefers, or lack
    /// something.
    #[must_use]
    pub fn shortcoming(&self) -> Option<String> {
        self.0.detected().shortcoming(self.0.choice)
    }

    /// The shortcomings here of the backend of new sandboxes.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        self.0.detected().remark()
    }

    /// Starts a sandbox for a session, with another backend if the current one no longer works.
    pub async fn start(&self, spec: SandboxSpec<'_>) -> Result<Sandbox, SandboxError> {
        let found = self.0.detected();
        if let Some(reasons) = &found.refusal {
            return Err(SandboxError::Unavailable(reasons.clone()));
        }
        let instead =
            |why: &str, kind| format!("{why} This session works in a {kind} sandbox instead.");
        let notice = found.lost.as_deref().map(|why| instead(why, found.kind));
        let started = Box::pin(Sandbox::start(&self.0, &found, found.kind, spec, notice)).await;
        let error = match started {
            // A failure of the host itself says nothing about the backend.
            Ok(_) | Err(SandboxError::Io { .. }) => return started,
            Err(error) => error,
        };
        let (found, kind) = match (&error, found.fallback) {
            (SandboxError::Engine(_), Some(kind)) => (found, kind),
            // The cause may be this workspace, or a backend that no longer works.
            _ => match self.recheck_failed(found.kind).await {
                Some(found) => (Arc::clone(&found), found.kind),
                None => return Err(error),
            },
        };
        tracing::warn!(session = spec.session, why = %error, %kind, "a session gets another kind of sandbox");
        let notice = instead(&error.to_string(), kind);
        Box::pin(Sandbox::start(&self.0, &found, kind, spec, Some(notice))).await
    }

    /// The transport to containers, if sandboxes are containers.
    #[must_use]
    pub fn transport(&self) -> Option<docker::Transport> {
        self.0.detected().docker.as_ref().map(|it| it.transport())
    }

    /// Adopts the containers of the previous host in this folder, and lets containers wait for
    /// sessions from now on. Must be called once, before any session starts, by the one process
    /// that serves. `is_alive` says whether a session goes on; containers of other sessions are
    /// removed.
    pub async fn adopt(
        &self,
        is_alive: impl Fn(&str) -> bool,
    ) -> Result<docker::Adopted, SandboxError> {
        self.0.serves.store(true, Ordering::Relaxed);
        match &self.0.detected().docker {
            Some(docker) => docker.adopt(is_alive).await,
            None => Ok(docker::Adopted::default()),
        }
    }

    /// Gives a session without a workspace the empty one of a waiting container, and reserves that
    /// container for the session's [`Sandboxes::start`]. Must be called before the workspace is
    /// opened, since the folder at that path is replaced. Returns false if nothing was done.
    #[must_use]
    pub fn claim_warm(&self, session: &str, workspace: &Path) -> bool {
        let found = self.0.detected();
        let docker = found
            .docker
            .as_ref()
            .filter(|_| found.kind == BackendKind::Docker);
        docker.is_some_and(|docker| docker.claim_warm(session, workspace))
    }

    /// Whether a session's container survived while the host was away, and nobody is connected to
    /// it yet.
    #[must_use]
    pub fn has_container(&self, session: &str) -> bool {
        let found = self.0.detected();
        let docker = found.docker.as_ref();
        docker.is_some_and(|docker| docker.has_container(session))
    }

    /// Removes what is kept for a session that ended before it was started again.
    pub async fn discard(&self, session: &str) {
        if let Some(docker) = &self.0.detected().docker {
            docker.discard(session).await;
        }
    }

    /// Removes every container of this host, waiting or in use. For shutdown.
    pub async fn shut_down(&self) {
        if let Some(docker) = &self.0.detected().docker {
            docker.shut_down().await;
        }
    }
}
