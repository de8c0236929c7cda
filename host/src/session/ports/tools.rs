//! Owns what the engine needs of a deployment's tools beside the sandbox's own.
//!
//! What always holds: such a tool's name is `SOURCE__TOOL`, which no tool of the sandbox is called, so
//! none can take one's place. Opening them never fails as a whole: a source that does not open is
//! something a person is told, and the session goes on without it.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::types::wit::types::{Error, ToolCall, ToolDefinition};

use super::{DeltaSink, Place, ToolDone};
use crate::session::stream::frames::EventDraft;

/// Stands between the name of a tool's source and the tool's own.
pub const SEPARATOR: &str = "__";

/// Whose tools they are.
#[derive(Debug, Clone)]
pub struct ToolsSpec {
    /// The session.
    pub session: String,
    /// Its user.
    pub user: String,
    /// Its policy.
    pub policy: String,
}

/// Shows a person what a tool is about to do. True once it is written down; false where it is not to be
/// done any more.
pub type EventSink = Arc<dyn Fn(EventDraft) -> BoxFuture<'static, bool> + Send + Sync>;

/// What a call may show while it goes on.
#[derive(Clone)]
pub struct Showing {
    /// Pieces of what it prints.
    pub deltas: DeltaSink,
    /// What it does, before it does it.
    pub events: EventSink,
}

/// The deployment's tools beside the sandbox's own.
pub trait Tools: Send + Sync {
    /// Whether sessions of this policy have any.
    fn any_for(&self, policy: &str) -> bool;
    /// What a call of a session of this policy looks like before it runs; none where the name is no
    /// source's of this deployment, or not for this policy. Pure.
    fn describe(&self, policy: &str, call: &ToolCall) -> Option<EventDraft>;
    /// Opens them for a session. The place outlives them; there is none where no sandbox is to be had.
    fn open(
        &self,
        spec: ToolsSpec,
        place: Option<Arc<dyn Place>>,
    ) -> BoxFuture<'static, Arc<dyn SessionTools>>;
}

/// Tools that were opened for a session.
pub trait SessionTools: Send + Sync {
    /// What can be run.
    fn definitions(&self) -> Vec<ToolDefinition>;
    /// What a person is to know, such as that a source could not be opened. A sentence each; what was
    /// given once is not given again.
    fn notices(&self) -> Vec<String>;
    /// Runs a tool. A tool that fails is a result, an error is the host's own. Dropping the future
    /// gives the call up.
    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        showing: Showing,
    ) -> BoxFuture<'static, Result<ToolDone, Error>>;
    /// Ends all that they hold. Twice is once.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// A deployment has none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTools;

impl Tools for NoTools {
    fn any_for(&self, _: &str) -> bool {
        false
    }

    fn describe(&self, _: &str, _: &ToolCall) -> Option<EventDraft> {
        None
    }

    fn open(
        &self,
        _: ToolsSpec,
        _: Option<Arc<dyn Place>>,
    ) -> BoxFuture<'static, Arc<dyn SessionTools>> {
        std::future::ready(Arc::new(Self) as Arc<dyn SessionTools>).boxed()
    }
}

impl SessionTools for NoTools {
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
        _: Showing,
    ) -> BoxFuture<'static, Result<ToolDone, Error>> {
        std::future::ready(Ok(ToolDone::failed(
            &call,
            "This deployment no longer has this tool.",
        )))
        .boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}
