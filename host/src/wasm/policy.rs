//! A policy component, which is an agent that decides, as a plain async type.
//!
//! # Invariants
//! - A step runs in a store of its own, so it knows its arguments and nothing else.
//! - A step that fails leaves nothing behind.

use std::sync::Arc;

use super::admission::{Kind, LoadError, other_types};
use super::engine::{Engine, PoolClass};
use super::host_state::Guest;
use super::instance::{PluginCore, boxed, call, front, not_begun};
use super::limits::{Called, Limits};
use super::wasi::CallClock;
use super::{compile, described};
use lucid_types::log_label::Caller;
use lucid_types::wit::policy::{Context, Descriptor, Input, Snapshot, Transition};
use lucid_types::wit::policy_world::PolicyPluginPre;

/// An admitted policy. A clone is the same policy.
#[derive(Clone)]
pub struct PolicyPlugin(Arc<Inner>);

struct Inner {
    loaded: PluginCore,
    pre: PolicyPluginPre<Guest>,
    descriptor: Descriptor,
}

front!(PolicyPlugin);

impl PolicyPlugin {
    /// Compiles a component, checks it, and calls for its descriptor.
    pub async fn load(
        engine: &Engine,
        name: &str,
        wasm: &[u8],
        limits: &Limits,
    ) -> Result<Self, LoadError> {
        let admitted = compile(engine, Kind::Policy, name, wasm).await?;
        let pre = PolicyPluginPre::new(admitted.pre)
            .map_err(|error| other_types(name, Kind::Policy, &error))?;
        let loaded = PluginCore::new(engine, name, admitted.digest, limits);
        let mut descriptor = describe(&loaded, &pre).await?;
        described(
            name,
            &descriptor.name,
            &descriptor.version,
            &mut descriptor.description,
        )?;
        if descriptor.oldest_schema > descriptor.schema {
            return Err(LoadError::Descriptor {
                plugin: name.to_owned(),
                detail: format!(
                    "it migrates from schema {} on, and writes the older schema {}",
                    descriptor.oldest_schema, descriptor.schema
                ),
            });
        }
        Ok(Self(Arc::new(Inner {
            loaded,
            pre,
            descriptor,
        })))
    }

    /// Runs one step: from the state and the new inputs to the next state and the commands to carry
    /// out.
    pub async fn step(
        &self,
        ctx: &Context,
        state: Option<&Snapshot>,
        inputs: &[Input],
    ) -> Called<Transition> {
        let Inner { loaded, pre, .. } = &*self.0;
        boxed(async move {
            let moment = CallClock {
                now_ms: ctx.now_ms,
                seed: ctx.seed,
            };
            let caller = Caller::current().in_session(&ctx.session).at_step(ctx.step);
            let opened = loaded
                .open_at(PoolClass::Call, "step", moment, caller)
                .await;
            let mut live = match opened {
                Ok(live) => live,
                Err(error) => return not_begun(error),
            };
            call!(loaded, live, "step", {
                let plugin = pre.instantiate_async(&mut live.store).await?;
                let policy = plugin.lucid_policy_policy();
                policy.call_step(&mut live.store, ctx, state, inputs).await
            })
        })
        .await
    }

    /// Migrates the state that an older build left.
    pub async fn migrate(&self, old: &Snapshot) -> Called<Snapshot> {
        let Inner { loaded, pre, .. } = &*self.0;
        boxed(async move {
            let mut live = match loaded.open(PoolClass::Call, "migrate").await {
                Ok(live) => live,
                Err(error) => return not_begun(error),
            };
            call!(loaded, live, "migrate", {
                let plugin = pre.instantiate_async(&mut live.store).await?;
                let policy = plugin.lucid_policy_policy();
                policy.call_migrate(&mut live.store, old).await
            })
        })
        .await
    }
}

async fn describe(
    loaded: &PluginCore,
    pre: &PolicyPluginPre<Guest>,
) -> Result<Descriptor, LoadError> {
    boxed(async move {
        let mut live = loaded.open(PoolClass::Call, "describe").await?;
        let called = call!(loaded, live, "describe", {
            let plugin = pre.instantiate_async(&mut live.store).await?;
            let policy = plugin.lucid_policy_policy();
            policy.call_describe(&mut live.store).await.map(Ok)
        });
        Ok(called.result?)
    })
    .await
}
