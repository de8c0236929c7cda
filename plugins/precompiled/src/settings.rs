//! What decides about compiled code.

use wasmtime::{Config, OptLevel, WasmFeatures};

/// The settings that decide about the code, and nothing of how it is run: no pool is reserved for these.
/// Code is loaded only by an engine with the same.
pub fn settings() -> Config {
    let mut config = Config::new();
    config
        .memory_init_cow(true)
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false)
        .wasm_features(WasmFeatures::THREADS, false)
        // Nothing reads these tables: traps are reported by function, and only wasmtime unwinds
        // guests.
        .generate_address_map(false)
        .native_unwind_info(false)
        .consume_fuel(true)
        .epoch_interruption(true);
    config
}
