//! A session's open environment: runs its tools, and reports what they do and what the user should
//! know.
//!
//! # Invariants
//!
//! - A sandbox that died is replaced by the next tool call. One that was closed stays closed.
//! - A failed tool is a result. Only the host's own failures are errors.

pub(crate) mod agent_instructions;
pub(crate) mod connections;
pub(crate) mod disk_guard;
pub(crate) mod factory;
pub(crate) mod log_reserve;
pub(crate) mod tree_watch;
pub(crate) mod workspaces;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Mutex, mpsc};

use self::factory::EnvironmentFactory;
use self::tree_watch::TreeTracker;
use lucid_sandbox::git::{self, GitGateway};
use lucid_sandbox::proxy::ForwardProxy;
use lucid_sandbox::tools::{self, SandboxTools, ToolOutcome, describe_call};
use lucid_sandbox::workspace::{Quota, Workspace};
use lucid_sandbox::{BackendKind, Sandbox, SandboxError};
use lucid_session::{
    DeltaKind, DeltaSink, Environment, EnvironmentError, EnvironmentSpec, EventDraft, OutputSink,
    ToolResultWithEvent,
};
use lucid_types::exec::{ExecError, ExecRequest, ExecResult, LimitHit, Process};
use lucid_types::ids::SessionId;
use lucid_types::sentence::sentence;
use lucid_types::unicode::Utf8Decoder;
use lucid_types::wit::types::{BlobRef, Error, ToolCall, ToolDefinition, ToolResult};

/// The time limit of a command for which neither its call nor the policy sets one.
const COMMAND_TIME: Duration = Duration::from_secs(120);

/// A running sandbox, and what belongs to it.
pub(super) struct RunningSandbox {
    pub(super) tools: SandboxTools,
    /// Closes when dropped.
    pub(super) gateway: Option<GitGateway>,
    /// Closes when dropped.
    pub(super) _proxy: Option<ForwardProxy>,
}

/// A channel for what the user should know about an environment. There are few, since each concerns
/// one sandbox.
#[derive(Clone)]
pub(super) struct NoticeSender {
    sender: mpsc::UnboundedSender<String>,
    /// Whether the session closed the environment: its end is then not reported.
    closed: Arc<AtomicBool>,
}

impl NoticeSender {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let closed = Arc::default();
        (Self { sender, closed }, receiver)
    }

    /// Whether the session closed the environment.
    pub(super) fn are_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn send(&self, notice: String) {
        // Fails if the environment is gone and nobody listens.
        let _ = self.sender.send(notice);
    }
}

/// An open environment: a workspace, and its current sandbox.
pub(super) struct SessionEnvironment {
    pub(super) factory: EnvironmentFactory,
    pub(super) spec: EnvironmentSpec,
    pub(super) workspace: Arc<Workspace>,
    pub(super) files: Arc<TreeTracker>,
    /// The workspace's path, as commands see it.
    pub(super) root: String,
    /// What a model has to know about the clone in the workspace.
    pub(super) clone_notice: OnceLock<String>,
    /// The current sandbox, for code that must not wait for one being created. `None` once the
    /// environment was closed.
    pub(super) sandbox: parking_lot::Mutex<Option<Sandbox>>,
    pub(super) notices: NoticeSender,
    pub(super) notice_receiver: Mutex<mpsc::UnboundedReceiver<String>>,
    /// `None` once it was closed.
    pub(super) opened: Mutex<Option<RunningSandbox>>,
}

impl SessionEnvironment {
    /// The id of its session.
    pub(super) fn session(&self) -> SessionId {
        self.spec.session
    }

    /// The files and their quota.
    pub(super) fn files(&self) -> (Arc<Workspace>, Arc<Quota>) {
        (self.workspace.clone(), self.files.quota().clone())
    }

    /// Ends the sandbox with everything running in it, and records why. The next tool call gets a
    /// new one.
    pub(super) async fn end_sandbox(&self, why: &str) {
        if let Some(sandbox) = self.sandbox().filter(Sandbox::is_alive) {
            sandbox.end(why).await;
        }
    }

    /// The current sandbox, which may have died.
    pub(super) fn sandbox(&self) -> Option<Sandbox> {
        self.sandbox.lock().clone()
    }

    /// Whether it belongs to this session and is open.
    pub(super) fn belongs_to(&self, session: SessionId) -> bool {
        self.spec.session == session && self.kind().is_some()
    }

    /// The kind of its sandbox.
    pub(super) fn kind(&self) -> Option<BackendKind> {
        self.sandbox().map(|sandbox| sandbox.kind())
    }

    fn set_sandbox(&self, sandbox: Option<Sandbox>) {
        if let Some(sandbox) = &sandbox {
            sandbox.count_files_in(self.files.quota());
        }
        *self.sandbox.lock() = sandbox;
    }

    /// The tools, in a new sandbox if the old one died.
    async fn tools(&self) -> Result<SandboxTools, ToolsError> {
        let mut opened = self.opened.lock().await;
        let present = opened.as_ref().ok_or(ToolsError::Closed)?;
        if !present.tools.sandbox().is_alive() {
            present.tools.sandbox().close().await;
            let workspace = self.workspace.clone();
            let other = self
                .factory
                .open_and_watch(&self.spec, workspace, &self.notices);
            let other = other.await?;
            self.set_sandbox(Some(other.tools.sandbox().clone()));
            *opened = Some(other);
        }
        let tools = opened.as_ref().map(|opened| opened.tools.clone());
        tools.ok_or(ToolsError::Closed)
    }

    async fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        deltas: DeltaSink,
    ) -> Result<ToolResultWithEvent, Error> {
        let tools = self
            .tools()
            .await
            .map_err(|error| Error::internal(sentence(error)))?;
        let timeout = timeout_ms.map_or(COMMAND_TIME, |ms| {
            COMMAND_TIME.min(Duration::from_millis(ms.into()))
        });
        let mut pieces = Utf8Decoder::default();
        let show = |bytes: &[u8]| {
            let text = pieces.push(bytes);
            if !text.is_empty() {
                deltas(DeltaKind::Terminal, &text);
            }
        };
        let tools = tools
            .with_quota(self.files.quota().clone())
            .with_images(self.spec.images);
        let ran = tools::run(&tools, &call.name, &call.arguments, timeout, show).await;
        let mut outcome = ran.map_err(|error: SandboxError| Error::internal(sentence(error)))?;
        let blobs = self.store_image(&mut outcome).await;
        let full = self.files.after_tool(&mut outcome).await;
        let limit = outcome.limit.map(LimitHit::sentence).map(str::to_owned);
        let view = describe_call(&call.name, &call.arguments);
        // A command that ran has an exit code, whatever its outcome. Without one nothing was done.
        let undone = outcome.is_error && outcome.exit_code.is_none();
        let event = EventDraft {
            event_type: if undone {
                "AgentErrorObservation"
            } else {
                view.observation_type
            }
            .to_owned(),
            content: outcome.shown.unwrap_or_else(|| outcome.text.clone()),
            command: view.command,
            exit_code: outcome.exit_code,
            path: view.path.or(outcome.path),
            diff: outcome.diff,
            ..EventDraft::default()
        };
        // Adapters pass only the text to a model, so the text has to say how a command ended.
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
        Ok(ToolResultWithEvent {
            result,
            event,
            notices: full
                .into_iter()
                .chain(limit)
                .map(|text| EventDraft::text("AgentErrorObservation", text))
                .collect(),
        })
    }
}

impl SessionEnvironment {
    /// Runs a program for one of the deployment's tools, which interprets the outcome itself.
    async fn exec(
        &self,
        request: ExecRequest,
        output: OutputSink,
    ) -> Result<ExecResult, SandboxError> {
        let tools = self.tools().await?;
        let ran = tools.sandbox().exec(request, output).await;
        // What it wrote to the workspace counts towards the quota, as with any command.
        let mut outcome = ToolOutcome {
            exit_code: Some(0),
            ..ToolOutcome::default()
        };
        if let Some(full) = self.files.after_tool(&mut outcome).await {
            self.notices.send(full);
        }
        ran
    }

    /// Stores the image of a tool's outcome and returns the reference for the conversation. If it
    /// cannot be stored, the outcome becomes a failure that says why.
    async fn store_image(&self, outcome: &mut ToolOutcome) -> Vec<BlobRef> {
        let Some(image) = outcome.image.take() else {
            return Vec::new();
        };
        let files = self.factory.blobs.of(self.spec.session);
        match files.put(image.media_type, image.bytes).await {
            Ok(kept) => vec![kept],
            Err(cause) => {
                outcome.is_error = true;
                outcome.text = format!("The picture cannot be shown: {cause}.");
                Vec::new()
            }
        }
    }
}

/// Why there are no tools.
#[derive(Debug, thiserror::Error)]
enum ToolsError {
    /// The environment was closed.
    #[error("the sandbox was closed")]
    Closed,
    /// Its sandbox died, and there is no other.
    #[error(transparent)]
    Open(#[from] EnvironmentError),
}

impl From<ToolsError> for EnvironmentError {
    fn from(error: ToolsError) -> Self {
        match error {
            ToolsError::Closed => Self::failed(error),
            ToolsError::Open(error) => error,
        }
    }
}

impl From<ToolsError> for SandboxError {
    fn from(error: ToolsError) -> Self {
        Self::Gone(sentence(error))
    }
}

/// The engine's handle of an environment. Work in progress holds it too.
pub(super) struct SharedEnvironment(pub(super) Arc<SessionEnvironment>);

impl Environment for SharedEnvironment {
    fn root(&self) -> String {
        self.0.root.clone()
    }

    fn fetch(&self) -> BoxFuture<'static, Result<(), EnvironmentError>> {
        let environment = self.0.clone();
        async move {
            let Some(url) = &environment.spec.repo_url else {
                return Ok(());
            };
            let tools = environment.tools().await?;
            let wanted = git::Checkout {
                repository: url,
                branch: environment.spec.branch.as_deref(),
                user_name: environment.spec.git_user_name.as_deref(),
                user_email: environment.spec.git_user_email.as_deref(),
            };
            let rules = &environment.factory.git;
            let cloned = git::clone_into(tools.sandbox(), wanted, rules).await;
            let cloned = cloned.map_err(EnvironmentError::failed)?;
            let _ = environment.clone_notice.set(cloned.describe(rules));
            Ok(())
        }
        .boxed()
    }

    fn notice(&self) -> BoxFuture<'static, Option<String>> {
        let environment = self.0.clone();
        async move { environment.notice_receiver.lock().await.recv().await }.boxed()
    }

    fn instructions(&self) -> BoxFuture<'static, Vec<String>> {
        let workspace = self.0.workspace.clone();
        let work = self.0.factory.work_of(&self.0.spec);
        async move {
            let read = work.run(move || Ok(agent_instructions::read_instructions(&workspace)));
            read.await.unwrap_or_default()
        }
        .boxed()
    }

    fn definitions(&self) -> Vec<ToolDefinition> {
        let definition = |tool: tools::SandboxToolDefinition| ToolDefinition {
            name: tool.name.to_owned(),
            description: tool.description.to_owned(),
            input_schema: tool.input_schema.to_string(),
        };
        let mut all: Vec<_> = tools::definitions().into_iter().map(definition).collect();
        // Git is called in the terminal, whatever the policy, so the terminal's description
        // mentions the clone.
        if let Some(notice) = self.0.clone_notice.get()
            && let Some(terminal) = all.iter_mut().find(|tool| tool.name == "terminal")
        {
            terminal.description = format!("{}\n\n{notice}", terminal.description);
        }
        all
    }

    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>> {
        let environment = self.0.clone();
        async move { environment.run(call, timeout_ms, deltas).await }.boxed()
    }

    fn exec(
        &self,
        request: ExecRequest,
        output: OutputSink,
    ) -> BoxFuture<'static, Result<ExecResult, ExecError>> {
        let environment = self.0.clone();
        async move { Ok(environment.exec(request, output).await?) }.boxed()
    }

    fn spawn(&self, request: ExecRequest) -> BoxFuture<'static, Result<Process, ExecError>> {
        let environment = self.0.clone();
        async move {
            let tools = environment.tools().await.map_err(SandboxError::from)?;
            Ok(tools.sandbox().spawn(request)?)
        }
        .boxed()
    }

    fn pushed(&self) -> BoxFuture<'static, Option<String>> {
        let environment = self.0.clone();
        async move {
            let opened = environment.opened.lock().await;
            opened.as_ref()?.gateway.as_ref()?.take_pushed()
        }
        .boxed()
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
        let environment = self.0.clone();
        async move {
            environment.notices.closed.store(true, Ordering::Relaxed);
            environment.set_sandbox(None);
            if let Some(opened) = environment.opened.lock().await.take() {
                opened.tools.sandbox().close().await;
            }
        }
        .boxed()
    }
}
