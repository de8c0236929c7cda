//! On whose behalf something is read or written.

use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// Has its own turns in the queues for the database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum QueueKey {
    /// The host itself.
    Host,
    /// A user.
    User(UserId),
    /// A session, where its user is not known.
    Session(SessionId),
}
