//! Lucid: a server that runs AI coding agents for many users at once.
//!
//! Agents, model providers, git providers and tools are WebAssembly components. They compute; the host
//! carries out what they ask for.
//!
//! # Layout
//!
//! The parts are crates in `host/crates`: `lucid_types`, `lucid_wasm`, `lucid_net`, `lucid_store`,
//! `lucid_sandbox` and `lucid_session`. This one puts them together. From the top down, a module uses what stands
//! below it:
//!
//! - [`cli`]: the command line. [`server`]: puts the parts together.
//! - [`api`]: REST and WebSocket.
//! - [`deployment`]: what is loaded, how it is replaced and rolled out.
//! - [`environment`]: where a session works: its workspace, its sandbox, its way to git.
//! - [`toolsets`]: tools of components and of MCP servers. [`models`]: model providers and calls.
//!   [`git_providers`]: accounts, repositories and pull requests.
//! - [`manifest`] reads `lucid.toml`, [`config`] the settings.
//! - `prometheus`: the recorder of metrics.
//! - [`listener`]: connections and their limits. [`auth`]: who a caller is. [`builtin`]: what the build put into the binary.

#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod builtin;
pub mod cli;
pub mod config;
pub mod deployment;
pub mod environment;
pub mod git_providers;
pub mod listener;
pub mod manifest;
pub mod models;
mod prometheus;
pub mod server;
pub mod toolsets;
