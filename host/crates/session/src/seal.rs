//! Encryption of a session's own secrets (its API key and git token) in the log.
//!
//! A sealed secret is one version byte, 24 bytes of nonce, the ciphertext, and 16 bytes of tag.
//!
//! # Invariants
//! - Secrets are sealed with XChaCha20-Poly1305 under a key that is used for nothing else, with a
//!   fresh random nonce each time.
//! - Each is bound to a context: a secret sealed for one session cannot be moved to another
//!   session's row and opened there.
//! - Whatever does not open exactly is refused.
//! - Plaintext buffers are wiped.

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use rand::Rng;
use sha2::{Digest, Sha256};

use lucid_types::secret::{Secret, Zeroize, Zeroizing};

/// Separates this key from every other use of the same text.
const DOMAIN: &[u8] = b"lucid session secrets v1";
const VERSION: u8 = 1;
const NONCE: usize = 24;
const TAG: usize = 16;

/// Why a sealed secret cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It is too short, or has a format that this version does not know.
    #[error("a sealed secret is cut short or has a form that this version does not know")]
    Form,
    /// Another key, another context, or altered bytes: these cannot be distinguished.
    #[error(
        "a sealed secret does not open: ENCRYPTION_KEY (or the file seal-secret) is not the one it was sealed with, or its bytes were changed"
    )]
    Refused,
    /// It opened, but the content is not text.
    #[error("a sealed secret opened to something that is not text")]
    NotText,
}

/// Seals and opens short secrets.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer([secret])")
    }
}

impl Sealer {
    /// Derives the key from a text of any length.
    pub fn new(key: &Secret) -> Self {
        let mut digest: [u8; 32] = Sha256::new()
            .chain_update(DOMAIN)
            .chain_update(key.expose().as_bytes())
            .finalize()
            .into();
        let cipher = XChaCha20Poly1305::new(Key::from_slice(&digest));
        digest.zeroize();
        Self { cipher }
    }

    /// Seals bytes for one context, for example `session/<id>/git-token`.
    pub fn seal(&self, plain: &[u8], context: &str) -> Vec<u8> {
        let mut nonce = [0u8; NONCE];
        rand::rng().fill(&mut nonce);
        let mut body = Zeroizing::new(plain.to_vec());
        let Ok(tag) = self.cipher.encrypt_in_place_detached(
            XNonce::from_slice(&nonce),
            context.as_bytes(),
            &mut body,
        ) else {
            // Only possible for more than 256 GiB at once, which no secret has. Nothing is stored
            // then, and `open` refuses an empty value.
            return Vec::new();
        };
        let mut sealed = Vec::with_capacity(1 + NONCE + body.len() + TAG);
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&body);
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// Opens what [`Sealer::seal`] returned for the same context.
    pub fn open(&self, sealed: &[u8], context: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (&version, rest) = sealed.split_first().ok_or(SealError::Form)?;
        if version != VERSION || rest.len() < NONCE + TAG {
            return Err(SealError::Form);
        }
        let (nonce, rest) = rest.split_at(NONCE);
        let (body, tag) = rest.split_at(rest.len() - TAG);
        let mut plain = Zeroizing::new(body.to_vec());
        self.cipher
            .decrypt_in_place_detached(
                XNonce::from_slice(nonce),
                context.as_bytes(),
                &mut plain,
                Tag::from_slice(tag),
            )
            .map_err(|_| SealError::Refused)?;
        Ok(plain)
    }

    /// Opens a text that was sealed from a [`Secret`].
    pub fn open_secret(&self, sealed: &[u8], context: &str) -> Result<Secret, SealError> {
        let plain = self.open(sealed, context)?;
        std::str::from_utf8(&plain)
            .map(Secret::new)
            .map_err(|_| SealError::NotText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(key: &str) -> Sealer {
        Sealer::new(&Secret::new(key))
    }

    #[test]
    fn what_is_sealed_opens_to_the_same_bytes() {
        for plain in [&b""[..], b"ghp_token", &[0, 255, 7], &[9; 5000]] {
            let sealed = sealer("k").seal(plain, "session/1/git-token");
            assert_eq!(
                &**sealer("k").open(&sealed, "session/1/git-token").unwrap(),
                plain
            );
        }
        let sealed = sealer("k").seal("ghp_tökén".as_bytes(), "c");
        assert_eq!(
            sealer("k").open_secret(&sealed, "c").unwrap().expose(),
            "ghp_tökén"
        );
    }

    #[test]
    fn the_plain_text_is_not_in_what_is_sealed_and_no_two_seals_are_alike() {
        let a = sealer("k").seal(b"ghp_token", "c");
        let b = sealer("k").seal(b"ghp_token", "c");
        assert_ne!(a, b);
        assert!(!a.windows(9).any(|part| part == b"ghp_token"));
    }

    #[test]
    fn another_key_or_another_context_is_refused() {
        let sealed = sealer("k").seal(b"ghp_token", "session/1");
        assert_eq!(
            sealer("l").open(&sealed, "session/1").unwrap_err(),
            SealError::Refused
        );
        assert_eq!(
            sealer("k").open(&sealed, "session/2").unwrap_err(),
            SealError::Refused
        );
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let sealed = sealer("k").seal(b"ghp_token", "c");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(sealer("k").open(&changed, "c").is_err(), "byte {at}");
            assert!(sealer("k").open(&sealed[..at], "c").is_err(), "cut at {at}");
        }
        let mut longer = sealed;
        longer.push(0);
        assert_eq!(
            sealer("k").open(&longer, "c").unwrap_err(),
            SealError::Refused
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_not_given_as_a_secret() {
        let sealed = sealer("k").seal(&[0xff, 0xfe], "c");
        assert_eq!(
            sealer("k").open_secret(&sealed, "c").unwrap_err(),
            SealError::NotText
        );
    }

    #[test]
    fn a_sealer_prints_no_key() {
        assert_eq!(format!("{:?}", sealer("k")), "Sealer([secret])");
    }
}
