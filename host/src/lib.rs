//! Lucid: a server that runs AI coding agents whose policies, models and git providers are
//! WebAssembly components. `app` puts the parts together; each part's own module says what it owns.

#![forbid(unsafe_code)]

pub mod auth;
pub mod builtin;
pub mod config;
pub mod seal;
pub mod secret;
