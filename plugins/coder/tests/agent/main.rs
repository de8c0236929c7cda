//! The agent, driven as the host drives it: by inputs alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

mod any_order;
mod asking;
mod behaviour;
mod condensing;
mod finishing;
mod host;
mod migrating;
