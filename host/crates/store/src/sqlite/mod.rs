//! The SQLite database: one connection that writes, and several that read.

pub(crate) mod failure;
pub(crate) mod origin;
pub(crate) mod readers;
pub(crate) mod uptime;
pub(crate) mod writer;
