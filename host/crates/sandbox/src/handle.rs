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

use parking_lot::Mutex;

use crate::backend::BackendKind;
use crate::connection::Connection;
use crate::docker::SessionContainer;
use crate::error::SandboxError;
use crate::runtime_dir::SessionDir;
use crate::unlinked::ProcessTable;
use crate::workspace::disk_usage_of;
use crate::{exec, process};
use lucid_types::exec::{ExecRequest, ExecResult, Process};

/// How long a box that is full of processes is given to have room for one more.
const FULL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a box may take to end once it was told to.
const END: Duration = Duration::from_secs(8);
const NAMESPACE_END: Duration = Duration::from_secs(2);

/// A running box. Clones are handles of the same one; the last that goes takes the box along.
#[derive(Clone)]
pub struct Sandbox(Arc<SandboxInner>);

/// What the handles of a sandbox share.
pub(super) struct SandboxInner {
    pub(super) kind: BackendKind,
    pub(super) workspace: String,
    pub(super) shell: &'static str,
    /// What commands find in their environment beside what the box has.
    pub(super) environment: BTreeMap<String, String>,
    /// Shared with the task that removes it.
    pub(super) dir: Arc<SessionDir>,
    pub(super) connection: Connection,
    pub(super) process: Mutex<Option<SandboxProcess>>,
    pub(super) notice: Option<String>,
}

/// What a box lives and dies with.
pub(super) enum SandboxProcess {
    Process(tokio::process::Child),
    Container(SessionContainer),
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
    pub(super) fn new(inner: SandboxInner) -> Self {
        Self(Arc::new(inner))
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
