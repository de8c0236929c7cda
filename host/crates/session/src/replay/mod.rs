//! Turns a recorded session into a test: its inputs are replayed through a policy, from an empty
//! state.
//!
//! # Invariants
//! - Nothing is carried out and nothing is written.
//! - Commands are compared byte for byte, as the log has them.

pub(crate) mod diff;
pub(crate) mod shadow;

use super::error::CreateError;
use super::ports::{SessionPolicy, StepError};
use super::sessions::Sessions;
use lucid_types::ids::SessionId;
use lucid_types::log::{LogError, LoggedStep, SessionLog};
use lucid_types::log_label::PluginCaller;
use lucid_types::wit::policy::{Context, Input, Snapshot};

/// The result of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The number of steps that gave the same commands.
    pub same: u64,
    /// The first step that differed, with the logged commands and the replayed ones.
    pub different: Option<(u64, String, String)>,
}

/// Why a session cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The session is not in the log.
    #[error("there is no session {0} in the log")]
    NotFound(SessionId),
    /// The session's policy is not available.
    #[error("{0}")]
    Policy(#[from] CreateError),
    /// The log could not be read.
    #[error("{0}")]
    Log(#[from] LogError),
}

impl Sessions {
    /// Replays a session's logged inputs through its policy, as this deployment has it.
    pub async fn replay(&self, session: SessionId) -> Result<Replay, ReplayError> {
        let log = &*self.shared.deps.log;
        let row = log.find(session, None).await?;
        let row = row.ok_or_else(|| ReplayError::NotFound(session))?;
        let policy = {
            let generation = self.shared.deps.deployment.borrow().clone();
            generation.policies.find(Some(&row.fixed.policy))?
        };
        let replayed = replay(log, session, &*policy);
        Ok(PluginCaller::shadow().scope(replayed).await?)
    }
}

/// Replays a session's logged inputs through the given policy.
pub(super) async fn replay(
    log: &dyn SessionLog,
    session: SessionId,
    policy: &dyn SessionPolicy,
) -> Result<Replay, LogError> {
    let mut state: Option<Snapshot> = None;
    let mut same = 0;
    let mut next = 0;
    loop {
        let steps = log.steps_from(session, None, next).await?;
        let Some(last) = steps.last() else {
            return Ok(Replay {
                same,
                different: None,
            });
        };
        next = last.step + 1;
        for logged in steps {
            let again = again(policy, &logged, state.as_ref()).await?;
            if logged.commands.as_ref() != again.commands.as_ref().ok() {
                let then = logged
                    .commands
                    .unwrap_or_else(|| "(the step failed)".to_owned());
                let now = again.commands.unwrap_or_else(|error| error.to_string());
                return Ok(Replay {
                    same,
                    different: Some((logged.step, then, now)),
                });
            }
            same += 1;
            // A failed step left the state unchanged.
            state = again.state.or(state);
        }
    }
}

/// The result of replaying a logged step.
pub(super) struct ReplayedStep {
    /// The commands as JSON, or why the step failed.
    pub(super) commands: Result<String, StepError>,
    /// The state after the step; `None` if it failed.
    pub(super) state: Option<Snapshot>,
    /// Fuel used.
    pub(super) fuel: u64,
}

/// Replays one logged step, from the state that this same policy left before it.
pub(super) async fn again(
    policy: &dyn SessionPolicy,
    logged: &LoggedStep,
    state: Option<&Snapshot>,
) -> Result<ReplayedStep, LogError> {
    let content = |cause: serde_json::Error| LogError::Content(cause.to_string());
    let context: Context = serde_json::from_str(&logged.context).map_err(content)?;
    let inputs: Vec<Input> = serde_json::from_str(&logged.inputs).map_err(content)?;
    let failed = |error, fuel| ReplayedStep {
        commands: Err(error),
        state: None,
        fuel,
    };
    // If a newer build took over here, it migrated the state first.
    let migrated = match (inputs.first(), state) {
        (Some(Input::Upgraded(_)), Some(old)) => match policy.migrate(old).await {
            Ok(state) => Some(state),
            Err(error) => return Ok(failed(error.into(), 0)),
        },
        _ => None,
    };
    let state = migrated.as_ref().or(state);
    let stepped = policy.step(&context, state, &inputs).await;
    match stepped.result {
        Ok(transition) => Ok(ReplayedStep {
            commands: Ok(serde_json::to_string(&transition.commands).map_err(content)?),
            state: Some(transition.state),
            fuel: stepped.fuel,
        }),
        Err(error) => Ok(failed(error, stepped.fuel)),
    }
}
