//! Moves a session to a newer generation of the deployment.
//!
//! A step with a build on probation that fails is retried with the build before it, if that build
//! can take the state back. The session continues there, and its user never notices. The outcome of
//! each step is reported to the deployment, which judges builds by it.
//!
//! # Invariants
//! - A session moves between two steps, or not at all.
//! - What a newer build makes of the state and the next inputs is tried before any of it is
//!   written. A step is pure, so if the newer build fails the older one takes the same inputs, and
//!   nothing is lost.
//! - The step that moved the session names the newer component in the log, and its first input is
//!   `upgraded`.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Actor;
use crate::error::CreateError;
use crate::ports::{
    AvailableModels, Deployment, Generation, MigrateError, Models, PolicyInfo, SessionPolicy,
    StepOutcome, StepVerdict,
};
use crate::round::RoundBuilder;
use lucid_types::log::SessionConfig;
use lucid_types::metrics::{self, StepFigures};
use lucid_types::wit::policy::{Context, Input, Snapshot};

/// A newer build, and its version of the session's state.
pub(super) struct PendingUpgrade {
    generation: Arc<Generation>,
    policy: Arc<dyn SessionPolicy>,
    /// The schema of the state that it takes over.
    from: u32,
    state: Result<Snapshot, MigrateError>,
}

impl PendingUpgrade {
    async fn step(&self, context: &Context, inputs: &[Input]) -> StepOutcome {
        let state = match &self.state {
            Ok(state) => state,
            Err(error) => return StepOutcome::not_called(error.clone().into()),
        };
        let mut all = vec![Input::Upgraded(self.from)];
        all.extend_from_slice(inputs);
        self.policy.step(context, Some(state), &all).await
    }
}

/// Why a session does not move to a newer generation.
#[derive(Debug, thiserror::Error)]
enum UpgradeError {
    /// The generation lacks its policy.
    #[error("the deployment no longer has the policy")]
    NoPolicy,
    /// The policy's build does not take over its state.
    #[error(transparent)]
    State(#[from] MigrateError),
    /// The policy needs a sandbox, and none is available. Holds the reason.
    #[error("{0}")]
    NoSandbox(String),
    /// The generation lacks its model, the key, or a price.
    #[error(transparent)]
    Model(#[from] CreateError),
    /// The generation would send its key to another server.
    #[error("its user's own key was for another server than the provider's is now")]
    OtherServer,
}

/// A failed step.
struct FailedStep {
    outcome: StepOutcome,
    /// Whether the build was called at all.
    was_called: bool,
}

/// Waits for a generation other than the one last examined, and then for a permit to move.
pub(super) async fn next_generation(
    deployment: &mut Deployment,
    looked_at: u64,
    move_permits: &Arc<Semaphore>,
) -> Option<OwnedSemaphorePermit> {
    while deployment.borrow_and_update().number == looked_at {
        if deployment.changed().await.is_err() {
            // The generation never changes again.
            return std::future::pending().await;
        }
    }
    move_permits.clone().acquire_owned().await.ok()
}

/// Returns the models that a generation offers to a session.
pub(super) fn offered_models(
    generation: &Generation,
    fixed: &SessionConfig,
) -> Arc<AvailableModels> {
    let priced = fixed.cost_limit.is_some();
    let (models, has_key) = (&generation.models, fixed.api_key.is_some());
    Arc::new(models.available(&fixed.provider, &fixed.model, priced, has_key))
}

/// Checks that a policy can take over a state.
pub(crate) fn takes_over(policy: &PolicyInfo, state: &Snapshot) -> Result<(), MigrateError> {
    let (oldest, newest) = (policy.oldest_schema, policy.schema);
    if (oldest..=newest).contains(&state.schema) {
        return Ok(());
    }
    Err(MigrateError::Schema {
        policy: policy.name.clone(),
        oldest,
        newest,
        found: state.schema,
    })
}

impl Actor {
    /// Returns the build to try with the next step, if there is a newer one that differs. One that
    /// does not differ is adopted at once.
    pub(super) async fn next(&mut self) -> Option<PendingUpgrade> {
        let current = self.deployment.borrow_and_update().clone();
        let number = current.number;
        self.examined_generation = number;
        let newer = number != self.generation.number && self.skipped_generation != Some(number);
        let (generation, policy) = match newer.then(|| self.successor(&current)) {
            Some(Ok(policy)) => (current, policy),
            Some(Err(reason)) => {
                self.keep_build(number, &reason);
                (self.generation.clone(), self.policy.clone())
            }
            None => (self.generation.clone(), self.policy.clone()),
        };
        let differs =
            self.previous_build.is_some() || policy.info().digest != self.policy.info().digest;
        let Some(old) = self.state.as_ref().filter(|_| differs) else {
            if newer && self.skipped_generation != Some(number) {
                self.adopt(generation, policy);
            }
            return None;
        };
        let state = migrated(&*policy, old).await;
        if let (Err(reason), None) = (&state, &self.previous_build) {
            self.keep_build(number, reason);
            return None;
        }
        Some(PendingUpgrade {
            from: old.schema,
            generation,
            policy,
            state,
        })
    }

    /// Runs one step, with the newer build if that succeeds. Returns `None` if there is nothing for
    /// the older build to decide.
    pub(super) async fn step(
        &mut self,
        context: &Context,
        builder: &mut RoundBuilder<'_>,
        next: Option<PendingUpgrade>,
    ) -> Option<StepOutcome> {
        let (generation, policy, failed) = match next {
            Some(next) => {
                let asked = next.state.is_ok();
                let stepped = next.step(context, &builder.inputs).await;
                if asked {
                    self.measure(&*next.policy, &stepped);
                }
                match &stepped.result {
                    Ok(_) => {
                        self.record_step(&next.generation, &*next.policy, StepVerdict::Ok);
                        builder.inputs.insert(0, Input::Upgraded(next.from));
                        builder.plugin = next.policy.info().digest;
                        self.adopt(next.generation, next.policy);
                        return Some(stepped);
                    }
                    // The build that it had is no longer active, but may still be loaded.
                    Err(_) if self.previous_build.is_some() => {
                        if builder.inputs.is_empty() {
                            return None;
                        }
                        // A state that could not be taken over is not a failed step.
                        (
                            next.generation,
                            next.policy,
                            FailedStep {
                                outcome: stepped,
                                was_called: asked,
                            },
                        )
                    }
                    Err(reason) => {
                        self.keep_build(next.generation.number, reason);
                        return self.step_with_current_build(context, builder, &next).await;
                    }
                }
            }
            None => {
                let (generation, policy) = (self.generation.clone(), self.policy.clone());
                let state = self.state.as_ref();
                let stepped = policy.step(context, state, &builder.inputs).await;
                self.measure(&*policy, &stepped);
                if stepped.result.is_ok() {
                    self.record_step(&generation, &*policy, StepVerdict::Ok);
                    return Some(stepped);
                }
                let asked = true;
                (
                    generation,
                    policy,
                    FailedStep {
                        outcome: stepped,
                        was_called: asked,
                    },
                )
            }
        };
        Some(
            self.fall_back(context, builder, (generation, policy), failed)
                .await,
        )
    }

    /// Runs one step with the session's current build, after a newer one failed it.
    async fn step_with_current_build(
        &mut self,
        context: &Context,
        builder: &RoundBuilder<'_>,
        next: &PendingUpgrade,
    ) -> Option<StepOutcome> {
        if builder.inputs.is_empty() {
            self.record_step(&next.generation, &*next.policy, StepVerdict::Failed);
            return None;
        }
        let state = self.state.as_ref();
        let stepped = self.policy.step(context, state, &builder.inputs).await;
        self.measure(&*self.policy, &stepped);
        // If both fail, the newer one is not to blame.
        if stepped.result.is_ok() {
            self.record_step(&next.generation, &*next.policy, StepVerdict::Failed);
            self.record_step(&self.generation, &*self.policy, StepVerdict::Ok);
        }
        Some(stepped)
    }

    /// Gives the same inputs to the build before one that is on probation and failed them. Returns
    /// the outcome of that build, or the original failure.
    async fn fall_back(
        &mut self,
        context: &Context,
        builder: &mut RoundBuilder<'_>,
        (generation, policy): (Arc<Generation>, Arc<dyn SessionPolicy>),
        failed: FailedStep,
    ) -> StepOutcome {
        let FailedStep {
            outcome: failed,
            was_called: asked,
        } = failed;
        let info = policy.info();
        let older = generation
            .policies
            .fallback(&self.fixed.policy, info.digest);
        let Some((older, state)) = self.fallback_build(older, info).await else {
            if asked {
                self.record_step(&generation, &*policy, StepVerdict::Failed);
            }
            return failed;
        };
        let upgraded = state.as_ref().and_then(|(_, from)| *from);
        let mut inputs = builder.inputs.clone();
        if let Some(from) = upgraded {
            inputs.insert(0, Input::Upgraded(from));
        }
        let state = state.as_ref().map(|(state, _)| state);
        let stepped = older.step(context, state, &inputs).await;
        self.measure(&*older, &stepped);
        if stepped.result.is_err() {
            // The inputs or a passing condition are the cause: this says nothing about either
            // build.
            return failed;
        }
        tracing::warn!(
            session = %self.id,
            failed = %info.digest,
            older = %older.info().digest,
            reason = failed.result.err().map(tracing::field::display),
            "a step failed with a build on probation, and the build before took it"
        );
        if asked {
            self.record_step(&generation, &*policy, StepVerdict::Failed);
        }
        self.record_step(&generation, &*older, StepVerdict::Ok);
        builder.inputs = inputs;
        builder.plugin = older.info().digest;
        self.adopt(generation, older);
        stepped
    }

    /// Returns the older build if it can continue this session in place of one that requests the
    /// same, with the state to continue from and, if that was taken over from another build, its
    /// schema.
    async fn fallback_build(
        &self,
        older: Option<Arc<dyn SessionPolicy>>,
        newer: &PolicyInfo,
    ) -> Option<(Arc<dyn SessionPolicy>, Option<(Snapshot, Option<u32>)>)> {
        let older = older?;
        let info = older.info();
        let asks = |info: &PolicyInfo| (info.calls_models, info.needs_sandbox);
        if asks(info) != asks(newer) {
            return None;
        }
        let Some(state) = &self.state else {
            return Some((older, None));
        };
        // After a restart the state may be this very build's own.
        if self.previous_build == Some(info.digest) {
            let own = (state.clone(), None);
            return Some((older, Some(own)));
        }
        takes_over(info, state).ok()?;
        let taken = migrated(&*older, state).await.ok()?;
        Some((older, Some((taken, Some(state.schema)))))
    }

    /// Records what a step took in the metrics.
    fn measure(&self, policy: &dyn SessionPolicy, stepped: &StepOutcome) {
        let figures = StepFigures {
            took: Duration::from_micros(stepped.micros),
            fuel: stepped.fuel,
            memory: stepped.memory,
            failed: stepped.result.is_err(),
        };
        metrics::step(&self.fixed.policy, policy.info().digest, figures);
    }

    fn record_step(
        &self,
        generation: &Generation,
        policy: &dyn SessionPolicy,
        verdict: StepVerdict,
    ) {
        let (name, digest) = (&self.fixed.policy, policy.info().digest);
        generation
            .policies
            .record_step(name, digest, self.id, verdict);
    }

    /// Returns the policy that would continue this session.
    fn successor(&self, current: &Generation) -> Result<Arc<dyn SessionPolicy>, UpgradeError> {
        let (fixed, info) = (&self.fixed, self.policy.info());
        let policy = current.policies.successor(&fixed.policy, Some(info.digest));
        let policy = policy.ok_or(UpgradeError::NoPolicy)?;
        let next = policy.info();
        if next.digest != info.digest {
            self.state
                .as_ref()
                .map_or(Ok(()), |state| takes_over(next, state))?;
        }
        if next.needs_sandbox
            && let Some(reason) = self.shared.deps.environments.refusal()
        {
            return Err(UpgradeError::NoSandbox(reason));
        }
        if next.calls_models {
            let (provider, model) = (Some(&*fixed.provider), Some(&*fixed.model));
            let found = current
                .models
                .find(provider, model, self.effects.has_key())?;
            let server = |models: &dyn Models| models.server(&fixed.provider);
            if self.effects.has_key()
                && server(&*current.models) != server(&*self.generation.models)
            {
                return Err(UpgradeError::OtherServer);
            }
            if fixed.cost_limit.is_some()
                && let Some(unpriced) =
                    current
                        .models
                        .check_priced(&found.name, &found.model, self.effects.has_key())
            {
                return Err(unpriced.into());
            }
        }
        Ok(policy)
    }

    fn adopt(&mut self, generation: Arc<Generation>, policy: Arc<dyn SessionPolicy>) {
        tracing::debug!(
            session = %self.id,
            generation = generation.number,
            plugin = %policy.info().digest,
            "a session moved on"
        );
        self.session
            .set_plugins(policy.info(), &self.fixed.provider);
        self.available_models = offered_models(&generation, &self.fixed);
        self.effects.adopt(&generation);
        (self.generation, self.policy) = (generation, policy);
        self.previous_build = None;
    }

    fn keep_build(&mut self, generation: u64, reason: &dyn Display) {
        tracing::warn!(session = %self.id, generation, %reason, "a session stays with the generation it has");
        self.skipped_generation = Some(generation);
    }
}

async fn migrated(policy: &dyn SessionPolicy, old: &Snapshot) -> Result<Snapshot, MigrateError> {
    let state = policy.migrate(old).await?;
    let (made, written) = (state.schema, policy.info().schema);
    if made == written {
        return Ok(state);
    }
    Err(MigrateError::OtherSchema { made, written })
}
