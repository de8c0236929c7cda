//! A policy component, which is an agent that decides, as a plain async type.
//!
//! # Invariants
//! - A step runs in a store of its own, so it knows its arguments and nothing else.
//! - A step that fails leaves nothing behind.

use wasmtime::Store;
use wasmtime::component::InstancePre;

use super::admission::{Kind, LoadError};
use super::host_state::Guest;
use super::instance::fresh;
use super::limits::Called;
use super::plugin::{About, PluginCore, TypedPlugin, World, about};
use super::wasi::CallClock;
use lucid_types::log_label::Caller;
use lucid_types::wit::policy::{Context, Descriptor, Input, Snapshot, Transition};
use lucid_types::wit::policy_world::PolicyPluginPre;

/// An admitted policy. A clone is the same policy.
pub type PolicyPlugin = TypedPlugin<PolicyWorld>;

/// The world of policies.
#[derive(Debug)]
pub enum PolicyWorld {}

impl World for PolicyWorld {
    const KIND: Kind = Kind::Policy;
    type Pre = PolicyPluginPre<Guest>;
    type Descriptor = Descriptor;
    type Known = ();

    fn link(pre: InstancePre<Guest>) -> wasmtime::Result<Self::Pre> {
        PolicyPluginPre::new(pre)
    }

    async fn describe(pre: &Self::Pre, store: &mut Store<Guest>) -> wasmtime::Result<Descriptor> {
        let plugin = pre.instantiate_async(&mut *store).await?;
        plugin.lucid_policy_policy().call_describe(store).await
    }

    fn about(descriptor: &mut Descriptor) -> About {
        about!(descriptor)
    }

    fn check(descriptor: &mut Descriptor) -> Result<(), String> {
        if descriptor.oldest_schema > descriptor.schema {
            return Err(format!(
                "it migrates from schema {} on, and writes the older schema {}",
                descriptor.oldest_schema, descriptor.schema
            ));
        }
        Ok(())
    }

    async fn known(_: &PluginCore, _: &Self::Pre) -> Result<(), LoadError> {
        Ok(())
    }
}

impl PolicyPlugin {
    /// Runs one step: from the state and the new inputs to the next state and the commands to carry
    /// out.
    pub async fn step(
        &self,
        ctx: &Context,
        state: Option<&Snapshot>,
        inputs: &[Input],
    ) -> Called<Transition> {
        let clock = CallClock {
            now_ms: ctx.now_ms,
            seed: ctx.seed,
        };
        let caller = Caller::current().in_session(&ctx.session).at_step(ctx.step);
        fresh!(self, "step", at clock, for caller, |plugin, store| {
            let policy = plugin.lucid_policy_policy();
            policy.call_step(store, ctx, state, inputs).await
        })
    }

    /// Migrates the state that an older build left.
    pub async fn migrate(&self, old: &Snapshot) -> Called<Snapshot> {
        fresh!(self, "migrate", |plugin, store| {
            plugin.lucid_policy_policy().call_migrate(store, old).await
        })
    }
}
