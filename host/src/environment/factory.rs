//! Creates a session's environment: a workspace, a sandbox over it, git's way out. What happens in it
//! afterwards is [`SessionEnvironment`](super::SessionEnvironment)'s.
//!
//! # Invariants
//!
//! - Files are touched off the async threads.
//! - The git token goes to the gateway and nowhere else.
//! - A failure leaves no sandbox behind.

use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Mutex;

use super::connections::ConnectionLog;
use super::disk_guard::OpenEnvironments;
use super::tree_watch::TreeTracker;
use super::workspaces::Workspaces;
use super::{NoticeSender, RunningSandbox, SessionEnvironment, SharedEnvironment};
use lucid_sandbox::git::{self, GitCredentials, GitGateway};
use lucid_sandbox::proxy::{ForwardProxy, ProxyRules};
use lucid_sandbox::tools::{SandboxTools, describe_call};
use lucid_sandbox::workspace::{Quota, Watcher, Workspace, WorkspaceError};
use lucid_sandbox::{SandboxSpec, Sandboxes};
use lucid_session::{
    Environment, EnvironmentError, EnvironmentProvider, EnvironmentSpec, EventDraft,
};
use lucid_store::blobs::Blobs;
use lucid_types::disk_reserve::DiskReserve;
use lucid_types::ids::SessionId;
use lucid_types::repository_url::repository_url;
use lucid_types::user::UserId;
use lucid_types::user_work::UserWork;
use lucid_types::wit::types::ToolCall;

/// Said of containers that commands reach by `docker exec` only.
const NO_GIT_GATEWAY: &str = "The containers of this deployment's Docker engine cannot reach this server's git gateway, so no repository can be cloned. It needs an engine on the same machine; `lucid doctor` says more.";

/// The user name that goes with a token for a repository's URL.
pub(super) type GitUserName = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Of all files that a disk can hold, one session may have this part.
const PART_OF_FILES: u64 = 4;

/// What the files of one session may take of disks: its workspace, and what its sandbox has beside that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileLimits {
    pub(crate) bytes: u64,
    /// Files and folders.
    pub(crate) entries: u64,
}

impl FileLimits {
    /// So many bytes and entries, but no more than a part of the files that each disk of these folders
    /// can hold, so that no session alone takes the last one.
    pub(crate) fn on_disks_of(folders: &[&Path], bytes: u64, entries: u64) -> Self {
        let files = folders.iter().filter_map(|folder| {
            let disk = rustix::fs::statvfs(*folder).ok()?;
            // A file system that makes inodes as they are needed says that it has none.
            Some(disk.f_files / PART_OF_FILES).filter(|part| *part > 0)
        });
        let entries = files.fold(entries, u64::min);
        Self { bytes, entries }
    }
}

/// What all places have in common.
#[derive(Clone)]
pub(crate) struct EnvironmentFactory {
    /// Boxes.
    pub(crate) sandboxes: Sandboxes,
    /// The sessions' workspaces.
    pub(crate) workspaces: Workspaces,
    /// Pictures that models see.
    pub(crate) blobs: Blobs,
    /// For git.
    pub(crate) client: reqwest::Client,
    /// What git may do.
    pub(crate) git: git::GitRules,
    /// What the proxy of sandboxes may do.
    pub(crate) proxy: ProxyRules,
    /// Keeps what programs connected to.
    pub(crate) connections: ConnectionLog,
    /// The user name that goes with a token, where the repository's provider is known.
    pub(crate) git_user: GitUserName,
    /// Workspaces outlive their sessions.
    pub(crate) keep: bool,
    /// Notices what changes in workspaces; none where this machine does not let it.
    pub(crate) watcher: Option<Watcher>,
    /// What a session's files may take of disks.
    pub(crate) limits: FileLimits,
    /// What of their disk no workspace may take: nothing if the log is on another.
    pub(crate) quota_reserve: DiskReserve,
    /// The log's reserve. Its size decides on every disk when files that nobody works on go.
    pub(crate) reserve: DiskReserve,
    /// The places that are open.
    pub(crate) open: OpenEnvironments,
    /// The slots for users' blocking work.
    pub(crate) user_work: UserWork,
    /// For removing workspaces, which nobody waits for.
    pub(crate) removals: UserWork,
}

impl EnvironmentFactory {
    pub(super) fn work_of(&self, spec: &EnvironmentSpec) -> SessionWork {
        SessionWork {
            slots: self.user_work.clone(),
            user: spec.user.clone(),
        }
    }

    /// The workspace of a session, made where it is not there.
    async fn open_workspace(
        &self,
        spec: &EnvironmentSpec,
        fresh: bool,
    ) -> Result<Arc<Workspace>, EnvironmentError> {
        let (user, session) = (spec.user.clone(), spec.session);
        let workspaces = self.workspaces.clone();
        let sandboxes = self.sandboxes.clone();
        let opened = self.work_of(spec).run(move || {
            if fresh {
                if workspaces.contains(&user, session) {
                    workspaces.create(&user, session)?.remove()?;
                }
                // The folder of a container that waits becomes this one, and that container the session's.
                let _is_warm = sandboxes.claim_warm(session, &workspaces.path(&user, session));
            }
            workspaces.create(&user, session)
        });
        opened.await.map(Arc::new).map_err(EnvironmentError::failed)
    }

    async fn open(
        &self,
        spec: &EnvironmentSpec,
        workspace: Arc<Workspace>,
    ) -> Result<RunningSandbox, EnvironmentError> {
        let repository = spec.repo_url.as_deref().map(repository_url).transpose();
        let repository = repository.map_err(EnvironmentError::failed)?;
        let reach = repository
            .as_deref()
            .map(|url| git::gateway_prefix(url, self.git.allow_owner))
            .transpose();
        let reach = reach.map_err(EnvironmentError::failed)?;
        let wanted = SandboxSpec {
            session: spec.session,
            workspace: workspace.host_path(),
            repository: reach.as_deref(),
        };
        let sandbox = self
            .sandboxes
            .start(wanted)
            .await
            .map_err(EnvironmentError::failed)?;
        if repository.is_some() && !sandbox.reaches_sockets() {
            return Err(EnvironmentError::Unavailable(NO_GIT_GATEWAY.to_owned()));
        }
        let gateway = match &repository {
            None => None,
            Some(url) => {
                let login = spec.git_token.as_ref().map(|token| {
                    let usual = GitCredentials::from(token.clone());
                    match (self.git_user)(url) {
                        Some(user) => GitCredentials { user, ..usual },
                        None => usual,
                    }
                });
                let opened = GitGateway::start(
                    sandbox.runtime_dir(),
                    sandbox.user(),
                    url,
                    login,
                    self.git.clone(),
                    self.client.clone(),
                );
                Some(opened.map_err(EnvironmentError::failed)?)
            }
        };
        let proxy = sandbox.take_proxy_listener().map(|listener| {
            let recorder = self.connections.of(spec.session);
            let proxy = ForwardProxy::start(listener, &spec.user, self.proxy.clone(), recorder);
            match sandbox.take_interface() {
                Some(interface) => proxy.with_direct(interface),
                None => {
                    if let Some(reason) = sandbox.no_interface() {
                        tracing::warn!(session = %spec.session, reason, "the sandbox's programs have only the proxy: it got no network interface");
                    }
                    proxy
                }
            }
        });
        Ok(RunningSandbox {
            tools: SandboxTools::new(sandbox, workspace),
            gateway,
            _proxy: proxy,
        })
    }

    /// Starts a sandbox, and tells what a person should know of it.
    pub(super) async fn open_and_watch(
        &self,
        spec: &EnvironmentSpec,
        workspace: Arc<Workspace>,
        notices: &NoticeSender,
    ) -> Result<RunningSandbox, EnvironmentError> {
        let opened = self.open(spec, workspace).await?;
        let sandbox = opened.tools.sandbox();
        if let Some(notice) = sandbox.notice() {
            notices.send(notice.to_owned());
        }
        let (ended, notices) = (sandbox.ended(), notices.clone());
        tokio::spawn(async move {
            let reason = ended.await;
            if !notices.are_closed() {
                notices.send(format!(
                    "The sandbox was lost, and what ran in it. {reason} The files of the workspace are there, and the next command gets a new one."
                ));
            }
        });
        Ok(opened)
    }

    async fn provision(
        self,
        spec: EnvironmentSpec,
    ) -> Result<Arc<dyn Environment>, EnvironmentError> {
        let workspace = self.open_workspace(&spec, true).await?;
        self.open_environment(spec, workspace).await
    }

    async fn reopen(self, spec: EnvironmentSpec) -> Result<Arc<dyn Environment>, EnvironmentError> {
        let workspace = self.open_workspace(&spec, false).await?;
        self.open_environment(spec, workspace).await
    }

    async fn open_environment(
        self,
        spec: EnvironmentSpec,
        workspace: Arc<Workspace>,
    ) -> Result<Arc<dyn Environment>, EnvironmentError> {
        let (notices, receiver) = NoticeSender::new();
        let opened = self.open_and_watch(&spec, workspace.clone(), &notices);
        let opened = opened.await?;
        let root = opened.tools.sandbox().workspace_path().to_owned();
        let sandbox = opened.tools.sandbox().clone();
        let quota = Quota::new(self.limits.bytes)
            .with_entries(self.limits.entries)
            .with_reserve(self.quota_reserve.clone());
        sandbox.count_files_in(&quota);
        let work = self.work_of(&spec);
        let files = TreeTracker::new(workspace.clone(), self.watcher.as_ref(), quota, work);
        let environments = self.open.clone();
        let environment = SessionEnvironment {
            factory: self,
            spec,
            workspace,
            files: Arc::new(files),
            root,
            clone_notice: std::sync::OnceLock::new(),
            sandbox: parking_lot::Mutex::new(Some(sandbox)),
            notices,
            notice_receiver: Mutex::new(receiver),
            opened: Mutex::new(Some(opened)),
        };
        let environment = Arc::new(environment);
        environments.add(&environment);
        Ok(Arc::new(SharedEnvironment(environment)))
    }
}

impl EnvironmentProvider for EnvironmentFactory {
    fn refusal(&self) -> Option<String> {
        self.sandboxes.refusal()
    }

    fn describe(&self, call: &ToolCall) -> EventDraft {
        let view = describe_call(&call.name, &call.arguments);
        EventDraft {
            event_type: view.event_type.to_owned(),
            content: view.content,
            command: view.command,
            path: view.path,
            ..EventDraft::default()
        }
    }

    fn provision(
        &self,
        spec: EnvironmentSpec,
    ) -> BoxFuture<'static, Result<Arc<dyn Environment>, EnvironmentError>> {
        self.clone().provision(spec).boxed()
    }

    fn reopen(
        &self,
        spec: EnvironmentSpec,
    ) -> BoxFuture<'static, Result<Arc<dyn Environment>, EnvironmentError>> {
        self.clone().reopen(spec).boxed()
    }

    fn is_alive(&self, spec: &EnvironmentSpec) -> bool {
        self.sandboxes.has_container(spec.session)
    }

    fn sandbox_of(&self, session: SessionId) -> Option<String> {
        self.open.kind_of(session).map(|kind| kind.to_string())
    }

    fn has_workspace(&self, spec: &EnvironmentSpec) -> bool {
        self.workspaces.contains(&spec.user, spec.session)
    }

    fn recreate_workspace(&self, spec: &EnvironmentSpec) -> bool {
        self.workspaces.create(&spec.user, spec.session).is_ok()
    }

    fn release(&self, spec: EnvironmentSpec) -> BoxFuture<'static, ()> {
        let sandboxes = self.sandboxes.clone();
        async move { sandboxes.discard(spec.session).await }.boxed()
    }

    fn is_disk_short(&self) -> BoxFuture<'static, bool> {
        let (workspaces, keep) = (self.workspaces.clone(), self.keep);
        let reserve = self.reserve.clone();
        async move {
            let looked = tokio::task::spawn_blocking(move || reserve.is_low(workspaces.base()));
            !keep && looked.await.unwrap_or(false)
        }
        .boxed()
    }

    fn remove(&self, spec: EnvironmentSpec) -> BoxFuture<'static, Result<(), EnvironmentError>> {
        let factory = self.clone();
        async move {
            factory.sandboxes.discard(spec.session).await;
            if factory.keep {
                return Ok(());
            }
            let files = factory.blobs.of(spec.session);
            files.remove().await.map_err(EnvironmentError::failed)?;
            let work = SessionWork {
                slots: factory.removals.clone(),
                user: spec.user.clone(),
            };
            let wiped = work.run(move || {
                if !factory.workspaces.contains(&spec.user, spec.session) {
                    return Ok(());
                }
                factory
                    .workspaces
                    .create(&spec.user, spec.session)?
                    .remove()
            });
            wiped.await.map_err(EnvironmentError::failed)
        }
        .boxed()
    }
}

/// Blocking work of one session, done in its user's turn.
#[derive(Debug, Clone)]
pub(super) struct SessionWork {
    pub(super) slots: UserWork,
    pub(super) user: UserId,
}

impl SessionWork {
    /// Does the work, also if the caller stops waiting.
    pub(super) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, WorkspaceError> + Send + 'static,
    ) -> Result<T, WorkspaceError> {
        let done = self.slots.run_to_end(&self.user, work).await;
        done.unwrap_or_else(|cause| {
            Err(WorkspaceError::Io {
                path: "the workspace".to_owned(),
                cause: std::io::Error::other(cause),
            })
        })
    }
}
