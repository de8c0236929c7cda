//! The session engine: creating, finding and ending sessions, and resuming them after a restart.
//!
//! # Invariants
//! - A session is only handed out to its own user.
//! - What a session is told and does is in the log before anybody sees it, so `recover` continues
//!   where the last host stopped, and no effect is run a second time.
//! - Sessions share nothing but the log; a failure in one does not affect another.
//!
//! # Layout
//!
//! From the top down:
//!
//! - `recover` resumes the sessions of the last run, `create` makes new ones, and `sessions` finds,
//!   lists and ends them; `details` and `workspaces` are what can be asked of one. `sleeping` wakes
//!   those that wait with nobody there. `retention` and `saved_positions` look after what outlives one.
//!   `shared`, `registry` and `registration` are what they have in common.
//! - `replay` puts logged sessions through a policy again.
//! - `actor` runs one session: each round takes messages, steps the policy, commits, publishes and
//!   starts effects. `message` is what reaches it, `budget` its limits, and `handle` what the rest of
//!   the host holds of it.
//! - `effects` carries out what a policy commands, and `round` computes what a round writes.
//! - `ports` are the traits through which the engine reaches everything else; the log's is in
//!   [`lucid_types::log`]. `traffic_split` shares sessions between two builds, `seal` keeps secrets,
//!   and `retry` repeats reads of a log that is away for a moment.
//! - `stream` is what clients see.

#![forbid(unsafe_code)]

mod actor;
mod budget;
mod create;
mod detached;
mod details;
mod effects;
mod error;
mod handle;
mod message;
mod ports;
mod recover;
mod registration;
mod registry;
mod replay;
mod retention;
mod retry;
mod round;
mod saved_positions;
mod seal;
mod sessions;
mod shared;
mod sleeping;
mod traffic_split;
mod types;
mod user_logs;
mod workspaces;

pub mod stream;
#[cfg(test)]
mod tests;

pub use self::create::NewSession;
pub use self::details::{SessionDetails, SessionDetailsError};
pub use self::error::{CreateError, GetSessionError, WakeError};
pub use self::handle::{AttachGuard, Session, SessionHandle, SessionPlugins};
pub use self::ports::tools::{
    EventSink, NoToolProvider, SEPARATOR, SessionTools, ToolOutput, ToolProvider, ToolsSpec,
};
pub use self::ports::{
    AvailableModels, BuildAssignment, CallCost, Deployment, Environment, EnvironmentError,
    EnvironmentProvider, EnvironmentSpec, Generation, MigrateError, ModelAnswer, ModelFailure,
    ModelRequest, ModelSelection, Models, NewPullRequest, NoticeSink, OpenedPullRequest,
    OutputSink, Policies, PolicyInfo, PullRequestError, PullRequests, SessionPolicy, StepError,
    StepOutcome, StepVerdict, ToolResultWithEvent, UsageMeter,
};
pub use self::replay::diff::{difference, readable};
pub use self::replay::shadow::{
    DifferenceKind, ShadowDifference, ShadowLimits as ShadowBounds, ShadowReport,
};
pub use self::replay::{Replay, ReplayError};
pub use self::seal::{SealError, Sealer};
pub use self::sessions::Sessions;
pub use self::shared::SessionDeps;
pub use self::stream::delta::{DeltaKind, DeltaSink};
pub use self::stream::frames::{
    CONTENT_LENGTH, EventDraft, Features, THOUGHT_LENGTH, dollars, kind_of, render,
};
pub use self::stream::positions::{ClientPosition, ConnectionLoss};
pub use self::stream::subscription::{Subscription, SubscriptionItem};
pub use self::traffic_split::{SplitSlot, TrafficSplit};
pub use self::types::{
    CloseReason, LookupError, MessageRejected, OpenChange, PausedSessions, SessionLimits,
    SessionSummary,
};
pub use self::user_logs::{UserLogExceeded, UserLogLimits};
pub use self::workspaces::WorkspaceLookupError;
