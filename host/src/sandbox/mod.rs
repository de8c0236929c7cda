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
pub mod docker;
mod environment;
mod exec;
mod kind;
mod landlock;
mod process;
mod running;
mod runtime;
mod system;
#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use connection::read_frame;
pub use exec::{ExecRequest, ExecResult, LimitHit};
use kind::pick;
pub use kind::{Choice, Finding, Kind};
pub use process::{Process, ProcessEnd, ProcessInput, ProcessOutput};
pub use running::Sandbox;
use runtime::{Runtime, give_to_box_user};

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

struct Shared {
    kind: Kind,
    /// What else works here, for when the Docker engine dies.
    fallback: Option<Kind>,
    /// Why sessions are refused, where they are.
    refusal: Option<String>,
    findings: Vec<Finding>,
    settings: Settings,
    runtime: Runtime,
    bubblewrap: Option<bubblewrap::Program>,
    docker: Option<docker::Backend>,
}

/// The boxes this machine can have.
#[derive(Clone)]
pub struct Sandboxes(Arc<Shared>);

impl Sandboxes {
    /// Installs the exec server and finds the kind to use by really trying a box of it.
    ///
    /// The automatic choices always give something: where nothing works, [`Sandboxes::refusal`] says
    /// why and every start is refused. An explicit choice that does not work is an error.
    pub async fn detect(
        choice: Choice,
        settings: Settings,
        exec: &'static [u8],
    ) -> Result<Self, SandboxError> {
        let runtime = Runtime::install(&settings.run_dir, exec)?;
        let mut shared = Shared {
            kind: Kind::None,
            fallback: None,
            refusal: None,
            findings: Vec::new(),
            settings,
            runtime,
            bubblewrap: None,
            docker: None,
        };
        let kinds: &[Kind] = match choice {
            Choice::Auto | Choice::AutoForMany => &[Kind::Docker, Kind::Bubblewrap, Kind::Landlock],
            Choice::AutoOrLocal => &[Kind::Docker, Kind::Bubblewrap, Kind::Landlock, Kind::Local],
            Choice::Docker => &[Kind::Docker],
            Choice::Bubblewrap => &[Kind::Bubblewrap],
            Choice::Landlock => &[Kind::Landlock],
            Choice::Local => &[Kind::Local],
            Choice::None => &[],
        };
        // Where the deployment has no settings for containers, they are not worth a word.
        let without_docker = choice != Choice::Docker && shared.settings.docker.is_none();
        let wanted = |kind: &&Kind| !(without_docker && **kind == Kind::Docker);
        for kind in kinds.iter().filter(wanted) {
            let tried = Self::attempt(&mut shared, *kind).await;
            shared.findings.push(Finding {
                kind: *kind,
                problem: tried.err(),
            });
        }
        (shared.kind, shared.refusal) = pick(choice, &shared.findings)?;
        if shared.kind == Kind::Docker {
            shared.fallback = shared.findings.iter().find_map(|finding| {
                let other = finding.kind != Kind::Docker && finding.problem.is_none();
                // While sessions run nobody looks: then less than namespaces is for one user only.
                let fit = finding.kind.keeps_users_apart() || choice == Choice::Auto;
                (other && fit).then_some(finding.kind)
            });
        }
        Ok(Self(Arc::new(shared)))
    }

    async fn attempt(shared: &mut Shared, kind: Kind) -> Result<(), String> {
        if kind == Kind::Bubblewrap {
            shared.bubblewrap = Some(bubblewrap::Program::find().await?);
        }
        let workspace = shared
            .runtime
            .probe_workspace()
            .map_err(|error| error.to_string())?;
        if kind == Kind::Docker {
            let found = give_to_box_user(&workspace);
            let found = match found {
                Ok(()) => {
                    let exec = shared.runtime.exec();
                    Box::pin(docker::Backend::find(&shared.settings, exec, &workspace)).await
                }
                Err(error) => Err(error),
            };
            let _ = std::fs::remove_dir_all(&workspace);
            shared.docker = Some(found.map_err(|error| error.to_string())?);
            return Ok(());
        }
        let spec = Spec {
            session: "probe",
            workspace: &workspace,
            repository: None,
        };
        let outcome = async {
            let sandbox = Sandbox::start(shared, kind, spec, None).await?;
            let ran = sandbox.exec(ExecRequest::argv(["/bin/true"]), |_| {}).await;
            sandbox.close().await;
            ran
        };
        let outcome = Box::pin(outcome).await;
        let _ = crate::workspace::erase(&workspace);
        match outcome {
            Ok(result) if result.exit_code == 0 => Ok(()),
            Ok(result) => Err(format!(
                "a first command ended with code {}: {}",
                result.exit_code, result.output
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The kind that new boxes have.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Why no box can be had here, where none can.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.0.refusal.as_deref()
    }

    /// What was tried, and why what failed did.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.0.findings
    }

    /// Starts a box for a session.
    pub async fn start(&self, spec: Spec<'_>) -> Result<Sandbox, SandboxError> {
        if let Some(reasons) = &self.0.refusal {
            return Err(SandboxError::Unavailable(reasons.clone()));
        }
        let started = Box::pin(Sandbox::start(&self.0, self.0.kind, spec, None)).await;
        match (started, self.0.fallback) {
            (Err(SandboxError::Engine(why)), Some(kind)) => {
                tracing::warn!(session = spec.session, %why, %kind, "a session gets another kind of sandbox");
                let notice = format!("{why} This session works in a {kind} sandbox instead.");
                Box::pin(Sandbox::start(&self.0, kind, spec, Some(notice))).await
            }
            (started, _) => started,
        }
    }

    /// What carries commands to containers, where boxes are containers.
    #[must_use]
    pub fn transport(&self) -> Option<docker::Transport> {
        self.0.docker.as_ref().map(docker::Backend::transport)
    }

    /// Takes over the containers of the host that had this folder before, and lets containers wait
    /// for sessions from now on. To be called once, before any session starts, by the one process
    /// that serves; `lives` says whether a session goes on. Containers of other sessions are removed.
    pub async fn take_over(
        &self,
        lives: impl Fn(&str) -> bool,
    ) -> Result<docker::TakenOver, SandboxError> {
        match &self.0.docker {
            Some(docker) => docker.take_over(lives).await,
            None => Ok(docker::TakenOver::default()),
        }
    }

    /// Gives a session that has no workspace yet the empty one of a container that waits, and keeps
    /// that container for the session's [`Sandboxes::start`]. To be called before the workspace is
    /// opened: the folder at that path is another one afterwards. False where nothing was done.
    #[must_use]
    pub fn prepare(&self, session: &str, workspace: &Path) -> bool {
        self.0
            .docker
            .as_ref()
            .is_some_and(|docker| docker.prepare(session, workspace))
    }

    /// Whether a session's container lived on while the host was away, and nobody speaks with it yet.
    #[must_use]
    pub fn holds(&self, session: &str) -> bool {
        self.0
            .docker
            .as_ref()
            .is_some_and(|docker| docker.holds(session))
    }

    /// Removes what is kept for a session that ended before it was started again.
    pub async fn discard(&self, session: &str) {
        if let Some(docker) = &self.0.docker {
            docker.discard(session).await;
        }
    }

    /// Removes every container of this host, those that wait and those in use. For its end.
    pub async fn shut_down(&self) {
        if let Some(docker) = &self.0.docker {
            docker.shut_down().await;
        }
    }
}
