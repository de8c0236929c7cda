//! The SQLite database: one connection that writes, and several that read.

mod checkpoint;
mod connection;
pub(crate) mod database;
pub(crate) mod failure;
pub(crate) mod origin;
pub(crate) mod outbox_signal;
pub(crate) mod pending;
pub(crate) mod pieces;
mod queue_key;
mod readers;
pub(crate) mod sql;
pub(crate) mod texts;
pub(crate) mod totals;
mod uptime;
mod write_connection;
mod write_queue;
mod writer;

pub(crate) use self::connection::TIMEOUT;
pub(crate) use self::database::Store;
pub(crate) use self::queue_key::QueueKey;
