//! The making of a deployment's providers from its manifest and settings, with warnings for the
//! operator.

use std::sync::Arc;

use super::Providers;
use super::credentials::{COMPATIBLE, ProviderEndpoint};
use super::provider::ModelProvider;
use crate::config::{Config, ModelSettings};
use crate::manifest::{
    LoadedProvider, Manifest, ManifestProblem, ManifestProblems, SourcePosition,
};
use lucid_net::egress::{Egress, EgressLimits};
use lucid_store::blobs::Blobs;
use lucid_wasm::Plugin;

impl Providers {
    /// The loaded providers, and warnings for the operator. `blobs` has the files of conversations.
    /// Connections of those `before` are reused where possible.
    pub(crate) fn new(
        loaded: Vec<LoadedProvider>,
        manifest: &Manifest,
        config: &Config,
        blobs: Blobs,
        before: Option<&Self>,
    ) -> Result<(Self, Vec<String>), ManifestProblems> {
        let mut wrong = Vec::new();
        let mut resolved = Vec::new();
        for provider in loaded {
            match ProviderEndpoint::new(&provider, config) {
                Ok(endpoint) => resolved.push((provider, endpoint)),
                Err(why) => {
                    let entry = provider.entry.as_deref();
                    let at = entry.map_or(SourcePosition::default(), |entry| entry.plugin.at);
                    wrong.push(ManifestProblem::at(
                        manifest.path.as_deref(),
                        at,
                        why.to_string(),
                    ));
                }
            }
        }
        ManifestProblems::unless_none(wrong)?;
        let default = default_provider(&resolved, manifest, &config.models);
        let names: Vec<String> = resolved
            .iter()
            .map(|(provider, _)| provider.plugin.name().to_owned())
            .collect();
        let general = |(_, endpoint): &&(LoadedProvider, ProviderEndpoint)| {
            endpoint.general && endpoint.is_usable()
        };
        let general = resolved.iter().find(general);
        let general = general.map(|(provider, _)| provider.plugin.name().to_owned());
        let mut warnings = warnings(&resolved, &names, manifest, &config.models);
        let keyless = |(provider, endpoint): &&(LoadedProvider, ProviderEndpoint)| {
            provider.plugin.name() == default && !endpoint.is_usable()
        };
        let keyless = resolved.iter().find(keyless).map(|(_, endpoint)| endpoint);
        if config.models.default_provider.is_some() && manifest.default_provider.is_none() {
            let model_provider =
                general.is_some() && keyless.is_some_and(|endpoint| endpoint.may_stand_in);
            warnings.extend(
                keyless.map(|endpoint| without_key(&default, &endpoint.variable, model_provider)),
            );
        }
        let replaced = keyless.is_some_and(|endpoint| endpoint.may_stand_in);
        let mut all = Vec::new();
        for (provider, endpoint) in resolved {
            let name = provider.plugin.name();
            let is_default = name == default || (replaced && general.as_deref() == Some(name));
            let model_provider =
                ModelProvider::new(provider, endpoint, &config.models, &names, is_default);
            all.push(Arc::new(model_provider));
        }
        let stand_in = general.and_then(|name| {
            all.iter()
                .find(|model_provider| model_provider.name == name)
                .cloned()
        });
        let endpoints: Vec<_> = all
            .iter()
            .map(|model_provider| &model_provider.endpoint)
            .collect();
        let before = before.map(|before| &before.egress);
        let egress = Egress::reuse_or_new(before, EgressLimits::for_models(), &endpoints)
            .map_err(|why| ManifestProblem::plain(format!("no model can be asked: {why}")))?;
        let providers = Self {
            egress,
            blobs,
            patience: config.models.outage_patience,
            all,
            default,
            stand_in,
        };
        Ok((providers, warnings))
    }
}

/// The provider of a session that names none: the configured one, else `openai`, unless only
/// another one has a key, else one that needs none.
fn default_provider(
    resolved: &[(LoadedProvider, ProviderEndpoint)],
    manifest: &Manifest,
    settings: &ModelSettings,
) -> String {
    let stated = manifest.default_provider.as_ref().map(|name| &name.value);
    let named = settings.typed_provider.as_ref().or(stated);
    if let Some(named) = named.or(settings.default_provider.as_ref()) {
        return named.clone();
    }
    let compatible =
        |endpoint: &&(LoadedProvider, ProviderEndpoint)| endpoint.0.plugin.name() == COMPATIBLE;
    let keyed = |endpoint: &&(LoadedProvider, ProviderEndpoint)| endpoint.1.key.is_some();
    let keyless = |endpoint: &&(LoadedProvider, ProviderEndpoint)| endpoint.1.works_without_key;
    let own = resolved.iter().find(compatible);
    let general = settings.base_url.is_some();
    let found = own
        .filter(|endpoint| keyed(endpoint) || (general && keyless(endpoint)))
        .or_else(|| resolved.iter().find(keyed))
        .or_else(|| own.filter(keyless))
        .or_else(|| resolved.iter().find(keyless))
        .or(own)
        .or_else(|| resolved.first());
    found
        .map(|(provider, _)| provider.plugin.name().to_owned())
        .unwrap_or_default()
}

/// Describes what happens to sessions with the default provider if it has no key.
fn without_key(name: &str, variable: &str, model_provider: bool) -> String {
    let then = if model_provider {
        "sessions that name no provider are served by LLM_BASE_URL"
    } else {
        "a session that names no provider is refused unless it brings a key"
    };
    format!("DEFAULT_MODEL_PROVIDER is {name}, which has no key: {variable} is not set; {then}.")
}

/// Warnings about settings that have no effect.
fn warnings(
    resolved: &[(LoadedProvider, ProviderEndpoint)],
    names: &[String],
    manifest: &Manifest,
    settings: &ModelSettings,
) -> Vec<String> {
    let mut all: Vec<String> = resolved
        .iter()
        .flat_map(|(_, endpoint)| endpoint.warnings.clone())
        .collect();
    if let Some(named) = &settings.default_provider
        && manifest.default_provider.is_none()
        && !names.contains(named)
    {
        all.push(format!(
            "DEFAULT_MODEL_PROVIDER is {named}, and this deployment has no such provider; there are: {}.",
            names.join(", ")
        ));
    }
    if manifest.providers.is_empty() {
        return all;
    }
    let used = |variable: &str| {
        resolved
            .iter()
            .any(|(_, endpoint)| endpoint.variable == variable)
    };
    let own = settings.providers.iter();
    let own = own.map(|own| (own.key_variable, own.api_key.is_some()));
    for (variable, is_set) in own.chain([("LLM_API_KEY", settings.api_key.is_some())]) {
        if is_set && !used(variable) {
            all.push(format!(
                "{variable} is not used: no provider of the manifest has it as its `key`."
            ));
        }
    }
    let stands_in = manifest
        .providers
        .get(COMPATIBLE)
        .is_some_and(|entry| entry.base_url.is_none());
    if settings.base_url.is_some() && !stands_in {
        all.push(
            "LLM_BASE_URL is not used: it is for a provider `openai` without a `base_url`, which the manifest does not have."
                .to_owned(),
        );
    }
    all
}
