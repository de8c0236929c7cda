//! A policy component, which is an agent that decides, as a plain async type.
//!
//! # Invariants
//! - A step runs in a store of its own, so it knows its arguments and nothing else.
//! - A step that fails leaves nothing behind.

use wasmtime::Store;

use super::admission::{DescriptorError, LoadError};
use super::core::{About, PluginCore};
use super::exports::{Exported, Exports};
use super::host_state::Guest;
use super::instance::fresh;
use super::kind::Kind;
use super::limits::Called;
use super::plugin::{TypedPlugin, World, about};
use super::wasi::CallClock;
use lucid_types::log_label::Caller;
use lucid_types::wit::policy::{Context, Descriptor, Input, Snapshot, Transition};
use lucid_types::wit::types::Error;

/// An admitted policy. A clone is the same policy.
pub type PolicyPlugin = TypedPlugin<PolicyWorld>;

type StepParams<'a> = (&'a Context, Option<&'a Snapshot>, &'a [Input]);
type Stepped = Result<Transition, Error>;
type Migrated = Result<Snapshot, Error>;

/// The world of policies.
#[derive(Debug)]
pub enum PolicyWorld {}

impl World for PolicyWorld {
    const KIND: Kind = Kind::Policy;
    type Descriptor = Descriptor;
    type Known = ();

    fn check_types(plugin: &Exported<'_>, store: &mut Store<Guest>) -> wasmtime::Result<()> {
        plugin.function::<StepParams<'_>, Stepped>(store, "step")?;
        plugin.function::<(&Snapshot,), Migrated>(store, "migrate")?;
        Ok(())
    }

    fn about(descriptor: &mut Descriptor) -> About {
        about!(descriptor)
    }

    fn check(descriptor: &mut Descriptor) -> Result<(), DescriptorError> {
        if descriptor.oldest_schema > descriptor.schema {
            return Err(DescriptorError::Schema {
                oldest: descriptor.oldest_schema,
                written: descriptor.schema,
            });
        }
        Ok(())
    }

    async fn known(_: &PluginCore, _: &Exports) -> Result<(), LoadError> {
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
            plugin.call(store, "step", (ctx, state, inputs)).await
        })
    }

    /// Migrates the state that an older build left.
    pub async fn migrate(&self, old: &Snapshot) -> Called<Snapshot> {
        fresh!(self, "migrate", |plugin, store| {
            plugin.call(store, "migrate", (old,)).await
        })
    }
}
