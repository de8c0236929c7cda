//! What every part of the host speaks of.
//!
//! # Layout
//! - `ids`, `user`, `identity`, `digest`, `secret`: who and what something is.
//! - `wit`: the types of the WIT packages, written by the build. `log`: the session log, as a trait of values, with
//!   `transient` for failures that pass. `exec`: commands for a sandbox. `repository_url`: how people name repositories.
//! - `disk_reserve`, `limits`: disk that is kept for the log, and what several crates limit alike. `fair`, `user_work`:
//!   users' work in turn.
//! - `text`, `unicode`, `sanitize`: text of others. `plural`, `sentence`: text for people. `log_label`: whom a plugin's
//!   log line belongs to.
//! - `metrics`: what the server counts and measures of itself.

#![forbid(unsafe_code)]

pub mod digest;
pub mod disk_reserve;
pub mod exec;
pub mod fair;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod log;
pub mod log_label;
pub mod metrics;
pub mod plural;
pub mod repository_url;
pub mod sanitize;
pub mod secret;
pub mod sentence;
pub mod text;
pub mod transient;
pub mod unicode;
pub mod user;
pub mod user_work;
pub mod wit;
