//! Authentication of callers: the two schemes of the wire contract, and the tokens that this host
//! issues itself.
//!
//! # Invariants
//!
//! - A token is verified by HS256 with the shared secret, or by RS256 or ES256 with one of the
//!   identity provider's public keys, each only if it is configured. No key is ever used for an
//!   algorithm other than its own.
//! - `exp` must be present and lie in the future. `aud` and `iss` must be what the deployment
//!   expects, if it says so.
//! - A caller who sends a Bearer token is accepted or refused on that token alone.
//! - Server-to-server authentication (`X-User-ID` with `X-Internal-Key`) is disabled while no key
//!   is configured.
//! - Nothing a caller sends can make this code panic, and a refusal says no more than the
//!   contract's four sentences, or that the keys are unavailable.
//! - The part of a token that users can set themselves (`user_metadata`) grants no rights.

mod jwks;
mod keys;
#[cfg(test)]
mod tests;
mod tokens;
mod verified;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use tokio_util::task::AbortOnDropHandle;

pub use self::jwks::{Jwks, JwksError, JwksStatus};
pub use self::keys::KeySetError;
pub use self::tokens::IssueError;
use self::tokens::{ExpectedClaims, SharedSecret};
use self::verified::VerifiedTokens;
use lucid_types::identity::Identity;
use lucid_types::secret::Secret;
pub use lucid_types::user::UserId;

/// A caller who may change the deployment. A handler that takes one runs for nobody else.
#[derive(Debug, Clone)]
pub struct Admin(pub UserId);

/// The reason for refusing a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No credentials were sent, or only of a disabled scheme.
    #[error("authentication required")]
    Required,
    /// The token is malformed, expired, signed by someone else, or uses an unaccepted algorithm.
    #[error("invalid token")]
    InvalidToken,
    /// The token is valid, but names no user.
    #[error("token missing sub claim")]
    MissingSubject,
    /// The internal key that a server sent is wrong.
    #[error("invalid internal API key")]
    InvalidInternalKey,
    /// The identity provider's keys cannot be fetched, so the token cannot be verified. Not part of
    /// the contract: a token that may well be valid is not called invalid, since a client would
    /// throw it away.
    #[error("tokens cannot be checked at the moment")]
    NoKeys,
}

impl AuthError {
    /// What the caller reads. All but the last are the contract's, to the letter.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Required => "Authentication required",
            Self::InvalidToken => "Invalid token",
            Self::MissingSubject => "Token missing sub claim",
            Self::InvalidInternalKey => "Invalid internal API key",
            Self::NoKeys => "Tokens cannot be checked at the moment. Try again in a few seconds.",
        }
    }
}

/// A callback for authenticated callers.
type AuthCallback = Box<dyn Fn(&Identity) + Send + Sync>;

/// Authenticates callers.
pub struct Authenticator {
    shared: Option<SharedSecret>,
    jwks: Option<Arc<Jwks>>,
    expected: ExpectedClaims,
    verified: VerifiedTokens,
    pub(crate) internal_key: Option<Secret>,
    /// Called for everybody who presents a valid token.
    on_authenticated: Option<AuthCallback>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("jwks", &self.jwks)
            .field("internal_key", &self.internal_key)
            .finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Creates an authenticator from the secret that tokens are signed with, and the key for
    /// servers, each if there is one.
    pub fn new(jwt_secret: Option<&Secret>, internal_key: Option<Secret>) -> Self {
        tokens::prepare();
        Self {
            shared: jwt_secret.map(SharedSecret::new),
            jwks: None,
            expected: ExpectedClaims::default(),
            verified: VerifiedTokens::default(),
            // An empty key would match an empty header.
            internal_key: internal_key.filter(|key| !key.is_empty()),
            on_authenticated: None,
        }
    }

    /// Accepts only tokens for one of these audiences, if there are any, and from this issuer, if
    /// there is one. Tokens that are signed here say so themselves.
    #[must_use]
    pub fn expecting(self, audiences: &[String], issuer: Option<&str>) -> Self {
        Self {
            expected: ExpectedClaims::new(audiences, issuer),
            ..self
        }
    }

    /// Also accepts tokens that are signed with one of these keys.
    #[must_use]
    pub fn with_jwks(self, jwks: Arc<Jwks>) -> Self {
        Self {
            jwks: Some(jwks),
            ..self
        }
    }

    /// Fetches the identity provider's keys and keeps them fresh, for as long as the handle is
    /// kept. For the one process that serves, once.
    pub fn follow(&self) -> Option<AbortOnDropHandle<()>> {
        let jwks = self.jwks.clone()?;
        let following = tokio::spawn(async move { jwks.follow().await });
        Some(AbortOnDropHandle::new(following))
    }

    /// Calls `on_authenticated` for everybody who presents a valid token.
    #[must_use]
    pub fn on_authenticated(mut self, seen: impl Fn(&Identity) + Send + Sync + 'static) -> Self {
        self.on_authenticated = Some(Box::new(seen));
        self
    }

    /// The identity in a raw token. Waits if its key is being fetched.
    pub async fn token(&self, token: &str) -> Result<Identity, AuthError> {
        let current = self.jwks.as_ref().and_then(|jwks| jwks.current());
        let who = match self.verified.find(token, &current) {
            Some(who) => who,
            None => self.verify(token).await?,
        };
        if let Some(seen) = &self.on_authenticated {
            seen(&who);
        }
        Ok(who)
    }

    /// Verifies a token, and remembers that.
    async fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        let head = tokens::head(token)?;
        let (key, keys) = match (head.algorithm, &self.shared, &self.jwks) {
            (SharedSecret::ALGORITHM, Some(shared), _) => (shared.decoding.clone(), None),
            (algorithm @ (Algorithm::RS256 | Algorithm::ES256), _, Some(jwks)) => {
                let (key, keys) = jwks.find(algorithm, head.key_id.as_deref()).await?;
                (key, Some(keys))
            }
            _ => return Err(AuthError::InvalidToken),
        };
        let (who, expires) = tokens::check(token, head.algorithm, &key, &self.expected)?;
        if let Some(expires) = expires {
            self.verified.add(token, &who, expires, keys);
        }
        Ok(who)
    }

    /// Signs a token for a user, for `lucid token`.
    pub fn issue(&self, user: &UserId, ttl: Duration) -> Result<String, IssueError> {
        self.shared()?.issue(user, ttl, false, &self.expected)
    }

    /// Signs a token for a user who may change the deployment, for `lucid token --admin`, for local
    /// mode, and for the command line beside a server.
    pub fn issue_admin(&self, user: &UserId, ttl: Duration) -> Result<String, IssueError> {
        self.shared()?.issue(user, ttl, true, &self.expected)
    }

    fn shared(&self) -> Result<&SharedSecret, IssueError> {
        self.shared.as_ref().ok_or(IssueError::NoSecret)
    }
}
