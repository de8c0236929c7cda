//! The session log: how rounds are written, and how they are read back.

pub(crate) mod discard;
mod positions;
pub(crate) mod read;
mod retained;
pub(crate) mod session_log;
mod usage;
mod write;
