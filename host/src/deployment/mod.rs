//! The deployment of a running server: what is loaded, how a new generation replaces it, which
//! builds were uploaded, and how they are rolled out.

pub(crate) mod load;
pub mod manager;
pub mod rollout;
pub(crate) mod snapshot;
pub(crate) mod uploads;
pub(crate) mod watch;
