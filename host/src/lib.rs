//! Lucid: a server that runs AI coding agents whose policies, models and git providers are
//! WebAssembly components. `app` puts the parts together; each part's own module says what it owns.

#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod auth;
pub mod blobs;
pub mod builtin;
pub mod cli;
pub mod config;
pub mod deployment;
pub mod disk_reserve;
pub mod egress;
pub mod git_gateway;
pub mod git_providers;
pub mod integrations;
mod mcp;
pub mod oci;
pub mod plugins;
mod plural;
pub mod sandbox;
pub mod seal;
pub mod secret;
pub mod session;
pub mod store;
pub mod tools;
mod unicode;
pub mod workspace;
