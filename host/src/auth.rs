//! Owns who a caller is: the two ways of authentication of the wire contract, and the tokens that
//! this host issues itself.
//!
//! What always holds: only HS256 is taken, whatever a token's header says, and `exp` must be there
//! and lie ahead (no leeway). A caller who names a Bearer token stands or falls with it. The way for servers
//! (`X-User-ID` with `X-Internal-Key`) is closed while no key is configured. Nothing a caller sends
//! can make this code panic, and a refusal says no more than the contract's four sentences.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use jsonwebtoken::crypto::rust_crypto;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::problem::Problem;
use crate::secret::Secret;

const USER_HEADER: HeaderName = HeaderName::from_static("x-user-id");
const KEY_HEADER: HeaderName = HeaderName::from_static("x-internal-key");

/// A longer token is not one of ours; it is refused before it is decoded.
const LONGEST_TOKEN: usize = 16 * 1024;
/// A user id ends up in rows, labels and logs.
const LONGEST_USER: usize = 255;

/// The id of a user, as the identity provider names them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub String);

impl UserId {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An id from outside: not empty, not long, and without control characters.
    fn checked(text: &str) -> Option<Self> {
        let fits =
            !text.is_empty() && text.len() <= LONGEST_USER && !text.chars().any(char::is_control);
        fits.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for UserId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<String> for UserId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for UserId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

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
}

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

/// A token could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("the token could not be signed: {0}")]
pub struct IssueError(#[from] jsonwebtoken::errors::Error);

/// Decides who a caller is.
pub struct Authenticator {
    decoding: DecodingKey,
    encoding: EncodingKey,
    validation: Validation,
    internal_key: Option<Secret>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("internal_key", &self.internal_key)
            .finish_non_exhaustive()
    }
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
}

#[derive(Serialize)]
struct IssuedClaims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
}

impl Authenticator {
    /// Takes the secret that tokens are signed with, and the key for servers where there is one.
    pub fn new(jwt_secret: &Secret, internal_key: Option<Secret>) -> Self {
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
            decoding: DecodingKey::from_secret(jwt_secret.expose().as_bytes()),
            encoding: EncodingKey::from_secret(jwt_secret.expose().as_bytes()),
            validation,
            // An empty key would be matched by an empty header.
            internal_key: internal_key.filter(|key| !key.is_empty()),
        }
    }

    /// Who sent a request with these headers.
    pub fn headers(&self, headers: &HeaderMap) -> Result<Identity, AuthError> {
        match bearer(headers) {
            Bearer::Token(token) => return self.token(token),
            Bearer::Unreadable => return Err(AuthError::InvalidToken),
            Bearer::Absent => {}
        }
        let (Some(expected), Some(user), Some(key)) = (
            &self.internal_key,
            headers.get(USER_HEADER),
            headers.get(KEY_HEADER),
        ) else {
            return Err(AuthError::Required);
        };
        if !expected.matches(key.as_bytes()) {
            return Err(AuthError::InvalidInternalKey);
        }
        let user = std::str::from_utf8(user.as_bytes())
            .ok()
            .and_then(UserId::checked)
            .ok_or(AuthError::Required)?;
        Ok(Identity {
            user,
            token: None,
            project: None,
            session: None,
        })
    }

    /// Who a raw token stands for.
    pub fn token(&self, token: &str) -> Result<Identity, AuthError> {
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
        let user = text(claims.sub)
            .or_else(|| text(claims.user_id))
            .ok_or(AuthError::MissingSubject)?;
        Ok(Identity {
            user: UserId::checked(&user).ok_or(AuthError::InvalidToken)?,
            token: Some(Secret::new(token)),
            project: text(claims.project_id),
            session: text(claims.session_id),
        })
    }

    /// Signs a token for a user, for `lucid token` and for local mode.
    pub fn issue(&self, user: &UserId, ttl: Duration) -> Result<String, IssueError> {
        let iat = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let claims = IssuedClaims {
            sub: user.as_str(),
            iat,
            exp: iat.saturating_add(ttl.as_secs()),
        };
        Ok(jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &self.encoding,
        )?)
    }
}

/// A handler that takes an [`Identity`] runs only for callers who have one.
impl<S> FromRequestParts<S> for Identity
where
    S: Send + Sync,
    Arc<Authenticator>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Ok(Arc::<Authenticator>::from_ref(state).headers(&parts.headers)?)
    }
}

enum Bearer<'a> {
    Absent,
    Token(&'a str),
    Unreadable,
}

/// Finds the Bearer token. Another scheme is no Bearer; a second `Authorization` header leaves open
/// which one was meant, so it is refused.
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

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use rand::Rng;
    use serde_json::json;

    const KEY: &str = "a-secret-that-is-long-enough-for-hs256";

    fn authenticator() -> Authenticator {
        Authenticator::new(&Secret::new(KEY), Some(Secret::new("internal")))
    }

    fn now() -> u64 {
        jsonwebtoken::get_current_timestamp()
    }

    fn sign(algorithm: Algorithm, key: &str, claims: &Value) -> String {
        let _ = rust_crypto::DEFAULT_PROVIDER.install_default();
        jsonwebtoken::encode(
            &Header::new(algorithm),
            claims,
            &EncodingKey::from_secret(key.as_bytes()),
        )
        .unwrap()
    }

    fn good(claims: Value) -> String {
        let mut claims = claims;
        claims["exp"] = json!(now() + 60);
        sign(Algorithm::HS256, KEY, &claims)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    fn refusal(result: Result<Identity, AuthError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_good_bearer_gives_the_user_the_raw_token_and_the_kept_claims() {
        let token =
            good(json!({"sub": "u1", "userId": "other", "projectId": "p1", "sessionId": "s1"}));
        for scheme in ["Bearer", "bearer", "BEARER", "Bearer "] {
            let who = authenticator()
                .headers(&headers(&[("authorization", &format!("{scheme} {token}"))]))
                .unwrap();
            assert_eq!(who.user.as_str(), "u1");
            assert_eq!(who.token.unwrap().expose(), token);
            assert_eq!(
                (who.project.as_deref(), who.session.as_deref()),
                (Some("p1"), Some("s1"))
            );
        }
    }

    #[test]
    fn the_claim_user_id_stands_in_for_sub() {
        for claims in [
            json!({"userId": "u2"}),
            json!({"sub": "", "userId": "u2"}),
            json!({"sub": null, "userId": "u2"}),
        ] {
            assert_eq!(
                authenticator().token(&good(claims)).unwrap().user.as_str(),
                "u2"
            );
        }
    }

    #[test]
    fn a_token_without_a_user_says_so() {
        for claims in [
            json!({}),
            json!({"sub": ""}),
            json!({"sub": 7}),
            json!({"sub": null, "userId": null}),
        ] {
            assert_eq!(
                refusal(authenticator().token(&good(claims))),
                "Token missing sub claim"
            );
        }
    }

    #[test]
    fn the_audience_is_not_checked() {
        for aud in [json!("authenticated"), json!(["a", "b"]), json!("")] {
            assert!(
                authenticator()
                    .token(&good(json!({"sub": "u1", "aud": aud})))
                    .is_ok()
            );
        }
    }

    #[test]
    fn a_token_that_expired_or_never_expires_is_refused() {
        for exp in [
            json!(now() - 2),
            json!(0),
            json!(-5),
            json!("later"),
            json!(null),
            json!([]),
            json!({}),
        ] {
            let token = sign(Algorithm::HS256, KEY, &json!({"sub": "u1", "exp": exp}));
            assert_eq!(
                refusal(authenticator().token(&token)),
                "Invalid token",
                "{exp}"
            );
        }
        let token = sign(Algorithm::HS256, KEY, &json!({"sub": "u1"}));
        assert_eq!(refusal(authenticator().token(&token)), "Invalid token");
    }

    #[test]
    fn a_token_that_is_not_valid_yet_is_refused() {
        assert_eq!(
            refusal(authenticator().token(&good(json!({"sub": "u1", "nbf": now() + 600})))),
            "Invalid token"
        );
    }

    #[test]
    fn no_algorithm_but_hs256_is_taken() {
        let claims = json!({"sub": "u1", "exp": now() + 60});
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            assert_eq!(
                refusal(authenticator().token(&sign(algorithm, KEY, &claims))),
                "Invalid token"
            );
        }
        let body = URL_SAFE_NO_PAD.encode(claims.to_string());
        let signature = good(json!({"sub": "u1"}))
            .rsplit('.')
            .next()
            .unwrap()
            .to_owned();
        for name in ["none", "None", "NONE", "", "RS256", "ES256", "hs256"] {
            let head = URL_SAFE_NO_PAD.encode(json!({"alg": name, "typ": "JWT"}).to_string());
            for signature in ["", &signature] {
                assert_eq!(
                    refusal(authenticator().token(&format!("{head}.{body}.{signature}"))),
                    "Invalid token"
                );
            }
        }
    }

    #[test]
    fn a_token_that_names_something_critical_is_refused() {
        let mut header = Header::new(Algorithm::HS256);
        header.crit = Some(vec!["b64".to_owned()]);
        let claims = json!({"sub": "u1", "exp": now() + 60});
        let token =
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(KEY.as_bytes()))
                .unwrap();
        assert_eq!(refusal(authenticator().token(&token)), "Invalid token");
    }

    #[test]
    fn another_signature_or_a_changed_body_is_refused() {
        let claims = json!({"sub": "u1", "exp": now() + 60});
        assert_eq!(
            refusal(authenticator().token(&sign(Algorithm::HS256, "another", &claims))),
            "Invalid token"
        );
        let token = good(json!({"sub": "u1"}));
        let parts: Vec<&str> = token.split('.').collect();
        let body = URL_SAFE_NO_PAD.encode(json!({"sub": "root", "exp": now() + 60}).to_string());
        assert_eq!(
            refusal(authenticator().token(&format!("{}.{body}.{}", parts[0], parts[2]))),
            "Invalid token"
        );
        for cut in 0..token.len() {
            assert_eq!(
                refusal(authenticator().token(&token[..cut])),
                "Invalid token"
            );
        }
    }

    #[test]
    fn a_user_id_that_is_no_name_is_refused() {
        for sub in ["a\nb".to_owned(), "x".repeat(256)] {
            assert_eq!(
                refusal(authenticator().token(&good(json!({"sub": sub})))),
                "Invalid token"
            );
        }
        assert_eq!(
            refusal(authenticator().token(&"x".repeat(LONGEST_TOKEN + 1))),
            "Invalid token"
        );
    }

    #[test]
    fn nothing_sent_means_authentication_is_required() {
        for pairs in [
            &[][..],
            &[("authorization", "Basic dXNlcjpwYXNz")],
            &[("x-user-id", "u1")],
            &[("x-internal-key", "internal")],
            &[("x-user-id", ""), ("x-internal-key", "internal")],
        ] {
            assert_eq!(
                refusal(authenticator().headers(&headers(pairs))),
                "Authentication required",
                "{pairs:?}"
            );
        }
    }

    #[test]
    fn a_server_with_the_key_acts_for_a_user_without_a_token() {
        let who = authenticator()
            .headers(&headers(&[
                ("x-user-id", "u1"),
                ("x-internal-key", "internal"),
            ]))
            .unwrap();
        assert_eq!(who.user.as_str(), "u1");
        assert!(who.token.is_none());
    }

    #[test]
    fn a_server_with_a_wrong_key_is_refused() {
        for key in ["", "Internal", "interna", "internal2"] {
            let pairs = [("x-user-id", "u1"), ("x-internal-key", key)];
            assert_eq!(
                refusal(authenticator().headers(&headers(&pairs))),
                "Invalid internal API key"
            );
        }
    }

    #[test]
    fn without_a_configured_key_the_way_for_servers_is_closed() {
        for internal in [None, Some(Secret::new(""))] {
            let closed = Authenticator::new(&Secret::new(KEY), internal);
            for key in ["", "internal"] {
                let pairs = [("x-user-id", "u1"), ("x-internal-key", key)];
                assert_eq!(
                    refusal(closed.headers(&headers(&pairs))),
                    "Authentication required"
                );
            }
        }
    }

    #[test]
    fn a_failing_bearer_does_not_fall_through_to_the_key() {
        for value in [
            "Bearer nonsense",
            "Bearer",
            "Bearer ",
            "bearer x.y.z",
            "Bearer \u{e9}",
        ] {
            let mut sent = headers(&[("x-user-id", "u1"), ("x-internal-key", "internal")]);
            sent.insert(
                "authorization",
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
            assert_eq!(
                refusal(authenticator().headers(&sent)),
                "Invalid token",
                "{value}"
            );
        }
        let mut sent = headers(&[("x-user-id", "u1"), ("x-internal-key", "internal")]);
        sent.insert(
            "authorization",
            HeaderValue::from_bytes(b"Bearer \xff\xfe").unwrap(),
        );
        assert_eq!(refusal(authenticator().headers(&sent)), "Invalid token");
    }

    #[test]
    fn two_authorization_headers_are_refused() {
        let mut sent = headers(&[("authorization", "Basic eA==")]);
        let token = format!("Bearer {}", good(json!({"sub": "u1"})));
        sent.append("authorization", HeaderValue::from_str(&token).unwrap());
        assert_eq!(refusal(authenticator().headers(&sent)), "Invalid token");
    }

    #[test]
    fn an_issued_token_is_taken_back() {
        let auth = authenticator();
        let token = auth
            .issue(&UserId::from("local"), Duration::from_secs(60))
            .unwrap();
        assert_eq!(auth.token(&token).unwrap().user.as_str(), "local");
        assert!(auth.issue(&UserId::from("local"), Duration::MAX).is_ok());
        let other = Authenticator::new(&Secret::new("another-secret"), None);
        assert_eq!(refusal(other.token(&token)), "Invalid token");
    }

    #[test]
    fn no_bytes_a_caller_sends_make_it_panic() {
        let auth = authenticator();
        let mut random = rand::rng();
        let valid = good(json!({"sub": "u1"}));
        for round in 0..4000 {
            let bytes: Vec<u8> = (0..random.random_range(0..200))
                .map(|_| random.random())
                .collect();
            let token = match round % 3 {
                0 => String::from_utf8_lossy(&bytes).into_owned(),
                1 => {
                    let head = valid.split('.').next().unwrap();
                    format!(
                        "{head}.{}.{}",
                        URL_SAFE_NO_PAD.encode(&bytes),
                        URL_SAFE_NO_PAD.encode(&bytes)
                    )
                }
                _ => {
                    let mut changed = valid.clone().into_bytes();
                    let at = random.random_range(0..changed.len());
                    changed[at] = random.random_range(32..127);
                    String::from_utf8(changed).unwrap()
                }
            };
            // A changed last character may still decode to the same signature.
            assert!(auth.token(&token).is_err() || round % 3 == 2);
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut sent = HeaderMap::new();
                sent.insert("authorization", value.clone());
                sent.insert("x-user-id", value.clone());
                sent.insert("x-internal-key", value);
                assert!(auth.headers(&sent).is_err());
            }
        }
    }

    #[test]
    fn printing_an_identity_or_an_authenticator_shows_no_secret() {
        let token = good(json!({"sub": "u1"}));
        let auth = authenticator();
        let shown = format!("{:?} {auth:?}", auth.token(&token).unwrap());
        assert!(
            !shown.contains(&token) && !shown.contains("internal\"") && !shown.contains(KEY),
            "{shown}"
        );
    }
}
