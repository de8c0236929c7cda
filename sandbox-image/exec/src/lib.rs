//! What the host and the exec server inside a sandbox share: the frames they exchange and the rule
//! by which a command's output is bounded. The server itself is the binary of this package.
//!
//! What always holds: a frame never exceeds [`protocol::MAX_PAYLOAD`], and either side may be
//! hostile to the other, so every length is checked before anything is allocated for it.
#![forbid(unsafe_code)]

pub mod output;
pub mod protocol;
