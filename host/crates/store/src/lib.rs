//! The database: one SQLite file for the session log and for chats. If a deployment keeps its chats
//! in Supabase (`supabase`), they are written here first, and `outbox` sends them on.
//!
//! # Invariants
//! - There is one process (enforced by a lock file), and in it one writer, an operating system
//!   thread that commits what many sessions wrote together.
//! - A write is acknowledged only after its commit. A write that fails undoes itself and none of
//!   its neighbours.
//! - Reads have connections of their own and never wait for the writer.
//! - Only the owner can access the folder (0700) and the file (0600).
//!
//! # Layout
//! - `sqlite`: the file, its writer and its readers. `log`: the session log in it.
//! - `chat_store`: where chats are kept, as a trait, and in this file; `supabase` is the other place. `outbox` sends them
//!   there, and `chats` is what the API sees of both.
//! - `accounts`: users' git accounts. `connections`: what sandboxes' programs connected to. `blobs`: images and other large content, in files.
//!
//! # Durability
//! The database uses `synchronous=NORMAL` with a write-ahead log: whatever was acknowledged
//! survives a crash or a kill of this process, since the operating system has the pages. A power
//! failure or a crash of the operating system may lose the last moments (what was written since the
//! last checkpoint and not yet flushed); the file stays consistent, and a session then continues
//! from the last step that is there. FULL would cost one flush per group commit and guard against
//! nothing else.

#![forbid(unsafe_code)]

mod accounts;
pub mod blobs;
mod chat_store;
mod chats;
mod connections;
mod error;
mod log;
mod outbox;
mod sqlite;
mod supabase;

pub use self::accounts::{Integration, IntegrationFuture, Integrations, NewIntegration};
pub use self::chat_store::sqlite::SqliteChatStore;
pub use self::chat_store::{
    Chat, ChatMessage, ChatProgress, ChatStore, ChatStoreError, ChatStoreFuture, MissingSchema,
    Principal, TITLE_LENGTH,
};
pub use self::chats::{Chats, DeletedChat};
pub use self::connections::ConnectionTotals;
pub use self::error::StoreError;
pub use self::log::read::{find_session, logged_steps};
pub use self::outbox::Outbox;
pub use self::sqlite::database::{Store, open_read_only, size_that_stays};
pub use self::sqlite::failure::transient_cause;
pub use self::sqlite::origin::{HostOrigin, last_start, record_start, release_sessions};
pub use self::supabase::{Supabase, SupabaseChatStore, SupabaseSettings};
