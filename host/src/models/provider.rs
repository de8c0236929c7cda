//! One model provider of this deployment, and validation of keys for it.
//!
//! # Invariants
//!
//! - It is called at its own address.
//! - Only a digest is kept of a key that was validated.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::ProviderReadiness;
use super::catalog::{CatalogSources, ModelCatalog};
use super::credentials::ProviderEndpoint;
use crate::config::ModelSettings;
use crate::manifest::LoadedProvider;
use lucid_net::egress::{Egress, EgressError, EgressResponse, Endpoint};
use lucid_session::CreateError;
use lucid_types::secret::Secret;
use lucid_types::wit::llm::Framing;
use lucid_types::wit::types::ErrorKind;
use lucid_wasm::{LlmPlugin, Plugin};

/// How long a session waits for its key to be validated.
const CHECK: Duration = Duration::from_secs(5);
/// How many valid keys are remembered for each provider.
const REMEMBERED: usize = 1024;

/// A model provider.
pub(super) struct ModelProvider {
    pub(super) name: String,
    pub(super) llm: LlmPlugin,
    /// The deployment's settings for the adapter, as JSON.
    pub(super) settings: String,
    pub(super) endpoint: Endpoint,
    /// The deployment's key.
    pub(super) key: Option<Secret>,
    /// The variable that `key` is missing from, if it is.
    pub(super) variable: String,
    pub(super) catalog: ModelCatalog,
    /// Whether `LLM_BASE_URL` serves requests for this provider if it has no key.
    pub(super) may_stand_in: bool,
    /// Whether it may work without a key.
    works_without_key: bool,
    /// Digests of keys the provider accepted, so that each is validated once.
    accepted_keys: Mutex<HashSet<[u8; 32]>>,
}

/// Why a provider cannot be called with the deployment's key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProviderCheckError {
    /// The request could not be sent.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// It does not know the key.
    #[error("it refuses the key in {0}")]
    Key(String),
    /// It is broken.
    #[error("it answers with status {0}")]
    Status(u16),
    /// It takes too long.
    #[error("it does not answer within {} seconds", CHECK.as_secs())]
    TooSlow,
}

impl ModelProvider {
    /// A provider at its endpoint. `others` are the names of all providers.
    pub(super) fn new(
        provider: LoadedProvider,
        endpoint: ProviderEndpoint,
        settings: &ModelSettings,
        others: &[String],
        is_default: bool,
    ) -> Self {
        let general = endpoint.general;
        let name = provider.plugin.name().to_owned();
        let catalog = ModelCatalog::new(&CatalogSources {
            name: &name,
            descriptor: provider.plugin.descriptor(),
            known: &provider.models,
            settings,
            provider_settings: settings.of(&name),
            entry: provider.entry.as_deref(),
            others,
            is_default,
            general,
            is_other_server: endpoint.is_other_server,
        });
        Self {
            llm: provider.plugin,
            settings: provider.settings,
            endpoint: endpoint.endpoint,
            key: endpoint.key,
            variable: endpoint.variable,
            catalog,
            may_stand_in: endpoint.may_stand_in,
            works_without_key: endpoint.works_without_key,
            accepted_keys: Mutex::default(),
            name,
        }
    }

    /// Whether it can be called, by a session with or without a key of its own.
    pub(super) fn is_usable(&self, own_key: bool) -> bool {
        own_key || self.works_without_key || self.key.is_some()
    }

    /// Its status before any session has called it.
    pub(super) fn readiness(&self) -> ProviderReadiness {
        ProviderReadiness {
            name: self.name.clone(),
            base_url: self.endpoint.base_url().to_string(),
            variable: self.variable.clone(),
            has_key: self.key.is_some(),
            is_usable: self.is_usable(false),
        }
    }

    /// Validates a key.
    ///
    /// # Errors
    ///
    /// Fails if the provider says that it does not know the key. A provider that is slow, down or
    /// responds oddly is no reason to refuse a session: the first call says more.
    pub(super) async fn check(
        &self,
        egress: &Egress,
        api_key: Option<Secret>,
    ) -> Result<(), CreateError> {
        let Some(key) = api_key.as_ref().or(self.key.as_ref()) else {
            return Ok(());
        };
        let digest: [u8; 32] = Sha256::digest(key.expose().as_bytes()).into();
        if self.accepted_keys.lock().contains(&digest) {
            return Ok(());
        }
        let asked = tokio::time::timeout(CHECK, async {
            let request = self.llm.probe(&self.settings).await.result.ok()??;
            let framing = Framing::WholeBody;
            match egress
                .send(&self.endpoint, Some(key), &request, framing)
                .await
                .ok()?
            {
                EgressResponse::Success(_) => Some(true),
                EgressResponse::Refused(no) => {
                    let means = self.llm.classify(no.status, &no.headers, &no.body).await;
                    let unknown = means.result.ok()?.kind == ErrorKind::Unauthenticated;
                    unknown.then_some(false)
                }
            }
        });
        match asked.await {
            Ok(Some(false)) => Err(CreateError::KeyRefused(self.name.clone())),
            Ok(Some(true)) => {
                let mut taken = self.accepted_keys.lock();
                if taken.len() >= REMEMBERED {
                    taken.clear();
                }
                taken.insert(digest);
                Ok(())
            }
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Says why the provider cannot be called with the deployment's key, for the operator: what
    /// `check` ignores is reported here. A server without the probe's path counts as reachable.
    pub(super) async fn check_reachable(&self, egress: &Egress) -> Result<(), ProviderCheckError> {
        let asked = tokio::time::timeout(CHECK, async {
            let Ok(Some(request)) = self.llm.probe(&self.settings).await.result else {
                return Ok(());
            };
            let (key, framing) = (self.key.as_ref(), Framing::WholeBody);
            let answer = egress.send(&self.endpoint, key, &request, framing).await;
            let no = match answer? {
                EgressResponse::Success(_) => return Ok(()),
                EgressResponse::Refused(no) => no,
            };
            let means = self.llm.classify(no.status, &no.headers, &no.body).await;
            match means.result.map(|error| error.kind) {
                Ok(ErrorKind::Unauthenticated) => {
                    Err(ProviderCheckError::Key(self.variable.clone()))
                }
                _ if no.status >= 500 => Err(ProviderCheckError::Status(no.status)),
                _ => Ok(()),
            }
        });
        asked.await.unwrap_or(Err(ProviderCheckError::TooSlow))
    }
}
