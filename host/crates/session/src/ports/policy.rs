//! The engine's port for policies.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::error::CreateError;
use crate::traffic_split::SplitSlot;
use lucid_types::digest::Digest;
use lucid_types::ids::SessionId;
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

/// The outcome of a step, and what it cost.
#[derive(Debug)]
pub struct StepOutcome {
    /// The transition, or a sentence that says why there is none.
    pub result: Result<Transition, String>,
    /// Fuel used, roughly the number of instructions.
    pub fuel: u64,
    /// Memory used, in bytes.
    pub memory: u64,
    /// Duration in microseconds.
    pub micros: u64,
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
    /// Converts the state that an older build left. The error is a sentence.
    fn migrate<'a>(&'a self, old: &'a Snapshot) -> BoxFuture<'a, Result<Snapshot, String>>;
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
