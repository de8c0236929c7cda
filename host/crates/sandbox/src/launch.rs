//! Starts sandboxes with a backend that was found to work here.
//!
//! # Invariants
//! - Everything that a backend needs was found before: nothing is looked for at a start.
//! - A sandbox's processes are limited before its first command runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::process::Command;

use crate::backend::BackendKind;
use crate::bubblewrap::InstalledBwrap;
use crate::command_env::git_environment;
use crate::connection::Connection;
use crate::docker::DockerBackend;
use crate::error::SandboxError;
use crate::handle::{Sandbox, SandboxInner, SandboxProcess};
use crate::landlock::{self, Isolation};
use crate::runtime_dir::{self, RuntimeDir, SessionDir, give_to_sandbox_user};
use crate::settings::{SandboxSettings, SandboxSpec};
use crate::workspace::sandbox_user;
use lucid_exec::protocol::{ResourceLimits, Serve};

/// The notice to a user whose sandbox ended while there was no host to notice.
const LOST: &str =
    "The sandbox was lost while the server was away, and what ran in it. The files are there.";
/// How long a sandbox may take to become ready.
const START: Duration = Duration::from_secs(10);

/// A backend that works here, with what starting a sandbox of it takes.
pub(super) enum FoundBackend {
    Docker(Arc<DockerBackend>),
    Bubblewrap(Arc<InstalledBwrap>),
    Landlock(Isolation),
    /// No isolation.
    Local,
}

impl FoundBackend {
    fn kind(&self) -> BackendKind {
        match self {
            Self::Docker(_) => BackendKind::Docker,
            Self::Bubblewrap(_) => BackendKind::Bubblewrap,
            Self::Landlock(_) => BackendKind::Landlock,
            Self::Local => BackendKind::Local,
        }
    }

    fn isolation(&self) -> Isolation {
        match self {
            Self::Landlock(isolation) => *isolation,
            Self::Docker(_) | Self::Bubblewrap(_) | Self::Local => Isolation::Off,
        }
    }
}

/// What all sandboxes of this host are started with.
pub(super) struct SandboxLauncher {
    pub(super) settings: SandboxSettings,
    pub(super) runtime: RuntimeDir,
}

impl SandboxLauncher {
    /// Starts a sandbox. `notice` is what the user is to know of it.
    pub(super) async fn start(
        &self,
        backend: &FoundBackend,
        spec: SandboxSpec<'_>,
        notice: Option<String>,
    ) -> Result<Sandbox, SandboxError> {
        match backend {
            FoundBackend::Docker(docker) => self.start_container(docker, spec, notice).await,
            backend => self.start_process(backend, spec, notice).await,
        }
    }

    async fn start_process(
        &self,
        backend: &FoundBackend,
        spec: SandboxSpec<'_>,
        notice: Option<String>,
    ) -> Result<Sandbox, SandboxError> {
        runtime_dir::check_reachable(spec.workspace)?;
        give_to_sandbox_user(spec.workspace)?;
        // Landlock keeps no owner of a file from taking rights away. A root of the session's own and
        // bubblewrap show it read-only, and where the host is root sessions do not own it.
        let shares = backend.isolation() != Isolation::HostRoot || sandbox_user().is_some();
        let dir = self.runtime.session(spec.session, shares)?;
        let (command, workspace) = self.command(backend, &dir, spec)?;
        let (connection, process) = Connection::open(command, START).await?;
        let shell = if Path::new("/bin/bash").exists() {
            "bash"
        } else {
            "sh"
        };
        Ok(Sandbox::new(SandboxInner {
            kind: backend.kind(),
            workspace,
            shell,
            environment: BTreeMap::new(),
            dir: Arc::new(dir),
            connection,
            process: Mutex::new(Some(SandboxProcess::Process(process))),
            notice,
        }))
    }

    /// The command line of the sandbox's first process, and the workspace's path as commands see it.
    fn command(
        &self,
        backend: &FoundBackend,
        dir: &SessionDir,
        spec: SandboxSpec<'_>,
    ) -> Result<(Command, String), SandboxError> {
        let (settings, runtime) = (&self.settings, &self.runtime);
        let isolation = backend.isolation();
        // A user namespace counts for itself; elsewhere other sessions have the same user.
        let has_own_user =
            backend.kind() == BackendKind::Bubblewrap || isolation == Isolation::PrivateRoot;
        let serve = Serve {
            limits: ResourceLimits {
                processes: 512,
                shared_user: !has_own_user,
                open_files: 4096,
                file_bytes: 8 << 30,
                data_bytes: Some(settings.memory_bytes),
            },
            ..Serve::default()
        };
        if let FoundBackend::Bubblewrap(program) = backend {
            let command = program.command(settings, dir, runtime, spec, serve)?;
            return Ok((command, settings.workspace_mount.clone()));
        }
        let command = landlock::command(settings, dir, runtime, spec, isolation, serve)?;
        Ok((command, isolation.workspace(settings, spec)))
    }

    async fn start_container(
        &self,
        docker: &DockerBackend,
        spec: SandboxSpec<'_>,
        notice: Option<String>,
    ) -> Result<Sandbox, SandboxError> {
        self.runtime.restore_shared_files()?;
        give_to_sandbox_user(spec.workspace)?;
        let ready = docker.start(spec).await?;
        Ok(Sandbox::new(SandboxInner {
            kind: BackendKind::Docker,
            workspace: self.settings.workspace_mount.clone(),
            shell: ready.shell,
            // A container may be older than its session, and knows nothing of its repository.
            environment: spec.repository.map(git_environment).unwrap_or_default(),
            dir: Arc::new(SessionDir::existing(ready.dir)),
            connection: ready.connection,
            process: Mutex::new(Some(SandboxProcess::Container(ready.container))),
            notice: notice.or_else(|| ready.replaced.then(|| LOST.to_owned())),
        }))
    }
}
