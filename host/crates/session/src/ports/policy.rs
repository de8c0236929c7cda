//! The engine's port for policies.

use std::error::Error;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::error::CreateError;
use crate::traffic_split::SplitSlot;
use lucid_types::digest::Digest;
use lucid_types::ids::SessionId;
use lucid_types::sentence::sentence;
use lucid_types::user::UserId;
use lucid_types::wit::policy::{Context, Input, Snapshot, Transition};

/// What the engine knows about a policy.
#[derive(Debug, Clone)]
pub struct PolicyInfo {
    /// The policy's name, in lower case, such as `coder`.
    pub name: String,
    /// The digest of the component that decides, for the log.
    pub digest: Digest,
    /// Whether a session needs a model provider and a key.
    pub calls_models: bool,
    /// Whether a session is refused if no sandbox is available.
    pub needs_sandbox: bool,
    /// Whether it is the built-in mock; clients are told `mock_mode`.
    pub mock: bool,
    /// The deployment's settings for it, a JSON object.
    pub settings: String,
    /// The schema of the states that it writes.
    pub schema: u32,
    /// The oldest schema whose states it can take over.
    pub oldest_schema: u32,
}

/// Why a step gave no transition.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StepError {
    /// The call of the build failed: it crashed, refused, or hit a limit.
    #[error(transparent)]
    Call(Arc<dyn Error + Send + Sync>),
    /// The build was not called, since it cannot take over the session's state.
    #[error(transparent)]
    NotMigrated(#[from] MigrateError),
    /// The policy was not called, since it took this many steps without its user.
    #[error("the agent took {0} steps without a word of the user, and was stopped")]
    TooManySteps(u32),
}

impl StepError {
    /// Wraps the error of the call.
    pub fn call(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error: Box<dyn Error + Send + Sync> = error.into();
        Self::Call(error.into())
    }

    /// The error as the session's user reads it. What a plugin says is repeated to the letter.
    pub fn sentence(&self) -> String {
        match self {
            Self::TooManySteps(_) => sentence(self),
            Self::Call(_) | Self::NotMigrated(_) => self.to_string(),
        }
    }
}

/// Why a build did not take over a session's state.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MigrateError {
    /// The build says of itself that it takes over no state of this schema.
    #[error(
        "this build of the policy '{policy}' takes over states of schema {oldest} to {newest}, and the session's has {found}"
    )]
    Schema {
        /// The policy's name.
        policy: String,
        /// The oldest schema that the build takes over.
        oldest: u32,
        /// The schema of the states that the build writes.
        newest: u32,
        /// The state's schema.
        found: u32,
    },
    /// The call of the build failed: it crashed, refused, or hit a limit.
    #[error(transparent)]
    Call(Arc<dyn Error + Send + Sync>),
    /// The build made a state that it would not write itself.
    #[error("it made a state of schema {made} of the older one, and writes {written} itself")]
    OtherSchema {
        /// The schema of the state that it made.
        made: u32,
        /// The schema of the states that it writes.
        written: u32,
    },
}

impl MigrateError {
    /// Wraps the error of the call.
    pub fn call(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error: Box<dyn Error + Send + Sync> = error.into();
        Self::Call(error.into())
    }
}

/// The outcome of a step, and what it cost.
#[derive(Debug)]
pub struct StepOutcome {
    /// The transition, or why there is none.
    pub result: Result<Transition, StepError>,
    /// Fuel used, roughly the number of instructions.
    pub fuel: u64,
    /// Memory used, in bytes.
    pub memory: u64,
    /// Duration in microseconds.
    pub micros: u64,
}

impl StepOutcome {
    /// The outcome of a step for which no build was called.
    pub(crate) fn not_called(error: StepError) -> Self {
        Self {
            result: Err(error),
            fuel: 0,
            memory: 0,
            micros: 0,
        }
    }
}

/// A build of a policy. Pure: the same arguments give the same transition.
pub trait SessionPolicy: Send + Sync {
    /// What the engine knows about it.
    fn info(&self) -> &PolicyInfo;
    /// Takes one step.
    fn step<'a>(
        &'a self,
        context: &'a Context,
        state: Option<&'a Snapshot>,
        inputs: &'a [Input],
    ) -> BoxFuture<'a, StepOutcome>;
    /// Converts the state that an older build left.
    fn migrate<'a>(&'a self, old: &'a Snapshot) -> BoxFuture<'a, Result<Snapshot, MigrateError>>;
}

/// The deployment's policies.
pub trait Policies: Send + Sync {
    /// Returns the active build of the policy of that name, or of the deployment's default.
    fn find(&self, name: Option<&str>) -> Result<Arc<dyn SessionPolicy>, CreateError>;
    /// Returns the build that continues a session of this policy, which the component of this
    /// digest ran so far: that very component if it is still loaded, otherwise its successor.
    fn successor(&self, name: &str, digest: Option<Digest>) -> Option<Arc<dyn SessionPolicy>>;
    /// Returns the build that a new session begins with: if the policy has a candidate, the one
    /// whose turn it is.
    fn assign(&self, name: Option<&str>) -> Result<BuildAssignment, CreateError>;
    /// Returns the build before the one of this digest while that is on probation: it takes a step
    /// that this one fails.
    fn fallback(&self, name: &str, digest: Digest) -> Option<Arc<dyn SessionPolicy>>;
    /// Records how a step of a session went with the build of this digest.
    fn record_step(&self, name: &str, digest: Digest, session: SessionId, verdict: StepVerdict);
    /// Returns the name of the policy that this user or this project gets in place of the
    /// deployment's default.
    fn assigned(&self, user: &UserId, project: Option<&str>) -> Option<&str>;
}

/// The build for a new session.
pub struct BuildAssignment {
    /// The build.
    pub policy: Arc<dyn SessionPolicy>,
    /// Whose turn it was, if there are two.
    pub slot: Option<SplitSlot>,
}

impl From<Arc<dyn SessionPolicy>> for BuildAssignment {
    fn from(policy: Arc<dyn SessionPolicy>) -> Self {
        Self { policy, slot: None }
    }
}

/// How a step went with a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepVerdict {
    /// It succeeded.
    Ok,
    /// It failed: it crashed, refused, or hit a limit. No other build that was asked failed as
    /// well, so the build is to blame.
    Failed,
}
