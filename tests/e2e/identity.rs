//! Users of an identity provider that signs with keys of its own: over REST and the WebSocket, with the
//! provider there and not there, and what the command line says of it.

use serde_json::json;

use lucid_tests::{
    Host, IdentityProvider, SigningKey, Socket, command, eventually, find, hs256_token, now,
    text_of,
};

const SESSIONS: &str = "/api/v1/sessions";

async fn get(host: &Host, token: &str) -> lucid_tests::HttpAnswer {
    let bearer = format!("Bearer {token}");
    host.send("GET", SESSIONS, &[("authorization", &bearer)], None)
        .await
}

/// How a connection ends that says who it is in its address, and one that says so in its first message.
async fn connections(host: &Host, token: &str) -> [Socket; 2] {
    let by_address = Socket::connect(host, &format!("?token={token}")).await;
    let mut by_message = Socket::connect(host, "").await;
    by_message
        .send(json!({"task": "Say hello", "token": token}))
        .await;
    let mut both = [by_address, by_message];
    for socket in &mut both {
        while socket.next().await.is_some() {}
    }
    both
}

#[tokio::test(flavor = "multi_thread")]
async fn users_whose_tokens_are_signed_with_published_keys_work() {
    let (rsa, ec, forger) = (SigningKey::rsa(), SigningKey::ec(), SigningKey::ec());
    let provider = IdentityProvider::start(&[rsa.jwk("r"), ec.jwk("e")]).await;
    let host = Host::with_defaults()
        .unset("SUPABASE_JWT_SECRET")
        .set("SUPABASE_URL", provider.url())
        .start();
    // Each with a task of its own: the same one would be continued where its last connection broke.
    for (name, token) in [
        ("RSA", rsa.token("r", json!({"sub": "alice"}))),
        ("EC", ec.token("e", json!({"sub": "alice"}))),
    ] {
        get(&host, &token).await.ok();
        let mut socket = Socket::connect(&host, &format!("?token={token}")).await;
        let task = format!("{name} in the address");
        socket.send(json!({ "task": task })).await;
        socket.completed().await;
        let mut socket = Socket::connect(&host, "").await;
        socket
            .send(json!({"task": format!("{name} in the message"), "token": token}))
            .await;
        socket.completed().await;
    }
    let claims = json!({"sub": "alice", "exp": now() + 60});
    for forged in [
        forger.token("e", json!({"sub": "alice"})),
        forger.token("made-up", json!({"sub": "alice"})),
        ec.token("e", json!({"sub": "alice", "exp": now() - 60})),
        hs256_token(&claims, rsa.jwk("r").to_string().as_bytes()),
        hs256_token(&claims, b""),
        hs256_token(&claims, lucid_tests::JWT_SECRET.as_bytes()),
    ] {
        get(&host, &forged).await.refused(401, "Invalid token");
        for socket in connections(&host, &forged).await {
            assert_eq!(socket.closed, Some(4010));
        }
    }
    let nobody = ec.token("e", json!({"email": "alice@example.com"}));
    get(&host, &nobody)
        .await
        .refused(401, "Token missing sub claim");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_another_application_opens_nothing_where_the_deployment_says_what_is_its_own() {
    let key = SigningKey::ec();
    let provider = IdentityProvider::start(&[key.jwk("e")]).await;
    let (audience, issuer) = ("lucid, https://lucid.example", "https://id.example");
    let host = Host::with_defaults()
        .set("SUPABASE_JWKS_URL", provider.jwks_url())
        .set("JWT_AUDIENCE", audience)
        .set("JWT_ISSUER", issuer)
        .start();
    let ours = json!({"sub": "alice", "aud": "lucid", "iss": issuer, "exp": now() + 60});
    for token in [
        key.token("e", ours.clone()),
        hs256_token(&ours, lucid_tests::JWT_SECRET.as_bytes()),
    ] {
        get(&host, &token).await.ok();
    }
    for (member, other) in [
        ("aud", json!("another-application")),
        ("aud", json!(null)),
        ("iss", json!("https://other.example")),
        ("iss", json!(null)),
    ] {
        let mut claims = ours.clone();
        claims[member] = other;
        let token = key.token("e", claims);
        get(&host, &token).await.refused(401, "Invalid token");
        for socket in connections(&host, &token).await {
            assert_eq!(socket.closed, Some(4010));
        }
    }
    // What the command line signs says for whom it is.
    let mut call = command(host.folder(), &["token", "--user", "alice"]);
    call.env("SUPABASE_JWT_SECRET", lucid_tests::JWT_SECRET)
        .env("JWT_AUDIENCE", audience)
        .env("JWT_ISSUER", issuer);
    let output = tokio::task::spawn_blocking(move || call.output().unwrap());
    let token = text_of(&output.await.unwrap().stdout);
    get(&host, token.trim()).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_asks_for_what_keeps_other_applications_tokens_out() {
    let provider = IdentityProvider::start(&[SigningKey::ec().jwk("e")]).await;
    let doctor = async |settings: &[(&str, String)]| {
        let folder = tempfile::tempdir().unwrap();
        let mut call = command(folder.path(), &["doctor"]);
        call.env("SANDBOX_BACKEND", "none");
        for (name, value) in settings {
            call.env(name, value);
        }
        let output = tokio::task::spawn_blocking(move || call.output().unwrap());
        text_of(&output.await.unwrap().stdout)
    };
    let asked = "JWT_AUDIENCE and JWT_ISSUER are not set";
    let supabase = ("SUPABASE_URL", provider.url());
    assert!(!doctor(&[supabase]).await.contains("JWT_"));
    let jwks = (
        "SUPABASE_JWKS_URL",
        provider.jwks_url().replace("/auth/v1", ""),
    );
    let said = doctor(std::slice::from_ref(&jwks)).await;
    assert!(said.contains(asked), "{said}");
    let audience = ("JWT_AUDIENCE", "lucid".to_owned());
    let said = doctor(&[jwks.clone(), audience.clone()]).await;
    assert!(
        said.contains("JWT_ISSUER is not set") && !said.contains(asked),
        "{said}"
    );
    let issuer = ("JWT_ISSUER", "https://id.example".to_owned());
    let said = doctor(&[jwks, audience, issuer]).await;
    let checked = "; `aud` must name lucid; `iss` must be https://id.example\n";
    assert!(!said.contains("JWT_") && said.contains(checked), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_keys_are_not_there_a_client_is_asked_to_come_back() {
    let key = SigningKey::ec();
    let provider = IdentityProvider::start(&[]).await;
    provider.answer(503, "");
    let host = Host::with_defaults()
        .set("SUPABASE_JWKS_URL", provider.jwks_url())
        .start();
    let token = key.token("e", json!({"sub": "alice"}));
    let sentence = get(&host, &token).await.problem(503);
    assert!(sentence.contains("Try again"), "{sentence}");
    for socket in connections(&host, &token).await {
        assert_eq!(socket.closed, Some(1013), "{:?}", socket.frames);
        // It would be final for an old client.
        assert!(socket.frames.is_empty(), "{:?}", socket.frames);
    }
    // Who comes another way is served.
    host.get("bob", SESSIONS).await.ok();
    provider.publish(&[key.jwk("e")]);
    eventually("the token to be taken", async || {
        (get(&host, &token).await.status == 200).then_some(())
    })
    .await;
    let log = host.log();
    assert!(log.contains("cannot be fetched"), "{log}");
    assert!(!log.contains(&token), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_published_keys_it_is_not_local_mode() {
    let key = SigningKey::ec();
    let provider = IdentityProvider::start(&[key.jwk("e")]).await;
    let host = Host::with_defaults()
        .unset("SUPABASE_JWT_SECRET")
        .set("SUPABASE_URL", provider.url())
        .start();
    let log = host.log();
    assert!(!log.contains("local mode") && !log.contains("eyJ"), "{log}");
    assert!(find(&host.folder().join("storage"), "local-secret").is_none());
    let said = async |arguments: &[&str]| {
        let mut call = command(host.folder(), arguments);
        call.env("SUPABASE_URL", provider.url())
            .env("WORKSPACE_BASE_PATH", host.folder().join("storage"));
        let output = tokio::task::spawn_blocking(move || call.output().unwrap());
        let output = output.await.unwrap();
        let text = text_of(&output.stdout) + &text_of(&output.stderr);
        (output.status.code(), text)
    };
    let (code, text) = said(&["token", "--user", "alice"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("signed by its identity provider"), "{text}");
    let (code, text) = said(&["plugin", "list"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("LUCID_TOKEN"), "{text}");
    for arguments in ["doctor", "check"] {
        let (code, text) = said(&[arguments]).await;
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(&provider.jwks_url()), "{text}");
    }
    let (_, text) = said(&["doctor"]).await;
    assert!(text.contains("can be used: 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_signs_with_its_secret_alone_is_no_reason_for_a_warning() {
    let empty = IdentityProvider::start(&[]).await;
    let missing = format!("{}/nothing", empty.jwks_url());
    for url in [empty.jwks_url(), missing] {
        let host = Host::with_defaults().set("SUPABASE_JWKS_URL", url).start();
        host.says("tokens are checked with the shared secret alone")
            .await;
        let log = host.log();
        let warned = |line: &&str| line.contains("WARN") && line.contains("key");
        assert_eq!(log.lines().find(warned), None, "{log}");
        host.get("alice", "/api/v1/sessions").await.ok();
    }
}
