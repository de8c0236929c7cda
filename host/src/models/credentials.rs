//! The address a provider is reached at, and the deployment's key for it.
//!
//! # Invariants
//!
//! - A key goes to the address it was set for and to no other, and never to an address chosen by a
//!   component that is not built in, since another build of it could choose another.
//! - A variable that a manifest names belongs to that provider and has no fallback. `LLM_API_KEY`
//!   is never sent to an address in a manifest entry that does not name it. Everything else is as
//!   the environment says.

use url::Url;

use crate::config::{Config, ConfigError};
use crate::manifest::LoadedProvider;
use lucid_net::egress::{EgressError, Endpoint, KeyInjection, base_url_candidates, is_loopback};
use lucid_types::secret::Secret;
use lucid_types::wit::llm::KeyPlace;
use lucid_wasm::Plugin;

/// The provider that `LLM_BASE_URL` replaces.
pub(super) const COMPATIBLE: &str = "openai";
/// The variable with a key for any provider.
const ANY_KEY: &str = "LLM_API_KEY";

/// An error that makes a provider unusable.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProviderEndpointError {
    /// The adapter names an invalid URL.
    #[error("the adapter of `{0}` has a base URL that cannot be read; report it to its author")]
    BaseUrl(String),
    /// Only the component says where the provider is.
    #[error(
        "the provider `{name}` needs a `base_url`: its component is none of the built-in ones, and no key goes to an address that such a component chooses (this one names {address})"
    )]
    OwnAddress {
        /// The provider's name.
        name: String,
        /// The component's own address.
        address: String,
    },
    /// The endpoint, or the placement of the key, is invalid.
    #[error("the provider `{0}` cannot be used: {1}")]
    Egress(String, EgressError),
    /// The key is invalid.
    #[error("{0}")]
    Key(#[from] ConfigError),
}

/// A provider's endpoint and key.
pub(super) struct ProviderEndpoint {
    pub(super) endpoint: Endpoint,
    /// The deployment's key.
    pub(super) key: Option<Secret>,
    /// The variable that the key is from, or is missing from.
    pub(super) variable: String,
    /// Whether it is a server other than the adapter's own.
    pub(super) is_other_server: bool,
    /// Whether it is at `LLM_BASE_URL`.
    pub(super) general: bool,
    /// Whether only its name was set, neither an address nor, in a manifest, a variable for its
    /// key. If it has no key, `LLM_BASE_URL` then serves requests for it.
    pub(super) may_stand_in: bool,
    /// Whether it may work without a key: it is another server, it is on this machine, or the
    /// manifest says so.
    pub(super) works_without_key: bool,
    /// Warnings for the operator.
    pub(super) warnings: Vec<String>,
}

impl ProviderEndpoint {
    pub(super) fn new(
        provider: &LoadedProvider,
        config: &Config,
    ) -> Result<Self, ProviderEndpointError> {
        let name = provider.plugin.name();
        let descriptor = provider.plugin.descriptor();
        let entry = provider.entry.as_deref();
        let settings = &config.models;
        let own = settings.of(name);
        let unusable = |cause| ProviderEndpointError::Egress(name.to_owned(), cause);
        let usual = Url::parse(&descriptor.default_base_url)
            .map_err(|_| ProviderEndpointError::BaseUrl(name.to_owned()))?;

        let stated = entry.and_then(|entry| entry.base_url.as_ref());
        let stated = stated.map(|url| url.value.clone());
        let by_own = own.and_then(|own| own.base_url.clone());
        let general = settings.base_url.clone().filter(|_| name == COMPATIBLE);
        let from_general = stated.is_none() && by_own.is_none() && general.is_some();
        let from_manifest = stated.is_some();
        let has_address = from_manifest || by_own.is_some();
        let url = stated.or(by_own).or(general);
        if url.is_none() && !provider.builtin {
            return Err(ProviderEndpointError::OwnAddress {
                name: name.to_owned(),
                address: usual.origin().ascii_serialization(),
            });
        }
        let injection = match entry.and_then(|entry| entry.key_place.clone()) {
            Some(place) => place,
            None => key_place(&descriptor.key, url.as_ref()).map_err(unusable)?,
        };
        let elsewhere = url.as_ref().is_some_and(|url| url.host() != usual.host());
        let no_key = entry.is_some_and(|entry| !entry.key.is_needed);
        let keyless = no_key || elsewhere || url.as_ref().is_some_and(is_loopback);
        let same_origin = url
            .as_ref()
            .is_none_or(|url| url.origin() == usual.origin());

        let named = entry.map(|entry| &entry.key);
        let own_variable = match (named, own) {
            _ if no_key => None,
            (Some(key), _) => Some(key.name.clone()),
            (None, Some(own)) => Some(own.key_variable.to_owned()),
            (None, None) => None,
        };
        let own_key = match &own_variable {
            Some(variable) => config.variables.key(variable)?,
            None => None,
        };
        let own_variable = own_variable.unwrap_or_else(|| ANY_KEY.to_owned());
        let general_key = || from_variable(settings.api_key.as_ref(), ANY_KEY);
        let mut warnings = Vec::new();
        let found = if no_key {
            None
        } else if named.is_some_and(|key| key.stated.is_some()) {
            if own_key.is_none() {
                warnings.push(format!(
                    "{own_variable} is not set, so the deployment has no key for the provider `{name}`."
                ));
            }
            from_variable(own_key.as_ref(), &own_variable)
        } else if from_general {
            let spare = from_variable(own_key.as_ref(), &own_variable).filter(|_| same_origin);
            if own_key.is_some() && spare.is_none() {
                warnings.push(format!(
                    "{own_variable} is not used: it is for the provider's own server, and LLM_BASE_URL leads to another one. Set LLM_API_KEY for that one, or OPENAI_BASE_URL in place of LLM_BASE_URL."
                ));
            }
            general_key().or(spare)
        } else {
            // If LLM_BASE_URL is set, LLM_API_KEY is for that address only.
            let general = general_key()
                .filter(|_| settings.base_url.is_none() && !(from_manifest && elsewhere));
            from_variable(own_key.as_ref(), &own_variable).or(general)
        };
        let endpoint = match url {
            Some(url) => {
                let (first, other) = base_url_candidates(url, &usual);
                Endpoint::new(first, injection).map(|endpoint| endpoint.or_at(other))
            }
            None => Endpoint::public(usual, injection),
        };
        let silence = entry.and_then(|entry| entry.silence);
        let (key, variable) = match found {
            Some((key, variable)) => (Some(key), variable),
            None => (None, own_variable),
        };
        Ok(Self {
            endpoint: endpoint.map_err(unusable)?.with_silence(silence),
            key,
            variable,
            is_other_server: elsewhere,
            general: from_general,
            may_stand_in: !(has_address || named.is_some_and(|key| key.stated.is_some())),
            works_without_key: keyless,
            warnings,
        })
    }

    /// Whether a session without a key of its own can call it.
    pub(super) fn is_usable(&self) -> bool {
        self.works_without_key || self.key.is_some()
    }
}

/// The placement of a key where nothing else is configured: Azure expects one in a header of its
/// own.
fn key_place(place: &KeyPlace, url: Option<&Url>) -> Result<KeyInjection, EgressError> {
    let azure = |url: &Url| {
        url.domain()
            .is_some_and(|name| name.ends_with(".azure.com"))
    };
    if matches!(place, KeyPlace::Bearer) && url.is_some_and(azure) {
        return KeyInjection::of(&KeyPlace::Header("api-key".to_owned()));
    }
    KeyInjection::of(place)
}

fn from_variable(key: Option<&Secret>, variable: &str) -> Option<(Secret, String)> {
    key.map(|key| (key.clone(), variable.to_owned()))
}
