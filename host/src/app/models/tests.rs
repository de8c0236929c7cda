//! Tests of which provider is asked, as which model, and with whose key.

use super::*;
use crate::plugins::policy_types::ModelCall;
use crate::plugins::tests::{engine, guests};

/// Two providers, `google` and `openai`, of which the adapters know no model but `m`.
async fn providers(settings: &[(&str, &str)]) -> Providers {
    let wasm = guests::llm(&guests::Llm::default());
    let plugins = Plugins::builder(engine())
        .llm("google", wasm.clone())
        .llm("openai", wasm)
        .build();
    let plugins = Box::pin(plugins).await.unwrap();
    let config = Config::from_pairs(settings.iter().copied()).unwrap();
    let folder = std::env::temp_dir();
    Providers::new(&plugins, &config, Blobs::new(&folder)).unwrap()
}

fn asked(model: &str) -> ModelRequest {
    ModelRequest {
        session: "s".to_owned(),
        provider: "google".to_owned(),
        model: "m".to_owned(),
        api_key: Some(Secret::new("a-users-own-key")),
        call: ModelCall {
            effect: "e".to_owned(),
            model: model.to_owned(),
            prompt: Vec::new(),
            tools: Vec::new(),
            max_output_tokens: None,
            params: "{}".to_owned(),
            aside: false,
        },
        messages: Vec::new(),
    }
}

fn called(providers: &Providers, model: &str) -> Result<String, ErrorKind> {
    let called = providers.called(&asked(model));
    called
        .map(|(served, model)| format!("{} {model}", served.name))
        .map_err(|error| error.kind)
}

#[tokio::test]
async fn a_policy_calls_the_models_that_are_offered_by_name_and_no_others() {
    let providers = providers(&[("OPENAI_API_KEY", "k"), ("GOOGLE_MODEL", "g")]).await;
    let offers = providers.offers("google", "m");
    assert_eq!(offers.names, ["m", "g", "openai/m"]);
    for (model, expected) in [
        ("", "google m"),
        ("m", "google m"),
        ("g", "google g"),
        ("google/g", "google g"),
        ("openai/m", "openai m"),
    ] {
        assert_eq!(
            called(&providers, model).as_deref(),
            Ok(expected),
            "{model}"
        );
    }
    for model in ["x", "openai/x", "nobody/m", "openai/", "/m", "m\n"] {
        assert_eq!(
            called(&providers, model),
            Err(ErrorKind::Forbidden),
            "{model:?}"
        );
    }
}

#[tokio::test]
async fn a_model_of_a_provider_without_a_key_of_the_deployment_is_not_called_with_the_users() {
    let providers = providers(&[]).await;
    assert_eq!(providers.offers("google", "m").names, ["m"]);
    assert_eq!(called(&providers, "openai/m"), Err(ErrorKind::Forbidden));
    // The session's own provider is asked with the user's key, which the deployment needs none for.
    assert_eq!(called(&providers, "m").as_deref(), Ok("google m"));
}

#[tokio::test]
async fn a_session_gets_the_provider_and_model_it_names_or_the_defaults() {
    let providers = providers(&[("LLM_API_KEY", "k"), ("LLM_MODEL", "big")]).await;
    let found = |name, model| {
        let found = providers.find(name, model, false);
        found.map(|found| format!("{} {}", found.name, found.model))
    };
    assert_eq!(found(None, None).unwrap(), "openai big");
    assert_eq!(found(None, Some("m")).unwrap(), "openai m");
    assert_eq!(found(None, Some("google/m")).unwrap(), "google m");
    assert_eq!(found(Some("Google"), None).unwrap(), "google m");
    assert!(matches!(
        found(None, Some("x")),
        Err(CreateError::UnknownModel { .. })
    ));
    assert!(matches!(
        found(Some("x"), None),
        Err(CreateError::UnknownProvider(_))
    ));
}

#[tokio::test]
async fn the_only_provider_with_a_key_is_the_default_and_a_general_key_is_openais_first() {
    for (settings, default) in [
        (&[][..], "openai"),
        (&[("GOOGLE_API_KEY", "k")], "google"),
        (&[("GOOGLE_API_KEY", "k"), ("LLM_API_KEY", "k")], "openai"),
        (
            &[("GOOGLE_API_KEY", "k"), ("OPENAI_API_KEY", "k")],
            "openai",
        ),
        (
            &[
                ("GOOGLE_API_KEY", "k"),
                ("LLM_BASE_URL", "http://127.0.0.1:1"),
            ],
            "openai",
        ),
        (&[("DEFAULT_PROVIDER", "google")], "google"),
    ] {
        assert_eq!(providers(settings).await.default, default, "{settings:?}");
    }
}

#[tokio::test]
async fn a_key_belongs_to_the_address_it_was_set_beside() {
    let key = async |settings: &[(&str, &str)], name: &str| {
        use secrecy::ExposeSecret;
        let providers = providers(settings).await;
        let served = providers.named(name).unwrap();
        served
            .key
            .as_ref()
            .map(|key| key.expose_secret().to_owned())
    };
    let llm = ("LLM_API_KEY", "any");
    let own = ("OPENAI_API_KEY", "own");
    let at = ("LLM_BASE_URL", "http://127.0.0.1:1");
    let own_at = ("OPENAI_BASE_URL", "http://127.0.0.1:2");
    for (settings, name, expected) in [
        (&[llm, own][..], "openai", Some("own")),
        (&[llm, own], "google", Some("any")),
        (&[llm, own, at], "openai", Some("any")),
        (&[own, at], "openai", None),
        (&[llm, own, at], "google", None),
        (&[llm, own, at, own_at], "openai", Some("own")),
        (&[llm, at, own_at], "openai", None),
        (&[llm, own_at], "openai", Some("any")),
    ] {
        assert_eq!(
            key(settings, name).await.as_deref(),
            expected,
            "{settings:?} {name}"
        );
    }
}
