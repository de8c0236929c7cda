//! A running sandbox: commands in it, and its end.
//!
//! # Invariants
//! - When the last handle is dropped, every process of the sandbox is killed and its folder removed,
//!   in that order.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::backend::BackendKind;
use crate::cgroup::SandboxGroup;
use crate::connection::Connection;
use crate::docker::SessionContainer;
use crate::error::SandboxError;
use crate::proxy::SandboxInterface;
use crate::runtime_dir::SessionDir;
use crate::unlinked::{ProcessTable, UnlinkedGap, UnlinkedUsage};
use crate::workspace::{DiskUsage, FilesBeside, Quota, disk_usage_of};
use crate::{exec, process};
use lucid_types::exec::{ExecRequest, ExecResult, Process};

/// How long to retry a command in a sandbox that is at its limit of processes.
const FULL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a sandbox may take to end before its first process is killed.
const END: Duration = Duration::from_secs(8);
/// The same with a process namespace, which ends as a whole with its first process.
const NAMESPACE_END: Duration = Duration::from_secs(2);

/// A running sandbox. Clones are handles of the same one; dropping the last one ends it.
#[derive(Clone)]
pub struct Sandbox(Arc<SandboxInner>);

/// A handle that does not keep its sandbox.
#[derive(Clone)]
pub(super) struct WeakSandbox(Weak<SandboxInner>);

impl fmt::Debug for WeakSandbox {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("WeakSandbox").finish_non_exhaustive()
    }
}

impl FilesBeside for WeakSandbox {
    fn usage(&self) -> DiskUsage {
        // What belongs to one that ended is removed with it.
        let sandbox = self.upgrade();
        sandbox.map_or(DiskUsage::NOTHING, |it| it.named_files())
    }

    fn nameless_usage(&self) -> DiskUsage {
        let Some(sandbox) = self.upgrade() else {
            return DiskUsage::NOTHING;
        };
        let found = sandbox.nameless_files(&ProcessTable::recent());
        match found.gap {
            Some(UnlinkedGap::TooMany) => DiskUsage::Unknown(
                "its processes have more files open and mapped than can be looked at".to_owned(),
            ),
            // Honest programs close themselves as well, such as those that hold keys.
            Some(UnlinkedGap::Closed) | None => DiskUsage::Counted {
                bytes: found.bytes,
                entries: found.files,
            },
        }
    }
}

impl WeakSandbox {
    /// The sandbox, while it runs.
    pub(super) fn upgrade(&self) -> Option<Sandbox> {
        self.0.upgrade().map(Sandbox).filter(Sandbox::is_alive)
    }
}

/// State shared by the handles of a sandbox.
pub(super) struct SandboxInner {
    pub(super) kind: BackendKind,
    pub(super) workspace: String,
    /// The same on the host.
    pub(super) host_workspace: PathBuf,
    pub(super) shell: &'static str,
    /// Variables that commands get beside those of the sandbox itself.
    pub(super) environment: BTreeMap<String, String>,
    /// Its control group; `None` if the host has none to give, and for a container, which has its own.
    /// It stands before the folder, since its drop ends the processes.
    pub(super) group: Option<Arc<SandboxGroup>>,
    /// Shared with the task that removes the folder.
    pub(super) dir: Arc<SessionDir>,
    /// The user that its processes have, if that is not the host's own.
    pub(super) user: Option<u32>,
    pub(super) connection: Connection,
    pub(super) process: Mutex<Option<SandboxProcess>>,
    pub(super) notice: Option<String>,
}

/// The process or container that a sandbox lives and ends with.
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

    /// A handle that does not keep the sandbox.
    pub(super) fn downgrade(&self) -> WeakSandbox {
        WeakSandbox(Arc::downgrade(&self.0))
    }

    /// The id on the host of its first process, while that runs.
    pub(super) fn first_process(&self) -> Option<u32> {
        self.0.connection.process()
    }

    /// The workspace's path as commands see it.
    #[must_use]
    pub fn workspace_path(&self) -> &str {
        &self.0.workspace
    }

    /// The backend that isolates its commands.
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        self.0.kind
    }

    /// The folder on the host in which the session's git gateway listens.
    #[must_use]
    pub fn runtime_dir(&self) -> &Path {
        self.0.dir.path()
    }

    /// The user on the host that its processes have, if that is not the host's own.
    #[must_use]
    pub fn user(&self) -> Option<u32> {
        self.0.user
    }

    /// Whether a socket in [`Sandbox::runtime_dir`] can be reached from inside. With a container on
    /// another kernel it cannot, and git then has no way to its gateway.
    #[must_use]
    pub fn reaches_sockets(&self) -> bool {
        match self.0.process.lock().as_ref() {
            Some(SandboxProcess::Container(container)) => container.reaches_sockets(),
            Some(SandboxProcess::Process(_)) | None => true,
        }
    }

    /// The listener at which the sandbox's programs look for a proxy, once. `None` if they have none:
    /// the sandbox has another network or none, or it cannot pass a descriptor or be kept to one port.
    #[must_use]
    pub fn take_proxy_listener(&self) -> Option<TcpListener> {
        self.0.connection.take_proxy()
    }

    /// The interface from which the packets come that the sandbox's programs send without asking the
    /// proxy, once. `None` if nothing is opened to them, or the sandbox cannot have one.
    #[must_use]
    pub fn take_interface(&self) -> Option<SandboxInterface> {
        self.0.connection.take_interface()
    }

    /// Why the sandbox has no interface though one was wanted, if it says so.
    #[must_use]
    pub fn no_interface(&self) -> Option<String> {
        self.0.connection.no_interface()
    }

    /// Bytes that the sandbox uses on disks outside of the workspace: its `/tmp` and home if they are on
    /// a disk, and unlinked files that are still open. `None` if that cannot be counted. Blocks.
    #[must_use]
    pub fn disk_usage(&self, processes: &ProcessTable) -> Option<u64> {
        let named = self.named_files().bytes_with_inodes()?;
        let nameless = self.nameless_files(processes);
        let bytes = named.saturating_add(nameless.bytes);
        nameless.gap.is_none().then_some(bytes)
    }

    /// Counts these files with those of the workspace from now on, until another sandbox is counted.
    pub fn count_files_in(&self, quota: &Quota) {
        quota.set_beside(Arc::new(self.downgrade()));
    }

    /// Whether the host sees processes of it below its first one, of which there is always one. It does
    /// not where the machine hides those that do not let themselves be traced.
    pub(super) async fn sees_its_processes(&self) -> bool {
        let Some(process) = self.first_process() else {
            return true;
        };
        let seen = tokio::task::spawn_blocking(move || {
            ProcessTable::now().with_descendants(process).len() > 1
        });
        seen.await.unwrap_or(true)
    }

    /// Its `/tmp` and home, if they are on a disk.
    fn named_files(&self) -> DiskUsage {
        let dir = self.runtime_dir();
        let tmp = disk_usage_of(&dir.join("tmp")).of_folder("/tmp");
        tmp.and(disk_usage_of(&dir.join("home")).of_folder("the home folder"))
    }

    /// Unlinked files on the disks of the workspace and of the runtime folder that are still open.
    fn nameless_files(&self, processes: &ProcessTable) -> UnlinkedUsage {
        let folders = [self.runtime_dir(), &self.0.host_workspace];
        let process = self.first_process();
        process.map_or_else(UnlinkedUsage::default, |process| {
            processes.unlinked(process, &folders)
        })
    }

    /// Whether the sandbox still answers.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.connection.is_alive()
    }

    /// Waits for the sandbox's end, and returns the reason as a sentence: it was closed, it was
    /// killed, it ran out of memory.
    pub fn ended(&self) -> impl Future<Output = String> + Send + 'static {
        self.0.connection.ended()
    }

    /// What the user is to know of this sandbox, such as that it is another kind than usual.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        self.0.notice.as_deref()
    }

    /// A file of its control group.
    #[cfg(test)]
    pub(super) fn group_file(&self, name: &str) -> Option<std::path::PathBuf> {
        self.0.group.as_ref()?.file(name)
    }

    /// Runs a command to its end. `on_output` gets its output as it arrives, up to the request's
    /// head. Dropping the future kills the command and its process group.
    pub async fn exec(
        &self,
        request: ExecRequest,
        mut on_output: impl FnMut(&[u8]) + Send,
    ) -> Result<ExecResult, SandboxError> {
        let inner = &self.0;
        let start = exec::start_message(request, inner.shell, &inner.workspace, &inner.environment);
        let begun = Instant::now();
        let group = inner.group.as_deref();
        let mut ran = exec::run(&inner.connection, group, &start, &mut on_output).await;
        // Nothing was run. Processes that were killed a moment ago may still be ending, and nothing
        // signals when they have.
        while matches!(ran, Err(SandboxError::Full(_))) && begun.elapsed() < FULL_TIMEOUT {
            tokio::time::sleep(FULL_TIMEOUT / 40).await;
            ran = exec::run(&inner.connection, group, &start, &mut on_output).await;
        }
        match ran {
            // The exec server may not be the parent of what fills a container, so the container is
            // replaced as a whole.
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

    /// Starts a program that stays open, connected to the returned streams. The request's tail of its
    /// standard error is kept. It ends when its output is dropped, or with the sandbox; one that
    /// cannot be started ends at once.
    pub fn spawn(&self, request: ExecRequest) -> Result<Process, SandboxError> {
        let inner = &self.0;
        let start =
            exec::live_start_message(request, inner.shell, &inner.workspace, &inner.environment);
        Ok(process::open(inner.connection.start(&start)?))
    }

    /// Ends the sandbox: kills every process in it and removes its folder. Idempotent.
    pub async fn close(&self) {
        self.end("It was closed.").await;
    }

    /// The same for another reason, which running commands and [`Sandbox::ended`] report.
    pub async fn end(&self, why: &str) {
        self.0.connection.close_with_reason(why);
        let sandbox_process = self.0.process.lock().take();
        if let Some(sandbox_process) = sandbox_process {
            wait_or_kill(sandbox_process, self.0.kind).await;
        }
        let (dir, group) = (Arc::clone(&self.0.dir), self.0.group.clone());
        // Fails if the runtime is shutting down, and then the closure was dropped with the folder.
        let _ = tokio::task::spawn_blocking(move || {
            if let Some(group) = group {
                group.remove();
            }
            dir.remove();
        })
        .await;
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
            let group = self.group.take();
            runtime.spawn(async move {
                wait_or_kill(sandbox_process, kind).await;
                // Dropping the last reference removes the folder, so only after the processes ended.
                let _ = tokio::task::spawn_blocking(move || {
                    if let Some(group) = group {
                        group.remove();
                    }
                    drop(dir);
                })
                .await;
            });
        }
    }
}

/// Waits for a sandbox whose connection was closed, and kills it if hostile code keeps it from
/// ending. Waiting comes first, so that bwrap reaps its own children and leaves no zombies to init.
async fn wait_or_kill(sandbox_process: SandboxProcess, kind: BackendKind) {
    let mut process = match sandbox_process {
        SandboxProcess::Process(process) => process,
        SandboxProcess::Container(container) => return container.remove().await,
    };
    // The supervisor of the other kinds takes time to find its descendants, and nothing can keep it
    // from that.
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
