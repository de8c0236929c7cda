//! The chat store trait: chats and their messages, wherever they are kept.
//!
//! # Invariants
//! - Every call names its caller, and another user's chat does not exist for it.
//! - Creating a chat and adding messages are idempotent, since the caller chooses the ids.
//! - Every error may be shown; the database's own message is for the log.

pub(crate) mod removal;
pub(crate) mod sqlite;

use std::fmt;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

use crate::error::StoreError;
use lucid_types::identity::Identity;
use lucid_types::log::UsageTotals;
use lucid_types::secret::Secret;
use lucid_types::user::UserId;

/// Maximum length of a title, in characters.
pub const TITLE_LENGTH: usize = 255;

/// The user for whom a record is accessed, and the authority for it.
#[derive(Debug, Clone)]
pub enum Principal {
    /// The user themselves: their own token is sent along, so that the database decides too.
    User {
        /// The user.
        id: UserId,
        /// The token that the user presented.
        token: Secret,
    },
    /// A server acting for a user. Only the filter by user protects other users' records.
    Service {
        /// The user acted for.
        id: UserId,
    },
}

impl Principal {
    /// Creates the caller for a server that acts for a user.
    pub fn service(id: impl Into<UserId>) -> Self {
        Self::Service { id: id.into() }
    }

    /// The user.
    pub fn user(&self) -> &UserId {
        match self {
            Self::User { id, .. } | Self::Service { id } => id,
        }
    }
}

impl From<&Identity> for Principal {
    fn from(who: &Identity) -> Self {
        let id = who.user.clone();
        match who.token.clone() {
            Some(token) => Self::User { id, token },
            None => Self::Service { id },
        }
    }
}

/// A chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chat {
    /// The chat's id.
    pub id: String,
    /// The id of the session that wrote it, as the store has it: other programs write chats there too.
    pub agent_session_id: Option<String>,
    /// The client's name for the project that it belongs to.
    pub project_id: Option<String>,
    /// The title.
    pub title: String,
    /// The model provider that the session used.
    pub model_provider: Option<String>,
    /// Whether its session can still continue.
    pub is_active: bool,
    /// Usage totals of its session's model calls.
    pub totals: UsageTotals,
    /// Creation time.
    pub created_at: DateTime<Utc>,
    /// Time of the last change.
    pub updated_at: DateTime<Utc>,
}

/// A chat message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// The message's id.
    pub id: String,
    /// `user` or `assistant`.
    pub role: String,
    /// The full text.
    pub content: String,
    /// The event type of the wire contract.
    pub event_type: Option<String>,
    /// A JSON object, as text.
    pub metadata_json: Option<String>,
    /// Creation time.
    pub created_at: DateTime<Utc>,
}

/// The part of a chat that its session updates as it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatProgress {
    /// Whether the session can still continue.
    pub is_active: bool,
    /// Usage totals of its model calls so far.
    pub totals: UsageTotals,
}

/// Why a record was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum ChatStoreError {
    /// The store is unavailable at the moment.
    #[error("the record of chats cannot be reached at the moment. Try again in a moment")]
    Unavailable {
        /// Whether the store itself responded, in which case another request may succeed.
        answered: bool,
    },
    /// The caller's token is invalid or has expired.
    #[error("the token is invalid or has expired")]
    Token,
    /// A server acts for a user, and this host has no key with which to do that.
    #[error(
        "this server can read chats with the user's own token only: it has no SUPABASE_SERVICE_KEY"
    )]
    NoServiceKey,
    /// The store rejected the host's own key.
    #[error("the record of chats does not take this server's key. The operator sets {setting}")]
    Key {
        /// The setting that holds the key.
        setting: &'static str,
    },
    /// The database's schema is not the one that this version needs.
    #[error(
        "the Supabase project that keeps the chats lacks {0}: its migrations did not run, or not all of them. The operator runs the files of migrations/supabase there"
    )]
    Schema(MissingSchema),
    /// The record belongs to a user that the database does not have.
    #[error(
        "the database has no row in its table `users` for you, and a git account belongs to one. The operator adds it; users who sign up through the project get it by themselves"
    )]
    NoUser,
    /// The record is permanently refused, however often it is sent.
    #[error("the record of chats did not take this")]
    Refused {
        /// The database's error code.
        code: String,
    },
    /// An error of the local database.
    #[error("the record of chats could not be read or written")]
    Local(#[from] StoreError),
}

/// A part of the schema that a project lacks because its migrations did not run. It names what this
/// version knows, and nothing from the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MissingSchema {
    /// A table.
    #[error("{}", named_table("the table ", "a table", *.0))]
    Table(Option<&'static str>),
    /// A column of a table.
    #[error("{}", named_column(*.0))]
    Column(Option<(&'static str, &'static str)>),
    /// The foreign key from messages to their chats.
    #[error("the foreign key from chat_messages to chat_sessions")]
    Link,
    /// The unique constraint by which one row replaces another.
    #[error("a unique index")]
    Unique,
    /// A privilege of signed-in users on a table.
    #[error("{}", named_table("users' right to use the table ", "users' right to use a table", *.0))]
    Right(Option<&'static str>),
    /// The expected type of a column.
    #[error("the form that this version reads")]
    Form,
}

fn named_table(before: &str, otherwise: &str, table: Option<&str>) -> String {
    table.map_or_else(|| otherwise.to_owned(), |table| format!("{before}{table}"))
}

fn named_column(column: Option<(&str, &str)>) -> String {
    let named = column.map(|(table, column)| format!("the column {table}.{column}"));
    named.unwrap_or_else(|| "a column".to_owned())
}

/// The future result of a call.
pub type ChatStoreFuture<'a, T> = BoxFuture<'a, Result<T, ChatStoreError>>;

/// A store of chats and their messages. Cheap to share.
pub trait ChatStore: Send + Sync + fmt::Debug {
    /// Lists the caller's chats, most recently changed first.
    fn list(&self, caller: &Principal, limit: u32, offset: u32) -> ChatStoreFuture<'_, Vec<Chat>>;
    /// Returns one of the caller's chats.
    fn find(&self, caller: &Principal, id: &str) -> ChatStoreFuture<'_, Option<Chat>>;
    /// Creates a chat. An existing one is left unchanged.
    fn create(&self, caller: &Principal, chat: Chat) -> ChatStoreFuture<'_, ()>;
    /// Renames a chat, truncating the title to [`TITLE_LENGTH`]. Resolves to the new title, or to
    /// `None` if the caller has no such chat.
    fn rename(
        &self,
        caller: &Principal,
        id: &str,
        title: &str,
    ) -> ChatStoreFuture<'_, Option<String>>;
    /// Records the progress of a chat's session. Resolves to `false` if the caller has no such
    /// chat.
    fn update_progress(
        &self,
        caller: &Principal,
        id: &str,
        progress: ChatProgress,
    ) -> ChatStoreFuture<'_, bool>;
    /// Deletes a chat and its messages. Resolves to `false` if the caller has no such chat.
    fn delete(&self, caller: &Principal, id: &str) -> ChatStoreFuture<'_, bool>;
    /// Appends messages to a chat, in order. Existing ones are skipped. Resolves to `false` if the
    /// caller has no such chat.
    fn append(
        &self,
        caller: &Principal,
        id: &str,
        messages: Vec<ChatMessage>,
    ) -> ChatStoreFuture<'_, bool>;
    /// Returns a chat's messages in the order they were written; none if the caller has no such
    /// chat.
    fn messages(&self, caller: &Principal, id: &str) -> ChatStoreFuture<'_, Vec<ChatMessage>>;
}
