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

use super::call_stats::Tally;
use super::engine::{Engine, Lane};
use super::host_state::{Guest, LastWords};
use super::limits::{CallError, Called, Figures, Limits, Place, cleaned};
use super::log_label::{Caller, Label};
use super::wasi::Moment;
use crate::types::sanitize::clean;
use crate::types::wit::types;

/// What wasmtime says when a call copied out more than it may. The type of it is private to
/// wasmtime; a test fails if a new version says something else.
const TOO_MUCH_OUTPUT: &str = "fuel allocated for hostcalls has been exhausted";
/// The most characters that are said of why a call broke down.
const LONGEST_DETAIL: usize = 1_200;
/// Handles to resources that one instance may hold.
const MOST_HANDLES: usize = 1_000;

/// What every kind of plugin has, once it was let in.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) engine: Engine,
    pub(super) name: Arc<str>,
    pub(super) digest: Arc<str>,
    pub(super) limits: Limits,
    pub(super) tally: Tally,
}

impl Loaded {
    /// Nothing was called yet.
    pub(super) fn new(engine: &Engine, name: &str, digest: String, limits: &Limits) -> Self {
        Self {
            engine: engine.clone(),
            name: name.into(),
            digest: digest.into(),
            limits: limits.clone(),
            tally: Tally::default(),
        }
    }

    /// Waits for a slot and makes a store in it. The instance comes with the first call.
    pub(super) async fn open(&self, lane: Lane, call: &'static str) -> Result<Live, CallError> {
        self.open_at(lane, call, Moment::default(), Caller::current())
            .await
    }

    /// The same for a call that has a time and a seed, and is known to be for somebody.
    pub(super) async fn open_at(
        &self,
        lane: Lane,
        call: &'static str,
        moment: Moment,
        caller: Caller,
    ) -> Result<Live, CallError> {
        let Some(slot) = self.engine.slot(lane).await else {
            return Err(self.internal(call, "the engine is shutting down"));
        };
        let label = Arc::new(Label {
            plugin: self.name.clone(),
            digest: self.digest.clone(),
            caller,
        });
        let guest = Guest::new(label, self.limits.memory_bytes, moment);
        let mut store = Store::new(self.engine.wasmtime(), guest);
        store.limiter(|guest| guest);
        store.set_hostcall_fuel(self.limits.output_bytes);
        store.set_max_component_handles(MOST_HANDLES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(Live { store, _slot: slot })
    }

    pub(super) fn internal(&self, call: &'static str, detail: &str) -> CallError {
        CallError::Internal {
            at: self.place(call),
            detail: clean(detail, 500),
        }
    }

    pub(super) fn place(&self, call: &'static str) -> Place {
        Place {
            plugin: self.name.clone(),
            call,
        }
    }
}

/// A store and the slot it lives in. The store goes first.
pub(super) struct Live {
    pub(super) store: Store<Guest>,
    _slot: OwnedSemaphorePermit,
}

/// What every kind's front has, around an `Inner` with `loaded`, `pre` and `descriptor` in it.
macro_rules! front {
    ($plugin:ident) => {
        impl std::fmt::Debug for $plugin {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(
                    f,
                    "{}({} {})",
                    stringify!($plugin),
                    self.name(),
                    self.digest()
                )
            }
        }

        impl $plugin {
            /// The name it was loaded under.
            pub fn name(&self) -> &str {
                &self.0.loaded.name
            }

            /// What it says of itself.
            pub fn descriptor(&self) -> &Descriptor {
                &self.0.descriptor
            }

            /// The component's SHA-256, in lower-case hex.
            pub fn digest(&self) -> &str {
                &self.0.loaded.digest
            }

            /// Whether loading this component with these limits would give the same.
            pub fn is(&self, wasm: &[u8], limits: &$crate::wasm::limits::Limits) -> bool {
                self.limits() == limits && $crate::wasm::admission::digest(wasm) == self.digest()
            }

            /// All that it imports, by name.
            pub fn imports(&self) -> Vec<String> {
                let pre = self.0.pre.instance_pre();
                $crate::wasm::admission::imports(&self.0.loaded.engine, pre.component())
            }

            /// What one call may use.
            pub fn limits(&self) -> &$crate::wasm::limits::Limits {
                &self.0.loaded.limits
            }

            /// What its calls used since it was loaded, by function.
            pub fn figures(&self) -> Vec<$crate::wasm::call_stats::CallFigures> {
                self.0.loaded.tally.figures()
            }
        }
    };
}
pub(super) use front;

/// Carries out one call: fresh fuel, the clock, and an answer to what went wrong. `$run` is a block
/// that may use `?` on wasmtime's errors and ends with the guest's own result.
macro_rules! call {
    ($loaded:expr, $live:expr, $call:literal, $run:block) => {{
        let begun = $crate::wasm::instance::begin($loaded, &mut $live.store);
        let outcome = tokio::time::timeout($loaded.limits.wall, async { $run }).await;
        $crate::wasm::instance::settle($loaded, &$live.store, $call, begun, outcome)
    }};
}
pub(super) use call;

/// Begins a call.
pub(super) fn begin(loaded: &Loaded, store: &mut Store<Guest>) -> Instant {
    store.data_mut().begin();
    // Fails only where fuel is off; then nothing is left, and the call ends at once.
    if let Err(error) = store.set_fuel(loaded.limits.fuel) {
        tracing::error!("a plugin's fuel cannot be set: {error:#}");
    }
    Instant::now()
}

/// What a call came to.
type Outcome<T> = Result<wasmtime::Result<Result<T, types::Error>>, tokio::time::error::Elapsed>;

/// Ends a call.
pub(super) fn settle<T>(
    loaded: &Loaded,
    store: &Store<Guest>,
    call: &'static str,
    begun: Instant,
    outcome: Outcome<T>,
) -> Called<T> {
    let left = store.get_fuel().unwrap_or(0);
    let figures = Figures {
        fuel: loaded.limits.fuel.saturating_sub(left),
        memory_bytes: store.data().memory() as u64,
        micros: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
    };
    let last_words = store.data().end();
    let result = match outcome {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) => Err(CallError::Plugin {
            at: loaded.place(call),
            error: cleaned(error),
        }),
        Ok(Err(error)) => Err(broken(loaded, store, call, &error, &last_words)),
        Err(_elapsed) => Err(CallError::Deadline {
            at: loaded.place(call),
            limit: loaded.limits.wall,
        }),
    };
    if let Err(error) = &result
        && !matches!(error, CallError::Plugin { .. })
    {
        store.data().label().failed(call, error);
    }
    loaded.tally.count(call, &figures, &result);
    Called { result, figures }
}

/// A call that never began.
pub(super) fn not_begun<T>(error: CallError) -> Called<T> {
    Called {
        result: Err(error),
        figures: Figures::default(),
    }
}

fn broken(
    loaded: &Loaded,
    store: &Store<Guest>,
    call: &'static str,
    error: &wasmtime::Error,
    last_words: &LastWords,
) -> CallError {
    let at = loaded.place(call);
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
    // The deepest cause is the trap; what is above it is where it happened.
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
    let detail = clean(
        &format!(
            "{}{}{place}{}",
            logged.unwrap_or_default(),
            cause.trim_start_matches("wasm trap: "),
            printed.unwrap_or_default()
        ),
        LONGEST_DETAIL,
    );
    // What a guest called the host with was the guest's fault.
    if trap.is_some() || stack.is_some() {
        CallError::Trap { at, detail }
    } else {
        CallError::Internal { at, detail }
    }
}

/// Keeps the future of a call small where it is awaited.
pub(super) fn boxed<'a, T>(
    future: impl Future<Output = T> + Send + 'a,
) -> std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>> {
    Box::pin(future)
}
