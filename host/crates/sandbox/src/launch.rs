//! Starts sandboxes with a backend that was found to work here.
//!
//! # Invariants
//! - Everything that a backend needs was found before: nothing is looked for at a start.
//! - A sandbox's processes are limited before its first command runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::process::Command;

use crate::backend::BackendKind;
use crate::bubblewrap::InstalledBwrap;
use crate::cgroup::{ControlGroups, GroupLimits, SandboxGroup};
use crate::command_env::git_environment;
use crate::connection::Connection;
use crate::docker::DockerBackend;
use crate::error::{SandboxError, io_error};
use crate::handle::{Sandbox, SandboxInner, SandboxProcess};
use crate::landlock::{self, Isolation};
use crate::memory_watch::MemoryWatch;
use crate::runtime_dir::{self, RuntimeDir, SessionDir, give_to};
use crate::settings::{SandboxSettings, SandboxSpec};
use crate::users::SandboxUsers;
use crate::workspace::sandbox_user;
use lucid_exec::protocol::{Launch, ResourceLimits, Serve};

/// The notice to a user whose sandbox ended while there was no host to notice.
const LOST: &str =
    "The sandbox was lost while the server was away, and what ran in it. The files are there.";
/// How long a sandbox may take to become ready.
const START: Duration = Duration::from_secs(10);

/// How much earlier than the host the kernel ends what is in a sandbox when memory runs out.
const EARLIER: i32 = 500;
/// The earliest that the kernel knows.
const EARLIEST: i32 = 1000;

/// How many processes more a user may have than a group.
const BEYOND_GROUP: u64 = 64;

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
    pub(super) runtime: Arc<RuntimeDir>,
    pub(super) users: Arc<SandboxUsers>,
    pub(super) groups: Arc<ControlGroups>,
    /// Watches the memory of sandboxes whose group does not limit it.
    pub(super) memory_watch: MemoryWatch,
}

impl SandboxLauncher {
    pub(super) fn new(
        settings: SandboxSettings,
        runtime: RuntimeDir,
        users: SandboxUsers,
        groups: ControlGroups,
    ) -> Self {
        Self {
            memory_watch: MemoryWatch::new(settings.memory_bytes),
            settings,
            runtime: Arc::new(runtime),
            users: Arc::new(users),
            groups: Arc::new(groups),
        }
    }

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
        let user = self.user_of(spec.workspace).await?;
        runtime_dir::check_reachable(spec.workspace, user)?;
        let dir = self.runtime.session(spec.session)?;
        if backend.kind() != BackendKind::Bubblewrap {
            // Landlock keeps no owner of a file from taking rights away. A root of the session's own
            // shows it read-only, and where the host is root sessions do not own it.
            let shares = backend.isolation() != Isolation::HostRoot || user.is_some();
            self.runtime.fill(&dir, shares, user)?;
        }
        let limits = GroupLimits {
            memory_bytes: self.settings.memory_bytes,
            processes: self.settings.processes,
            processors: self.settings.cpus,
        };
        let of_user = spec.workspace.parent().unwrap_or(spec.workspace);
        let group = self.groups.create(&dir.name(), &limits, of_user);
        let group = group
            .map_err(io_error("the sandbox's control group cannot be made"))?
            .map(Arc::new);
        if let FoundBackend::Bubblewrap(program) = backend {
            let resolver = program.resolver(&self.settings, &self.runtime);
            let runtime = Arc::clone(&self.runtime);
            // The machine's files are looked at where nothing else waits for that.
            let made = tokio::task::spawn_blocking(move || runtime.refresh_system_etc(resolver));
            made.await
                .map_err(|error| SandboxError::Start(error.to_string()))??;
        }
        let (command, workspace) = self.command(backend, &dir, spec)?;
        let exec = match backend {
            FoundBackend::Bubblewrap(_) => self.runtime.exec().to_owned(),
            _ => dir.path().join("bin/lucid-exec"),
        };
        let command = launched(&command, &exec, group.as_deref(), user)?;
        let watched = group.clone();
        let end_reason = watched.map(|group| async move { group.end_reason() }.boxed());
        let (connection, process) = Connection::open(command, START, end_reason).await?;
        let shell = if Path::new("/bin/bash").exists() {
            "bash"
        } else {
            "sh"
        };
        let sandbox = Sandbox::new(SandboxInner {
            kind: backend.kind(),
            workspace,
            host_workspace: spec.workspace.to_owned(),
            shell,
            environment: BTreeMap::new(),
            dir: Arc::new(dir),
            group,
            user,
            connection,
            process: Mutex::new(Some(SandboxProcess::Process(process))),
            notice,
        });
        if !self.groups.limit_memory() {
            self.memory_watch.add(&sandbox);
        }
        Ok(sandbox)
    }

    /// Gives a workspace to the user of its sandboxes.
    async fn user_of(&self, workspace: &Path) -> Result<Option<u32>, SandboxError> {
        if self.runtime.is_probe_workspace(workspace) {
            let user = self.users.of_trials();
            give_to(workspace, user)?;
            return Ok(user);
        }
        let (users, workspace) = (Arc::clone(&self.users), workspace.to_owned());
        let taken = tokio::task::spawn_blocking(move || users.take_workspace(&workspace)).await;
        taken.map_err(|error| SandboxError::Start(error.to_string()))?
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
        // A user namespace counts for itself; elsewhere other sessions may have the same user.
        let has_own_user = self.users.are_own()
            || backend.kind() == BackendKind::Bubblewrap
            || isolation == Isolation::PrivateRoot;
        // The group's limit comes first, since it is counted and can be told.
        let more_by_user = if self.groups.limit_processes() {
            BEYOND_GROUP
        } else {
            0
        };
        let serve = Serve {
            limits: ResourceLimits {
                processes: u64::from(settings.processes) + more_by_user,
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
        let (users, workspace) = (Arc::clone(&self.users), spec.workspace.to_owned());
        let given = tokio::task::spawn_blocking(move || users.give_to_containers(&workspace)).await;
        given.map_err(|error| SandboxError::Start(error.to_string()))??;
        let ready = docker.start(spec).await?;
        Ok(Sandbox::new(SandboxInner {
            kind: BackendKind::Docker,
            workspace: self.settings.workspace_mount.clone(),
            host_workspace: spec.workspace.to_owned(),
            shell: ready.shell,
            // A container may be older than its session, and knows nothing of its repository.
            environment: spec.repository.map(git_environment).unwrap_or_default(),
            dir: Arc::new(SessionDir::existing(ready.dir)),
            group: None,
            user: sandbox_user(),
            connection: ready.connection,
            process: Mutex::new(Some(SandboxProcess::Container(ready.container))),
            notice: notice.or_else(|| ready.replaced.then(|| LOST.to_owned())),
        }))
    }
}

/// The command that starts another in a group, as a user, and to be ended before the host when memory
/// runs out.
fn launched(
    command: &Command,
    exec: &Path,
    group: Option<&SandboxGroup>,
    user: Option<u32>,
) -> Result<Command, SandboxError> {
    let launch = Launch {
        groups: group.map(SandboxGroup::entries).unwrap_or_default(),
        oom_score_adj: own_oom_score().saturating_add(EARLIER).min(EARLIEST),
        user,
    };
    let launch =
        serde_json::to_string(&launch).map_err(|error| SandboxError::Start(error.to_string()))?;
    let command = command.as_std();
    let mut launched = Command::new(exec);
    launched
        .args(["--launch", &launch, "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            launched.env(name, value);
        }
    }
    if let Some(folder) = command.get_current_dir() {
        launched.current_dir(folder);
    }
    Ok(launched)
}

fn own_oom_score() -> i32 {
    let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    score.trim().parse().unwrap_or(0)
}
