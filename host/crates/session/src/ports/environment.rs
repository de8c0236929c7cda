//! The engine's port for execution environments: a workspace, and a sandbox over it.

use std::error::Error as StdError;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::stream::delta::DeltaSink;
use crate::stream::frames::EventDraft;
use lucid_types::exec::{ExecError, ExecRequest, ExecResult, Process};
use lucid_types::ids::SessionId;
use lucid_types::secret::Secret;
use lucid_types::transient::TransientFailure;
use lucid_types::user::UserId;
use lucid_types::wit::types::{Error, ToolCall, ToolDefinition, ToolResult};

/// The session that an environment is for.
#[derive(Debug, Clone)]
pub struct EnvironmentSpec {
    /// The session's id.
    pub session: SessionId,
    /// The user that owns the session.
    pub user: UserId,
    /// The URL of the repository to clone.
    pub repo_url: Option<String>,
    /// The token for the repository.
    pub git_token: Option<Secret>,
    /// The branch to check out.
    pub branch: Option<String>,
    /// The author name for commits.
    pub git_user_name: Option<String>,
    /// The author email for commits.
    pub git_user_email: Option<String>,
    /// Whether the session's model sees images.
    pub images: bool,
}

impl EnvironmentSpec {
    /// The environment that a session has or had, for calls that look no further than whose it is.
    pub fn of(session: SessionId, user: UserId) -> Self {
        Self {
            session,
            user,
            repo_url: None,
            git_token: None,
            branch: None,
            git_user_name: None,
            git_user_email: None,
            images: false,
        }
    }
}

/// Why an environment was not created, opened, filled or removed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EnvironmentError {
    /// The deployment cannot have such an environment. Holds the reason.
    #[error("{0}")]
    Unavailable(String),
    /// An operation on its workspace, its sandbox or its repository failed.
    #[error(transparent)]
    Failed(Arc<dyn StdError + Send + Sync>),
}

impl EnvironmentError {
    /// Wraps the error of an operation.
    pub fn failed(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let error: Box<dyn StdError + Send + Sync> = error.into();
        Self::Failed(error.into())
    }

    /// Returns why it failed now, if the same may succeed later: if an error of the operating
    /// system behind it is transient. A disk that may not be written at all stays so.
    pub fn transient(&self) -> Option<TransientFailure> {
        let Self::Failed(error) = self else {
            return None;
        };
        let error: &(dyn StdError + 'static) = &**error;
        let mut causes = std::iter::successors(Some(error), |cause| (**cause).source());
        causes
            .find_map(|cause| cause.downcast_ref::<std::io::Error>())
            .and_then(TransientFailure::of_io)
            .filter(|reason| *reason != TransientFailure::ReadOnly)
    }
}

/// Creates the environments of sessions, and removes what they leave.
pub trait EnvironmentProvider: Send + Sync {
    /// Returns why there can be no environment, or `None` if there can.
    fn refusal(&self) -> Option<String>;
    /// Describes a tool call before it runs. Pure.
    fn describe(&self, call: &ToolCall) -> EventDraft;
    /// Creates a new environment with an empty workspace, and wipes what an earlier try left. Takes
    /// moments; the caller does not abandon it halfway.
    fn provision(
        &self,
        spec: EnvironmentSpec,
    ) -> BoxFuture<'static, Result<Arc<dyn Environment>, EnvironmentError>>;
    /// Opens a sandbox over the existing workspace.
    fn reopen(
        &self,
        spec: EnvironmentSpec,
    ) -> BoxFuture<'static, Result<Arc<dyn Environment>, EnvironmentError>>;
    /// Returns whether the session's sandbox survived while the host was away, so that its events
    /// must be listened to.
    fn is_alive(&self, spec: &EnvironmentSpec) -> bool;
    /// Returns the sandbox backend that a session uses now, such as `bubblewrap`; `None` while it
    /// has no sandbox.
    fn sandbox_of(&self, session: SessionId) -> Option<String>;
    /// Returns whether a session's workspace exists.
    fn has_workspace(&self, spec: &EnvironmentSpec) -> bool;
    /// Creates an empty workspace in place of one that is gone, and returns whether it exists.
    fn recreate_workspace(&self, spec: &EnvironmentSpec) -> bool;
    /// Releases what is kept for a session that is over, except for its files.
    fn release(&self, spec: EnvironmentSpec) -> BoxFuture<'static, ()>;
    /// Returns whether the disk is so short of space that the files of sessions that are over
    /// should go.
    fn is_disk_short(&self) -> BoxFuture<'static, bool>;
    /// Removes what a session left. Idempotent.
    fn remove(&self, spec: EnvironmentSpec) -> BoxFuture<'static, Result<(), EnvironmentError>>;
}

/// The outcome of a tool call.
#[derive(Debug)]
pub struct ToolResultWithEvent {
    /// The result for the model.
    pub result: ToolResult,
    /// The event for the user.
    pub event: EventDraft,
    /// What the user should know besides, such as that the workspace is full.
    pub notices: Vec<EventDraft>,
}

impl ToolResultWithEvent {
    /// A call that failed, with one sentence for the model and the user alike.
    pub fn failed(call: &ToolCall, sentence: impl Into<String>) -> Self {
        let text = sentence.into();
        Self {
            event: EventDraft::text("AgentErrorObservation", &text),
            result: ToolResult {
                call_id: call.id.clone(),
                is_error: true,
                text,
                exit_code: None,
                blobs: Vec::new(),
            },
            notices: Vec::new(),
        }
    }
}

/// Receives what a command writes, as it comes.
pub type OutputSink = Box<dyn FnMut(&[u8]) + Send>;

/// An open environment: a workspace, and a sandbox over it.
pub trait Environment: Send + Sync {
    /// The workspace's path, as commands see it.
    fn root(&self) -> String;
    /// Clones the session's repository into the workspace, if it has one. If the future is dropped,
    /// the environment can only be closed.
    fn fetch(&self) -> BoxFuture<'static, Result<(), EnvironmentError>>;
    /// Waits for something about the environment that the user should know: that its sandbox was
    /// lost, or is of another kind than this deployment's. `None` if nothing more will come.
    fn notice(&self) -> BoxFuture<'static, Option<String>>;
    /// Reads the repository's instructions to agents.
    fn instructions(&self) -> BoxFuture<'static, Vec<String>>;
    /// The available tools.
    fn definitions(&self) -> Vec<ToolDefinition>;
    /// Runs a tool. A failure of the tool is a result; an error is internal to the host.
    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>>;
    /// Runs a program in the sandbox to its end, for one of the deployment's tools, which also
    /// shows it to the user beforehand. Dropping the future kills it.
    fn exec(
        &self,
        request: ExecRequest,
        output: OutputSink,
    ) -> BoxFuture<'static, Result<ExecResult, ExecError>>;
    /// Starts a program in the sandbox that stays open, for one of the deployment's tools. It ends
    /// when its output is dropped, and with the sandbox.
    fn spawn(&self, request: ExecRequest) -> BoxFuture<'static, Result<Process, ExecError>>;
    /// Returns the branch of the repository that was pushed since the last call.
    fn pushed(&self) -> BoxFuture<'static, Option<String>>;
    /// Reads the workspace's tree, as a JSON array of nodes.
    fn tree(&self) -> BoxFuture<'static, Option<String>>;
    /// Waits until the tree may differ from the last one that was read, and until another one may
    /// be read: at most two in a second, and fewer of a large one. Returns `false` if changes
    /// cannot be noticed.
    fn changed(&self) -> BoxFuture<'static, bool>;
    /// Returns whether the tree is not to be read yet; `changed` then tells when it is.
    fn tree_can_wait(&self) -> bool;
    /// Ends everything that runs, and the sandbox. The workspace stays.
    fn close(&self) -> BoxFuture<'static, ()>;
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_full_disk_passes_and_one_that_may_not_be_written_does_not() {
        let passing =
            |cause: Errno| EnvironmentError::failed(std::io::Error::from(cause)).transient();
        assert_eq!(passing(Errno::NOSPC), Some(TransientFailure::DiskFull));
        assert_eq!(passing(Errno::MFILE), Some(TransientFailure::NoDescriptor));
        assert_eq!(passing(Errno::ROFS), None);
    }
}
