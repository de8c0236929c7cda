//! The SQLite database: one connection that writes, several that read, and the state of its health.

pub(crate) mod failure;
pub(crate) mod health;
pub(crate) mod origin;
pub(crate) mod readers;
pub(crate) mod uptime;
pub(crate) mod writer;
