//! Parsing of a JWKS document (RFC 7517), and the choice of the keys that tokens may be verified
//! with.
//!
//! # Invariants
//!
//! - A key is for one algorithm, RS256 or ES256, and is meant for signatures. An RSA key has 2048
//!   to 4096 bits and an exponent that is not small.
//! - A key that is not accepted does not affect the other keys of the document.
//! - If it is ambiguous which key is meant, none is used.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm};
use jsonwebtoken::jwk::{KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

/// The maximum number of keys. No identity provider has so many at once.
const MOST_KEYS: usize = 64;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// A document is not a key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// It is not an object with a list of keys.
    #[error("what is there is not a JSON object with a list `keys`")]
    NoKeySet,
    /// It has more keys than any provider uses.
    #[error("there are more than {MOST_KEYS} keys")]
    TooMany,
}

/// The usable keys of one document.
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// The reasons why other keys are not used.
    pub(super) unused: Vec<&'static str>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

/// The key that a token refers to.
pub(super) enum KeyLookup<'a> {
    /// This one.
    Key(&'a DecodingKey),
    /// None of these. A newer document may have it.
    Unknown,
    /// The token names no key, and there is more than one of its algorithm.
    Ambiguous,
}

impl KeySet {
    /// Parses a document.
    pub(super) fn read(document: &[u8]) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<Value>,
        }
        let document: Document =
            serde_json::from_slice(document).map_err(|_| KeySetError::NoKeySet)?;
        if document.keys.len() > MOST_KEYS {
            return Err(KeySetError::TooMany);
        }
        let (mut keys, mut unused) = (Vec::<Key>::new(), Vec::new());
        let mut doubtful = Vec::new();
        for key in document.keys {
            match usable(key) {
                Err(reason) => unused.push(reason),
                Ok(key) => {
                    let same = |known: &Key| {
                        known.id.is_some() && known.id == key.id && known.algorithm == key.algorithm
                    };
                    if let Some(known) = keys.iter().find(|known| same(known)) {
                        if !is_same(&known.decoding, &key.decoding) {
                            doubtful.push((key.id, key.algorithm));
                        }
                        continue;
                    }
                    keys.push(key);
                }
            }
        }
        for (id, algorithm) in doubtful {
            // Of three keys with one id, the first removed the others as well.
            keys.retain(|key| key.id != id || key.algorithm != algorithm);
            unused.push("different keys with the same `kid`");
        }
        Ok(Self { keys, unused })
    }

    /// The number of usable keys.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key for a token with this algorithm and key id. Without an id the only key of the
    /// algorithm is meant.
    pub(super) fn find(&self, algorithm: Algorithm, id: Option<&str>) -> KeyLookup<'_> {
        let fits =
            |key: &&Key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id);
        let mut found = self.keys.iter().filter(fits);
        match (found.next(), found.next()) {
            (None, _) => KeyLookup::Unknown,
            (Some(key), None) => KeyLookup::Key(&key.decoding),
            (Some(_), Some(_)) => KeyLookup::Ambiguous,
        }
    }
}

/// Converts one key of a document. The error says why it is not used.
fn usable(key: Value) -> Result<Key, &'static str> {
    if key.get("d").is_some() {
        return Err("a private key that everybody can read; its owner must replace it");
    }
    let key: Jwk = serde_json::from_value(key).map_err(|_| "a key that cannot be read")?;
    match &key.common.public_key_use {
        None | Some(PublicKeyUse::Signature) => {}
        Some(_) => return Err("a key that is not for signatures"),
    }
    let operations = &key.common.key_operations;
    if operations
        .as_ref()
        .is_some_and(|operations| !operations.contains(&KeyOperations::Verify))
    {
        return Err("a key that is not for signatures");
    }
    let (algorithm, name) = match &key.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKey(_) => {
            return Err("a shared secret that everybody can read; its owner must replace it");
        }
        _ => return Err("a key for another algorithm than RS256 and ES256"),
    };
    if key.common.key_algorithm.is_some_and(|said| said != name) {
        return Err("a key for another algorithm than RS256 and ES256");
    }
    let decoding = DecodingKey::from_jwk(&key).map_err(|_| "a key that cannot be read")?;
    match decoding.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => {
            if !RSA_BITS.contains(&bits(n)) {
                return Err("an RSA key of fewer than 2048 or more than 4096 bits");
            }
            // 65537 and above, as FIPS 186-5 requires.
            if !(17..=33).contains(&bits(e)) || e.last().is_none_or(|last| last % 2 == 0) {
                return Err("an RSA key with an exponent that is not used");
            }
        }
        DecodingKeyKind::SecretOrDer(point) => {
            // Both coordinates uncompressed, with a one-byte prefix.
            if point.len() != 65 {
                return Err("a key that cannot be read");
            }
        }
    }
    Ok(Key {
        id: key.common.key_id,
        algorithm,
        decoding,
    })
}

/// The bit length of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    match number[zeros..] {
        [] => 0,
        [first, ref rest @ ..] => rest.len() * 8 + (u8::BITS - first.leading_zeros()) as usize,
    }
}

fn is_same(one: &DecodingKey, other: &DecodingKey) -> bool {
    use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
    match (one.kind(), other.kind()) {
        (RsaModulusExponent { n, e }, RsaModulusExponent { n: n2, e: e2 }) => n == n2 && e == e2,
        (SecretOrDer(point), SecretOrDer(other)) => point == other,
        _ => false,
    }
}
