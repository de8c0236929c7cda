//! Credentials that callers send, and the identity derived from them.

mod jwks;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use jsonwebtoken::crypto::rust_crypto;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use lucid_mutations::{mutated, mutated_text};
use proptest::prelude::*;
use rand::Rng;
use serde_json::{Value, json};

use super::keys::KeySet;
use super::tokens::LONGEST_TOKEN;
use super::*;

const KEY: &str = "a-secret-that-is-long-enough-for-hs256";

fn authenticator() -> Authenticator {
    Authenticator::new(Some(&Secret::new(KEY)), Some(Secret::new("internal")))
}

/// A token signed with a shared secret is verified without waiting.
trait AtOnce {
    fn token_now(&self, token: &str) -> Result<Identity, AuthError>;
    fn headers_now(&self, headers: &HeaderMap) -> Result<Identity, AuthError>;
}

impl AtOnce for Authenticator {
    fn token_now(&self, token: &str) -> Result<Identity, AuthError> {
        self.token(token).now_or_never().expect("it waits")
    }

    fn headers_now(&self, headers: &HeaderMap) -> Result<Identity, AuthError> {
        self.headers(headers).now_or_never().expect("it waits")
    }
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
    result.unwrap_err().detail().to_owned()
}

#[test]
fn a_good_bearer_gives_the_user_the_raw_token_and_the_kept_claims() {
    let token = good(json!({"sub": "u1", "userId": "other", "projectId": "p1", "sessionId": "s1"}));
    for scheme in ["Bearer", "bearer", "BEARER", "Bearer "] {
        let who = authenticator()
            .headers_now(&headers(&[("authorization", &format!("{scheme} {token}"))]))
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
            authenticator()
                .token_now(&good(claims))
                .unwrap()
                .user
                .as_str(),
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
            refusal(authenticator().token_now(&good(claims))),
            "Token missing sub claim"
        );
    }
}

#[test]
fn audience_and_issuer_are_not_checked_where_nothing_is_said_of_them() {
    for aud in [json!("authenticated"), json!(["a", "b"]), json!("")] {
        let claims = json!({"sub": "u1", "aud": aud, "iss": aud});
        assert!(authenticator().token_now(&good(claims)).is_ok());
    }
}

fn expecting(audiences: &[&str], issuer: Option<&str>) -> Authenticator {
    let audiences: Vec<String> = audiences.iter().map(|&text| text.to_owned()).collect();
    authenticator().expecting(&audiences, issuer)
}

#[test]
fn a_token_for_another_audience_or_for_none_is_refused_where_audiences_are_named() {
    let auth = expecting(&["lucid", "https://lucid.example"], None);
    for aud in [
        json!("lucid"),
        json!("https://lucid.example"),
        json!(["other", "lucid"]),
    ] {
        let token = good(json!({"sub": "u1", "aud": aud}));
        assert!(auth.token_now(&token).is_ok(), "{aud}");
    }
    for aud in [
        json!("other"),
        json!("Lucid"),
        json!(""),
        json!([]),
        json!(["other"]),
        json!(null),
        json!(7),
        json!({"lucid": true}),
    ] {
        let token = good(json!({"sub": "u1", "aud": aud}));
        assert_eq!(refusal(auth.token_now(&token)), "Invalid token", "{aud}");
    }
    let none = good(json!({"sub": "u1"}));
    assert_eq!(refusal(auth.token_now(&none)), "Invalid token");
}

#[test]
fn a_token_from_another_issuer_or_from_none_is_refused_where_one_is_named() {
    let auth = expecting(&[], Some("https://id.example"));
    let ours = good(json!({"sub": "u1", "iss": "https://id.example", "aud": "anything"}));
    assert!(auth.token_now(&ours).is_ok());
    for iss in [
        json!("https://id.example/"),
        json!("https://other.example"),
        json!(""),
        json!(null),
        json!(1),
        json!([]),
    ] {
        let token = good(json!({"sub": "u1", "iss": iss}));
        assert_eq!(refusal(auth.token_now(&token)), "Invalid token", "{iss}");
    }
    let none = good(json!({"sub": "u1"}));
    assert_eq!(refusal(auth.token_now(&none)), "Invalid token");
}

#[test]
fn a_token_that_is_issued_here_says_for_whom_and_from_whom_it_is() {
    let auth = expecting(&["lucid", "other"], Some("https://id.example"));
    let token = auth
        .issue(&UserId::from("local"), Duration::from_secs(60))
        .unwrap();
    assert_eq!(auth.token_now(&token).unwrap().user.as_str(), "local");
    let elsewhere = expecting(&["another"], None);
    assert_eq!(refusal(elsewhere.token_now(&token)), "Invalid token");
    // Servers with the internal key bring no token.
    let pairs = [("x-user-id", "u1"), ("x-internal-key", "internal")];
    assert!(auth.headers_now(&headers(&pairs)).is_ok());
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
            refusal(authenticator().token_now(&token)),
            "Invalid token",
            "{exp}"
        );
    }
    let token = sign(Algorithm::HS256, KEY, &json!({"sub": "u1"}));
    assert_eq!(refusal(authenticator().token_now(&token)), "Invalid token");
}

#[test]
fn a_token_that_was_taken_is_refused_as_soon_as_it_has_expired() {
    let auth = authenticator();
    let claims = json!({"sub": "u", "exp": now() + 2});
    let token = sign(Algorithm::HS256, KEY, &claims);
    assert!(auth.token_now(&token).is_ok());
    assert!(auth.token_now(&token).is_ok());
    // Expired means that the clock of seconds has passed it.
    while now() <= claims["exp"].as_u64().unwrap() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(auth.token_now(&token).unwrap_err(), AuthError::InvalidToken);
}

#[test]
fn a_token_that_is_not_valid_yet_is_refused() {
    assert_eq!(
        refusal(authenticator().token_now(&good(json!({"sub": "u1", "nbf": now() + 600})))),
        "Invalid token"
    );
}

#[test]
fn no_algorithm_but_hs256_is_taken() {
    let claims = json!({"sub": "u1", "exp": now() + 60});
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        assert_eq!(
            refusal(authenticator().token_now(&sign(algorithm, KEY, &claims))),
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
                refusal(authenticator().token_now(&format!("{head}.{body}.{signature}"))),
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
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(KEY.as_bytes())).unwrap();
    assert_eq!(refusal(authenticator().token_now(&token)), "Invalid token");
}

#[test]
fn another_signature_or_a_changed_body_is_refused() {
    let claims = json!({"sub": "u1", "exp": now() + 60});
    assert_eq!(
        refusal(authenticator().token_now(&sign(Algorithm::HS256, "another", &claims))),
        "Invalid token"
    );
    let token = good(json!({"sub": "u1"}));
    let parts: Vec<&str> = token.split('.').collect();
    let body = URL_SAFE_NO_PAD.encode(json!({"sub": "root", "exp": now() + 60}).to_string());
    assert_eq!(
        refusal(authenticator().token_now(&format!("{}.{body}.{}", parts[0], parts[2]))),
        "Invalid token"
    );
    for cut in 0..token.len() {
        assert_eq!(
            refusal(authenticator().token_now(&token[..cut])),
            "Invalid token"
        );
    }
}

#[test]
fn a_user_id_that_is_no_name_is_refused() {
    for sub in ["a\nb".to_owned(), "x".repeat(256)] {
        assert_eq!(
            refusal(authenticator().token_now(&good(json!({"sub": sub})))),
            "Invalid token"
        );
    }
    assert_eq!(
        refusal(authenticator().token_now(&"x".repeat(LONGEST_TOKEN + 1))),
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
            refusal(authenticator().headers_now(&headers(pairs))),
            "Authentication required",
            "{pairs:?}"
        );
    }
}

#[test]
fn a_server_with_the_key_acts_for_a_user_without_a_token() {
    let who = authenticator()
        .headers_now(&headers(&[
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
            refusal(authenticator().headers_now(&headers(&pairs))),
            "Invalid internal API key"
        );
    }
}

#[test]
fn without_a_configured_key_the_way_for_servers_is_closed() {
    for internal in [None, Some(Secret::new(""))] {
        let closed = Authenticator::new(Some(&Secret::new(KEY)), internal);
        for key in ["", "internal"] {
            let pairs = [("x-user-id", "u1"), ("x-internal-key", key)];
            assert_eq!(
                refusal(closed.headers_now(&headers(&pairs))),
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
            refusal(authenticator().headers_now(&sent)),
            "Invalid token",
            "{value}"
        );
    }
    let mut sent = headers(&[("x-user-id", "u1"), ("x-internal-key", "internal")]);
    sent.insert(
        "authorization",
        HeaderValue::from_bytes(b"Bearer \xff\xfe").unwrap(),
    );
    assert_eq!(refusal(authenticator().headers_now(&sent)), "Invalid token");
}

#[test]
fn two_authorization_headers_are_refused() {
    let mut sent = headers(&[("authorization", "Basic eA==")]);
    let token = format!("Bearer {}", good(json!({"sub": "u1"})));
    sent.append("authorization", HeaderValue::from_str(&token).unwrap());
    assert_eq!(refusal(authenticator().headers_now(&sent)), "Invalid token");
}

#[test]
fn an_issued_token_is_taken_back() {
    let auth = authenticator();
    let token = auth
        .issue(&UserId::from("local"), Duration::from_secs(60))
        .unwrap();
    assert_eq!(auth.token_now(&token).unwrap().user.as_str(), "local");
    assert!(auth.issue(&UserId::from("local"), Duration::MAX).is_ok());
    let other = Authenticator::new(Some(&Secret::new("another-secret")), None);
    assert_eq!(refusal(other.token_now(&token)), "Invalid token");
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
        assert!(auth.token_now(&token).is_err() || round % 3 == 2);
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let mut sent = HeaderMap::new();
            sent.insert("authorization", value.clone());
            sent.insert("x-user-id", value.clone());
            sent.insert("x-internal-key", value);
            assert!(auth.headers_now(&sent).is_err());
        }
    }
}

#[test]
fn printing_an_identity_or_an_authenticator_shows_no_secret() {
    let token = good(json!({"sub": "u1"}));
    let auth = authenticator();
    let shown = format!("{:?} {auth:?}", auth.token_now(&token).unwrap());
    assert!(
        !shown.contains(&token) && !shown.contains("internal\"") && !shown.contains(KEY),
        "{shown}"
    );
}

#[test]
fn only_a_claim_that_users_cannot_set_makes_an_administrator() {
    let admin = |claims: Value| authenticator().token_now(&good(claims)).unwrap().admin;
    for claims in [
        json!({"sub": "u", "lucid_admin": true}),
        json!({"sub": "u", "app_metadata": {"provider": "email", "lucid_admin": true}}),
    ] {
        assert!(admin(claims.clone()), "{claims}");
    }
    for claims in [
        json!({"sub": "u"}),
        json!({"sub": "lucid_admin"}),
        json!({"sub": "u", "lucid_admin": "true"}),
        json!({"sub": "u", "lucid_admin": 1}),
        json!({"sub": "u", "lucid_admin": false, "app_metadata": {"lucid_admin": "yes"}}),
        json!({"sub": "u", "app_metadata": "lucid_admin"}),
        json!({"sub": "u", "app_metadata": [{"lucid_admin": true}]}),
        json!({"sub": "u", "user_metadata": {"lucid_admin": true, "role": "admin"}}),
        json!({"sub": "u", "role": "admin", "app_metadata": {"role": "admin"}}),
        json!({"sub": "u", "role": "service_role"}),
        json!({"sub": "u", "admin": true}),
    ] {
        assert!(!admin(claims.clone()), "{claims}");
    }
}

#[test]
fn a_server_with_the_internal_key_is_an_administrator() {
    let who = authenticator().headers_now(&headers(&[
        ("x-user-id", "u1"),
        ("x-internal-key", "internal"),
    ]));
    assert!(who.unwrap().admin);
}

#[test]
fn an_issued_token_is_an_administrators_only_where_that_was_asked_for() {
    let (auth, user) = (authenticator(), UserId::from("local"));
    let ttl = Duration::from_secs(60);
    assert!(
        !auth
            .token_now(&auth.issue(&user, ttl).unwrap())
            .unwrap()
            .admin
    );
    assert!(
        auth.token_now(&auth.issue_admin(&user, ttl).unwrap())
            .unwrap()
            .admin
    );
}

/// A token of these parts, each of them encoded.
fn token_of(parts: [&[u8]; 3]) -> String {
    parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

proptest! {
    #[test]
    fn a_mutated_token_is_its_users_or_nobodys(
        token in mutated_text([good(json!({"sub": "u1", "sessionId": "s"})), good(json!({"userId": "u1"}))]),
    ) {
        if let Ok(who) = authenticator().token_now(&token) {
            prop_assert_eq!(who.user.as_str(), "u1");
            prop_assert!(!who.admin);
        }
    }

    #[test]
    fn a_token_of_any_parts_that_nobody_signed_is_nobodys(
        head in mutated([r#"{"alg":"HS256","typ":"JWT","kid":"k"}"#, r#"{"alg":"none"}"#, r#"{"alg":"RS256","crit":["b64"],"b64":false}"#]),
        claims in mutated([r#"{"sub":"u1","exp":99999999999,"lucid_admin":true}"#]),
        signature in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        prop_assert!(authenticator().token_now(&token_of([&head, &claims, &signature])).is_err());
    }

    #[test]
    fn mutated_keys_are_a_bounded_set_or_an_error(
        document in mutated([
            r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1","alg":"ES256","use":"sig","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#,
            r#"{"keys":[{"kty":"RSA","kid":"2","key_ops":["verify"],"n":"sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3JDXboIRROSBigeC5yjU1hGzHHyXss8UDprecbAYxknTcQkhslANGRUZmdTOQ5qTRsLAt6BTYuyvVRdhS8exSZEy_c4gs_7svlJJQ4H9_NxsiIoLwAEk7-Q3UXERGYw_75IDrGA84-lA_-Ct4eTlXHBIY2EaV7t7LjJaynVJCpkv4LKjTTAumiGUIuQhrNhZLuF_RJLqHpM2kgWFLU7-VTdL1VbC2tejvcI2BlMkEpk1BzBZI0KQB0GaDWFLN-aEAw3vRw","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},{"kty":"oct","k":"AA","d":"x"}]}"#,
        ]),
    ) {
        if let Ok(keys) = KeySet::read(&document) {
            for algorithm in [Algorithm::ES256, Algorithm::RS256, Algorithm::EdDSA] {
                let _ = keys.find(algorithm, None);
            }
            // A value of a few bytes is a key of each.
            prop_assert!(keys.len() + keys.unused.len() <= document.len());
        }
    }
}
