//! Tokens: verification, the claims that are read, and signing of the host's own.
//!
//! # Invariants
//!
//! - A token is verified with the one algorithm its key is for, whatever its header says. Only the
//!   names of the algorithm and of the key are read from the header: a key or a URL that a token
//!   carries is ignored.
//! - `exp` must be present and lie in the future, with no leeway. `nbf` may lie a minute ahead,
//!   since the issuer's clock may be fast.
//! - `aud` and `iss` are checked if the deployment says what they must be, and must then be
//!   present. A key may sign tokens for other applications too, which are none for this one.
//! - A claim that nothing here reads cannot cause a refusal.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::crypto::rust_crypto;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AuthError, Identity};
use lucid_types::secret::Secret;
use lucid_types::user::UserId;

/// The maximum length of a token in bytes. A longer one is refused before it is decoded.
pub(super) const LONGEST_TOKEN: usize = 16 * 1024;
/// The maximum length of a key id in bytes.
const LONGEST_KEY_ID: usize = 256;
/// How far `nbf` may lie in the future, in seconds.
const LEEWAY: u64 = 60;

/// A token could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// There is no key to sign with.
    #[error(
        "this deployment's tokens are signed by its identity provider, and without SUPABASE_JWT_SECRET this host can sign none"
    )]
    NoSecret,
    /// The user id is invalid.
    #[error("a user's id must be 1 to 255 bytes of text without control characters")]
    User,
    /// Signing failed.
    #[error("the token could not be signed: {0}")]
    Signature(#[from] jsonwebtoken::errors::Error),
}

/// The parts of a token's header that select the key.
pub(super) struct TokenHeader {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
}

/// Parses a token's header. Nothing in it is verified.
pub(super) fn head(token: &str) -> Result<TokenHeader, AuthError> {
    if token.len() > LONGEST_TOKEN {
        return Err(AuthError::InvalidToken);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::InvalidToken)?;
    // RFC 7515: extensions that a token declares critical must be understood, and none are here.
    if header.crit.is_some() {
        return Err(AuthError::InvalidToken);
    }
    if header
        .kid
        .as_ref()
        .is_some_and(|id| id.len() > LONGEST_KEY_ID)
    {
        return Err(AuthError::InvalidToken);
    }
    Ok(TokenHeader {
        algorithm: header.alg,
        key_id: header.kid,
    })
}

/// What a token must say of whom it is for and from. Nothing by default.
#[derive(Debug, Clone, Default)]
pub(super) struct ExpectedClaims {
    /// The audiences, of which `aud` must name one. None for any.
    audiences: Vec<String>,
    /// The value of `iss`.
    issuer: Option<String>,
}

impl ExpectedClaims {
    pub(super) fn new(audiences: &[String], issuer: Option<&str>) -> Self {
        Self {
            audiences: audiences.to_vec(),
            issuer: issuer.map(str::to_owned),
        }
    }

    fn require(&self, validation: &mut Validation) {
        let mut required = vec!["exp"];
        validation.validate_aud = !self.audiences.is_empty();
        if validation.validate_aud {
            validation.set_audience(&self.audiences);
            required.push("aud");
        }
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        // A claim that is absent would pass otherwise.
        validation.set_required_spec_claims(&required);
    }
}

/// Verifies a token with this key and algorithm, and returns its identity, and when it expires if that is a
/// whole number, in seconds since 1970.
pub(super) fn check(
    token: &str,
    algorithm: Algorithm,
    key: &DecodingKey,
    expected: &ExpectedClaims,
) -> Result<(Identity, Option<u64>), AuthError> {
    let mut validation = Validation::new(algorithm);
    // jsonwebtoken has one leeway for both times. The second setting cancels it for `exp`.
    validation.leeway = LEEWAY;
    validation.reject_tokens_expiring_in_less_than = LEEWAY;
    validation.validate_exp = true;
    validation.validate_nbf = true;
    expected.require(&mut validation);
    let data = jsonwebtoken::decode::<Claims>(token, key, &validation)
        .map_err(|_| AuthError::InvalidToken)?;
    let claims = data.claims;
    let expires = claims.exp.as_u64();
    let admin = claims.is_admin();
    let user = text(claims.sub)
        .or_else(|| text(claims.user_id))
        .ok_or(AuthError::MissingSubject)?;
    let who = Identity {
        user: UserId::checked(&user).ok_or(AuthError::InvalidToken)?,
        token: Some(Secret::new(token)),
        project: text(claims.project_id),
        session: text(claims.session_id),
        admin,
    };
    Ok((who, expires))
}

/// Selects jsonwebtoken's crypto provider explicitly: with two compiled in, it would panic at first
/// use.
pub(super) fn prepare() {
    // An error means that one is installed already, which is just as good.
    let _ = rust_crypto::DEFAULT_PROVIDER.install_default();
}

/// Verifies and signs tokens with one shared secret.
pub(super) struct SharedSecret {
    pub(super) decoding: DecodingKey,
    encoding: EncodingKey,
}

impl SharedSecret {
    pub(super) const ALGORITHM: Algorithm = Algorithm::HS256;

    pub(super) fn new(secret: &Secret) -> Self {
        Self {
            decoding: DecodingKey::from_secret(secret.expose().as_bytes()),
            encoding: EncodingKey::from_secret(secret.expose().as_bytes()),
        }
    }

    /// Signs a token for a user.
    pub(super) fn issue(
        &self,
        user: &UserId,
        ttl: Duration,
        lucid_admin: bool,
        expected: &ExpectedClaims,
    ) -> Result<String, IssueError> {
        let iat = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        // A token that this host itself would refuse is not issued.
        let user = UserId::checked(user.as_str()).ok_or(IssueError::User)?;
        let claims = IssuedClaims {
            sub: user.as_str(),
            iat,
            exp: iat.saturating_add(ttl.as_secs()),
            aud: expected.audiences.first().map(String::as_str),
            iss: expected.issuer.as_deref(),
            lucid_admin,
        };
        Ok(jsonwebtoken::encode(
            &Header::new(Self::ALGORITHM),
            &claims,
            &self.encoding,
        )?)
    }
}

/// The claims that are read. Everything else in a token is ignored. A claim of another type than
/// text counts as absent, so these accept any value.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    exp: Value,
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
    /// Claims set by the identity provider's own servers. Users can set the neighbouring
    /// `user_metadata` themselves, so nothing reads that.
    #[serde(default)]
    app_metadata: Value,
}

impl Claims {
    /// `role: admin` is not enough: applications give it to their own administrators, who must not
    /// control what runs on this host.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lucid_admin: bool,
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}
