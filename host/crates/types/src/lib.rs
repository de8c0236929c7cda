//! Types and helpers shared by every part of the host: users, secrets, the types of the WIT
//! packages, text sanitizing, Unicode repair, and counts in words.

pub mod plural;
pub mod sanitize;
pub mod secret;
pub mod unicode;
pub mod user;
pub mod wit;
