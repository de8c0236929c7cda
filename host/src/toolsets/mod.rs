//! The tools that sessions have in addition to their sandbox's: tool sources, each under its name.
//!
//! # Invariants
//!
//! - A tool is called `SOURCE__TOOL`, and the first `__` ends the source's name, so no two sources
//!   can be confused.
//! - Sources are independent: one that does not open, takes too long or fails is left out, which
//!   the user and the operator are told, and is tried again when one of its tools is called.
//! - A source's output is bounded before it reaches a model or the log.

pub mod component;
pub(crate) mod input_schema;
pub(crate) mod mcp;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;

use self::mcp::error::McpConnectError;
use crate::manifest::is_source_name;
use lucid_sandbox::tools::{MAX_RESULT, truncate_middle};
use lucid_session::{
    Environment, EventDraft, SEPARATOR, SessionTools, ToolOutput, ToolProvider,
    ToolResultWithEvent, ToolsSpec,
};
use lucid_types::sanitize::sanitize;
use lucid_types::sentence::full_stop;
use lucid_types::wit::types::{Error, ToolCall, ToolDefinition};

/// The maximum length of a tool's full name that model providers accept, in characters.
const LONGEST_NAME: usize = 64;
/// The maximum number of tools of one source.
pub(crate) const MOST_TOOLS: usize = 128;
/// The maximum size of a tool's description, in bytes.
const LARGEST_DESCRIPTION: usize = 4 << 10;
/// The maximum size of all of a source's tool definitions, in bytes: the log keeps them with each
/// session.
const LARGEST_ALL: usize = 256 << 10;
/// The maximum length of a reason, in characters.
const REASON: usize = 500;
/// How long a source may take to open, whatever its own limit.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A source of tools: a component or an MCP server. Tools have their own names here, without the
/// source's.
pub(crate) trait ToolSource: Send + Sync {
    /// A name that [`is_source_name`] accepts.
    fn name(&self) -> &str;
    /// Everything that defines it: another source of the same name with an equal identity may
    /// replace it unnoticed. It is compared, and never shown.
    fn identity(&self) -> String;
    /// Whether sessions of this policy get its tools.
    fn serves(&self, policy: &str) -> bool;
    /// The event that shows a call before it runs, whatever a model may have written. Pure.
    fn describe(&self, tool: &str, arguments: &str) -> EventDraft;
    /// Opens it for a session. The environment outlives what is opened, and is `None` if there is
    /// no sandbox. Dropping the future leaves nothing behind.
    fn open(
        &self,
        spec: ToolsSpec,
        environment: Option<Arc<dyn Environment>>,
    ) -> BoxFuture<'static, Result<Arc<dyn OpenToolSource>, ToolSourceError>>;
}

/// Why a source of tools could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolSourceError {
    /// An MCP server could not be started.
    #[error(transparent)]
    Server(#[from] McpConnectError),
    /// It took too long.
    #[error("it was not ready after {} seconds", .0.as_secs())]
    TooSlow(Duration),
    /// Opening it panicked.
    #[error("the server's own work came to grief")]
    Panicked,
}

/// A source that was opened for a session.
pub(crate) trait OpenToolSource: Send + Sync {
    /// Its tools. Names consist of letters, digits, - and _. The caller limits their number and
    /// size.
    fn definitions(&self) -> Vec<ToolDefinition>;
    /// New messages for the user. Each is returned once.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }
    /// Runs a tool. A failed tool is a result, an error is the host's own. Dropping the future
    /// cancels the call.
    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        output: ToolOutput,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>>;
    /// Releases everything it holds. Idempotent. Dropping it does the same.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// The tool sources of a deployment.
pub(super) struct Toolsets {
    sources: BTreeMap<String, Arc<dyn ToolSource>>,
}

impl Toolsets {
    /// A deployment with these sources, whose names differ.
    pub(super) fn new(sources: Vec<Arc<dyn ToolSource>>) -> Self {
        // The manifest ensures it.
        debug_assert!(sources.iter().all(|source| is_source_name(source.name())));
        let by_name = |source: Arc<dyn ToolSource>| (source.name().to_owned(), source);
        Self {
            sources: sources.into_iter().map(by_name).collect(),
        }
    }

    /// Whether both are made of the same sources, and so behave the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |(one, two): (&Arc<dyn ToolSource>, &Arc<dyn ToolSource>)| {
            one.name() == two.name() && one.identity() == two.identity()
        };
        self.sources.len() == other.sources.len()
            && self.sources.values().zip(other.sources.values()).all(same)
    }
}

/// Splits a full name into the source's name and the tool's own.
fn split(name: &str) -> Option<(&str, &str)> {
    name.split_once(SEPARATOR)
}

impl ToolProvider for Toolsets {
    fn any_for(&self, policy: &str) -> bool {
        self.sources.values().any(|source| source.serves(policy))
    }

    fn describe(&self, policy: &str, call: &ToolCall) -> Option<EventDraft> {
        let (source, tool) = split(&call.name)?;
        let source = self.sources.get(source)?;
        source
            .serves(policy)
            .then(|| source.describe(tool, &call.arguments))
    }

    fn open(
        &self,
        spec: ToolsSpec,
        environment: Option<Arc<dyn Environment>>,
    ) -> BoxFuture<'static, Arc<dyn SessionTools>> {
        let of_policy = self.sources.values();
        let of_policy = of_policy.filter(|source| source.serves(&spec.policy));
        let slots: BTreeMap<_, _> = of_policy
            .map(|source| {
                let slot = SourceSlot {
                    source: source.clone(),
                    opened: tokio::sync::Mutex::default(),
                };
                (source.name().to_owned(), slot)
            })
            .collect();
        let opened = Arc::new(Inner {
            slots,
            spec,
            environment,
            definitions: Mutex::default(),
            notices: Mutex::default(),
        });
        async move {
            let all = opened.slots.values();
            let all = join_all(all.map(|slot| opened.first(slot))).await;
            let notices = all.into_iter().flatten().flatten().collect();
            *opened.definitions.lock() = notices;
            Arc::new(OpenedSources(opened)) as Arc<dyn SessionTools>
        }
        .boxed()
    }
}

/// The tool sources of one session.
struct OpenedSources(Arc<Inner>);

struct Inner {
    slots: BTreeMap<String, SourceSlot>,
    spec: ToolsSpec,
    environment: Option<Arc<dyn Environment>>,
    /// Fixed when the session began: its policy was given these.
    definitions: Mutex<Vec<ToolDefinition>>,
    notices: Mutex<Vec<String>>,
}

/// One source of a session.
struct SourceSlot {
    source: Arc<dyn ToolSource>,
    /// `None` before it opened, if it did not open, and once it was closed.
    opened: tokio::sync::Mutex<Option<Arc<dyn OpenToolSource>>>,
}

/// The sentence for a source that did not open.
fn not_there(source: &str, reason: &ToolSourceError) -> String {
    let reason = sanitize(&full_stop(reason), REASON);
    format!("The tools of {source} are not there: {reason}")
}

impl Inner {
    /// Opens a source at the session's start, and returns its tools.
    async fn first(&self, slot: &SourceSlot) -> Option<Vec<ToolDefinition>> {
        let name = slot.source.name();
        match self.open(slot).await {
            Ok(toolset) => {
                let (fit, left_out) = fitting(name, toolset.definitions());
                if let Some(why) = left_out {
                    self.notice(name, why);
                }
                self.notices.lock().extend(toolset.notices());
                Some(fit)
            }
            Err(reason) => {
                self.notice(name, not_there(name, &reason));
                None
            }
        }
    }

    fn notice(&self, source: &str, what: String) {
        tracing::warn!(session = %self.spec.session, source, "{what}");
        self.notices.lock().push(what);
    }

    async fn open(&self, slot: &SourceSlot) -> Result<Arc<dyn OpenToolSource>, ToolSourceError> {
        let mut opened = slot.opened.lock().await;
        if let Some(there) = opened.as_ref() {
            return Ok(there.clone());
        }
        let opening = async {
            slot.source
                .open(self.spec.clone(), self.environment.clone())
                .await
        };
        let opening = AssertUnwindSafe(opening).catch_unwind();
        let toolset = match tokio::time::timeout(TIMEOUT, opening).await {
            Ok(Ok(result)) => result?,
            Ok(Err(_)) => return Err(ToolSourceError::Panicked),
            Err(_) => return Err(ToolSourceError::TooSlow(TIMEOUT)),
        };
        Ok(opened.insert(toolset).clone())
    }

    async fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        output: ToolOutput,
    ) -> Result<ToolResultWithEvent, Error> {
        let named = split(&call.name).and_then(|(source, tool)| {
            let slot = self.slots.get(source)?;
            Some((slot, tool.to_owned()))
        });
        let Some((slot, tool)) = named else {
            let name = sanitize(&call.name, LONGEST_NAME);
            let what = format!("There is no tool {name:?} in this session.");
            return Ok(ToolResultWithEvent::failed(&call, what));
        };
        let toolset = match self.open(slot).await {
            Ok(toolset) => toolset,
            Err(reason) => {
                let source = slot.source.name();
                let what = not_there(source, &reason);
                tracing::warn!(session = %self.spec.session, source, "{what}");
                return Ok(ToolResultWithEvent::failed(&call, what));
            }
        };
        let id = call.id.clone();
        let own = ToolCall { name: tool, ..call };
        let running = async { toolset.run(own, timeout_ms, output).await };
        let done = AssertUnwindSafe(running)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| {
                Err(Error::internal(
                    "The server could not carry this out: its own work came to grief.",
                ))
            });
        self.notices.lock().extend(toolset.notices());
        done.map(|done| bounded(id, done))
    }

    async fn close(&self) {
        let close = |slot: &SourceSlot| {
            let opened = slot.opened.try_lock().map(|mut opened| opened.take());
            async move {
                // A source that is being opened is dropped with the future that opens it.
                if let Ok(Some(toolset)) = opened {
                    toolset.close().await;
                }
            }
        };
        join_all(self.slots.values().map(close)).await;
    }
}

/// A source's result, truncated to the limit for any tool, under the call's own id.
fn bounded(id: String, mut done: ToolResultWithEvent) -> ToolResultWithEvent {
    let cut = |text: &mut String| {
        if text.len() > MAX_RESULT {
            *text = truncate_middle(std::mem::take(text), MAX_RESULT);
        }
    };
    cut(&mut done.result.text);
    cut(&mut done.event.content);
    done.result.call_id = id;
    done
}

/// The tools that fit the limits, under full names, and a sentence about those left out.
fn fitting(source: &str, tools: Vec<ToolDefinition>) -> (Vec<ToolDefinition>, Option<String>) {
    let count = tools.len();
    let (mut fit, mut left, mut size) = (Vec::<ToolDefinition>::new(), 0_usize, 0_usize);
    for tool in tools {
        let name = format!("{source}{SEPARATOR}{}", tool.name);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let length = tool.description.len() + tool.input_schema.len();
        let fits = fit.len() < MOST_TOOLS
            && !tool.name.is_empty()
            && name.len() <= LONGEST_NAME
            && tool.name.bytes().all(is_plain)
            && size + length.min(LARGEST_DESCRIPTION + input_schema::LARGEST) <= LARGEST_ALL
            && !fit.iter().any(|other| other.name == name);
        let schema = input_schema::usable(&tool.input_schema).filter(|_| fits);
        let Some(input_schema) = schema else {
            left += 1;
            continue;
        };
        let description = truncate_middle(tool.description, LARGEST_DESCRIPTION);
        size += description.len() + input_schema.len();
        fit.push(ToolDefinition {
            name,
            description,
            input_schema,
        });
    }
    let left_out = (left > 0).then(|| {
        format!("{left} of the {count} tools of {source} are left out: there are too many, they are too large, or a name or schema of theirs cannot be used.")
    });
    (fit, left_out)
}

impl SessionTools for OpenedSources {
    fn definitions(&self) -> Vec<ToolDefinition> {
        self.0.definitions.lock().clone()
    }

    fn notices(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.notices.lock())
    }

    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        output: ToolOutput,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>> {
        let inner = self.0.clone();
        async move { inner.run(call, timeout_ms, output).await }.boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let inner = self.0.clone();
        async move { inner.close().await }.boxed()
    }
}

#[cfg(test)]
mod tests;
