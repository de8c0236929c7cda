//! Tokens signed with an identity provider's own keys, and attacks on them.

use std::time::Duration;

use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::auth::jwks::{FetchPacing, MOST_WAITING};
use crate::auth::keys::KeySet;
use lucid_tests::{
    IdentityProvider, RSA_1024, RSA_2048, RSA_2048_PUBLIC, SigningKey, eventually, hs256_token,
    hs256_token_with, within,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Fetches once, and never again.
const ONCE: FetchPacing = FetchPacing {
    fetch: Duration::from_secs(60),
    refresh: HOUR,
    retry: HOUR,
    cooldown: HOUR,
    stale: HOUR,
};
/// Fetches again for each token whose key is unknown.
const EAGER: FetchPacing = FetchPacing {
    cooldown: Duration::ZERO,
    ..ONCE
};

struct KeyServer {
    provider: IdentityProvider,
    auth: Authenticator,
    _following: AbortOnDropHandle<()>,
}

impl KeyServer {
    /// A provider that publishes these keys, and a host that accepts them, with an optional shared
    /// secret besides.
    async fn with(keys: &[Value], pace: FetchPacing, secret: Option<&str>) -> Self {
        let provider = IdentityProvider::start(keys).await;
        let url = provider.jwks_url().parse().unwrap();
        let jwks = Jwks::with_pace(url, pace).unwrap();
        let secret = secret.map(Secret::new);
        let auth = Authenticator::new(secret.as_ref(), None).with_jwks(Arc::new(jwks));
        let following = auth.follow().unwrap();
        Self {
            provider,
            auth,
            _following: following,
        }
    }

    async fn new(keys: &[Value], pace: FetchPacing) -> Self {
        Self::with(keys, pace, None).await
    }

    async fn told(&self, token: &str) -> Result<Identity, AuthError> {
        within("an answer to a token", self.auth.token(token)).await
    }

    async fn user(&self, token: &str) -> String {
        self.told(token).await.unwrap().user.to_string()
    }

    async fn refused(&self, token: &str) -> AuthError {
        self.told(token).await.unwrap_err()
    }
}

fn alice() -> Value {
    json!({"sub": "alice", "role": "authenticated"})
}

#[tokio::test]
async fn a_token_signed_with_a_published_key_is_taken() {
    let (rsa, ec) = (SigningKey::rsa(), SigningKey::ec());
    let site = KeyServer::new(&[rsa.jwk("r"), ec.jwk("e")], ONCE).await;
    for (key, id) in [(&rsa, "r"), (&ec, "e")] {
        let claims =
            json!({"sub": "alice", "projectId": "p", "app_metadata": {"lucid_admin": true}});
        let token = key.token(id, claims);
        let who = site.told(&token).await.unwrap();
        assert_eq!(who.user.as_str(), "alice");
        assert_eq!(who.token.unwrap().expose(), token);
        assert!(who.admin && who.project.as_deref() == Some("p"));
    }
    assert_eq!(site.provider.asked(), 1, "the keys are kept");
}

#[tokio::test]
async fn a_public_key_is_no_shared_secret() {
    let (rsa, ec) = (SigningKey::rsa(), SigningKey::ec());
    let (public, point) = (rsa.jwk("r"), ec.jwk("e"));
    let body: String = RSA_2048_PUBLIC
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let raw = |value: &Value| URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().as_bytes().to_vec();
    let mut whole_point = vec![4];
    whole_point.extend(raw(&point["x"]));
    whole_point.extend(raw(&point["y"]));
    let secrets = [
        RSA_2048_PUBLIC.as_bytes().to_vec(),
        RSA_2048_PUBLIC.trim_end().as_bytes().to_vec(),
        STANDARD.decode(&body).unwrap(),
        body.into_bytes(),
        public.to_string().into_bytes(),
        raw(&public["n"]),
        text(&public["n"]),
        point.to_string().into_bytes(),
        whole_point,
        raw(&point["x"]),
        text(&point["x"]),
        Vec::new(),
    ];
    for secret in [None, Some(KEY)] {
        let site = KeyServer::with(&[public.clone(), point.clone()], ONCE, secret).await;
        for public in &secrets {
            for id in ["r", "e"] {
                for algorithm in ["HS256", "RS256", "ES256"] {
                    let head = json!({"alg": algorithm, "kid": id});
                    let claims = json!({"sub": "root", "exp": now() + 60});
                    let token = hs256_token_with(&head, &claims, public);
                    assert_eq!(
                        site.refused(&token).await,
                        AuthError::InvalidToken,
                        "{head}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn each_algorithm_goes_with_its_own_kind_of_key() {
    let (rsa, ec) = (SigningKey::rsa(), SigningKey::ec());
    let site = KeyServer::with(&[rsa.jwk("r"), ec.jwk("e")], ONCE, Some(KEY)).await;
    let shared = hs256_token(&json!({"sub": "bob", "exp": now() + 60}), KEY.as_bytes());
    assert_eq!(site.user(&shared).await, "bob");
    assert_eq!(site.user(&rsa.token("r", alice())).await, "alice");
    for (key, algorithm, id) in [
        (&rsa, "RS256", "e"),
        (&rsa, "ES256", "r"),
        (&rsa, "ES256", "e"),
        (&rsa, "RS384", "r"),
        (&rsa, "PS256", "r"),
        (&rsa, "HS256", "r"),
        (&rsa, "none", "r"),
        (&ec, "ES256", "r"),
        (&ec, "RS256", "e"),
        (&ec, "RS256", "r"),
        (&ec, "ES384", "e"),
        (&ec, "EdDSA", "e"),
        (&ec, "HS256", "e"),
        (&ec, "", "e"),
    ] {
        let head = json!({"alg": algorithm, "kid": id});
        let token = key.token_with(&head, alice());
        assert_eq!(
            site.refused(&token).await,
            AuthError::InvalidToken,
            "{head}"
        );
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        assert_eq!(
            site.refused(&unsigned).await,
            AuthError::InvalidToken,
            "{head}"
        );
    }
    // A token is accepted only by the host that is configured for its kind.
    let keys_only = KeyServer::new(&[rsa.jwk("r")], ONCE).await;
    assert_eq!(keys_only.refused(&shared).await, AuthError::InvalidToken);
    let secret_only = authenticator();
    assert_eq!(
        secret_only.token_now(&rsa.token("r", alice())).unwrap_err(),
        AuthError::InvalidToken
    );
}

#[tokio::test]
async fn claims_are_read_as_they_are_of_any_token() {
    let key = SigningKey::ec();
    let site = KeyServer::new(&[key.jwk("e")], ONCE).await;
    let token = |claims: Value| key.token("e", claims);
    for good in [
        json!({"sub": "alice", "aud": "another", "iss": "https://elsewhere.example/auth/v1"}),
        json!({"sub": "alice", "aud": ["a", "b"], "iss": 7}),
        // The issuer's clock may be fast by a minute.
        json!({"sub": "alice", "nbf": now() + 30, "iat": now() + 30}),
        json!({"userId": "alice"}),
    ] {
        assert_eq!(site.user(&token(good.clone())).await, "alice", "{good}");
    }
    for bad in [
        json!({"sub": "alice", "exp": now() - 2}),
        json!({"sub": "alice", "exp": 0}),
        json!({"sub": "alice", "exp": null}),
        json!({"sub": "alice", "exp": "never"}),
        json!({"sub": "alice", "nbf": now() + 600}),
        json!({"sub": "alice", "nbf": "now"}),
        json!({"sub": "a\nb"}),
        json!({"sub": "a".repeat(256)}),
    ] {
        assert_eq!(
            site.refused(&token(bad.clone())).await,
            AuthError::InvalidToken,
            "{bad}"
        );
    }
    for nobody in [
        json!({}),
        json!({"sub": ""}),
        json!({"sub": 7}),
        json!({"sub": null}),
    ] {
        assert_eq!(
            site.refused(&token(nobody.clone())).await,
            AuthError::MissingSubject,
            "{nobody}"
        );
    }
}

#[tokio::test]
async fn a_key_that_a_token_brings_along_is_not_looked_at() {
    let (ours, theirs) = (SigningKey::ec(), SigningKey::ec());
    let elsewhere = IdentityProvider::start(&[theirs.jwk("e")]).await;
    let site = KeyServer::new(&[ours.jwk("e")], ONCE).await;
    let brought = [
        ("jwk", theirs.jwk("e")),
        ("jku", json!(elsewhere.jwks_url())),
        ("x5u", json!(elsewhere.jwks_url())),
        ("x5c", json!([STANDARD.encode(RSA_2048)])),
        ("x5t", json!("AAAA")),
    ];
    for (name, value) in brought {
        let head = json!({"alg": "ES256", "kid": "e", name: value});
        let forged = theirs.token_with(&head, alice());
        assert_eq!(
            site.refused(&forged).await,
            AuthError::InvalidToken,
            "{name}"
        );
        assert_eq!(
            site.user(&ours.token_with(&head, alice())).await,
            "alice",
            "{name}"
        );
    }
    assert_eq!(elsewhere.asked(), 0, "an address in a token was asked");
}

#[tokio::test]
async fn a_token_that_is_odd_or_huge_is_refused_before_anybody_is_asked() {
    let key = SigningKey::ec();
    let site = KeyServer::new(&[key.jwk("e")], EAGER).await;
    assert_eq!(site.user(&key.token("e", alice())).await, "alice");
    let head = |name: &str, value: Value| {
        let head = json!({"alg": "ES256", "kid": "unknown", name: value});
        key.token_with(&head, alice())
    };
    let mut long = alice();
    long["filler"] = json!("x".repeat(LONGEST_TOKEN));
    for token in [
        head("crit", json!(["b64"])),
        head("crit", json!([])),
        head("kid", json!("k".repeat(257))),
        head("kid", json!(7)),
        head("filler", json!("x".repeat(LONGEST_TOKEN))),
        head("jwk", json!("no key")),
        key.token("unknown", long),
        format!("{}.", key.token("unknown", alice())),
        String::new(),
        "..".to_owned(),
    ] {
        assert_eq!(
            site.refused(&token).await,
            AuthError::InvalidToken,
            "{:.80}",
            token
        );
    }
    assert_eq!(site.provider.asked(), 1);
}

#[tokio::test]
async fn no_change_of_a_good_token_is_taken() {
    let key = SigningKey::ec();
    let site = KeyServer::new(&[key.jwk("e")], ONCE).await;
    let token = key.token("e", alice());
    let mut random = rand::rng();
    for _ in 0..300 {
        let mut changed = token.clone().into_bytes();
        let at = random.random_range(0..changed.len());
        let before = changed[at];
        changed[at] = random.random_range(32..127);
        let same = changed[at] == before;
        let changed = String::from_utf8(changed).unwrap();
        assert!(same || site.told(&changed).await.is_err(), "{changed}");
    }
}

/// The reasons why keys are not used, and the number of usable ones.
fn read(keys: &[Value]) -> (usize, Vec<&'static str>) {
    let document = json!({ "keys": keys }).to_string();
    let set = KeySet::read(document.as_bytes()).unwrap();
    (set.len(), set.unused)
}

fn with(mut key: Value, name: &str, value: Value) -> Value {
    key[name] = value;
    key
}

#[test]
fn only_a_key_that_is_fit_for_it_checks_tokens() {
    let (rsa, ec) = (SigningKey::rsa().jwk("r"), SigningKey::ec().jwk("e"));
    let without = |key: &Value, name: &str| {
        let mut key = key.clone();
        key.as_object_mut().unwrap().remove(name);
        key
    };
    for good in [
        rsa.clone(),
        ec.clone(),
        without(&ec, "kid"),
        without(&rsa, "alg"),
        without(&without(&rsa, "use"), "key_ops"),
        with(ec.clone(), "x5t", json!("AAAA")),
        with(ec.clone(), "another", json!({"member": []})),
    ] {
        assert_eq!(read(std::slice::from_ref(&good)), (1, vec![]), "{good}");
    }
    let modulus = |bytes: &[u8]| with(rsa.clone(), "n", json!(URL_SAFE_NO_PAD.encode(bytes)));
    let mut padded = vec![0; 128];
    padded.extend([0xff; 128]);
    for (reason, bad) in [
        ("not for signatures", with(rsa.clone(), "use", json!("enc"))),
        (
            "not for signatures",
            with(ec.clone(), "use", json!("other")),
        ),
        (
            "not for signatures",
            with(ec.clone(), "key_ops", json!(["encrypt", "wrapKey"])),
        ),
        ("not for signatures", with(ec.clone(), "key_ops", json!([]))),
        (
            "another algorithm",
            with(rsa.clone(), "alg", json!("RS512")),
        ),
        (
            "another algorithm",
            with(rsa.clone(), "alg", json!("PS256")),
        ),
        (
            "another algorithm",
            with(rsa.clone(), "alg", json!("RSA-OAEP")),
        ),
        (
            "another algorithm",
            with(rsa.clone(), "alg", json!("HS256")),
        ),
        ("another algorithm", with(ec.clone(), "alg", json!("RS256"))),
        ("another algorithm", with(ec.clone(), "crv", json!("P-384"))),
        (
            "another algorithm",
            json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "o"}),
        ),
        ("another algorithm", json!({"kty": "new", "kid": "o"})),
        (
            "a shared secret",
            json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(KEY), "kid": "s"}),
        ),
        ("a private key", with(ec.clone(), "d", json!("AAAA"))),
        ("2048", modulus(&[0xff; 128])),
        ("2048", modulus(&padded)),
        ("2048", modulus(&[0x7f; 256])),
        ("2048", modulus(&[0xff; 513])),
        ("2048", modulus(&[])),
        ("exponent", with(rsa.clone(), "e", json!("Aw"))),
        ("exponent", with(rsa.clone(), "e", json!("AQ"))),
        ("exponent", with(rsa.clone(), "e", json!(""))),
        ("exponent", with(rsa.clone(), "e", json!("AQAA"))),
        ("exponent", with(rsa.clone(), "e", json!("_____________w"))),
        (
            "cannot be read",
            with(rsa.clone(), "n", json!("not base64!")),
        ),
        ("cannot be read", with(ec.clone(), "x", json!("AAAA"))),
        ("cannot be read", with(ec.clone(), "kid", json!(7))),
        ("cannot be read", json!("key")),
    ] {
        let (usable, unused) = read(&[bad.clone(), ec.clone()]);
        assert_eq!(usable, 1, "{bad}");
        assert!(
            unused.len() == 1 && unused[0].contains(reason),
            "{bad}: {unused:?}"
        );
    }
}

#[tokio::test]
async fn a_token_signed_with_a_weak_key_is_refused_though_it_is_published() {
    let _ = rust_crypto::DEFAULT_PROVIDER.install_default();
    let weak = EncodingKey::from_rsa_der(RSA_1024);
    let published = jsonwebtoken::jwk::Jwk::from_encoding_key(&weak, Algorithm::RS256).unwrap();
    let published = with(serde_json::to_value(published).unwrap(), "kid", json!("w"));
    let mut head = Header::new(Algorithm::RS256);
    head.kid = Some("w".to_owned());
    let claims = json!({"sub": "root", "exp": now() + 60});
    let token = jsonwebtoken::encode(&head, &claims, &weak).unwrap();
    let site = KeyServer::new(&[published], ONCE).await;
    assert_eq!(site.refused(&token).await, AuthError::InvalidToken);
}

#[tokio::test]
async fn what_leaves_open_which_key_is_meant_is_refused() {
    let (rsa, ec, other) = (SigningKey::rsa(), SigningKey::ec(), SigningKey::ec());
    // One id for keys of two algorithms is not ambiguous, and neither is a repeated key.
    let site = KeyServer::new(&[rsa.jwk("k"), ec.jwk("k"), ec.jwk("k")], ONCE).await;
    assert_eq!(site.user(&rsa.token("k", alice())).await, "alice");
    assert_eq!(site.user(&ec.token("k", alice())).await, "alice");
    // A token need not name the only key of its algorithm.
    let nameless = json!({"alg": "ES256"});
    assert_eq!(site.user(&ec.token_with(&nameless, alice())).await, "alice");
    // Two keys of one algorithm with one id, whatever comes between and after them.
    let keys = [ec.jwk("k"), rsa.jwk("k"), other.jwk("k"), ec.jwk("k")];
    let (usable, unused) = read(&keys);
    assert_eq!(usable, 1);
    assert!(
        unused.iter().all(|reason| reason.contains("same `kid`")),
        "{unused:?}"
    );
    let site = KeyServer::new(&keys, ONCE).await;
    assert_eq!(site.user(&rsa.token("k", alice())).await, "alice");
    for key in [&ec, &other] {
        assert_eq!(
            site.refused(&key.token("k", alice())).await,
            AuthError::InvalidToken
        );
    }
    let site = KeyServer::new(&[ec.jwk("one"), other.jwk("two")], ONCE).await;
    assert_eq!(
        site.refused(&ec.token_with(&nameless, alice())).await,
        AuthError::InvalidToken
    );
}

#[tokio::test]
async fn a_new_key_is_fetched_when_a_token_names_it_and_an_old_one_is_gone_with_it() {
    let (old, new) = (SigningKey::ec(), SigningKey::ec());
    let site = KeyServer::new(&[old.jwk("old")], EAGER).await;
    assert_eq!(site.user(&old.token("old", alice())).await, "alice");
    site.provider.publish(&[new.jwk("new")]);
    assert_eq!(
        site.user(&old.token("old", alice())).await,
        "alice",
        "nobody asked again yet"
    );
    assert_eq!(site.user(&new.token("new", alice())).await, "alice");
    assert_eq!(site.provider.asked(), 2);
    assert_eq!(
        site.refused(&old.token("old", alice())).await,
        AuthError::InvalidToken
    );
}

#[tokio::test]
async fn a_token_that_was_verified_is_refused_once_its_key_is_revoked() {
    let (old, new) = (SigningKey::ec(), SigningKey::ec());
    let site = KeyServer::new(&[old.jwk("old")], EAGER).await;
    let token = old.token("old", alice());
    for _ in 0..3 {
        assert_eq!(site.user(&token).await, "alice");
    }
    site.provider.publish(&[new.jwk("new")]);
    assert_eq!(site.user(&token).await, "alice", "nobody asked again yet");
    assert_eq!(site.user(&new.token("new", alice())).await, "alice");
    assert_eq!(site.refused(&token).await, AuthError::InvalidToken);
}

#[tokio::test]
async fn keys_are_fetched_again_without_a_reason_too() {
    let (old, new) = (SigningKey::ec(), SigningKey::ec());
    let often = FetchPacing {
        refresh: Duration::from_millis(10),
        ..ONCE
    };
    let site = KeyServer::new(&[old.jwk("old")], often).await;
    assert_eq!(site.user(&old.token("old", alice())).await, "alice");
    site.provider.publish(&[new.jwk("new")]);
    eventually("the key that was withdrawn to be refused", async || {
        site.told(&old.token("old", alice())).await.err()
    })
    .await;
    assert_eq!(site.user(&new.token("new", alice())).await, "alice");
}

#[tokio::test]
async fn a_flood_of_made_up_keys_is_no_flood_of_requests() {
    let (key, forger) = (SigningKey::ec(), SigningKey::ec());
    // Concurrently: one request for all of them.
    let site = KeyServer::new(&[key.jwk("e")], EAGER).await;
    assert_eq!(site.user(&key.token("e", alice())).await, "alice");
    let flood: Vec<String> = (0..200)
        .map(|i| forger.token(&format!("{i}"), alice()))
        .collect();
    let told = join_all(flood.iter().map(|token| site.told(token))).await;
    assert!(
        told.iter()
            .all(|told| told.as_ref().err() == Some(&AuthError::InvalidToken))
    );
    assert_eq!(site.provider.asked(), 2);
    // Sequentially: none within the minimum interval.
    let site = KeyServer::new(&[key.jwk("e")], ONCE).await;
    assert_eq!(site.user(&key.token("e", alice())).await, "alice");
    for token in &flood {
        assert_eq!(site.refused(token).await, AuthError::InvalidToken);
    }
    assert_eq!(site.provider.asked(), 1);
}

#[tokio::test]
async fn of_a_flood_of_made_up_keys_few_wait_and_nobody_whose_key_is_known_does() {
    let (key, forger) = (SigningKey::ec(), SigningKey::ec());
    let site = KeyServer::new(&[key.jwk("e")], EAGER).await;
    let token = key.token("e", alice());
    assert_eq!(site.user(&token).await, "alice");
    // None of them has been asked for when the last one comes: the task that fetches does not run in between.
    let forged = forger.token("made up", alice());
    let mut flood: Vec<_> = (0..MOST_WAITING)
        .map(|_| Box::pin(site.auth.token(&forged)))
        .collect();
    for waiting in &mut flood {
        assert!(waiting.now_or_never().is_none(), "it should wait");
    }
    let next = site.auth.token(&forged).now_or_never();
    assert_eq!(next.expect("it waits").err(), Some(AuthError::NoKeys));
    let known = site.auth.token(&token).now_or_never();
    assert_eq!(known.expect("it waits").unwrap().user.as_str(), "alice");
    // They give their turns back, also when they go away.
    drop(flood);
    assert_eq!(site.refused(&forged).await, AuthError::InvalidToken);
}

#[tokio::test]
async fn callers_at_the_start_wait_for_one_request_together() {
    let key = SigningKey::ec();
    let site = KeyServer::new(&[key.jwk("e")], ONCE).await;
    let token = key.token("e", alice());
    let told = join_all((0..50).map(|_| site.told(&token))).await;
    assert!(told.iter().all(Result::is_ok), "{told:?}");
    assert_eq!(site.provider.asked(), 1);
}

#[tokio::test]
async fn a_caller_who_goes_away_ends_no_request() {
    let (old, new) = (SigningKey::ec(), SigningKey::ec());
    let site = KeyServer::new(&[old.jwk("old")], EAGER).await;
    assert_eq!(site.user(&old.token("old", alice())).await, "alice");
    site.provider.publish(&[new.jwk("new")]);
    let token = new.token("new", alice());
    assert!(
        site.auth.token(&token).now_or_never().is_none(),
        "it should wait"
    );
    eventually("the key that nobody waits for", async || {
        site.auth.token(&token).now_or_never()?.ok()
    })
    .await;
}

#[tokio::test]
async fn while_there_are_no_keys_no_token_is_called_invalid() {
    let key = SigningKey::ec();
    let often = FetchPacing {
        retry: Duration::from_millis(10),
        refresh: Duration::from_millis(20),
        ..ONCE
    };
    let site = KeyServer::with(&[], often, Some(KEY)).await;
    let token = key.token("e", alice());
    for (status, document) in [
        (503, "{\"keys\":[]}"),
        (200, "not JSON"),
        (200, "[]"),
        (200, "{}"),
        (200, "{\"keys\":{}}"),
    ] {
        // Another host, whose first fetch this is.
        let site = KeyServer::new(&[], ONCE).await;
        site.provider.answer(status, document);
        assert_eq!(site.refused(&token).await, AuthError::NoKeys, "{document}");
        assert_eq!(site.refused("nonsense").await, AuthError::InvalidToken);
    }
    site.provider.answer(500, "");
    eventually("the keys to be missed", async || {
        (site.told(&token).await.err()? == AuthError::NoKeys).then_some(())
    })
    .await;
    let shared = hs256_token(&json!({"sub": "bob", "exp": now() + 60}), KEY.as_bytes());
    assert_eq!(site.user(&shared).await, "bob", "the shared secret is here");
    site.provider.publish(&[key.jwk("e")]);
    eventually("the keys to be there", async || {
        site.told(&token).await.ok()
    })
    .await;
}

#[tokio::test]
async fn the_last_keys_serve_on_while_the_provider_is_down_but_not_for_ever() {
    let (key, new) = (SigningKey::ec(), SigningKey::ec());
    for (status, document) in [(500, ""), (200, "<html>"), (302, "")] {
        let site = KeyServer::new(&[key.jwk("e")], EAGER).await;
        assert_eq!(site.user(&key.token("e", alice())).await, "alice");
        site.provider.answer(status, document);
        // The token may be valid: it cannot be verified.
        assert_eq!(
            site.refused(&new.token("new", alice())).await,
            AuthError::NoKeys
        );
        assert_eq!(
            site.user(&key.token("e", alice())).await,
            "alice",
            "{status}"
        );
        assert_eq!(
            site.refused(&new.token("e", alice())).await,
            AuthError::InvalidToken
        );
    }
    let brief = FetchPacing {
        stale: Duration::ZERO,
        ..ONCE
    };
    let site = KeyServer::new(&[key.jwk("e")], brief).await;
    assert_eq!(
        site.refused(&key.token("e", alice())).await,
        AuthError::NoKeys
    );
}

#[tokio::test]
async fn an_empty_set_of_keys_is_one() {
    let key = SigningKey::ec();
    let site = KeyServer::new(&[], EAGER).await;
    assert_eq!(
        site.refused(&key.token("e", alice())).await,
        AuthError::InvalidToken
    );
    let many: Vec<Value> = (0..65).map(|i| key.jwk(&i.to_string())).collect();
    let document = json!({ "keys": many }).to_string();
    assert!(
        KeySet::read(document.as_bytes()).is_err(),
        "65 keys were taken"
    );
}

#[test]
fn what_signs_tokens_elsewhere_signs_none_here() {
    let url = "https://project.example.co/keys".parse().unwrap();
    let jwks = Arc::new(Jwks::new(url).unwrap());
    let auth = Authenticator::new(None, None).with_jwks(jwks);
    let issued = auth.issue_admin(&UserId::from("u"), Duration::from_secs(60));
    assert!(matches!(issued, Err(IssueError::NoSecret)), "{issued:?}");
    assert!(format!("{auth:?}").contains("project.example.co"));
}
