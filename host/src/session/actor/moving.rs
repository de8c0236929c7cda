//! Owns how a session comes to a newer generation of the deployment.
//!
//! What always holds: a session moves between two steps, or not at all. What a newer build makes of
//! its state and of the next inputs is tried before any of it is written: a step is pure, so where the
//! newer one breaks down the older one takes the same inputs, and nobody has lost anything. The step
//! that moved names the newer component in the log, and its first input is `upgraded`.

use std::sync::Arc;

use crate::plugins::policy_types::{Context, Input, Snapshot};
use crate::session::ports::{Generation, Models, Offers, Policy, PolicyInfo, Stepped};
use crate::session::record::Draft;
use crate::store::NewSessionRow;

use super::Actor;

/// A newer build, and what it made of the session's state.
pub(super) struct Next {
    generation: Arc<Generation>,
    policy: Arc<dyn Policy>,
    /// The schema of the state that it takes over.
    from: u32,
    state: Result<Snapshot, String>,
}

impl Next {
    async fn step(&self, context: &Context, inputs: &[Input]) -> Stepped {
        let state = match &self.state {
            Ok(state) => state,
            Err(reason) => {
                return Stepped {
                    result: Err(reason.clone()),
                    fuel: 0,
                    memory: 0,
                    micros: 0,
                };
            }
        };
        let mut all = vec![Input::Upgraded(self.from)];
        all.extend_from_slice(inputs);
        self.policy.step(context, Some(state), &all).await
    }
}

/// What the models of a generation are to a session.
pub(super) fn offers_of(generation: &Generation, fixed: &NewSessionRow) -> Arc<Offers> {
    let priced = fixed.cost_limit.is_some();
    let models = &generation.models;
    Arc::new(models.offers(&fixed.provider, &fixed.model, priced))
}

/// Whether a policy can take over a state, or a sentence that says why not.
pub(in crate::session) fn takes_over(policy: &PolicyInfo, state: &Snapshot) -> Result<(), String> {
    let PolicyInfo {
        name,
        schema,
        oldest_schema,
        ..
    } = policy;
    if (*oldest_schema..=*schema).contains(&state.schema) {
        return Ok(());
    }
    Err(format!(
        "this build of the policy '{name}' takes over states of schema {oldest_schema} to {schema}, and the session's has {}",
        state.schema
    ))
}

impl Actor {
    /// The build to try with the next step, where there is a newer one that differs. One that does not
    /// differ is taken at once.
    pub(super) async fn next(&mut self) -> Option<Next> {
        let current = self.deployment.borrow_and_update().clone();
        let number = current.number;
        let newer = number != self.generation.number && self.passed_over != Some(number);
        let (generation, policy) = match newer.then(|| self.successor(&current)) {
            Some(Ok(policy)) => (current, policy),
            Some(Err(reason)) => {
                self.stay(number, &reason);
                (self.generation.clone(), self.policy.clone())
            }
            None => (self.generation.clone(), self.policy.clone()),
        };
        let differs = self.taken_over || policy.info().digest != self.policy.info().digest;
        let Some(old) = self.state.as_ref().filter(|_| differs) else {
            if newer && self.passed_over != Some(number) {
                self.adopt(generation, policy);
            }
            return None;
        };
        let state = migrated(&*policy, old).await;
        if let (Err(reason), false) = (&state, self.taken_over) {
            self.stay(number, reason);
            return None;
        }
        Some(Next {
            from: old.schema,
            generation,
            policy,
            state,
        })
    }

    /// One step, by the newer build where that can. None where there is nothing for the older one to
    /// decide.
    pub(super) async fn step(
        &mut self,
        context: &Context,
        draft: &mut Draft<'_>,
        next: Option<Next>,
    ) -> Option<Stepped> {
        if let Some(next) = next {
            let stepped = next.step(context, &draft.inputs).await;
            match &stepped.result {
                Ok(_) => {
                    draft.inputs.insert(0, Input::Upgraded(next.from));
                    draft.plugin.clone_from(&next.policy.info().digest);
                    self.adopt(next.generation, next.policy);
                    return Some(stepped);
                }
                // The build that it had is not there any more.
                Err(_) if self.taken_over => return (!draft.inputs.is_empty()).then_some(stepped),
                Err(reason) => self.stay(next.generation.number, reason),
            }
            if draft.inputs.is_empty() {
                return None;
            }
        }
        let state = self.state.as_ref();
        Some(self.policy.step(context, state, &draft.inputs).await)
    }

    /// The policy that would go on with this session.
    fn successor(&self, current: &Generation) -> Result<Arc<dyn Policy>, String> {
        let (fixed, info) = (&self.fixed, self.policy.info());
        let policy = current.policies.successor(&fixed.policy, &info.digest);
        let policy = policy.ok_or("the deployment no longer has the policy")?;
        let next = policy.info();
        if next.digest != info.digest {
            self.state
                .as_ref()
                .map_or(Ok(()), |state| takes_over(next, state))?;
        }
        if next.needs_sandbox
            && let Some(reason) = self.shared.deps.places.refusal()
        {
            return Err(reason);
        }
        if next.calls_models {
            let (provider, model) = (Some(&*fixed.provider), Some(&*fixed.model));
            let found = current.models.find(provider, model, self.effects.has_key());
            let found = found.map_err(|cause| cause.to_string())?;
            let server = |models: &dyn Models| models.server(&fixed.provider);
            if self.effects.has_key()
                && server(&*current.models) != server(&*self.generation.models)
            {
                return Err(
                    "its user's own key was for another server than the provider's is now".into(),
                );
            }
            if fixed.cost_limit.is_some()
                && let Some(unpriced) = current.models.unpriced(&found.name, &found.model)
            {
                return Err(unpriced.to_string());
            }
        }
        Ok(policy)
    }

    fn adopt(&mut self, generation: Arc<Generation>, policy: Arc<dyn Policy>) {
        tracing::debug!(
            session = %self.id,
            generation = generation.number,
            plugin = policy.info().digest,
            "a session moved on"
        );
        self.session.set_runs(policy.info(), &self.fixed.provider);
        self.offers = offers_of(&generation, &self.fixed);
        self.effects.adopt(&generation);
        (self.generation, self.policy) = (generation, policy);
        self.taken_over = false;
    }

    fn stay(&mut self, generation: u64, reason: &str) {
        tracing::warn!(session = %self.id, generation, reason, "a session stays with the generation it has");
        self.passed_over = Some(generation);
    }
}

async fn migrated(policy: &dyn Policy, old: &Snapshot) -> Result<Snapshot, String> {
    let state = policy.migrate(old).await?;
    let schema = policy.info().schema;
    if state.schema == schema {
        return Ok(state);
    }
    Err(format!(
        "it made a state of schema {} of the older one, and writes {schema} itself",
        state.schema
    ))
}
