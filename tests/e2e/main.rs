//! The running host, end to end: real processes, sandboxes, repositories, databases and browsers' frames;
//! model providers and git servers are the tests' own, on loopback.
//!
//! One binary, so that an edit of the host links once. A topic is a module: `cargo test --test e2e chaos::`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a frontend's client, which is none of the host's"
)]

mod chaos;
mod cli;
mod coder;
mod connections;
mod crash;
mod deployment;
mod docker;
mod fairness;
mod files;
mod frontend;
mod git;
mod hostile;
mod identity;
mod integrations;
mod key;
mod kit;
mod languages;
mod load;
mod mcp;
mod metrics;
mod mock;
mod model_servers;
mod models;
mod network;
mod openapi;
mod operator;
mod papers;
mod plugins;
mod providers;
mod reload;
mod repositories;
mod rest;
mod rollout;
mod storage;
mod supabase;
mod tools;
