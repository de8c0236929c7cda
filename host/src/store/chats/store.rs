//! Owns what a store of records is: chats and their messages, whoever keeps them.
//!
//! What always holds: every call names its caller, and another user's chat is not there. Making a
//! chat and adding messages twice is doing it once, since whoever asks made the ids. Whatever goes
//! wrong is a sentence that may be shown; what a database said is for the log.

use std::fmt;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

use crate::auth::Identity;
use crate::store::{StoreError, Totals};
use crate::types::secret::Secret;
use crate::types::user::UserId;

/// How many characters a title has at the most.
pub const TITLE_LENGTH: usize = 255;

/// Who a record is read or written for, and by what right.
#[derive(Debug, Clone)]
pub enum Caller {
    /// The user themselves: their own token goes along, so that the database decides too.
    User {
        /// Who.
        id: UserId,
        /// What they showed.
        token: Secret,
    },
    /// A server that acts for a user. Nothing but the user's name keeps others' records from it.
    Service {
        /// For whom.
        id: UserId,
    },
}

impl Caller {
    /// A server that acts for a user.
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

impl From<&Identity> for Caller {
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
    /// The chat's own id.
    pub id: String,
    /// The session that wrote it.
    pub agent_session_id: Option<String>,
    /// The client's name for what it belongs to.
    pub project_id: Option<String>,
    /// What it is called.
    pub title: String,
    /// The provider that the session used.
    pub model_provider: Option<String>,
    /// Whether its session goes on.
    pub is_active: bool,
    /// What the model calls of its session used.
    pub totals: Totals,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// One line of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Its id.
    pub id: String,
    /// `user` or `assistant`.
    pub role: String,
    /// All of it.
    pub content: String,
    /// As in the wire contract.
    pub event_type: Option<String>,
    /// A JSON object, as text.
    pub metadata_json: Option<String>,
    /// When it was written.
    pub created_at: DateTime<Utc>,
}

/// What a session changes of its chat as it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Whether it goes on.
    pub is_active: bool,
    /// What its model calls used so far.
    pub totals: Totals,
}

/// Why a record was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not now.
    #[error("The record of chats cannot be reached at the moment. Try again in a moment.")]
    Unavailable {
        /// The store itself answered, so that another request may fare better.
        answered: bool,
    },
    /// The caller's token is not taken, or not any more.
    #[error("Invalid token")]
    Token,
    /// A server acts for a user, and this host has nothing to do that with.
    #[error(
        "This server can read chats with the user's own token only: it has no SUPABASE_SERVICE_KEY."
    )]
    NoServiceKey,
    /// The store does not take the host's own key.
    #[error("The record of chats does not take this server's key. The operator sets {setting}.")]
    Key {
        /// Which key that is.
        setting: &'static str,
    },
    /// The database is not what this version works with.
    #[error(
        "The Supabase project that keeps the chats lacks {0}: its migrations did not run, or not all of them. The operator runs the files of migrations/supabase there."
    )]
    Schema(Lack),
    /// What was to be kept belongs to a user whom the database does not have.
    #[error(
        "The database has no row in its table `users` for you, and a git account belongs to one. The operator adds it; users who sign up through the project get it by themselves."
    )]
    NoUser,
    /// It will not be taken, however often it is sent.
    #[error("The record of chats did not take this.")]
    Refused {
        /// The database's code for it.
        code: String,
    },
    /// The local database.
    #[error("The record of chats could not be read or written.")]
    Local(#[from] StoreError),
}

/// What a project lacks whose migrations did not run. It names what this version knows, and nothing that
/// was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// A table.
    #[error("{}", named_table("the table ", "a table", *.0))]
    Table(Option<&'static str>),
    /// A column of a table.
    #[error("{}", named_column(*.0))]
    Column(Option<(&'static str, &'static str)>),
    /// What ties messages to their chats.
    #[error("the foreign key from chat_messages to chat_sessions")]
    Link,
    /// What makes a row replace another.
    #[error("a unique index")]
    Unique,
    /// What signed-in users may do with a table.
    #[error("{}", named_table("users' right to use the table ", "users' right to use a table", *.0))]
    Right(Option<&'static str>),
    /// A column has another type.
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

/// What a call gives, later.
pub type Recorded<'a, T> = BoxFuture<'a, Result<T, RecordError>>;

/// Keeps chats and their messages. Cheap to share.
pub trait Records: Send + Sync + fmt::Debug {
    /// The caller's chats, the last changed first.
    fn list(&self, caller: &Caller, limit: u32, offset: u32) -> Recorded<'_, Vec<Chat>>;
    /// One chat of the caller.
    fn find(&self, caller: &Caller, id: &str) -> Recorded<'_, Option<Chat>>;
    /// Makes a chat. One that is there already stays as it is.
    fn create(&self, caller: &Caller, chat: Chat) -> Recorded<'_, ()>;
    /// Gives a chat another title, cut to what a title may have. Gives the title back, or none where
    /// the caller has no such chat.
    fn rename(&self, caller: &Caller, id: &str, title: &str) -> Recorded<'_, Option<String>>;
    /// Notes how far a chat's session is. False where the caller has no such chat.
    fn note(&self, caller: &Caller, id: &str, progress: Progress) -> Recorded<'_, bool>;
    /// Deletes a chat and its messages. False where the caller has no such chat.
    fn delete(&self, caller: &Caller, id: &str) -> Recorded<'_, bool>;
    /// Adds messages to a chat, in their order. Those that are there already are passed over. False
    /// where the caller has no such chat.
    fn append(&self, caller: &Caller, id: &str, messages: Vec<ChatMessage>) -> Recorded<'_, bool>;
    /// The messages of a chat in the order written; none where the caller has no such chat.
    fn messages(&self, caller: &Caller, id: &str) -> Recorded<'_, Vec<ChatMessage>>;
}
