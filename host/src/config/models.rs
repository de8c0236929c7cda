//! The settings of model providers: base URLs, keys, models, and which of them users may choose.
//!
//! # Invariants
//!
//! - Each provider's settings have the same names, prefixed with the provider's.
//! - A key belongs to the base URL it was set beside, and `LLM_API_KEY` to `LLM_BASE_URL` alone if
//!   that one is set.

use std::time::Duration;

use url::Url;

use super::ConfigError;
use super::parse::{SettingValues, is_model, seconds};
use lucid_types::secret::Secret;

/// The settings of one provider under its own name.
#[derive(Debug, Clone, Default)]
pub struct ProviderSettings {
    /// Its name as in `modelProvider`, in lower case.
    pub name: &'static str,
    /// `…_API_KEY`: the key for its own base URL, or for `…_BASE_URL`.
    pub api_key: Option<Secret>,
    /// The name of that variable.
    pub key_variable: &'static str,
    /// `…_BASE_URL`: the address of its API, if not the provider's own.
    pub base_url: Option<Url>,
    /// `…_MODEL`: the model for a session that names none.
    pub model: Option<String>,
}

/// All settings about models.
#[derive(Debug, Clone, Default)]
pub struct ModelSettings {
    /// The providers that have settings of their own.
    pub providers: Vec<ProviderSettings>,
    /// `LLM_API_KEY`: for the endpoint at `LLM_BASE_URL`. Without one, for any provider without a
    /// key of its own.
    pub api_key: Option<Secret>,
    /// `LLM_BASE_URL`: an endpoint that speaks OpenAI's protocol.
    pub base_url: Option<Url>,
    /// `LLM_MODEL`: the default provider's model for a session that names none.
    pub model: Option<String>,
    /// `LLM_MODELS`: the models that users and policies may choose, as `model` or `provider/model`.
    /// `None` for all that the adapters know.
    pub allowed: Option<Vec<String>>,
    /// `DEFAULT_MODEL_PROVIDER`, or the older `DEFAULT_PROVIDER`, in lower case.
    pub default_provider: Option<String>,
    /// `MODEL_OUTAGE_PATIENCE` (15 minutes): how long transient failures of a model call are
    /// retried.
    pub outage_patience: Duration,
    /// The default provider from the command line, which takes precedence over a manifest's.
    pub typed_provider: Option<String>,
    /// The default provider's model from the command line, which takes precedence over a
    /// manifest's.
    pub typed_model: Option<String>,
}

const DAY: f64 = 86_400.0;

/// Name, key, base URL, model.
const PROVIDERS: [[&str; 4]; 3] = [
    [
        "anthropic",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_MODEL",
    ],
    [
        "google",
        "GOOGLE_API_KEY",
        "GOOGLE_BASE_URL",
        "GOOGLE_MODEL",
    ],
    [
        "openai",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "OPENAI_MODEL",
    ],
];

impl ModelSettings {
    pub(super) fn check(
        values: &SettingValues,
        warnings: &mut Vec<String>,
    ) -> Result<Self, ConfigError> {
        let newer = values.provider("DEFAULT_MODEL_PROVIDER")?;
        let older = values.provider("DEFAULT_PROVIDER")?;
        if let (Some(newer), Some(older)) = (&newer, &older)
            && newer != older
        {
            warnings.push(format!(
                "DEFAULT_PROVIDER ({older}) is not used, because DEFAULT_MODEL_PROVIDER ({newer}) is set."
            ));
        }
        let mut providers = Vec::new();
        for [name, key, url, model] in PROVIDERS {
            providers.push(ProviderSettings {
                name,
                api_key: values.header_secret(key)?,
                key_variable: key,
                base_url: values.model_url(url)?,
                model: values.model(model)?,
            });
        }
        let settings = Self {
            providers,
            api_key: values.header_secret("LLM_API_KEY")?,
            base_url: values.model_url("LLM_BASE_URL")?,
            model: values.model("LLM_MODEL")?,
            allowed: values.optional(
                "LLM_MODELS",
                "a comma-separated list of models, each as model or provider/model, without spaces in them",
                allowed,
            )?,
            default_provider: newer.or(older),
            outage_patience: values.parsed(
                "MODEL_OUTAGE_PATIENCE",
                Duration::from_secs(900),
                "a time from 0 to a day, such as 90, 90s or 15m",
                |text| seconds(text, 0.0, DAY),
            )?,
            typed_provider: None,
            typed_model: None,
        };
        let named = |name| settings.of(name).is_some_and(|own| own.base_url.is_some());
        if settings.base_url.is_some() && named("openai") {
            warnings.push(
                "LLM_BASE_URL is not used, because OPENAI_BASE_URL is set; LLM_API_KEY belongs to it and is not used either."
                    .to_owned(),
            );
        }
        Ok(settings)
    }

    /// The settings of a provider.
    pub fn of(&self, name: &str) -> Option<&ProviderSettings> {
        self.providers.iter().find(|own| own.name == name)
    }
}

fn allowed(text: &str) -> Option<Vec<String>> {
    let entries = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let list: Vec<String> = entries.map(str::to_owned).collect();
    (!list.is_empty() && list.iter().all(|entry| is_model(entry))).then_some(list)
}
