//! Types and helpers that every part of the host shares: users, secrets, the types of the WIT packages, and
//! text made safe to show.

pub mod plural;
pub mod sanitize;
pub mod secret;
pub mod unicode;
pub mod user;
pub mod wit;
