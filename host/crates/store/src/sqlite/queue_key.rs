//! On whose behalf something is read or written.

use lucid_types::user::UserId;

/// Has its own turns in the queues for the database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum QueueKey {
    /// The host itself.
    Host,
    /// A user, with all of their sessions.
    User(UserId),
}

impl From<&UserId> for QueueKey {
    fn from(user: &UserId) -> Self {
        Self::User(user.clone())
    }
}

impl From<Option<&UserId>> for QueueKey {
    fn from(user: Option<&UserId>) -> Self {
        user.map_or(Self::Host, Self::from)
    }
}
