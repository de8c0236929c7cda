//! The code shared by the host and the exec server inside a sandbox: the frames they exchange and
//! the rule by which a command's output is bounded. The server itself is this package's binary.
//!
//! # Invariants
//! - A frame never exceeds [`protocol::MAX_PAYLOAD`].
//! - Either side may be hostile to the other, so every length is checked before anything is
//!   allocated for it.
#![forbid(unsafe_code)]

pub mod output;
pub mod protocol;
