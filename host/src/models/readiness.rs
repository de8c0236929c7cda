//! What the providers have and lack before any session has called one: addresses, keys, and the
//! default model.

use std::sync::Arc;

use url::Url;

use super::Providers;
use super::provider::{ModelProvider, ProviderCheckError};
use lucid_net::egress::{KeyInjection, is_loopback};

/// A provider's status before any session has called it.
pub(crate) struct ProviderReadiness {
    pub(crate) name: String,
    pub(crate) base_url: String,
    /// The variable that holds the deployment's key, or should.
    pub(crate) variable: String,
    pub(crate) has_key: bool,
    /// Whether a session without a key of its own can call it.
    pub(crate) is_usable: bool,
}

impl std::fmt::Display for ProviderReadiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            base_url,
            variable,
            ..
        } = self;
        write!(f, "{name:<16} {base_url}, ")?;
        match (self.has_key, self.is_usable) {
            (true, _) => write!(f, "with the key in {variable}"),
            (false, true) if !variable.is_empty() && !is_on_this_machine(base_url) => {
                write!(f, "without a key: {variable} is not set")
            }
            (false, true) => write!(f, "without a key"),
            (false, false) => write!(
                f,
                "cannot be asked: {variable} is not set, and no session has a key but one that brings its own"
            ),
        }
    }
}

fn is_on_this_machine(base_url: &str) -> bool {
    Url::parse(base_url).is_ok_and(|url| is_loopback(&url))
}

/// What a provider is given.
pub(crate) struct ProviderStatus {
    pub(crate) base_url: String,
    pub(crate) key_place: KeyInjection,
    /// The variable that holds the deployment's key, or would.
    pub(crate) variable: String,
    pub(crate) has_key: bool,
    /// The models that can be chosen by name. On a server of the operator's own, others may work as
    /// well.
    pub(crate) models: Vec<String>,
}

/// Why a session without a key of its own has no model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DefaultModelError {
    /// The default provider does not exist.
    #[error("there is no provider `{0}`")]
    Provider(String),
    /// The variable with the provider's key is not set.
    #[error("{0} is not set")]
    Key(String),
    /// The provider has no default model.
    #[error("nothing says which model of `{0}`")]
    Model(String),
}

impl Providers {
    /// Whether a session without a key of its own could call a model.
    pub(crate) fn has_usable(&self) -> bool {
        self.all
            .iter()
            .any(|model_provider| model_provider.is_usable(false))
    }

    /// The default provider's model. Empty if there is no such provider.
    pub(crate) fn default_model(&self) -> String {
        let model = self
            .by_name(&self.default)
            .and_then(|named| self.serving(named, false).catalog.default());
        model.unwrap_or_default().to_owned()
    }

    /// The default provider and its model.
    ///
    /// # Errors
    ///
    /// Says why a session without a key of its own cannot call it.
    pub(crate) fn usable_default(&self) -> Result<(&str, &str), DefaultModelError> {
        let Some(model_provider) = self.by_name(&self.default) else {
            return Err(DefaultModelError::Provider(self.default.clone()));
        };
        if !model_provider.is_usable(false) {
            return Err(DefaultModelError::Key(model_provider.variable.clone()));
        }
        match model_provider.catalog.default() {
            Some(model) => Ok((&model_provider.name, model)),
            None => Err(DefaultModelError::Model(model_provider.name.clone())),
        }
    }

    /// Checks that the default provider answers a session without a key of its own.
    pub(crate) async fn check_default(&self) -> Result<(), ProviderCheckError> {
        let named = self.by_name(&self.default);
        match named.map(|named| self.serving(named, false)) {
            Some(model_provider) if model_provider.is_usable(false) => {
                model_provider.check_reachable(&self.egress).await
            }
            _ => Ok(()),
        }
    }

    /// What a provider is given: its endpoint, its key, and its models.
    pub(crate) fn status(&self, name: &str) -> Option<ProviderStatus> {
        let model_provider = self.by_name(name)?;
        Some(ProviderStatus {
            base_url: model_provider.endpoint.base_url().to_string(),
            key_place: model_provider.endpoint.injection().clone(),
            variable: model_provider.variable.clone(),
            has_key: model_provider.key.is_some(),
            models: model_provider.catalog.names(),
        })
    }

    /// The status of each provider, the default first: its name, its address, and the key it has or
    /// lacks.
    pub(crate) fn readiness(&self) -> Vec<ProviderReadiness> {
        let readiness = |named: &Arc<ModelProvider>| ProviderReadiness {
            name: named.name.clone(),
            ..self.serving(named, false).readiness()
        };
        let mut all: Vec<ProviderReadiness> = self.all.iter().map(readiness).collect();
        all.sort_by_key(|readiness| readiness.name != self.default);
        all
    }
}
