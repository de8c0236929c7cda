//! Owns how a session gets its place to work: a workspace, a sandbox over it, git's way out, tools.
//!
//! What always holds: files are touched off the async threads; the git token goes to the gateway and
//! nowhere else; whatever fails, fails with a sentence and leaves no sandbox behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::SecretString;
use tokio::sync::Mutex;

use crate::git_gateway::{self, Gateway};
use crate::plugins::types::{Error, ErrorKind, ToolCall, ToolDefinition, ToolResult};
use crate::sandbox::{SandboxError, Sandboxes, Spec};
use crate::session::{DeltaKind, DeltaSink, EventDraft, Place, PlaceSpec, Places, ToolDone};
use crate::tools::{self, ToolBox, describe_call};
use crate::workspace::{Workspace, WorkspaceError, safe_name};

/// What a command may take where neither its call nor the policy says.
const COMMAND_TIME: Duration = Duration::from_secs(120);
/// Where a repository says how agents are to work in it.
const INSTRUCTIONS: [&str; 2] = ["AGENTS.md", "CLAUDE.md"];
/// The longest of them that is taken, in bytes.
const LONGEST_INSTRUCTIONS: u64 = 64 * 1024;

/// What all places have in common.
#[derive(Clone)]
pub(super) struct Ground {
    /// Boxes.
    pub(super) sandboxes: Sandboxes,
    /// Workspaces are below it.
    pub(super) base: PathBuf,
    /// For git.
    pub(super) client: reqwest::Client,
    /// Repositories on private addresses may be reached.
    pub(super) allow_private: bool,
    /// Workspaces outlive their sessions.
    pub(super) keep: bool,
}

impl Ground {
    /// The workspace of a session, made where it is not there.
    async fn workspace_of(&self, spec: &PlaceSpec, fresh: bool) -> Result<Arc<Workspace>, String> {
        let (base, user, session) = (self.base.clone(), spec.user.clone(), spec.session.clone());
        blocking(move || {
            let workspace = Workspace::create(&base, &user, &session)?;
            if !fresh {
                return Ok(workspace);
            }
            workspace.remove()?;
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
        let wanted = Spec {
            session: &spec.session,
            workspace: workspace.host_path(),
            repository: repository.as_deref(),
        };
        let sandbox = self
            .sandboxes
            .start(wanted)
            .await
            .map_err(|error| error.to_string())?;
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
                    self.allow_private,
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
        let opened = self.open(&spec, workspace.clone()).await?;
        let root = opened.tools.sandbox().workspace_path().to_owned();
        let room = Room {
            ground: self,
            spec,
            workspace,
            root,
            opened: Mutex::new(Some(opened)),
        };
        Ok(Arc::new(Shared(Arc::new(room))))
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
            if ground.keep {
                return Ok(());
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

struct Room {
    ground: Ground,
    spec: PlaceSpec,
    workspace: Arc<Workspace>,
    root: String,
    /// None once it was closed.
    opened: Mutex<Option<Opened>>,
}

impl Room {
    /// The tools, in a new box where the old one died.
    async fn tools(&self) -> Result<ToolBox, String> {
        let mut opened = self.opened.lock().await;
        let Some(present) = opened.as_ref() else {
            return Err("The sandbox was closed.".to_owned());
        };
        if !present.tools.sandbox().is_alive() {
            present.tools.sandbox().close().await;
            *opened = Some(self.ground.open(&self.spec, self.workspace.clone()).await?);
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
        let ran = tools::run(&tools, &call.name, &call.arguments, timeout, show).await;
        let outcome = ran.map_err(|error: SandboxError| fault(error.to_string()))?;
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
            blobs: Vec::new(),
        };
        Ok(ToolDone { result, shown })
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
            let cloned = git_gateway::clone_into(
                tools.sandbox(),
                url,
                room.spec.branch.as_deref(),
                room.spec.git_user_name.as_deref(),
                room.spec.git_user_email.as_deref(),
            );
            cloned.await.map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn instructions(&self) -> BoxFuture<'static, Vec<String>> {
        let workspace = self.0.workspace.clone();
        async move {
            let read = blocking(move || Ok(instructions(&workspace)));
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
        let workspace = self.0.workspace.clone();
        async move {
            let tree = blocking(move || workspace.tree()).await.ok()?;
            serde_json::to_string(&tree).ok()
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let room = self.0.clone();
        async move {
            if let Some(opened) = room.opened.lock().await.take() {
                opened.tools.sandbox().close().await;
            }
        }
        .boxed()
    }
}

/// What the repository tells agents; the first file that is there.
fn instructions(workspace: &Workspace) -> Vec<String> {
    let read = |name: &&str| {
        let bytes = workspace
            .path(name)
            .and_then(|path| workspace.read(&path, LONGEST_INSTRUCTIONS))
            .ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    INSTRUCTIONS.iter().find_map(read).into_iter().collect()
}

async fn blocking<T: Send + 'static>(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_of_instructions_that_is_there_is_taken() {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), "u", "s").unwrap();
        assert!(instructions(&workspace).is_empty());
        std::fs::write(workspace.host_path().join("CLAUDE.md"), "second").unwrap();
        assert_eq!(instructions(&workspace), ["second"]);
        std::fs::write(workspace.host_path().join("AGENTS.md"), "first").unwrap();
        assert_eq!(instructions(&workspace), ["first"]);
    }
}
