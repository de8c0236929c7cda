//! The session log: how rounds are written, and how they are read back.

pub(crate) mod discard;
pub(crate) mod model;
pub(crate) mod positions;
pub(crate) mod read;
pub(crate) mod retained;
pub(crate) mod texts;
pub(crate) mod usage;
pub(crate) mod write;
