//! Owns tokens: what one must be to be taken, what is read of it, and signing our own.
//!
//! What always holds: only HS256 is taken, whatever a token's header says; `exp` must be there and lie
//! ahead, with no leeway; a claim that nothing here reads cannot refuse a token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::crypto::rust_crypto;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AuthError, Identity, UserId};
use crate::secret::Secret;

/// A longer token is not one of ours; it is refused before it is decoded.
pub(super) const LONGEST_TOKEN: usize = 16 * 1024;

/// A token could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("the token could not be signed: {0}")]
pub struct IssueError(#[from] jsonwebtoken::errors::Error);

/// Checks and signs tokens with one secret.
pub(super) struct Tokens {
    decoding: DecodingKey,
    encoding: EncodingKey,
    validation: Validation,
}

/// The claims that are read; everything else in a token is left alone. A claim of another type than
/// text counts as absent, so these are taken as any value.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: Value,
    #[serde(default, rename = "userId")]
    user_id: Value,
    #[serde(default, rename = "projectId")]
    project_id: Value,
    #[serde(default, rename = "sessionId")]
    session_id: Value,
    #[serde(default)]
    lucid_admin: Value,
    /// What the identity provider's own servers set. Beside it is `user_metadata`, which users set
    /// themselves; nothing reads that.
    #[serde(default)]
    app_metadata: Value,
}

impl Claims {
    /// `role: admin` is no such claim: applications give it to administrators of their own, who
    /// have no business with what runs on this host.
    fn is_admin(&self) -> bool {
        let of_app = self.app_metadata.get("lucid_admin");
        self.lucid_admin == Value::Bool(true) || of_app == Some(&Value::Bool(true))
    }
}

#[derive(Serialize)]
struct IssuedClaims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lucid_admin: bool,
}

impl Tokens {
    pub(super) fn new(secret: &Secret) -> Self {
        // Told explicitly: with two providers compiled in, jsonwebtoken would panic at first use.
        // An error means that one is installed already, which is as good.
        let _ = rust_crypto::DEFAULT_PROVIDER.install_default();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.validate_exp = true;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp"]);
        Self {
            decoding: DecodingKey::from_secret(secret.expose().as_bytes()),
            encoding: EncodingKey::from_secret(secret.expose().as_bytes()),
            validation,
        }
    }

    /// Who a raw token stands for.
    pub(super) fn check(&self, token: &str) -> Result<Identity, AuthError> {
        if token.len() > LONGEST_TOKEN {
            return Err(AuthError::InvalidToken);
        }
        let data = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation)
            .map_err(|_| AuthError::InvalidToken)?;
        // RFC 7515: what a token declares critical must be understood, and nothing is here.
        if data.header.crit.is_some() {
            return Err(AuthError::InvalidToken);
        }
        let claims = data.claims;
        let admin = claims.is_admin();
        let user = text(claims.sub)
            .or_else(|| text(claims.user_id))
            .ok_or(AuthError::MissingSubject)?;
        Ok(Identity {
            user: UserId::checked(&user).ok_or(AuthError::InvalidToken)?,
            token: Some(Secret::new(token)),
            project: text(claims.project_id),
            session: text(claims.session_id),
            admin,
        })
    }

    /// Signs a token for a user.
    pub(super) fn issue(
        &self,
        user: &UserId,
        ttl: Duration,
        lucid_admin: bool,
    ) -> Result<String, IssueError> {
        let iat = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let claims = IssuedClaims {
            sub: user.as_str(),
            iat,
            exp: iat.saturating_add(ttl.as_secs()),
            lucid_admin,
        };
        Ok(jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &self.encoding,
        )?)
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}
