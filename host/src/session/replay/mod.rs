//! Owns how a recorded session becomes a test: its inputs go through a policy again, from nothing.
//!
//! What always holds: nothing is carried out and nothing is written. Commands are compared byte for
//! byte, as the log has them.

pub(crate) mod diff;
pub(crate) mod shadow;

use crate::store::{self, LoggedStep, SessionRow, Store, StoreError};
use crate::types::wit::policy::{Context, Input, Snapshot};
use crate::wasm::Caller;

use super::Sessions;
use super::ports::Policy;

/// How a replay went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Steps that gave the same commands.
    pub same: u64,
    /// The first step that did not, what the log has, and what the policy gave now.
    pub different: Option<(u64, String, String)>,
}

/// Why a session cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It is not in the log.
    #[error("There is no session {0} in the log.")]
    NotFound(String),
    /// Its policy is not there.
    #[error("{0}")]
    Policy(#[from] super::CreateError),
    /// The log could not be read.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl Sessions {
    /// Puts a session's logged inputs through its policy, as this deployment has it.
    pub async fn replay(&self, session: &str) -> Result<Replay, ReplayError> {
        let name = session.to_owned();
        let store = &self.shared.deps.store;
        let row = store
            .read(move |connection| SessionRow::find(connection, &name))
            .await?;
        let row = row.ok_or_else(|| ReplayError::NotFound(session.to_owned()))?;
        let policy = {
            let generation = self.shared.deps.deployment.borrow().clone();
            generation.policies.find(Some(&row.fixed.policy))?
        };
        let replayed = replay(store, session, &*policy);
        Ok(Caller::shadow().scope(replayed).await?)
    }
}

/// Puts a session's logged inputs through a policy.
pub(super) async fn replay(
    store: &Store,
    session: &str,
    policy: &dyn Policy,
) -> Result<Replay, StoreError> {
    let mut state: Option<Snapshot> = None;
    let mut same = 0;
    let mut next = 0;
    loop {
        let name = session.to_owned();
        let steps = store
            .read(move |connection| store::logged_steps(connection, &name, next))
            .await?;
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
                let now = again.commands.unwrap_or_else(|reason| reason);
                return Ok(Replay {
                    same,
                    different: Some((logged.step, then, now)),
                });
            }
            same += 1;
            // A step that failed left the state as it was.
            state = again.state.or(state);
        }
    }
}

/// What a policy makes of a logged step.
pub(super) struct Again {
    /// As JSON, or why it failed.
    pub(super) commands: Result<String, String>,
    /// The state behind it; none where it failed.
    pub(super) state: Option<Snapshot>,
    /// What it used.
    pub(super) fuel: u64,
}

/// One logged step once more, from the state that this very policy left before it.
pub(super) async fn again(
    policy: &dyn Policy,
    logged: &LoggedStep,
    state: Option<&Snapshot>,
) -> Result<Again, StoreError> {
    let content = |cause: serde_json::Error| StoreError::Content(cause.to_string());
    let context: Context = serde_json::from_str(&logged.context).map_err(content)?;
    let inputs: Vec<Input> = serde_json::from_str(&logged.inputs).map_err(content)?;
    let failed = |reason, fuel| Again {
        commands: Err(reason),
        state: None,
        fuel,
    };
    // Where a newer build took over, it took over the state first.
    let migrated = match (inputs.first(), state) {
        (Some(Input::Upgraded(_)), Some(old)) => match policy.migrate(old).await {
            Ok(state) => Some(state),
            Err(reason) => return Ok(failed(reason, 0)),
        },
        _ => None,
    };
    let state = migrated.as_ref().or(state);
    let stepped = policy.step(&context, state, &inputs).await;
    match stepped.result {
        Ok(transition) => Ok(Again {
            commands: Ok(serde_json::to_string(&transition.commands).map_err(content)?),
            state: Some(transition.state),
            fuel: stepped.fuel,
        }),
        Err(reason) => Ok(failed(reason, stepped.fuel)),
    }
}
