//! The agent, driven as the host drives it: by inputs alone.

mod any_order;
mod asking;
mod behaviour;
mod condensing;
mod finishing;
mod host;
mod migrating;
