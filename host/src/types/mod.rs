//! Types and helpers shared by every part of the host: users, secrets, the types of the WIT
//! packages, and text sanitizing.

pub mod plural;
pub mod sanitize;
pub mod secret;
pub mod unicode;
pub mod user;
pub mod wit;
