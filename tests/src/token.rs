//! Tokens as an identity provider signs them, made without the host's code.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What the tests' hosts are given as `SUPABASE_JWT_SECRET`.
pub const JWT_SECRET: &str = "the-tests-secret-that-signs-all-their-tokens";

/// A good token for a user, with what Supabase puts into one.
pub fn token(user: &str) -> String {
    token_for(user, 3600)
}

/// The same, for so many seconds.
pub fn token_for(user: &str, seconds: u64) -> String {
    let expires = now() + seconds;
    claims_token(
        json!({"sub": user, "exp": expires, "aud": "authenticated", "role": "authenticated"}),
    )
}

/// A token with these claims; without `exp` one is added.
pub fn claims_token(mut claims: Value) -> String {
    if claims.get("exp").is_none() {
        claims["exp"] = json!(now() + 3600);
    }
    hs256_token(&claims, JWT_SECRET.as_bytes())
}

/// A token that was good an hour ago.
pub fn expired_token(user: &str) -> String {
    claims_token(json!({"sub": user, "exp": now() - 3600}))
}

/// A token that someone else signed.
pub fn foreign_token(user: &str) -> String {
    let claims = json!({"sub": user, "exp": now() + 3600});
    hs256_token(&claims, b"a-secret-that-the-host-has-never-heard-of")
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// A token with these claims and no other, for any secret.
pub fn hs256_token(claims: &Value, secret: &[u8]) -> String {
    hs256_token_with(&json!({"alg": "HS256", "typ": "JWT"}), claims, secret)
}

/// The same with any header.
pub fn hs256_token_with(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let signature = hmac(secret, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// HMAC-SHA256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    // A key that is longer than a block counts as its digest.
    let digest = Sha256::digest(key);
    let key = if key.len() > 64 { &digest[..] } else { key };
    let pad = |with: u8| -> Vec<u8> {
        let mut block = [with; 64];
        block
            .iter_mut()
            .zip(key)
            .for_each(|(byte, key)| *byte ^= key);
        block.to_vec()
    };
    let inner = Sha256::digest([pad(0x36), message.to_vec()].concat());
    Sha256::digest([pad(0x5c), inner.to_vec()].concat()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_rfc_4231() {
        let code = |key: &[u8], message: &[u8]| hex::encode(hmac(key, message));
        assert_eq!(
            code(b"Jefe", b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            code(
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First"
            ),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }
}
