//! The session log: how rounds are written, and how they are read back.

pub(crate) mod discard;
pub(crate) mod positions;
pub(crate) mod read;
pub(crate) mod retained;
pub(crate) mod session_log;
pub(crate) mod texts;
pub mod usage;
pub mod write;
