//! Rollout of a policy's builds: the registry of policies, probation, and shadow runs.

pub(crate) mod policies;
pub(crate) mod probation;
pub mod shadow;
