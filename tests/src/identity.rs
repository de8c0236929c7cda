//! An identity provider with keys of its own: it publishes a JWKS on this machine, and signs tokens with
//! ring, where the host checks them with another library.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// An RSA key of 2048 bits that is used nowhere else (PKCS#1, DER).
pub const RSA_2048: &[u8] = include_bytes!("keys/rsa-2048.der");
/// Its public half, as it is handed around (PEM).
pub const RSA_2048_PUBLIC: &str = include_str!("keys/rsa-2048.pub.pem");
/// An RSA key of 1024 bits, which is too short (PKCS#1, DER).
pub const RSA_1024: &[u8] = include_bytes!("keys/rsa-1024.der");

/// A key that signs tokens.
pub enum SigningKey {
    /// RS256.
    Rsa(Box<RsaKeyPair>),
    /// ES256.
    Ec(Box<EcdsaKeyPair>),
}

impl SigningKey {
    /// The RSA key of the tests.
    pub fn rsa() -> Self {
        Self::Rsa(Box::new(RsaKeyPair::from_der(RSA_2048).unwrap()))
    }

    /// A new key on P-256.
    pub fn ec() -> Self {
        let (curve, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let made = EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
        Self::Ec(Box::new(
            EcdsaKeyPair::from_pkcs8(curve, made.as_ref(), &random).unwrap(),
        ))
    }

    /// `RS256` or `ES256`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Ec(_) => "ES256",
        }
    }

    /// The public half, as an identity provider publishes it.
    pub fn jwk(&self, id: &str) -> Value {
        let own = match self {
            Self::Rsa(pair) => {
                let PublicKeyComponents { n, e } =
                    PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode(n), "e": URL_SAFE_NO_PAD.encode(e)})
            }
            Self::Ec(pair) => {
                // Uncompressed: a byte that says so, then both coordinates.
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
            }
        };
        let named =
            json!({"kid": id, "alg": self.algorithm(), "use": "sig", "key_ops": ["verify"]});
        merged(own, named)
    }

    /// A token with these claims, for an hour where they do not say otherwise, whose header names this
    /// key.
    pub fn token(&self, id: &str, claims: Value) -> String {
        self.token_with(
            &json!({"alg": self.algorithm(), "kid": id, "typ": "JWT"}),
            claims,
        )
    }

    /// The same with any header.
    pub fn token_with(&self, header: &Value, claims: Value) -> String {
        let claims = merged(json!({"exp": crate::token::now() + 3600}), claims);
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let (message, random) = (signed.as_bytes(), SystemRandom::new());
        let signature = match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .unwrap();
                signature
            }
            Self::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The members of both, those of the second where both have one.
fn merged(mut one: Value, mut other: Value) -> Value {
    one.as_object_mut()
        .unwrap()
        .append(other.as_object_mut().unwrap());
    one
}

/// A server that publishes keys.
pub struct IdentityProvider {
    address: String,
    state: Arc<Mutex<Published>>,
    serving: JoinHandle<()>,
}

struct Published {
    status: StatusCode,
    document: String,
    asked: usize,
}

/// Where a Supabase project has its keys.
const PATH: &str = "/auth/v1/.well-known/jwks.json";

impl IdentityProvider {
    /// Publishes these keys.
    pub async fn start(keys: &[Value]) -> Self {
        let state = Arc::new(Mutex::new(Published {
            status: StatusCode::OK,
            document: json!({ "keys": keys }).to_string(),
            asked: 0,
        }));
        let shared = state.clone();
        let answer = move || {
            let mut state = shared.lock().unwrap();
            state.asked += 1;
            std::future::ready((state.status, state.document.clone()))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            axum::serve(listener, Router::new().route(PATH, get(answer)))
                .await
                .unwrap();
        });
        Self {
            address,
            state,
            serving,
        }
    }

    /// The project's address, for `SUPABASE_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where its keys are, for `SUPABASE_JWKS_URL`.
    pub fn jwks_url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// Publishes other keys.
    pub fn publish(&self, keys: &[Value]) {
        self.answer(200, &json!({ "keys": keys }).to_string());
    }

    /// Answers in another way.
    pub fn answer(&self, status: u16, document: &str) {
        let mut state = self.state.lock().unwrap();
        state.status = StatusCode::from_u16(status).unwrap();
        document.clone_into(&mut state.document);
    }

    /// How often somebody asked.
    pub fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }
}

impl Drop for IdentityProvider {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
