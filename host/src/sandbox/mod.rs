//! Boxes that hostile code runs in: which kind this machine can have, starting one for a session,
//! running commands in it, and taking everything away at the end.
//!
//! What always holds: a kind is used only after a box of it really ran here; a box sees one
//! session's workspace and no other; commands get an environment made from nothing; and when a box
//! is closed, no process of it lives on. When the host dies, boxes die with it, but for containers:
//! the next host takes them over, or removes them. Docker gives containers, bubblewrap namespaces,
//! Landlock confines files and sockets of ordinary processes, and with `None` nothing is run at all.

mod bubblewrap;
#[cfg(test)]
mod command_tests;
mod connection;
mod detect;
pub mod docker;
mod environment;
#[cfg(test)]
mod everyday_tests;
mod exec;
mod kind;
mod landlock;
mod process;
mod running;
mod runtime;
mod system;
#[cfg(test)]
pub(crate) mod tests;
mod unlinked;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use connection::read_frame;
use detect::Found;
pub use exec::{ExecRequest, ExecResult, LimitHit};
pub use kind::{Choice, Finding, Kind};
pub use process::{Process, ProcessEnd, ProcessInput, ProcessOutput};
pub use running::Sandbox;
use runtime::Runtime;
pub(crate) use unlinked::Processes;

/// What a box may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Nothing outside the box.
    #[default]
    None,
    /// What the host reaches.
    Host,
}

/// What all boxes have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The host's own folder for programs, sockets and temporary folders of boxes.
    pub run_dir: PathBuf,
    /// How much memory a command may use, and the base for the size of temporary file systems.
    pub memory_bytes: u64,
    /// What boxes may reach.
    pub network: Network,
    /// Where commands see the workspace, in kinds that can place it.
    pub workspace_mount: String,
    /// For containers; without it no engine is looked for.
    pub docker: Option<docker::Settings>,
}

/// Why a box cannot be had or used. Each is a sentence for the operator or the user.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The machine cannot do what was asked for.
    #[error("No sandbox of the kind asked for works on this machine. {0}")]
    Unavailable(String),
    /// A box could not be started.
    #[error("The sandbox could not be started: {0}")]
    Start(String),
    /// The box is no more: it was closed, or it died.
    #[error("The sandbox is gone: {0}")]
    Gone(String),
    /// The Docker engine does not answer. Another kind of box may still be had.
    #[error("{0}")]
    Engine(String),
    /// The box is well, but this command could not be started in it.
    #[error("{0}")]
    Refused(String),
    /// The box has no room for another process.
    #[error("{0}")]
    Full(String),
    /// The host's own files.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        cause: std::io::Error,
    },
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> SandboxError {
    let what = what.into();
    move |cause| SandboxError::Io { what, cause }
}

/// One box to start.
#[derive(Debug, Clone, Copy)]
pub struct Spec<'a> {
    /// The session's id; its runtime folder is named after it.
    pub session: &'a str,
    /// The session's workspace on the host.
    pub workspace: &'a Path,
    /// The repository that git in the box reaches through the host's gateway.
    pub repository: Option<&'a str>,
}

/// What all handles share.
struct Shared {
    choice: Choice,
    settings: Settings,
    runtime: Runtime,
    /// What works by now.
    found: Mutex<Arc<Found>>,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    /// Containers may wait for sessions: this is the process that serves.
    serves: AtomicBool,
}

impl Shared {
    fn found(&self) -> Arc<Found> {
        Arc::clone(&self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The boxes this machine can have.
#[derive(Clone)]
pub struct Sandboxes(Arc<Shared>);

impl Sandboxes {
    /// The kind that new boxes have.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.found().kind
    }

    /// Why no box can be had here, where none can.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.0.found().refusal.clone()
    }

    /// What was tried, and why what failed did.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        self.0.found().findings.clone()
    }

    /// Why new boxes are not of the kind that an automatic choice prefers, or lack something.
    #[must_use]
    pub fn shortfall(&self) -> Option<String> {
        self.0.found().shortfall(self.0.choice)
    }

    /// What the kind that new boxes have lacks.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        self.0.found().remark()
    }

    /// Starts a box for a session.
    pub async fn start(&self, spec: Spec<'_>) -> Result<Sandbox, SandboxError> {
        let found = self.0.found();
        if let Some(reasons) = &found.refusal {
            return Err(SandboxError::Unavailable(reasons.clone()));
        }
        let instead =
            |why: &str, kind| format!("{why} This session works in a {kind} sandbox instead.");
        let notice = found.lost.as_deref().map(|why| instead(why, found.kind));
        let started = Box::pin(Sandbox::start(&self.0, &found, found.kind, spec, notice)).await;
        let error = match started {
            // The host's own trouble says nothing of the kind.
            Ok(_) | Err(SandboxError::Io { .. }) => return started,
            Err(error) => error,
        };
        let (found, kind) = match (&error, found.fallback) {
            (SandboxError::Engine(_), Some(kind)) => (found, kind),
            // It may be this workspace, or the kind that does not work any more.
            _ => match self.without(found.kind).await {
                Some(found) => (Arc::clone(&found), found.kind),
                None => return Err(error),
            },
        };
        tracing::warn!(session = spec.session, why = %error, %kind, "a session gets another kind of sandbox");
        let notice = instead(&error.to_string(), kind);
        Box::pin(Sandbox::start(&self.0, &found, kind, spec, Some(notice))).await
    }

    /// What carries commands to containers, where boxes are containers.
    #[must_use]
    pub fn transport(&self) -> Option<docker::Transport> {
        self.0.found().docker.as_ref().map(|it| it.transport())
    }

    /// Takes over the containers of the host that had this folder before, and lets containers wait
    /// for sessions from now on. To be called once, before any session starts, by the one process
    /// that serves; `lives` says whether a session goes on. Containers of other sessions are removed.
    pub async fn take_over(
        &self,
        lives: impl Fn(&str) -> bool,
    ) -> Result<docker::TakenOver, SandboxError> {
        self.0.serves.store(true, Ordering::Relaxed);
        match &self.0.found().docker {
            Some(docker) => docker.take_over(lives).await,
            None => Ok(docker::TakenOver::default()),
        }
    }

    /// Gives a session that has no workspace yet the empty one of a container that waits, and keeps
    /// that container for the session's [`Sandboxes::start`]. To be called before the workspace is
    /// opened: the folder at that path is another one afterwards. False where nothing was done.
    #[must_use]
    pub fn prepare(&self, session: &str, workspace: &Path) -> bool {
        let found = self.0.found();
        let docker = found.docker.as_ref().filter(|_| found.kind == Kind::Docker);
        docker.is_some_and(|docker| docker.prepare(session, workspace))
    }

    /// Whether a session's container lived on while the host was away, and nobody speaks with it yet.
    #[must_use]
    pub fn holds(&self, session: &str) -> bool {
        let found = self.0.found();
        let docker = found.docker.as_ref();
        docker.is_some_and(|docker| docker.holds(session))
    }

    /// Removes what is kept for a session that ended before it was started again.
    pub async fn discard(&self, session: &str) {
        if let Some(docker) = &self.0.found().docker {
            docker.discard(session).await;
        }
    }

    /// Removes every container of this host, those that wait and those in use. For its end.
    pub async fn shut_down(&self) {
        if let Some(docker) = &self.0.found().docker {
            docker.shut_down().await;
        }
    }
}
