//! Lucid: a server that runs AI coding agents for many users at once.
//!
//! Agents, model providers, git providers and tools are WebAssembly components. They compute; the host
//! carries out what they ask for.
//!
//! # Layout
//!
//! From the top down. A module uses what stands below it, with a few exceptions that are on their way out:
//! `manifest` re-exports `deployment`'s loading, and `store` takes a type of `config`.
//!
//! - [`cli`]: the command line. [`server`]: puts the parts together.
//! - [`api`]: REST and WebSocket.
//! - [`deployment`]: what is loaded, how it is replaced and rolled out.
//! - [`environment`]: where a session works: its workspace, its sandbox, its way to git.
//! - [`toolsets`]: tools of components and of MCP servers. [`models`]: model providers and calls.
//!   [`git_providers`]: accounts, repositories and pull requests.
//! - [`manifest`] reads `lucid.toml`.
//! - [`session`]: the session engine.
//! - [`config`] reads the settings.
//! - [`sandbox`]: sandboxes, workspaces, the tools that work in them, and the git gateway.
//! - [`store`]: the log, chats, blobs.
//! - [`wasm`]: runs components. [`auth`]: who a caller is.
//! - [`net`]: addresses, egress for plugins, documents, registries.
//! - [`types`]: what all of them speak of. [`builtin`]: what the build put into the binary.

#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod builtin;
pub mod cli;
pub mod config;
pub mod deployment;
pub mod environment;
pub mod git_providers;
pub mod manifest;
pub mod models;
pub mod server;
pub mod toolsets;
