//! What the engine needs of the rest of the host, as small traits.
//!
//! # Invariants
//!
//! - The engine reaches policies, models, environments, tools and git providers only through these,
//!   so it runs in a test with none of them.
//! - A failure is an error of its port or a WIT `Error`; nothing here panics.
//! - Dropping a returned future abandons the work.

mod environment;
mod generation;
mod models;
mod policy;
mod pull_requests;
pub(crate) mod tools;

pub use self::environment::{
    Environment, EnvironmentError, EnvironmentProvider, EnvironmentSpec, OutputSink,
    ToolResultWithEvent,
};
pub use self::generation::{Deployment, Generation};
pub use self::models::{
    AvailableModels, CallCost, ModelAnswer, ModelFailure, ModelRequest, ModelSelection, Models,
    NoticeSink, UsageMeter,
};
pub use self::policy::{
    BuildAssignment, MigrateError, Policies, PolicyInfo, SessionPolicy, StepError, StepOutcome,
    StepVerdict,
};
pub use self::pull_requests::{NewPullRequest, OpenedPullRequest, PullRequestError, PullRequests};
