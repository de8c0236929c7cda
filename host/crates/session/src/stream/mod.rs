//! What clients see of a session: its frames in one order, and each client's position among them.

pub mod delta;
pub mod feed;
pub mod frames;
pub(crate) mod positions;
pub mod subscription;
