//! The engine's port for a deployment's tools beside the sandbox's own.
//!
//! # Invariants
//! - Such a tool is named `SOURCE__TOOL`. No tool of the sandbox has a name of this form, so none
//!   can be replaced.
//! - Opening the tools never fails as a whole: a source that does not open becomes a notice to the
//!   user, and the session continues without it.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Environment, ToolResultWithEvent};
use crate::stream::delta::DeltaSink;
use crate::stream::frames::EventDraft;
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;
use lucid_types::wit::types::{Error, ToolCall, ToolDefinition};

/// Separates the name of a tool's source from the tool's own name.
pub const SEPARATOR: &str = "__";

/// The session for which tools are opened.
#[derive(Debug, Clone)]
pub struct ToolsSpec {
    /// The session's id.
    pub session: SessionId,
    /// The session's user.
    pub user: UserId,
    /// The policy's name.
    pub policy: String,
}

/// Announces a tool's next action to the user. Resolves to `true` once the announcement is
/// committed, and to `false` if the action must no longer be carried out.
pub type EventSink = Arc<dyn Fn(EventDraft) -> BoxFuture<'static, bool> + Send + Sync>;

/// The channels through which a running call reports its progress.
#[derive(Clone)]
pub struct ToolOutput {
    /// Pieces of its output.
    pub deltas: DeltaSink,
    /// Its actions, each before it is carried out.
    pub events: EventSink,
}

/// The deployment's tools beside the sandbox's own.
pub trait ToolProvider: Send + Sync {
    /// Returns whether sessions of this policy have any of these tools.
    fn any_for(&self, policy: &str) -> bool;
    /// Describes a call of a session of this policy before it runs. Returns `None` if no source of
    /// this deployment has the tool, or not for this policy. Pure.
    fn describe(&self, policy: &str, call: &ToolCall) -> Option<EventDraft>;
    /// Opens the tools for a session. The environment outlives them; it is `None` if no sandbox is
    /// available.
    fn open(
        &self,
        spec: ToolsSpec,
        environment: Option<Arc<dyn Environment>>,
    ) -> BoxFuture<'static, Arc<dyn SessionTools>>;
}

/// Tools that were opened for a session.
pub trait SessionTools: Send + Sync {
    /// The available tools.
    fn definitions(&self) -> Vec<ToolDefinition>;
    /// Notices for the user, such as that a source could not be opened. Each is a sentence and is
    /// returned only once.
    fn notices(&self) -> Vec<String>;
    /// Runs a tool. A failure of the tool is a result; an error is internal to the host. Dropping
    /// the future cancels the call.
    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        output: ToolOutput,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>>;
    /// Releases everything that the tools hold. Idempotent.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// The tools of a deployment that has none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoToolProvider;

impl ToolProvider for NoToolProvider {
    fn any_for(&self, _: &str) -> bool {
        false
    }

    fn describe(&self, _: &str, _: &ToolCall) -> Option<EventDraft> {
        None
    }

    fn open(
        &self,
        _: ToolsSpec,
        _: Option<Arc<dyn Environment>>,
    ) -> BoxFuture<'static, Arc<dyn SessionTools>> {
        std::future::ready(Arc::new(Self) as Arc<dyn SessionTools>).boxed()
    }
}

impl SessionTools for NoToolProvider {
    fn definitions(&self) -> Vec<ToolDefinition> {
        Vec::new()
    }

    fn notices(&self) -> Vec<String> {
        Vec::new()
    }

    fn run(
        &self,
        call: ToolCall,
        _: Option<u32>,
        _: ToolOutput,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>> {
        std::future::ready(Ok(ToolResultWithEvent::failed(
            &call,
            "This deployment no longer has this tool.",
        )))
        .boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}
