//! Reads the identity of a request's sender from its headers.
//!
//! # Invariants
//!
//! - A caller who sends a Bearer token is accepted or refused on that token alone.
//! - Anything that leaves the sender's identity ambiguous is refused.
//! - A request counts as one of its user's before any of its body is read.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};

use crate::api::problem::Problem;
use crate::auth::{Admin, AuthError, Authenticator};
use crate::listener::{ConnectionSlot, TooManyInUse};
use lucid_types::identity::Identity;
use lucid_types::sentence::with_advice;
use lucid_types::user::UserId;

const USER_HEADER: HeaderName = HeaderName::from_static("x-user-id");
const KEY_HEADER: HeaderName = HeaderName::from_static("x-internal-key");

impl Authenticator {
    /// Authenticates a request by its headers.
    pub async fn headers(&self, headers: &HeaderMap) -> Result<Identity, AuthError> {
        match bearer(headers) {
            Bearer::Token(token) => return self.token(token).await,
            Bearer::Unreadable => return Err(AuthError::InvalidToken),
            Bearer::Absent => {}
        }
        let Some(user) = headers.get(USER_HEADER) else {
            return Err(AuthError::Required);
        };
        self.internal(headers)?;
        let user = std::str::from_utf8(user.as_bytes())
            .ok()
            .and_then(UserId::checked)
            .ok_or(AuthError::Required)?;
        Ok(Identity {
            user,
            token: None,
            project: None,
            session: None,
            admin: true,
        })
    }

    /// Authenticates another server, or the operator, by the internal key alone.
    pub(super) fn internal(&self, headers: &HeaderMap) -> Result<(), AuthError> {
        let (Some(expected), Some(key)) = (&self.internal_key, headers.get(KEY_HEADER)) else {
            return Err(AuthError::Required);
        };
        match expected.matches(key.as_bytes()) {
            true => Ok(()),
            false => Err(AuthError::InvalidInternalKey),
        }
    }
}

/// The caller of a request. A handler that takes one runs only for authenticated callers.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated(pub(crate) Identity);

impl<S> FromRequestParts<S> for Authenticated
where
    S: Send + Sync,
    Arc<Authenticator>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let auth = Arc::<Authenticator>::from_ref(state);
        Ok(Self(identity(&auth, parts).await?))
    }
}

/// 403 for a caller who is authenticated but no administrator.
impl<S> FromRequestParts<S> for Admin
where
    S: Send + Sync,
    Arc<Authenticator>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let auth = Arc::<Authenticator>::from_ref(state);
        let who = identity(&auth, parts).await?;
        if who.admin {
            return Ok(Self(who.user));
        }
        Err(Problem::forbidden(
            "Only an administrator of this deployment may do that.",
        ))
    }
}

/// Authenticates a request. Its connection is from then on a known user's, who may have so many
/// requests in progress.
async fn identity(auth: &Authenticator, parts: &Parts) -> Result<Identity, Problem> {
    let who = auth.headers(&parts.headers).await?;
    if let Some(connection) = parts.extensions.get::<ConnectionSlot>() {
        connection.authenticate();
        connection.count_use(&who.user)?;
    }
    Ok(who)
}

impl From<TooManyInUse> for Problem {
    fn from(error: TooManyInUse) -> Self {
        Self::too_many(with_advice(error, Some("Try again when one has ended.")))
    }
}

enum Bearer<'a> {
    Absent,
    Token(&'a str),
    Unreadable,
}

/// Finds the Bearer token. Another scheme does not count. A second `Authorization` header makes it
/// ambiguous which one was meant, so it is refused.
fn bearer(headers: &HeaderMap) -> Bearer<'_> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Bearer::Absent;
    };
    if values.next().is_some() {
        return Bearer::Unreadable;
    }
    let bytes = value.as_bytes();
    let (scheme, rest) = match bytes.iter().position(|byte| *byte == b' ') {
        Some(at) => bytes.split_at(at),
        None => (bytes, &[][..]),
    };
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Bearer::Absent;
    }
    std::str::from_utf8(rest).map_or(Bearer::Unreadable, |token| Bearer::Token(token.trim()))
}
