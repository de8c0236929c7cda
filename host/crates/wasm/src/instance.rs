//! Runs one guest call: takes a pool slot, creates the store, applies limits, and classifies the
//! outcome.
//!
//! # Invariants
//! - A store exists only while its slot is held.
//! - Every call begins with full fuel and a fresh log.
//! - A call that did not return by itself leaves a store that is not used again.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::{Store, Trap};
use wasmtime_wasi::I32Exit;

use super::core::PluginCore;
use super::engine::PoolClass;
use super::host_state::{ErrorOutput, HostState};
use super::limits::{CallError, CallOutcome, CallSite, CallUsage, sanitize_error};
use super::log_label::LogLabel;
use super::wasi::CallClock;
use lucid_types::log_label::PluginCaller;
use lucid_types::sanitize::sanitize;
use lucid_types::wit::types;

/// Wasmtime's message for a call that copied out more than it may. The error type is private to
/// wasmtime; a test fails if a new version changes the message.
const TOO_MUCH_OUTPUT: &str = "fuel allocated for hostcalls has been exhausted";
/// The most characters of a failed call's details.
const LONGEST_DETAIL: usize = 1_200;
/// The most resource handles that one instance may hold.
const MOST_HANDLES: usize = 1_000;

impl PluginCore {
    /// Waits for a slot and creates a store in it. The instance is created by the first call.
    pub(super) async fn open(
        &self,
        lane: PoolClass,
        call: &'static str,
    ) -> Result<PluginInstance, CallError> {
        self.open_at(lane, call, CallClock::default(), PluginCaller::current())
            .await
    }

    /// Like [`open`](Self::open), for a call that has a time and a seed, and is made on behalf of
    /// somebody.
    pub(super) async fn open_at(
        &self,
        lane: PoolClass,
        call: &'static str,
        clock: CallClock,
        caller: PluginCaller,
    ) -> Result<PluginInstance, CallError> {
        let Some(slot) = self.engine.slot(lane).await else {
            return Err(self.internal(call, "the engine is shutting down"));
        };
        let label = Arc::new(LogLabel {
            plugin: self.name.clone(),
            digest: self.digest,
            caller,
        });
        let guest = HostState::new(label, self.limits.memory_bytes, clock);
        let mut store = Store::new(self.engine.wasmtime(), guest);
        store.limiter(|guest| guest);
        store.set_hostcall_fuel(self.limits.output_bytes);
        store.set_max_component_handles(MOST_HANDLES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(PluginInstance { store, _slot: slot })
    }

    pub(super) fn internal(&self, call: &'static str, detail: &str) -> CallError {
        CallError::Internal {
            at: self.call_site(call),
            detail: sanitize(detail, 500),
        }
    }

    pub(super) fn call_site(&self, call: &'static str) -> CallSite {
        CallSite {
            plugin: self.name.clone(),
            call,
        }
    }
}

/// A store and the slot it occupies. The store is dropped first.
pub(super) struct PluginInstance {
    pub(super) store: Store<HostState>,
    _slot: OwnedSemaphorePermit,
}

/// Makes one call: sets fresh fuel, applies the deadline, and classifies the outcome. `$run` is a
/// block that may use `?` on wasmtime's errors and ends with the guest's own result.
macro_rules! call {
    ($loaded:expr, $live:expr, $call:literal, $run:block) => {{
        let begun = $crate::instance::start_call($loaded, &mut $live.store);
        let outcome = tokio::time::timeout($loaded.limits.wall, async { $run }).await;
        $crate::instance::finish_call($loaded, &$live.store, $call, begun, outcome)
    }};
}
pub(super) use call;

/// Makes one call in a fresh instance: waits for a slot, instantiates the component and runs `$run`, a block as in
/// [`call!`], with the instance and its store.
macro_rules! fresh {
    ($plugin:expr, $call:literal, |$instance:ident, $store:ident| $run:block) => {
        $crate::instance::fresh!(
            $plugin,
            $call,
            at $crate::wasi::CallClock::default(),
            for $crate::log_label::PluginCaller::current(),
            |$instance, $store| $run
        )
    };
    ($plugin:expr, $call:literal, at $clock:expr, for $caller:expr, |$instance:ident, $store:ident| $run:block) => {{
        let $crate::plugin::Inner { core, exports, .. } = &*$plugin.0;
        let (clock, caller) = ($clock, $caller);
        $crate::instance::boxed(async move {
            let opened = core.open_at($crate::engine::PoolClass::Call, $call, clock, caller);
            let mut live = match opened.await {
                Ok(live) => live,
                Err(error) => return $crate::instance::not_started(error),
            };
            $crate::instance::call!(core, live, $call, {
                let $store = &mut live.store;
                let $instance = exports.instantiate($store).await?;
                $run
            })
        })
        .await
    }};
}
pub(super) use fresh;

/// Begins a call.
pub(super) fn start_call(loaded: &PluginCore, store: &mut Store<HostState>) -> Instant {
    store.data_mut().begin();
    // Fails only where fuel is off. Then no fuel is left, and the call ends at once.
    if let Err(error) = store.set_fuel(loaded.limits.fuel) {
        tracing::error!("a plugin's fuel cannot be set: {error:#}");
    }
    Instant::now()
}

/// The outcome of a call: elapsed, trapped, or the guest's own result.
type Outcome<T> = Result<wasmtime::Result<Result<T, types::Error>>, tokio::time::error::Elapsed>;

/// Ends a call: classifies its outcome, logs a failure and counts it.
pub(super) fn finish_call<T>(
    loaded: &PluginCore,
    store: &Store<HostState>,
    call: &'static str,
    begun: Instant,
    outcome: Outcome<T>,
) -> CallOutcome<T> {
    let left = store.get_fuel().unwrap_or(0);
    let figures = CallUsage {
        fuel: loaded.limits.fuel.saturating_sub(left),
        memory_bytes: store.data().memory() as u64,
        micros: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
    };
    let last_words = store.data().end();
    let result = match outcome {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) => Err(CallError::Plugin {
            at: loaded.call_site(call),
            error: sanitize_error(error),
        }),
        Ok(Err(error)) => Err(trap_error(loaded, store, call, &error, &last_words)),
        Err(_elapsed) => Err(CallError::Deadline {
            at: loaded.call_site(call),
            limit: loaded.limits.wall,
        }),
    };
    if let Err(error) = &result
        && !matches!(error, CallError::Plugin { .. })
    {
        store.data().label().failed(call, error);
    }
    loaded.stats.count(call, &figures, &result);
    CallOutcome {
        result,
        usage: figures,
    }
}

/// The result of a call that never began.
pub(super) fn not_started<T>(error: CallError) -> CallOutcome<T> {
    CallOutcome {
        result: Err(error),
        usage: CallUsage::default(),
    }
}

fn trap_error(
    loaded: &PluginCore,
    store: &Store<HostState>,
    call: &'static str,
    error: &wasmtime::Error,
    last_words: &ErrorOutput,
) -> CallError {
    let at = loaded.call_site(call);
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::OutOfFuel) {
        let limit = loaded.limits.fuel;
        return CallError::OutOfFuel { at, limit };
    }
    if error
        .chain()
        .any(|cause| cause.to_string().contains(TOO_MUCH_OUTPUT))
    {
        let limit = loaded.limits.output_bytes;
        return CallError::TooMuchOutput { at, limit };
    }
    if store.data().refused_memory() {
        let limit = loaded.limits.memory_bytes;
        return CallError::OutOfMemory { at, limit };
    }
    // The deepest cause is the trap; the causes above it say where it happened.
    let cause = match error.downcast_ref::<I32Exit>() {
        Some(exit) => format!("it exited with code {}", exit.0),
        None => error.root_cause().to_string(),
    };
    let stack = error.downcast_ref::<wasmtime::WasmBacktrace>();
    let place = stack
        .and_then(|trace| trace.frames().iter().find_map(|frame| frame.func_name()))
        .map(|name| format!(", in {name}"))
        .unwrap_or_default();
    let logged = last_words.logged.as_ref().map(|words| format!("{words}; "));
    let printed = last_words.printed.as_ref();
    let printed = printed.map(|words| format!("; it printed: {}", words.trim_end()));
    let detail = sanitize(
        &format!(
            "{}{}{place}{}",
            logged.unwrap_or_default(),
            cause.trim_start_matches("wasm trap: "),
            printed.unwrap_or_default()
        ),
        LONGEST_DETAIL,
    );
    // Bad arguments in a call to the host are the guest's fault.
    if trap.is_some() || stack.is_some() {
        CallError::Trap { at, detail }
    } else {
        CallError::Internal { at, detail }
    }
}

/// Boxes a call's future, to keep it small where it is awaited.
pub(super) fn boxed<'a, T>(
    future: impl Future<Output = T> + Send + 'a,
) -> std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>> {
    Box::pin(future)
}
