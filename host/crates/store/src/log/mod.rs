//! The session log: how rounds are written, and how they are read back.

pub mod discard;
pub mod model;
pub mod positions;
pub mod read;
pub mod retained;
pub(crate) mod texts;
pub mod usage;
pub mod write;
