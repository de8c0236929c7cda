//! Owns who a caller is: the two ways of authentication of the wire contract, and the tokens that
//! this host issues itself.
//!
//! What always holds: only HS256 is taken, whatever a token's header says, and `exp` must be there
//! and lie ahead (no leeway). A caller who names a Bearer token stands or falls with it. The way for servers
//! (`X-User-ID` with `X-Internal-Key`) is closed while no key is configured. Nothing a caller sends
//! can make this code panic, and a refusal says no more than the contract's four sentences. What a user
//! can set of their own token (`user_metadata`) gives nobody any right.

mod caller;
#[cfg(test)]
mod tests;
mod tokens;
mod user;

use std::fmt;
use std::time::Duration;

pub use self::tokens::IssueError;
use self::tokens::Tokens;
pub use self::user::UserId;
use crate::secret::Secret;

/// A caller who proved who they are.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user that everything is done for.
    pub user: UserId,
    /// The raw token, for a store with row-level security. None for a server that acts for a user.
    pub token: Option<Secret>,
    /// The token's claim `projectId`.
    pub project: Option<String>,
    /// The token's claim `sessionId`.
    pub session: Option<String>,
    /// They may change the deployment: the internal key, or a token with the claim `lucid_admin`.
    pub admin: bool,
}

/// A caller who may change the deployment. A handler that takes one runs for nobody else.
#[derive(Debug, Clone)]
pub struct Admin(pub UserId);

/// Why a caller is refused. The sentences are the contract's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Nothing that authenticates was sent, or only a way that is closed.
    #[error("Authentication required")]
    Required,
    /// The token is malformed, expired, signed by someone else, or not HS256.
    #[error("Invalid token")]
    InvalidToken,
    /// The token is good, but names no user.
    #[error("Token missing sub claim")]
    MissingSubject,
    /// The key that a server sent is not ours.
    #[error("Invalid internal API key")]
    InvalidInternalKey,
}

/// Decides who a caller is.
pub struct Authenticator {
    tokens: Tokens,
    internal_key: Option<Secret>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("internal_key", &self.internal_key)
            .finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Takes the secret that tokens are signed with, and the key for servers where there is one.
    pub fn new(jwt_secret: &Secret, internal_key: Option<Secret>) -> Self {
        Self {
            tokens: Tokens::new(jwt_secret),
            // An empty key would be matched by an empty header.
            internal_key: internal_key.filter(|key| !key.is_empty()),
        }
    }

    /// Who a raw token stands for.
    pub fn token(&self, token: &str) -> Result<Identity, AuthError> {
        self.tokens.check(token)
    }

    /// Signs a token for a user, for `lucid token`.
    pub fn issue(&self, user: &UserId, ttl: Duration) -> Result<String, IssueError> {
        self.tokens.issue(user, ttl, false)
    }

    /// Signs a token for a user who may change the deployment, for `lucid token --admin`, for local
    /// mode, and for the command line beside a server.
    pub fn issue_admin(&self, user: &UserId, ttl: Duration) -> Result<String, IssueError> {
        self.tokens.issue(user, ttl, true)
    }
}
