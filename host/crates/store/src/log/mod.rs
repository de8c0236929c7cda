//! The session log: how rounds are written, and how they are read back.

mod discard;
mod packed_round;
mod positions;
pub(crate) mod read;
mod retained;
pub(crate) mod session_log;
mod settle;
mod sizes;
mod usage;
mod write;
