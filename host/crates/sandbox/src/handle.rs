//! A running sandbox: commands in it, and its end.
//!
//! # Invariants
//!
//! - When the last handle is dropped, every process of the sandbox is killed and its folder removed, in that
//!   order.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lucid_exec::protocol::{ResourceLimits, Serve};
use parking_lot::Mutex;

use super::command_env::git_environment;
use super::connection::Connection;
use super::landlock::Isolation;
use super::runtime_dir::{self, SessionDir, give_to_sandbox_user};
use super::workspace::{disk_usage_of, sandbox_user};

use super::{
    BackendKind, DetectedBackends, ExecRequest, ExecResult, Process, ProcessTable, SandboxError,
    SandboxSpec, SandboxesShared, docker, exec, landlock, process,
};

/// What a user is told whose box ended without a host to notice.
const LOST: &str =
    "The sandbox was lost while the server was away, and what ran in it. The files are there.";
/// How long a box may take to be ready.
const START: Duration = Duration::from_secs(10);
/// How long a box that is full of processes is given to have room for one more.
const FULL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a box may take to end once it was told to.
const END: Duration = Duration::from_secs(8);
const NAMESPACE_END: Duration = Duration::from_secs(2);

/// A running box. Clones are handles of the same one; the last that goes takes the box along.
#[derive(Clone)]
pub struct Sandbox(Arc<SandboxInner>);

struct SandboxInner {
    kind: BackendKind,
    workspace: String,
    shell: &'static str,
    /// What commands find in their environment beside what the box has.
    environment: BTreeMap<String, String>,
    /// Shared with the task that removes it.
    dir: Arc<SessionDir>,
    connection: Connection,
    process: Mutex<Option<SandboxProcess>>,
    notice: Option<String>,
}

/// What a box lives and dies with.
enum SandboxProcess {
    Process(tokio::process::Child),
    Container(docker::SessionContainer),
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Sandbox")
            .field("kind", &self.0.kind)
            .field("workspace", &self.0.workspace)
            .finish()
    }
}

impl Sandbox {
    /// Starts a box of a kind that works here. The notice is what the user is to know of it.
    pub(super) async fn start(
        shared: &SandboxesShared,
        found: &DetectedBackends,
        kind: BackendKind,
        spec: SandboxSpec<'_>,
        notice: Option<String>,
    ) -> Result<Self, SandboxError> {
        if kind == BackendKind::Docker {
            return Self::start_container(shared, found, spec, notice).await;
        }
        let isolation = match kind {
            BackendKind::Landlock => found.landlock.unwrap_or(Isolation::HostRoot),
            _ => Isolation::Off,
        };
        runtime_dir::check_reachable(spec.workspace)?;
        give_to_sandbox_user(spec.workspace)?;
        // Landlock keeps no owner of a file from taking rights away. A root of the session's own and
        // bubblewrap show it read-only, and where the host is root sessions do not own it.
        let shares = isolation != Isolation::HostRoot || sandbox_user().is_some();
        let dir = shared.runtime.session(spec.session, shares)?;
        let settings = &shared.settings;
        let serve = Serve {
            limits: ResourceLimits {
                processes: 512,
                // A user namespace counts for itself; elsewhere other sessions have the same user.
                shared_user: kind != BackendKind::Bubblewrap && isolation != Isolation::PrivateRoot,
                open_files: 4096,
                file_bytes: 8 << 30,
                data_bytes: Some(settings.memory_bytes),
            },
            confine: None,
            patience_seconds: None,
        };
        let (command, workspace) = match (kind, &found.bubblewrap) {
            (BackendKind::Bubblewrap, Some(program)) => (
                program.command(settings, &dir, &shared.runtime, spec, &serve)?,
                settings.workspace_mount.clone(),
            ),
            (BackendKind::Bubblewrap, None) => {
                return Err(SandboxError::Start("bwrap was not found.".to_owned()));
            }
            (BackendKind::None | BackendKind::Docker, _) => {
                return Err(SandboxError::Start(
                    "no sandbox backend works here.".to_owned(),
                ));
            }
            (BackendKind::Landlock | BackendKind::Local, _) => {
                let runtime = &shared.runtime;
                let command = landlock::command(settings, &dir, runtime, spec, isolation, serve)?;
                (command, isolation.workspace(settings, spec))
            }
        };
        let (connection, process) = Connection::open(command, START).await?;
        let shell = if Path::new("/bin/bash").exists() {
            "bash"
        } else {
            "sh"
        };
        Ok(Self(Arc::new(SandboxInner {
            kind,
            workspace,
            shell,
            environment: BTreeMap::new(),
            dir: Arc::new(dir),
            connection,
            process: Mutex::new(Some(SandboxProcess::Process(process))),
            notice,
        })))
    }

    async fn start_container(
        shared: &SandboxesShared,
        found: &DetectedBackends,
        spec: SandboxSpec<'_>,
        notice: Option<String>,
    ) -> Result<Self, SandboxError> {
        let docker = found
            .docker
            .as_ref()
            .ok_or_else(|| SandboxError::Start("there is no Docker engine here.".to_owned()))?;
        shared.runtime.restore_shared_files()?;
        give_to_sandbox_user(spec.workspace)?;
        let ready = docker.start(spec).await?;
        Ok(Self(Arc::new(SandboxInner {
            kind: BackendKind::Docker,
            workspace: shared.settings.workspace_mount.clone(),
            shell: ready.shell,
            // A container may be older than its session, and knows nothing of its repository.
            environment: spec.repository.map(git_environment).unwrap_or_default(),
            dir: Arc::new(SessionDir::existing(ready.dir)),
            connection: ready.connection,
            process: Mutex::new(Some(SandboxProcess::Container(ready.container))),
            notice: notice.or_else(|| ready.replaced.then(|| LOST.to_owned())),
        })))
    }

    /// The workspace's folder as commands see it.
    #[must_use]
    pub fn workspace_path(&self) -> &str {
        &self.0.workspace
    }

    /// What keeps this box's commands in.
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        self.0.kind
    }

    /// The folder on the host in which this session's git gateway listens.
    #[must_use]
    pub fn runtime_dir(&self) -> &Path {
        self.0.dir.path()
    }

    /// Whether a socket in [`Sandbox::runtime_dir`] can be reached from inside. Not where the
    /// container is on another kernel, so that git has no way to its gateway there.
    #[must_use]
    pub fn reaches_sockets(&self) -> bool {
        match self.0.process.lock().as_ref() {
            Some(SandboxProcess::Container(container)) => container.reaches_sockets(),
            Some(SandboxProcess::Process(_)) | None => true,
        }
    }

    /// What the box takes of the disk of the workspace and is not in that: its own `/tmp` and home where
    /// they are on the disk, and files without a name; none where it cannot be counted. Blocks.
    #[must_use]
    pub fn disk_usage(&self, processes: &ProcessTable) -> Option<u64> {
        let dir = self.runtime_dir();
        let tmp = disk_usage_of(&dir.join("tmp"))?;
        let home = disk_usage_of(&dir.join("home"))?;
        let nameless = match self.0.connection.process() {
            Some(process) => processes.unlinked_bytes(process, dir)?,
            None => 0,
        };
        Some(tmp.saturating_add(home).saturating_add(nameless))
    }

    /// Whether the box still answers.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.connection.is_alive()
    }

    /// Waits until the box is no more, and says why: it was closed, killed, ran out of memory.
    pub fn ended(&self) -> impl Future<Output = String> + Send + 'static {
        self.0.connection.ended()
    }

    /// What the user is to know of this box: that it is another kind than this host's usual one.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        self.0.notice.as_deref()
    }

    /// Runs a command to its end. `on_output` sees what it writes as it comes, up to the request's
    /// head. Dropping the future kills the command and its process group.
    pub async fn exec(
        &self,
        request: ExecRequest,
        mut on_output: impl FnMut(&[u8]) + Send,
    ) -> Result<ExecResult, SandboxError> {
        let inner = &self.0;
        let start = exec::start_message(request, inner.shell, &inner.workspace, &inner.environment);
        let begun = Instant::now();
        let mut ran = exec::run(&inner.connection, &start, &mut on_output).await;
        // Nothing was run. What was killed a moment ago may still be about to go, and nobody tells of
        // the room that it leaves.
        while matches!(ran, Err(SandboxError::Full(_))) && begun.elapsed() < FULL_TIMEOUT {
            tokio::time::sleep(FULL_TIMEOUT / 40).await;
            ran = exec::run(&inner.connection, &start, &mut on_output).await;
        }
        match ran {
            // What fills a container is not below the exec server only: it is replaced as a whole.
            Err(SandboxError::Full(_)) if inner.kind == BackendKind::Docker => {
                inner.connection.close_with_reason(
                    "It reached its limit of processes, and was ended with all of them.",
                );
                Err(inner.connection.gone())
            }
            Err(SandboxError::Full(sentence)) => Err(SandboxError::Refused(sentence)),
            ran => ran,
        }
    }

    /// Starts a program that stays open: what is written to it is what it reads, and what it prints is
    /// read from it. Of what it complains the request's tail is kept. It ends when its output is
    /// dropped, or with the box; one that cannot be started ends at once.
    pub fn spawn(&self, request: ExecRequest) -> Result<Process, SandboxError> {
        let inner = &self.0;
        let start =
            exec::live_start_message(request, inner.shell, &inner.workspace, &inner.environment);
        Ok(process::open(inner.connection.start(&start)?))
    }

    /// Ends the box: every process in it is killed and its folder removed. Twice is once.
    pub async fn close(&self) {
        self.end("It was closed.").await;
    }

    /// The same, for another reason, which commands that run and whoever waits for its end are told.
    pub async fn end(&self, why: &str) {
        self.0.connection.close_with_reason(why);
        let sandbox_process = self.0.process.lock().take();
        if let Some(sandbox_process) = sandbox_process {
            wait_or_kill(sandbox_process, self.0.kind).await;
        }
        let dir = Arc::clone(&self.0.dir);
        // An error means that the host itself is ending, and the folder went with the closure.
        let _ = tokio::task::spawn_blocking(move || dir.remove()).await;
    }
}

impl Drop for SandboxInner {
    fn drop(&mut self) {
        self.connection.close_with_reason("It was closed.");
        let sandbox_process = self.process.get_mut().take();
        if let (Some(sandbox_process), Ok(runtime)) =
            (sandbox_process, tokio::runtime::Handle::try_current())
        {
            let (dir, kind) = (Arc::clone(&self.dir), self.kind);
            runtime.spawn(async move {
                wait_or_kill(sandbox_process, kind).await;
                // The last to hold the folder removes it: not before the box's processes are gone.
                let _ = tokio::task::spawn_blocking(move || drop(dir)).await;
            });
        }
    }
}

/// Waits for a box whose connection was shut, and kills it where hostile code keeps it from ending.
/// Waiting comes first: bwrap then reaps what is its own, and leaves no zombie to whoever is init.
async fn wait_or_kill(sandbox_process: SandboxProcess, kind: BackendKind) {
    let mut process = match sandbox_process {
        SandboxProcess::Process(process) => process,
        SandboxProcess::Container(container) => return container.remove().await,
    };
    // With its first process a process namespace dies as a whole; the supervisor of the other
    // kinds needs its time to find what is below it, and cannot be kept from it.
    let patience = if kind == BackendKind::Bubblewrap {
        NAMESPACE_END
    } else {
        END
    };
    if tokio::time::timeout(patience, process.wait())
        .await
        .is_err()
    {
        let _ = process.kill().await;
    }
}
