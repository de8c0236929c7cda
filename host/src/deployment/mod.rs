//! The deployment while the server runs: what is loaded, how a new generation takes its place, which builds
//! were uploaded, and how they are rolled out.

pub(crate) mod load;
pub mod manager;
pub mod rollout;
pub(crate) mod snapshot;
pub(crate) mod uploads;
pub(crate) mod watch;
