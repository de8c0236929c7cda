//! The one wasmtime engine: its settings, its instance pool, and the thread that advances its
//! epoch.
//!
//! # Invariants
//! - The same call gives the same result on every machine: NaNs are canonical, and there is no
//!   relaxed SIMD and no threads.
//! - An instance exists only while a slot of the pool is held for it, so a full pool makes callers
//!   wait, never fail.
//! - A call yields to its executor every few milliseconds.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::compiler::{CompileError, Compiler};
use super::host_state::{self, HostState};
use super::limits::{MOST_CORE_INSTANCES, MOST_MEMORIES, MOST_TABLES};
use super::progress::{Activities, ActivityKind};
use super::wasi;
use lucid_precompiled::{
    CacheOutcome, CompiledCode, ComponentCacheDir, ComponentCacheError, EmbeddedComponent,
};
use lucid_types::digest::Digest;

/// How many components are compiled at once at most. Each may take the memory that a compiling process
/// is allowed.
const MOST_COMPILATIONS: usize = 4;

/// How long a guest computes before it yields to other tasks of its executor thread.
const TICK: Duration = Duration::from_millis(2);
/// The same for the first after a while in which none did: an idle server wakes up less often.
const IDLE_TICK: Duration = Duration::from_millis(10);

/// Options of an [`Engine`].
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Folder for compiled code, so that a restart compiles nothing. It is used by nothing else and
    /// has mode 0700.
    pub cache: Option<PathBuf>,
    /// Maximum size of the compiled code on disk, in bytes.
    pub cache_bytes: u64,
    /// Number of short calls (steps, encodings) that can run at once; the next one waits.
    pub calls: u32,
    /// Number of responses that can be decoded at once; the next one waits.
    pub streams: u32,
    /// Maximum size of a component, in bytes.
    pub largest_component: usize,
    /// Maximum size of one linear memory in bytes, whatever a plugin's own limit says.
    pub largest_memory: usize,
    /// Where components are compiled.
    pub compiler: Compiler,
    /// Components that were compiled when this program was built.
    pub embedded: &'static [EmbeddedComponent],
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            cache: None,
            cache_bytes: 1 << 30,
            calls: 32,
            streams: 128,
            largest_component: 64 << 20,
            largest_memory: 512 << 20,
            compiler: Compiler::InProcess,
            embedded: &[],
        }
    }
}

/// An error in creating the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The settings do not fit this machine.
    #[error("the plugin engine does not start on this machine: {0:#}")]
    Settings(wasmtime::Error),
    /// The epoch thread could not be started.
    #[error("the thread that moves the plugin engine's clock cannot be started: {0}")]
    Ticker(#[source] std::io::Error),
    /// The cache folder cannot be trusted.
    #[error(transparent)]
    Cache(#[from] ComponentCacheError),
}

/// The part of the pool that an instance is taken from. The parts are separate, so that a short
/// call never waits for a model that streams for minutes.
#[derive(Debug, Clone, Copy)]
pub(super) enum PoolClass {
    Call,
    Stream,
}

/// One turn for each component: what is loaded twice at once is compiled once.
#[derive(Default)]
struct ComponentTurns(Mutex<HashMap<Digest, Weak<Mutex<()>>>>);

impl ComponentTurns {
    fn of(&self, component: Digest) -> Arc<Mutex<()>> {
        let mut turns = self.0.lock();
        if let Some(turn) = turns.get(&component).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(component, Arc::downgrade(&turn));
        turn
    }
}

/// Compiles components and hands out pool slots. A clone is the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    engine: wasmtime::Engine,
    linker: Linker<HostState>,
    cache: Option<ComponentCacheDir>,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    compilations: Semaphore,
    turns: ComponentTurns,
    options: EngineOptions,
    activities: Activities,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Engine").field(&self.0.options).finish()
    }
}

impl Engine {
    /// Reserves the pool and starts the epoch thread, which ends with the last clone of the engine.
    pub fn new(options: EngineOptions) -> Result<Self, EngineError> {
        let engine = wasmtime::Engine::new(&config(&options)).map_err(EngineError::Settings)?;
        let mut linker = Linker::new(&engine);
        host_state::add_log_to_linker(&mut linker).map_err(EngineError::Settings)?;
        wasi::add_to_linker(&mut linker).map_err(EngineError::Settings)?;
        let cache = options
            .cache
            .as_deref()
            .map(|folder| ComponentCacheDir::open(folder, options.cache_bytes))
            .transpose()?;
        let calls = Arc::new(Semaphore::new(options.calls as usize));
        let streams = Arc::new(Semaphore::new(options.streams as usize));
        start_clock(&engine, [calls.clone(), streams.clone()])?;
        Ok(Self(Arc::new(Inner {
            engine,
            linker,
            cache,
            calls,
            streams,
            compilations: Semaphore::new(most_compilations()),
            turns: ComponentTurns::default(),
            options,
            activities: Activities::default(),
        })))
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.engine
    }

    pub(super) fn linker(&self) -> &Linker<HostState> {
        &self.0.linker
    }

    pub(super) fn largest_component(&self) -> usize {
        self.0.options.largest_component
    }

    /// The list of what is being loaded and compiled now.
    pub fn activities(&self) -> &Activities {
        &self.0.activities
    }

    /// Compiles a component, or reuses code that was compiled before.
    pub(super) fn compile(&self, plugin: &str, wasm: &[u8]) -> Result<Component, CompileError> {
        if let Some(component) = self.embedded(plugin, wasm) {
            return Ok(component);
        }
        let work = self.0.activities.begin(plugin, ActivityKind::Loading);
        // The second of two takes what the first one made, or knows what it failed with.
        let turn = self.0.turns.of(Digest::of(wasm));
        let _turn = turn.lock();
        let engine = &self.0.engine;
        let compile = || {
            work.set_kind(ActivityKind::Compiling);
            self.compile_anew(plugin, wasm)
        };
        let (component, origin) = match &self.0.cache {
            Some(cache) => cache.component(engine, wasm, compile)?,
            None => (compile()?.load(engine)?, CacheOutcome::Compiled),
        };
        match origin {
            CacheOutcome::Cached => {
                tracing::debug!(plugin, "a component was taken from the cache");
                return Ok(component);
            }
            CacheOutcome::Compiled => {}
            CacheOutcome::NotKept(cause) => tracing::warn!(
                plugin,
                "the compiled plugin could not be kept, so the next start compiles it again: {cause}"
            ),
        }
        tracing::info!(plugin, millis = work.millis(), "a component was compiled");
        Ok(component)
    }

    /// Loads a component that was compiled when this program was built.
    fn embedded(&self, plugin: &str, wasm: &[u8]) -> Option<Component> {
        let code = EmbeddedComponent::find(self.0.options.embedded, wasm)?;
        let loaded = code.load(&self.0.engine);
        loaded
            .inspect_err(|cause| {
                tracing::info!(
                    plugin,
                    "the plugin's code in this program does not fit this machine, so it is compiled: {cause:#}"
                );
            })
            .ok()
    }

    fn compile_anew(&self, plugin: &str, wasm: &[u8]) -> Result<CompiledCode, CompileError> {
        let Inner { engine, cache, .. } = &*self.0;
        if let Some(known) = cache.as_ref().and_then(|cache| cache.failure(engine, wasm)) {
            return Err(CompileError::KnownToFail(known));
        }
        // An error means that the engine is being torn down; then it does not matter.
        let _turn = futures::executor::block_on(self.0.compilations.acquire());
        tracing::info!(plugin, bytes = wasm.len(), "compiling a component");
        let compiled = self.0.options.compiler.compile(engine, wasm);
        if let (Err(CompileError::Died(death)), Some(cache)) = (&compiled, cache)
            && let Err(cause) = cache.remember_failure(engine, wasm, &death.to_string())
        {
            tracing::warn!(
                plugin,
                "it could not be remembered that compiling this plugin fails, so the next start tries again: {cause}"
            );
        }
        compiled
    }

    /// Waits for a free slot. `None` only if the engine is being torn down.
    pub(super) async fn slot(&self, class: PoolClass) -> Option<OwnedSemaphorePermit> {
        let semaphore = match class {
            PoolClass::Call => &self.0.calls,
            PoolClass::Stream => &self.0.streams,
        };
        semaphore.clone().acquire_owned().await.ok()
    }
}

fn config(options: &EngineOptions) -> Config {
    let slots = options.calls.saturating_add(options.streams).max(1);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(MOST_CORE_INSTANCES))
        .total_memories(slots.saturating_mul(MOST_MEMORIES))
        .total_tables(slots.saturating_mul(MOST_TABLES))
        .total_stacks(slots)
        .max_core_instances_per_component(MOST_CORE_INSTANCES)
        .max_memories_per_component(MOST_MEMORIES)
        .max_tables_per_component(MOST_TABLES)
        .max_memory_size(options.largest_memory)
        // Few slots stay warm, and little memory stays in each, so that an idle host stays small. It is what a
        // step of our own plugins uses: more is given back to the system after each call, and faulted in again.
        .max_unused_warm_slots(8)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(4 << 10);
    let mut config = lucid_precompiled::settings();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

fn most_compilations() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.min(MOST_COMPILATIONS)
}

/// Starts the epoch thread: an operating system thread, so that a busy executor cannot delay it.
fn start_clock(engine: &wasmtime::Engine, slots: [Arc<Semaphore>; 2]) -> Result<(), EngineError> {
    let weak = engine.weak();
    let free = move || slots.each_ref().map(|slots| slots.available_permits());
    let all = free();
    std::thread::Builder::new()
        .name("plugin-clock".into())
        .stack_size(64 << 10)
        .spawn(move || {
            while let Some(engine) = weak.upgrade() {
                engine.increment_epoch();
                drop(engine);
                let is_idle = free() == all;
                std::thread::sleep(if is_idle { IDLE_TICK } else { TICK });
            }
        })
        .map(drop)
        .map_err(EngineError::Ticker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_has_one_turn_for_as_long_as_somebody_has_it() {
        let turns = ComponentTurns::default();
        let (one, two) = (turns.of(Digest::of("one")), turns.of(Digest::of("two")));
        assert!(Arc::ptr_eq(&one, &turns.of(Digest::of("one"))));
        assert!(!Arc::ptr_eq(&one, &two));
        drop((one, two));
        drop(turns.of(Digest::of("three")));
        assert_eq!(turns.0.lock().len(), 1);
    }
}
