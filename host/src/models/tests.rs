//! Tests of which provider is called, for which model, and with whose key.

use std::path::Path;

use futures::FutureExt;

use super::*;
use crate::config::Config;
use crate::manifest::{ComponentSource, LoadedProvider, Manifest, ManifestProblems};
use lucid_net::egress::KeyInjection;
use lucid_session::{CreateError, ModelRequest, Models};
use lucid_types::ids::SessionId;
use lucid_types::secret::Secret;
use lucid_types::wit::policy::ModelCall;
use lucid_types::wit::types::ErrorKind;
use lucid_wasm::testing::{self, engine};
use lucid_wasm::{LlmPlugin, PluginLimits};

/// Two providers, `google` and `openai`, whose adapters know only the model `m`.
async fn providers(settings: &[(&str, &str)]) -> Providers {
    deployed(settings, "").await.unwrap().0
}

/// The providers of a manifest, or those two, and the warnings for the operator.
async fn deployed(
    settings: &[(&str, &str)],
    manifest: &str,
) -> Result<(Providers, Vec<String>), ManifestProblems> {
    let manifest = Manifest::parse(Path::new("lucid.toml"), manifest)?;
    let wasm = testing::llm(&testing::Llm::default());
    let names: Vec<&str> = match manifest.providers.len() {
        0 => vec!["google", "openai"],
        _ => manifest.provider_names(),
    };
    let (engine, limits) = (engine(), PluginLimits::default());
    let mut loaded = Vec::new();
    for name in names {
        let plugin = LlmPlugin::load(&engine, name, &wasm, &limits);
        let plugin = Box::pin(plugin).await.unwrap();
        loaded.push(LoadedProvider {
            models: plugin.known_models().to_vec(),
            plugin,
            settings: "{}".to_owned(),
            builtin: manifest.providers.get(name).is_none_or(|entry| {
                matches!(entry.plugin.component.value, ComponentSource::Builtin(_))
            }),
            entry: manifest.providers.get(name).cloned().map(Arc::new),
        });
    }
    let config = Config::from_pairs(settings.iter().copied()).unwrap();
    let folder = std::env::temp_dir();
    Providers::new(loaded, &manifest, &config, Blobs::new(&folder), None)
}

fn asked(model: &str) -> ModelRequest {
    ModelRequest {
        session: SessionId::new(),
        provider: "google".to_owned(),
        model: "m".to_owned(),
        api_key: Some(Secret::new("a-users-own-key")),
        cost_limited: false,
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
        meter: Default::default(),
        notices: Arc::new(|_| std::future::ready(()).boxed()),
    }
}

fn called(providers: &Providers, model: &str) -> Result<String, ErrorKind> {
    let called = providers.resolve_call(&asked(model));
    called
        .map(|called| format!("{} {}", called.provider.name, called.model))
        .map_err(|error| error.kind)
}

#[tokio::test]
async fn a_policy_calls_the_models_that_are_offered_by_name_and_no_others() {
    let providers = providers(&[("OPENAI_API_KEY", "k"), ("GOOGLE_MODEL", "g")]).await;
    let offers = providers.available("google", "m", false, true);
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
    assert_eq!(providers.available("google", "m", false, true).names, ["m"]);
    assert_eq!(called(&providers, "openai/m"), Err(ErrorKind::Forbidden));
    // The session's own provider is called with the user's key, although the deployment has none
    // for it.
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
        Err(CreateError::UnknownProvider(..))
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
async fn the_base_url_serves_a_named_provider_that_nobody_has_a_key_for() {
    let at = ("LLM_BASE_URL", "http://127.0.0.1:1");
    let (llm, model) = (("LLM_API_KEY", "any"), ("LLM_MODEL", "qwen"));
    let all = providers(&[at, llm, model]).await;
    let found = |all: &Providers, name, model, has_key| {
        let found = all.find(name, model, has_key);
        found
            .map(|found| format!("{} {}", found.name, found.model))
            .map_err(|error| error.to_user())
    };
    let google = Some("google");
    assert_eq!(found(&all, google, None, false).unwrap(), "google qwen");
    assert_eq!(
        found(&all, google, Some("other"), false).unwrap(),
        "google other"
    );
    // A user's own key goes to the provider it came for, which then answers with its own model.
    assert_eq!(found(&all, google, None, true).unwrap(), "google m");
    assert!(
        found(&all, Some("nobody"), None, false)
            .unwrap_err()
            .contains("Unknown")
    );
    let without_key = |wanted: &str| ModelRequest {
        model: "qwen".to_owned(),
        api_key: None,
        ..asked(wanted)
    };
    let called = all.resolve_call(&without_key("")).unwrap();
    let of = (
        called.provider.name.as_str(),
        called.model.as_str(),
        called.label.as_str(),
    );
    assert_eq!(of, ("openai", "qwen", "google"));
    assert_eq!(
        all.resolve_call(&asked("")).unwrap().provider.name,
        "google"
    );
    let offers = all.available("google", "qwen", false, false);
    assert_eq!(
        (offers.model.name.as_str(), offers.small.name.as_str()),
        ("qwen", "qwen")
    );

    // A provider with a key or an address of its own is called there, or the session is refused.
    let own = ("GOOGLE_API_KEY", "own");
    let all = providers(&[at, llm, model, own]).await;
    assert_eq!(found(&all, google, None, false).unwrap(), "google m");
    let own_at = ("GOOGLE_BASE_URL", "https://example.org/v3");
    let all = providers(&[at, llm, model, own_at]).await;
    assert!(
        found(&all, google, None, false)
            .unwrap_err()
            .contains("GOOGLE_API_KEY")
    );
    // A key without an address applies to no address.
    let all = providers(&[("OPENAI_API_KEY", "k")]).await;
    assert!(
        found(&all, google, None, false)
            .unwrap_err()
            .contains("GOOGLE_API_KEY")
    );
    let manifest = "[providers.openai]\ncomponent = \"builtin:openai\"\n\
                    [providers.google]\ncomponent = \"builtin:google\"\nkey = \"MINE\"";
    let (all, _) = deployed(&[at, llm], manifest).await.unwrap();
    assert!(
        found(&all, google, None, false)
            .unwrap_err()
            .contains("MINE")
    );
}

#[tokio::test]
async fn a_default_provider_without_a_key_is_told_of_and_served_by_the_base_url() {
    let (default, model) = (("DEFAULT_MODEL_PROVIDER", "google"), ("LLM_MODEL", "qwen"));
    let at = ("LLM_BASE_URL", "http://127.0.0.1:1");
    let (all, warnings) = deployed(&[default, model, at, ("LLM_API_KEY", "k")], "")
        .await
        .unwrap();
    assert_eq!(
        warnings,
        [
            "DEFAULT_MODEL_PROVIDER is google, which has no key: GOOGLE_API_KEY is not set; sessions that name no provider are served by LLM_BASE_URL."
        ]
    );
    let found = all.find(None, None, false).unwrap();
    assert_eq!(
        (found.name.as_str(), found.model.as_str()),
        ("google", "qwen")
    );
    assert_eq!(all.default_model(), "qwen");

    let (all, warnings) = deployed(&[default, model], "").await.unwrap();
    assert!(
        warnings
            .concat()
            .contains("is refused unless it brings a key"),
        "{warnings:?}"
    );
    assert!(all.find(None, None, false).is_err());
    let (_, warnings) = deployed(&[default, ("GOOGLE_API_KEY", "k")], "")
        .await
        .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}

/// The key that a provider is called with.
fn key_of(providers: &Providers, name: &str) -> Option<String> {
    let model_provider = providers.by_name(name).unwrap();
    model_provider
        .key
        .as_ref()
        .map(|key| key.expose().to_owned())
}

#[tokio::test]
async fn a_key_belongs_to_the_address_it_was_set_beside() {
    let key =
        async |settings: &[(&str, &str)], name: &str| key_of(&providers(settings).await, name);
    let llm = ("LLM_API_KEY", "any");
    let own = ("OPENAI_API_KEY", "own");
    let at = ("LLM_BASE_URL", "http://127.0.0.1:1");
    // The address in the test guests' own description.
    let at_its_own = ("LLM_BASE_URL", "https://example.org/v2");
    let own_at = ("OPENAI_BASE_URL", "http://127.0.0.1:2");
    for (settings, name, expected) in [
        (&[llm, own][..], "openai", Some("own")),
        (&[llm, own], "google", Some("any")),
        (&[llm, own, at], "openai", Some("any")),
        (&[own, at], "openai", None),
        (&[own, at_its_own], "openai", Some("own")),
        (&[llm, own, at_its_own], "openai", Some("any")),
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

#[tokio::test]
async fn a_key_that_nothing_uses_is_told_of() {
    let told = async |settings: &[(&str, &str)], manifest: &str| {
        let (_, warnings) = deployed(settings, manifest).await.unwrap();
        warnings.join(" ")
    };
    let (own, at) = (
        ("OPENAI_API_KEY", "k"),
        ("LLM_BASE_URL", "http://127.0.0.1:1"),
    );
    let warning = told(&[own, at], "").await;
    assert!(
        warning.starts_with("OPENAI_API_KEY is not used"),
        "{warning}"
    );
    assert_eq!(told(&[own], "").await, "");
    let vllm =
        "[providers.vllm]\ncomponent = \"builtin:openai\"\nbase_url = \"http://127.0.0.1:3\"";
    let warning = told(&[own, at], vllm).await;
    for variable in ["OPENAI_API_KEY is not used", "LLM_BASE_URL is not used"] {
        assert!(warning.contains(variable), "{variable}: {warning}");
    }
    let warning = told(&[], &format!("{vllm}\nkey = \"VLLM_SECRET\"")).await;
    assert!(warning.starts_with("VLLM_SECRET is not set"), "{warning}");
    let warning = told(&[("DEFAULT_PROVIDER", "other")], "").await;
    assert!(warning.contains("google, openai"), "{warning}");
}

#[tokio::test]
async fn a_manifests_provider_has_its_own_key_and_no_key_goes_where_it_was_not_meant() {
    let manifest = r#"
        [providers.here]
        component = "builtin:openai"
        [providers.vllm]
        component = "builtin:openai"
        base_url = "http://127.0.0.1:3"
        [providers.shared]
        component = "builtin:openai"
        base_url = "http://127.0.0.1:4"
        key = "LLM_API_KEY"
        [providers.odd-name]
        component = "builtin:openai"
        key = "SOME_KEY"
    "#;
    let settings = [("LLM_API_KEY", "any"), ("SOME_KEY", "some")];
    let (all, _) = deployed(&settings, manifest).await.unwrap();
    assert_eq!(key_of(&all, "here").as_deref(), Some("any"));
    assert_eq!(
        key_of(&all, "vllm"),
        None,
        "nobody named LLM_API_KEY for that server"
    );
    assert_eq!(key_of(&all, "shared").as_deref(), Some("any"));
    assert_eq!(key_of(&all, "odd-name").as_deref(), Some("some"));
    let settings = [("VLLM_API_KEY", "v"), ("ODD_NAME_API_KEY", "not this")];
    let (all, _) = deployed(&settings, manifest).await.unwrap();
    assert_eq!(key_of(&all, "vllm").as_deref(), Some("v"));
    assert_eq!(
        key_of(&all, "odd-name"),
        None,
        "`key` names another variable"
    );
    assert_eq!(all.default, "vllm");
    // A value that a header cannot hold is found before any request, and reported with its position
    // and without the value.
    let settings = [("SOME_KEY", "secret with spaces")];
    let wrong = deployed(&settings, manifest)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(wrong.starts_with("lucid.toml:11:"), "{wrong}");
    assert!(
        wrong.contains("SOME_KEY") && !wrong.contains("spaces)"),
        "{wrong}"
    );
    assert!(!wrong.contains("secret with"), "{wrong}");
}

#[tokio::test]
async fn a_component_that_is_not_built_in_does_not_choose_where_keys_go() {
    let own = "[providers.own]\ncomponent = \"own.wasm\"\n";
    let settings = [("OWN_API_KEY", "own"), ("LLM_API_KEY", "any")];
    let wrong = deployed(&settings, own).await.err().unwrap().to_string();
    assert!(
        wrong.starts_with("lucid.toml:1:") && wrong.contains("needs a `base_url`"),
        "{wrong}"
    );
    let stated = format!("{own}base_url = \"https://own.example/v1\"\n");
    let (all, _) = deployed(&settings, &stated).await.unwrap();
    assert_eq!(key_of(&all, "own").as_deref(), Some("own"));
    assert_eq!(
        all.by_name("own").unwrap().endpoint.server(),
        "https://own.example"
    );
}

#[tokio::test]
async fn a_server_on_this_machine_or_one_that_the_manifest_says_so_of_needs_no_key() {
    let manifest = r#"
        [providers.away]
        component = "builtin:openai"
        base_url = "https://example.org/other"
        [providers.near]
        component = "builtin:openai"
        base_url = "localhost:11434"
        [providers.open]
        component = "builtin:openai"
        base_url = "https://example.org/other"
        key = false
        [providers.spare]
        component = "builtin:openai"
        base_url = "https://models.spare.example/v1"
    "#;
    let settings = [("OPEN_API_KEY", "not-this")];
    let (all, warnings) = deployed(&settings, manifest).await.unwrap();
    for (name, usable) in [("away", false), ("near", true), ("open", true)] {
        assert_eq!(all.find(Some(name), None, false).is_ok(), usable, "{name}");
        assert_eq!(key_of(&all, name), None, "{name}");
    }
    assert!(all.has_usable() && all.default == "near");
    assert!(!warnings.join(" ").contains("is not set"), "{warnings:?}");
    let near = all.by_name("near").unwrap();
    assert_eq!(near.endpoint.base_url().as_str(), "http://localhost:11434/");
    let standings: Vec<String> = all.readiness().iter().map(ToString::to_string).collect();
    assert!(
        standings[0].contains("near") && standings[0].ends_with("without a key"),
        "{standings:?}"
    );
    assert!(
        standings[1].contains("AWAY_API_KEY is not set"),
        "{standings:?}"
    );
    assert!(
        standings[3].ends_with("without a key: SPARE_API_KEY is not set"),
        "{standings:?}"
    );
}

#[tokio::test]
async fn azure_is_asked_as_azure_wants_it() {
    let pasted =
        "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2026-06-01";
    let all = providers(&[("OPENAI_BASE_URL", pasted), ("OPENAI_API_KEY", "k")]).await;
    let endpoint = &all.by_name("openai").unwrap().endpoint;
    assert_eq!(
        endpoint.base_url().as_str(),
        "https://r.openai.azure.com/openai/deployments/d?api-version=2026-06-01"
    );
    assert_eq!(
        endpoint.injection(),
        &KeyInjection::Header("api-key".parse().unwrap())
    );
}

#[tokio::test]
async fn where_cost_is_limited_a_model_whose_price_nobody_knows_is_not_asked() {
    let manifest = r#"
        [providers.vllm]
        component = "builtin:openai"
        base_url = "http://127.0.0.1:3"
        models = ["priced", "free", "unknown"]
        prices = { priced = { input = 1, output = 2 }, free = { input = 0, output = 0 } }
    "#;
    let (all, _) = deployed(&[], manifest).await.unwrap();
    for model in ["priced", "free"] {
        assert!(all.check_priced("vllm", model, false).is_none(), "{model}");
    }
    let why = all
        .check_priced("vllm", "unknown", false)
        .unwrap()
        .to_user();
    assert!(
        why.contains("'unknown'") && why.contains("`prices`"),
        "{why}"
    );
    let asked = |model: &str, cost_limited| ModelRequest {
        provider: "vllm".to_owned(),
        model: "priced".to_owned(),
        cost_limited,
        ..asked(model)
    };
    assert!(all.resolve_call(&asked("unknown", false)).is_ok());
    assert!(all.resolve_call(&asked("free", true)).is_ok());
    let refused = all.resolve_call(&asked("unknown", true)).err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Forbidden);
    assert!(refused.message.contains("`prices`"), "{}", refused.message);
    assert_eq!(
        all.available("vllm", "priced", true, false).names,
        ["priced", "free"]
    );
}
