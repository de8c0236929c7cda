//! Types and helpers shared by every part of the host: users, secrets, the types of the WIT
//! packages, the session log's trait and values, the disk reserve, text sanitizing, Unicode repair,
//! digests, and counts, sizes and errors in words.

#![forbid(unsafe_code)]

pub mod digest;
pub mod disk_reserve;
pub mod exec;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod log;
pub mod log_label;
pub mod plural;
pub mod repository_url;
pub mod sanitize;
pub mod secret;
pub mod sentence;
pub mod text;
pub mod transient;
pub mod unicode;
pub mod user;
pub mod wit;
