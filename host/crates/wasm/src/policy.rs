//! A policy component, which is an agent that decides, as a plain async type.
//!
//! # Invariants
//! - A step runs in a store of its own, so it knows its arguments and nothing else.
//! - A step that fails leaves nothing behind.

use wasmtime::Store;

use super::admission::{DescriptorError, LoadError};
use super::core::{PluginCore, PluginMetadata};
use super::exports::{ComponentExports, InstanceExports};
use super::host_state::HostState;
use super::instance::fresh;
use super::kind::PluginKind;
use super::limits::CallOutcome;
use super::plugin::{TypedPlugin, World, about};
use super::wasi::CallClock;
use lucid_types::log_label::PluginCaller;
use lucid_types::wit::policy::{Context, Descriptor, Input, Snapshot, Transition};
use lucid_types::wit::types::Error;

/// An admitted policy. A clone is the same policy.
pub type PolicyPlugin = TypedPlugin<PolicyWorld>;

type StepParams<'a> = (&'a Context, Option<&'a Snapshot>, &'a [Input]);
type StepResult = Result<Transition, Error>;
type MigrateResult = Result<Snapshot, Error>;

/// The world of policies.
#[derive(Debug)]
pub enum PolicyWorld {}

impl World for PolicyWorld {
    const KIND: PluginKind = PluginKind::Policy;
    type Descriptor = Descriptor;
    type Known = ();

    fn check_types(
        plugin: &InstanceExports<'_>,
        store: &mut Store<HostState>,
    ) -> wasmtime::Result<()> {
        plugin.function::<StepParams<'_>, StepResult>(store, "step")?;
        plugin.function::<(&Snapshot,), MigrateResult>(store, "migrate")?;
        Ok(())
    }

    fn about(descriptor: &mut Descriptor) -> PluginMetadata {
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

    async fn known(_: &PluginCore, _: &ComponentExports) -> Result<(), LoadError> {
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
    ) -> CallOutcome<Transition> {
        let clock = CallClock {
            now_ms: ctx.now_ms,
            seed: ctx.seed,
        };
        let caller = PluginCaller::current().at_step(ctx.step);
        // Only a trial's example session has another name than an id.
        let caller = match ctx.session.parse() {
            Ok(session) => caller.in_session(session),
            Err(_) => caller,
        };
        fresh!(self, "step", at clock, for caller, |plugin, store| {
            plugin.call(store, "step", (ctx, state, inputs)).await
        })
    }

    /// Migrates the state that an older build left.
    pub async fn migrate(&self, old: &Snapshot) -> CallOutcome<Snapshot> {
        fresh!(self, "migrate", |plugin, store| {
            plugin.call(store, "migrate", (old,)).await
        })
    }
}
