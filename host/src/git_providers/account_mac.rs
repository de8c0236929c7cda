//! The message authentication code of a git account's row, by which the host knows that it wrote
//! the row itself.
//!
//! Other applications read and write the same rows, and under row-level security a user's own token
//! is enough to change them. The encrypted token cannot be read that way, but the address beside it
//! could be exchanged, and the host would decrypt the token and send it there. Only a row with the
//! right code may therefore name a server.
//!
//! # Invariants
//!
//! - The code covers everything that decides who gets which token: user, provider, server,
//!   encrypted token and IV. Each field is preceded by its length, so no two rows have the same
//!   input.
//! - It is compared in constant time.
//! - Its key is derived from the key that encrypts the tokens, and never equal to it.

use hmac::{Hmac, KeyInit, Mac};
use lucid_types::secret::Zeroizing;
use sha2::Sha256;

use super::token_cipher::TokenCipher;

/// Names the purpose of the derived key, and the form of the input.
const PURPOSE: &[u8] = b"lucid: git account rows, 1";

/// The fields of a row that its code covers.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowFields<'a> {
    /// The user's id.
    pub(super) user: &'a str,
    /// The provider, in capital letters.
    pub(super) provider: &'a str,
    /// The address of a self-hosted server, as in the row. Empty for the deployment's own.
    pub(super) server: &'a str,
    /// The encrypted token, in hex.
    pub(super) token: &'a str,
    /// The IV, in hex.
    pub(super) iv: &'a str,
}

/// Makes and verifies the codes of rows.
#[derive(Clone)]
pub(super) struct AccountMac {
    key: Zeroizing<[u8; 32]>,
}

impl AccountMac {
    /// Creates one with a key derived from that of the tokens.
    pub(super) fn new(cipher: &TokenCipher) -> Self {
        Self {
            key: cipher.derive_key(PURPOSE),
        }
    }

    /// The code of a row, in lower-case hex.
    pub(super) fn of(&self, row: RowFields<'_>) -> String {
        hex::encode(self.state(row).finalize().into_bytes())
    }

    /// Whether a row has this code.
    pub(super) fn verify(&self, row: RowFields<'_>, code: &str) -> bool {
        hex::decode(code).is_ok_and(|code| self.state(row).verify_slice(&code).is_ok())
    }

    fn state(&self, row: RowFields<'_>) -> Hmac<Sha256> {
        let mut state = keyed(&self.key);
        for field in [row.user, row.provider, row.server, row.token, row.iv] {
            let length = u64::try_from(field.len()).unwrap_or(u64::MAX);
            state.update(&length.to_be_bytes());
            state.update(field.as_bytes());
        }
        state
    }
}

/// HMAC-SHA256 under a key of 32 bytes, which is shorter than a block and so used as it is.
pub(super) fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = Zeroizing::new([0; 64]);
    block[..key.len()].copy_from_slice(key);
    Hmac::new((&*block).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use lucid_types::secret::Secret;

    fn mac(key: &str) -> AccountMac {
        AccountMac::new(&TokenCipher::new(&Secret::new(key)))
    }

    const ROW: RowFields<'_> = RowFields {
        user: "ada",
        provider: "GITLAB",
        server: "https://git.example.com",
        token: "aabb",
        iv: "ccdd",
    };

    #[test]
    fn a_code_is_of_one_row_and_one_key() {
        let (ours, code) = (mac("k"), mac("k").of(ROW));
        assert!(ours.verify(ROW, &code));
        assert!(ours.verify(ROW, &code.to_uppercase()));
        assert!(!mac("another").verify(ROW, &code));
        for other in [
            RowFields { user: "bob", ..ROW },
            RowFields {
                provider: "GITHUB",
                ..ROW
            },
            RowFields { server: "", ..ROW },
            RowFields {
                server: "https://git.example.com.evil.example",
                ..ROW
            },
            RowFields {
                token: "aabc",
                ..ROW
            },
            RowFields { iv: "ccde", ..ROW },
            // The same letters, divided in another way.
            RowFields {
                user: "adaG",
                provider: "ITLAB",
                ..ROW
            },
            RowFields {
                token: "aabbcc",
                iv: "dd",
                ..ROW
            },
        ] {
            assert!(!ours.verify(other, &code), "{other:?}");
        }
        for code in ["", "00", &code[2..], &format!("{code}00"), "zz", "ü"] {
            assert!(!ours.verify(ROW, code), "{code}");
        }
    }

    #[test]
    fn the_code_is_hmac_under_a_derived_key_as_another_implementation_computes_it() {
        // hmac.new(hmac.new(sha256(b"k").digest(), PURPOSE, sha256).digest(), fields, sha256)
        assert_eq!(mac("k").of(ROW), EXPECTED);
    }

    const EXPECTED: &str = "15c7ed040b8c624d1b60cd77cef1f8101a34f3c1f872c9d0086969171a4f55c9";

    proptest! {
        #[test]
        fn any_code_at_all_is_read_without_a_panic(code in "\\PC{0,80}") {
            prop_assert!(!mac("k").verify(ROW, &code));
        }
    }
}
