//! The agent, driven as the host drives it: by inputs alone.

mod any_order;
mod behaviour;
mod host;
