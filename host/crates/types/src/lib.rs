//! Types and helpers shared by every part of the host: users, secrets, the types of the WIT
//! packages, the disk reserve, text sanitizing, Unicode repair, and counts in words.

pub mod disk_reserve;
pub mod identity;
pub mod limits;
pub mod log_label;
pub mod plural;
pub mod repository_url;
pub mod sanitize;
pub mod secret;
pub mod unicode;
pub mod user;
pub mod wit;
