//! The plugin runtime: WebAssembly components that turn values into values, and the set that is
//! loaded.
//!
//! A plugin computes and the host acts.
//!
//! # Layout
//! - `engine`: the engine, its pool and its epoch clock. `progress`: what is being compiled.
//! - `bounds`, `compiler`: what may be compiled, and the process that does it.
//! - `kind`: the kinds of plugins. `admission`: the checks before a component runs. `exports`: its functions.
//! - `plugin`: what plugins of all kinds have in common. `policy`, `llm`, `tools` and `git`: what each kind can be
//!   asked for. `any_plugin`: a plugin of unknown kind. `plugin_set`: all that are loaded. `core`: the state that all kinds have.
//! - `instance`, `limits`: one call. `call_stats`: statistics of calls. `log_label`: the label of log lines.
//! - `host_state`: the host's data for one instance. `wasi`, `stdio`: what a guest of another toolchain finds.
//! - `tool_schema`: the rules for a plugin's tools. `extensions`: what callers keep beside a plugin.
//!
//! # Invariants
//! - No component reaches a clock, a file, the network or a secret, and one that wants to is not
//!   admitted.
//! - No component can block or bring down the host or another session: each call has limits, and
//!   exceeding one is an ordinary error of that call.
//! - No component can bring down `lucid` by being compiled.

#![forbid(unsafe_code)]

mod admission;
mod any_plugin;
mod bounds;
mod call_stats;
mod compiler;
mod core;
mod engine;
mod exports;
mod extensions;
mod git;
mod host_state;
mod instance;
mod kind;
mod limits;
mod llm;
mod log_label;
mod plugin;
mod plugin_set;
mod policy;
mod progress;
mod stdio;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod tool_schema;
mod tools;
mod wasi;

pub use self::any_plugin::{AnyPlugin, AnyPluginError};
pub use self::call_stats::CallFigures;
pub use self::log_label::LOG_TARGET;
pub use self::progress::{Activities, Activity, ActivityGuard, ActivityKind};
pub use admission::{ALLOWED_IMPORTS, DescriptorError, LoadError};
pub use bounds::{Bound, BoundsError};
pub use compiler::{COMPILE_COMMAND, Compiler, compile_stdin};
pub use engine::{Engine, EngineError, EngineOptions};
pub use exports::MissingExport;
pub use git::GitPlugin;
pub use kind::PluginKind;
pub use limits::{CallError, CallOutcome, CallSite, CallUsage, PluginLimits};
pub use llm::{DecoderSession, LlmPlugin};
pub use lucid_precompiled::{CompileDeath, CompileLimits, CompilerProcess, ProcessFailure};
pub use plugin::{Plugin, TypedPlugin, World};
pub use plugin_set::{PluginInfo, Plugins, PluginsBuilder};
pub use policy::PolicyPlugin;
pub use tools::ToolsPlugin;
