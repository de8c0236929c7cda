//! The SQLite database: one connection that writes, several that read, and whether they can at the moment.

pub(crate) mod failure;
pub(crate) mod health;
pub(crate) mod origin;
pub(crate) mod readers;
pub(crate) mod uptime;
pub(crate) mod writer;
