//! Encryption of git tokens in their database rows, in the format that frontends read and write as
//! well.
//!
//! # Invariants
//!
//! - The format is that of the wire contract: AES-256-CBC with PKCS#7 under the SHA-256 of
//!   ENCRYPTION_KEY's text, with a fresh random IV, both in lower-case hex.
//! - The format is not authenticated, and rows of other applications have no code of
//!   `account_mac`. A plaintext that is not a token therefore counts as a failed decryption and is
//!   sent to nobody.
//! - Plaintext and key are wiped.

use aes::Aes256;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use hmac::Mac;
use rand::Rng;
use sha2::{Digest, Sha256};

use super::account_mac::keyed;
use lucid_types::secret::{Secret, Zeroizing};

/// The size of an AES block, and of an IV.
const BLOCK: usize = 16;
/// The maximum length of a token in bytes. No provider's token comes near it.
const LONGEST: usize = 4_096;

/// The token in a row cannot be decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the saved token cannot be opened: ENCRYPTION_KEY is not the one it was saved with, or its row was changed"
)]
pub struct DecryptionError;

/// An encrypted token as stored in its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptedToken {
    /// `access_token_encrypted`, in lower-case hex.
    pub token: String,
    /// `iv`, in lower-case hex.
    pub iv: String,
}

/// Encrypts and decrypts git tokens.
#[derive(Clone)]
pub struct TokenCipher {
    key: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for TokenCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher([secret])")
    }
}

impl TokenCipher {
    /// Creates a cipher from the text of ENCRYPTION_KEY.
    pub fn new(key: &Secret) -> Self {
        let key = Sha256::digest(key.expose().as_bytes()).into();
        Self {
            key: Zeroizing::new(key),
        }
    }

    /// Derives a key for another purpose.
    pub(super) fn derive_key(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut state = keyed(&self.key);
        state.update(purpose);
        Zeroizing::new(state.finalize().into_bytes().into())
    }

    /// Encrypts a token under a fresh IV.
    pub fn encrypt(&self, token: &Secret) -> EncryptedToken {
        let mut iv = [0; BLOCK];
        rand::rng().fill(&mut iv);
        let cipher = cbc::Encryptor::<Aes256>::new((&*self.key).into(), (&iv).into());
        let sealed = cipher.encrypt_padded_vec_mut::<Pkcs7>(token.expose().as_bytes());
        EncryptedToken {
            token: hex::encode(sealed),
            iv: hex::encode(iv),
        }
    }

    /// Decrypts a row's token.
    pub fn decrypt(&self, sealed: &EncryptedToken) -> Result<Secret, DecryptionError> {
        if sealed.token.len() > 2 * (LONGEST + BLOCK) {
            return Err(DecryptionError);
        }
        let mut iv = [0; BLOCK];
        hex::decode_to_slice(&sealed.iv, &mut iv).map_err(|_| DecryptionError)?;
        let body = hex::decode(&sealed.token).map_err(|_| DecryptionError)?;
        let cipher = cbc::Decryptor::<Aes256>::new((&*self.key).into(), (&iv).into());
        let plain = cipher
            .decrypt_padded_vec_mut::<Pkcs7>(&body)
            .map(Zeroizing::new)
            .map_err(|_| DecryptionError)?;
        // Another key yields noise, and one time in 256 its end looks like padding.
        if !is_token(&plain) {
            return Err(DecryptionError);
        }
        let text = std::str::from_utf8(&plain).map_err(|_| DecryptionError)?;
        Ok(Secret::new(text))
    }
}

/// Whether a text may be a token: something that a header can hold.
pub(crate) fn is_token(text: &[u8]) -> bool {
    (1..=LONGEST).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    /// Written by `node_rows.js` in the same folder.
    const NODE: &str = include_str!("node_rows.json");

    #[derive(Deserialize)]
    struct Row {
        key: String,
        token: String,
        iv: String,
        access_token_encrypted: String,
    }

    fn node() -> Vec<(TokenCipher, Row)> {
        let rows: Vec<Row> = serde_json::from_str(NODE).unwrap();
        assert!(rows.len() > 3, "there are no rows to try");
        let with_key = |row: Row| (TokenCipher::new(&Secret::new(row.key.clone())), row);
        rows.into_iter().map(with_key).collect()
    }

    fn sealed(row: &Row) -> EncryptedToken {
        EncryptedToken {
            token: row.access_token_encrypted.clone(),
            iv: row.iv.clone(),
        }
    }

    #[test]
    fn a_row_that_node_wrote_opens_here() {
        for (cipher, row) in node() {
            assert_eq!(cipher.decrypt(&sealed(&row)).unwrap().expose(), row.token);
            let upper = EncryptedToken {
                token: row.access_token_encrypted.to_uppercase(),
                iv: row.iv.to_uppercase(),
            };
            assert_eq!(cipher.decrypt(&upper).unwrap().expose(), row.token);
        }
    }

    #[test]
    fn under_nodes_iv_the_same_bytes_are_written_as_node_wrote() {
        for (cipher, row) in node() {
            let iv: [u8; BLOCK] = hex::decode(&row.iv).unwrap().try_into().unwrap();
            let written = cbc::Encryptor::<Aes256>::new((&*cipher.key).into(), (&iv).into())
                .encrypt_padded_vec_mut::<Pkcs7>(row.token.as_bytes());
            assert_eq!(hex::encode(&written), row.access_token_encrypted);
        }
    }

    #[test]
    fn another_key_never_gives_a_token() {
        let (_, row) = node().into_iter().next().unwrap();
        let sealed = sealed(&row);
        for n in 0..2_000 {
            let other = TokenCipher::new(&Secret::new(format!("another key {n}")));
            assert_eq!(
                other.decrypt(&sealed).unwrap_err(),
                DecryptionError,
                "key {n}"
            );
        }
    }

    #[test]
    fn no_two_rows_of_a_token_are_alike_and_none_holds_it() {
        let cipher = TokenCipher::new(&Secret::new("k"));
        let token = Secret::new("ghp_0123456789");
        let (one, two) = (cipher.encrypt(&token), cipher.encrypt(&token));
        assert_ne!(one, two);
        assert_ne!(one.iv, two.iv);
        assert!(!one.token.contains(&hex::encode("ghp_")));
        assert_eq!(format!("{cipher:?}"), "Cipher([secret])");
    }

    #[test]
    fn rows_that_are_none_do_not_open() {
        let cipher = TokenCipher::new(&Secret::new("k"));
        let good = cipher.encrypt(&Secret::new("ghp_0123456789"));
        for (token, iv) in [
            ("", good.iv.as_str()),
            ("zz", &good.iv),
            ("abc", &good.iv),
            ("00", &good.iv),
            (&good.token, ""),
            (&good.token, "00"),
            (&good.token, "ü0000000000000000000000000000000"),
            (&"00".repeat(1 << 20), &good.iv),
        ] {
            let (token, iv) = (token.to_owned(), iv.to_owned());
            assert!(cipher.decrypt(&EncryptedToken { token, iv }).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_to_the_same(key in ".{0,40}", token in "[!-~]{1,200}") {
            let cipher = TokenCipher::new(&Secret::new(key));
            let token = Secret::new(token);
            let opened = cipher.decrypt(&cipher.encrypt(&token)).unwrap();
            prop_assert_eq!(opened.expose(), token.expose());
        }

        #[test]
        fn any_row_at_all_is_read_without_a_panic(token in "\\PC{0,80}", iv in "\\PC{0,40}") {
            let _ = TokenCipher::new(&Secret::new("k")).decrypt(&EncryptedToken { token, iv });
        }
    }
}
