//! Owns how a session gets its place to work: a workspace, a sandbox over it, git's way out, tools.
//!
//! What always holds: files are touched off the async threads; the git token goes to the gateway and
//! nowhere else; whatever fails, fails with a sentence and leaves no sandbox behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::SecretString;
use tokio::sync::{Mutex, mpsc};

use crate::blobs::Blobs;
use crate::git_gateway::{self, Gateway};
use crate::plugins::types::{BlobRef, Error, ErrorKind, ToolCall, ToolDefinition, ToolResult};
use crate::sandbox::{LimitHit, Sandbox, SandboxError, Sandboxes, Spec};
use crate::session::{DeltaKind, DeltaSink, EventDraft, Place, PlaceSpec, Places, ToolDone};
use crate::tools::{self, ToolBox, ToolOutcome, describe_call};
use crate::workspace::{Quota, Watcher, Workspace, WorkspaceError, safe_name};

use super::files::Files;
use super::guard::Open;
use super::instructions;

/// What a command may take where neither its call nor the policy says.
const COMMAND_TIME: Duration = Duration::from_secs(120);

/// Said of containers that commands reach by `docker exec` only.
const NO_WAY_FOR_GIT: &str = "The containers of this deployment's Docker engine cannot reach this server's git gateway, so no repository can be cloned. It needs an engine on the same machine; `lucid doctor` says more.";

/// What all places have in common.
#[derive(Clone)]
pub(super) struct Ground {
    /// Boxes.
    pub(super) sandboxes: Sandboxes,
    /// Workspaces are below it.
    pub(super) base: PathBuf,
    /// Pictures that models see.
    pub(super) blobs: Blobs,
    /// For git.
    pub(super) client: reqwest::Client,
    /// What git may do.
    pub(super) git: git_gateway::Rules,
    /// Workspaces outlive their sessions.
    pub(super) keep: bool,
    /// Notices what changes in workspaces; none where this machine does not let it.
    pub(super) watcher: Option<Watcher>,
    /// What a workspace may take of the disk, in bytes.
    pub(super) disk_limit: u64,
    /// The places that are open.
    pub(super) rooms: Open,
}

impl Ground {
    /// The workspace of a session, made where it is not there.
    async fn workspace_of(&self, spec: &PlaceSpec, fresh: bool) -> Result<Arc<Workspace>, String> {
        let (base, user, session) = (self.base.clone(), spec.user.clone(), spec.session.clone());
        let sandboxes = self.sandboxes.clone();
        blocking(move || {
            let workspace = Workspace::create(&base, &user, &session)?;
            if !fresh {
                return Ok(workspace);
            }
            let path = workspace.host_path().to_owned();
            workspace.remove()?;
            // The folder of a container that waits becomes this one, and that container the session's.
            let _is_warm = sandboxes.prepare(&session, &path);
            Workspace::create(&base, &user, &session)
        })
        .await
        .map(Arc::new)
        .map_err(|error| error.to_string())
    }

    async fn open(&self, spec: &PlaceSpec, workspace: Arc<Workspace>) -> Result<Opened, String> {
        let repository = spec
            .repo_url
            .as_deref()
            .map(git_gateway::repository_url)
            .transpose();
        let repository = repository.map_err(|error| error.to_string())?;
        let reach = repository
            .as_deref()
            .map(|url| git_gateway::reach(url, self.git.allow_owner))
            .transpose();
        let reach = reach.map_err(|error| error.to_string())?;
        let wanted = Spec {
            session: &spec.session,
            workspace: workspace.host_path(),
            repository: reach.as_deref(),
        };
        let sandbox = self
            .sandboxes
            .start(wanted)
            .await
            .map_err(|error| error.to_string())?;
        if repository.is_some() && !sandbox.reaches_sockets() {
            return Err(NO_WAY_FOR_GIT.to_owned());
        }
        let gateway = match &repository {
            None => None,
            Some(url) => {
                let token = spec
                    .git_token
                    .as_ref()
                    .map(|token| SecretString::from(token.expose().to_owned()));
                let opened = Gateway::start(
                    sandbox.runtime_dir(),
                    url,
                    token,
                    self.git,
                    self.client.clone(),
                );
                Some(opened.map_err(|error| error.to_string())?)
            }
        };
        Ok(Opened {
            tools: ToolBox::new(sandbox, workspace),
            _gateway: gateway,
        })
    }

    /// A box, and word of it where a person should know something of it.
    async fn open_and_watch(
        &self,
        spec: &PlaceSpec,
        workspace: Arc<Workspace>,
        notices: &Notices,
    ) -> Result<Opened, String> {
        let opened = self.open(spec, workspace).await?;
        let sandbox = opened.tools.sandbox();
        if let Some(notice) = sandbox.notice() {
            notices.give(notice.to_owned());
        }
        let (ended, notices) = (sandbox.ended(), notices.clone());
        tokio::spawn(async move {
            let reason = ended.await;
            if !notices.closed.load(Ordering::Relaxed) {
                notices.give(format!(
                    "The sandbox was lost, and what ran in it. {reason} The files are there, and the next command gets a new one."
                ));
            }
        });
        Ok(opened)
    }

    async fn provision(self, spec: PlaceSpec) -> Result<Arc<dyn Place>, String> {
        let workspace = self.workspace_of(&spec, true).await?;
        self.place(spec, workspace).await
    }

    async fn reopen(self, spec: PlaceSpec) -> Result<Arc<dyn Place>, String> {
        let workspace = self.workspace_of(&spec, false).await?;
        self.place(spec, workspace).await
    }

    async fn place(
        self,
        spec: PlaceSpec,
        workspace: Arc<Workspace>,
    ) -> Result<Arc<dyn Place>, String> {
        let (notices, noticed) = Notices::new();
        let opened = self.open_and_watch(&spec, workspace.clone(), &notices);
        let opened = opened.await?;
        let root = opened.tools.sandbox().workspace_path().to_owned();
        let files = Files::new(workspace.clone(), self.watcher.as_ref(), self.disk_limit);
        let rooms = self.rooms.clone();
        let room = Arc::new(Room {
            ground: self,
            spec,
            workspace,
            files: Arc::new(files),
            root,
            notices,
            noticed: Mutex::new(noticed),
            opened: Mutex::new(Some(opened)),
        });
        rooms.add(&room);
        Ok(Arc::new(Shared(room)))
    }
}

impl Places for Ground {
    fn refusal(&self) -> Option<String> {
        self.sandboxes.refusal().map(str::to_owned)
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

    fn provision(&self, spec: PlaceSpec) -> BoxFuture<'static, Result<Arc<dyn Place>, String>> {
        self.clone().provision(spec).boxed()
    }

    fn reopen(&self, spec: PlaceSpec) -> BoxFuture<'static, Result<Arc<dyn Place>, String>> {
        self.clone().reopen(spec).boxed()
    }

    fn lives(&self, spec: &PlaceSpec) -> bool {
        self.sandboxes.holds(&spec.session)
    }

    fn workspace(&self, spec: &PlaceSpec) -> Option<Arc<Workspace>> {
        let folder = self
            .base
            .join(safe_name(&spec.user))
            .join(safe_name(&spec.session));
        if !folder.is_dir() {
            return None;
        }
        Workspace::create(&self.base, &spec.user, &spec.session)
            .ok()
            .map(Arc::new)
    }

    fn wipe(&self, spec: PlaceSpec) -> BoxFuture<'static, Result<(), String>> {
        let ground = self.clone();
        async move {
            ground.sandboxes.discard(&spec.session).await;
            if ground.keep {
                return Ok(());
            }
            if let Some(files) = ground.blobs.of(&spec.session) {
                files.remove().await.map_err(|error| error.to_string())?;
            }
            let wiped = blocking(move || {
                ground
                    .workspace(&spec)
                    .map_or(Ok(()), |workspace| workspace.remove())
            });
            wiped.await.map_err(|error| error.to_string())
        }
        .boxed()
    }
}

/// A box that runs, and what belongs to it.
struct Opened {
    tools: ToolBox,
    /// Closes when dropped.
    _gateway: Option<Gateway>,
}

/// What a person should know of a place, from wherever it is noticed. Few, since each is of one box.
#[derive(Clone)]
struct Notices {
    sender: mpsc::UnboundedSender<String>,
    /// The session closes the place: an end is no news.
    closed: Arc<AtomicBool>,
}

impl Notices {
    fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let closed = Arc::default();
        (Self { sender, closed }, receiver)
    }

    fn give(&self, notice: String) {
        // Fails where the place is gone, and nobody asks.
        let _ = self.sender.send(notice);
    }
}

pub(super) struct Room {
    ground: Ground,
    spec: PlaceSpec,
    workspace: Arc<Workspace>,
    files: Arc<Files>,
    root: String,
    notices: Notices,
    noticed: Mutex<mpsc::UnboundedReceiver<String>>,
    /// None once it was closed.
    opened: Mutex<Option<Opened>>,
}

impl Room {
    /// The files, and what they may take.
    pub(super) fn files(&self) -> (Arc<Workspace>, Arc<Quota>) {
        (self.workspace.clone(), self.files.quota().clone())
    }

    /// Ends the box with all that runs in it, and says why. The next tool gets another.
    pub(super) async fn end_box(&self, why: &str) {
        let sandbox = {
            let opened = self.opened.lock().await;
            opened.as_ref().map(|opened| opened.tools.sandbox().clone())
        };
        if let Some(sandbox) = sandbox.filter(Sandbox::is_alive) {
            sandbox.end(why).await;
        }
    }

    /// The tools, in a new box where the old one died.
    async fn tools(&self) -> Result<ToolBox, String> {
        let mut opened = self.opened.lock().await;
        let Some(present) = opened.as_ref() else {
            return Err("The sandbox was closed.".to_owned());
        };
        if !present.tools.sandbox().is_alive() {
            present.tools.sandbox().close().await;
            let workspace = self.workspace.clone();
            let other = self
                .ground
                .open_and_watch(&self.spec, workspace, &self.notices);
            *opened = Some(other.await?);
        }
        let tools = opened.as_ref().map(|opened| opened.tools.clone());
        tools.ok_or_else(|| "The sandbox was closed.".to_owned())
    }

    async fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        deltas: DeltaSink,
    ) -> Result<ToolDone, Error> {
        let tools = self.tools().await.map_err(fault)?;
        let timeout = timeout_ms.map_or(COMMAND_TIME, |ms| {
            COMMAND_TIME.min(Duration::from_millis(ms.into()))
        });
        let show = |bytes: &[u8]| deltas(DeltaKind::Terminal, &String::from_utf8_lossy(bytes));
        let tools = tools
            .with_quota(self.files.quota().clone())
            .with_pictures(self.spec.images);
        let ran = tools::run(&tools, &call.name, &call.arguments, timeout, show).await;
        let mut outcome = ran.map_err(|error: SandboxError| fault(error.to_string()))?;
        let blobs = self.keep_picture(&mut outcome).await;
        let full = self.files.after_tool(&mut outcome).await;
        let limit = outcome.limit.map(LimitHit::sentence).map(str::to_owned);
        let view = describe_call(&call.name, &call.arguments);
        // A command that ran has an exit code, whatever became of it; without one nothing was done.
        let undone = outcome.is_error && outcome.exit_code.is_none();
        let shown = EventDraft {
            event_type: if undone {
                "AgentErrorObservation"
            } else {
                view.observation_type
            }
            .to_owned(),
            content: outcome.text.clone(),
            command: view.command,
            exit_code: outcome.exit_code,
            path: view.path.or(outcome.path),
            diff: outcome.diff,
            ..EventDraft::default()
        };
        // Adapters hand a model the text alone, so that says how a command ended.
        let mut text = outcome.text;
        if let Some(code) = outcome.exit_code {
            let line_break = if text.is_empty() || text.ends_with('\n') {
                ""
            } else {
                "\n"
            };
            text.push_str(&format!("{line_break}[exit code {code}]"));
        }
        let result = ToolResult {
            call_id: call.id,
            is_error: outcome.is_error,
            text,
            exit_code: outcome.exit_code,
            blobs,
        };
        Ok(ToolDone {
            result,
            shown,
            notices: full
                .into_iter()
                .chain(limit)
                .map(|text| EventDraft::text("AgentErrorObservation", text))
                .collect(),
        })
    }
}

impl Room {
    /// The picture of a tool's outcome, as the conversation names it. One that cannot be kept makes the
    /// outcome a failure that says why.
    async fn keep_picture(&self, outcome: &mut ToolOutcome) -> Vec<BlobRef> {
        let Some(picture) = outcome.picture.take() else {
            return Vec::new();
        };
        let Some(files) = self.ground.blobs.of(&self.spec.session) else {
            return Vec::new();
        };
        match files.put(picture.media_type, picture.bytes).await {
            Ok(kept) => vec![kept],
            Err(cause) => {
                outcome.is_error = true;
                outcome.text = format!("The picture cannot be shown: {cause}.");
                Vec::new()
            }
        }
    }
}

/// The engine's hold of a room; work that is under way holds it too.
struct Shared(Arc<Room>);

impl Place for Shared {
    fn workspace(&self) -> Option<Arc<Workspace>> {
        Some(self.0.workspace.clone())
    }

    fn root(&self) -> String {
        self.0.root.clone()
    }

    fn fetch(&self) -> BoxFuture<'static, Result<(), String>> {
        let room = self.0.clone();
        async move {
            let Some(url) = &room.spec.repo_url else {
                return Ok(());
            };
            let tools = room.tools().await?;
            let wanted = git_gateway::Checkout {
                repository: url,
                branch: room.spec.branch.as_deref(),
                user_name: room.spec.git_user_name.as_deref(),
                user_email: room.spec.git_user_email.as_deref(),
            };
            git_gateway::clone_into(tools.sandbox(), wanted, &room.ground.git)
                .await
                .map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn notice(&self) -> BoxFuture<'static, Option<String>> {
        let room = self.0.clone();
        async move { room.noticed.lock().await.recv().await }.boxed()
    }

    fn instructions(&self) -> BoxFuture<'static, Vec<String>> {
        let workspace = self.0.workspace.clone();
        async move {
            let read = blocking(move || Ok(instructions::of(&workspace)));
            read.await.unwrap_or_default()
        }
        .boxed()
    }

    fn definitions(&self) -> Vec<ToolDefinition> {
        let definition = |tool: tools::Definition| ToolDefinition {
            name: tool.name.to_owned(),
            description: tool.description.to_owned(),
            input_schema: tool.input_schema.to_string(),
        };
        tools::definitions().into_iter().map(definition).collect()
    }

    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ToolDone, Error>> {
        let room = self.0.clone();
        async move { room.run(call, timeout_ms, deltas).await }.boxed()
    }

    fn tree(&self) -> BoxFuture<'static, Option<String>> {
        self.0.files.clone().tree().boxed()
    }

    fn changed(&self) -> BoxFuture<'static, bool> {
        self.0.files.clone().changed().boxed()
    }

    fn tree_can_wait(&self) -> bool {
        self.0.files.tree_can_wait()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let room = self.0.clone();
        async move {
            room.notices.closed.store(true, Ordering::Relaxed);
            if let Some(opened) = room.opened.lock().await.take() {
                opened.tools.sandbox().close().await;
            }
        }
        .boxed()
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WorkspaceError> + Send + 'static,
) -> Result<T, WorkspaceError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|cause| {
            Err(WorkspaceError::Io {
                path: "the workspace".to_owned(),
                cause: std::io::Error::other(cause),
            })
        })
}

/// The host's own failure, as a policy is told of it.
fn fault(message: impl Into<String>) -> Error {
    Error {
        kind: ErrorKind::Internal,
        code: None,
        message: message.into(),
        retry_after_ms: None,
    }
}
