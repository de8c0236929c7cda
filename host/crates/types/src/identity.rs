//! Who a caller is, once that was proven.

use super::secret::Secret;
use super::user::UserId;

/// The proven identity of a caller.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user on whose behalf everything is done.
    pub user: UserId,
    /// The raw token, for a store with row-level security. `None` for a server that acts for a
    /// user.
    pub token: Option<Secret>,
    /// The token's `projectId` claim.
    pub project: Option<String>,
    /// The token's `sessionId` claim.
    pub session: Option<String>,
    /// Whether the caller may change the deployment: the internal key, or a token with the claim
    /// `lucid_admin`.
    pub admin: bool,
}
