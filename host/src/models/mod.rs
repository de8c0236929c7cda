//! The model providers of this deployment, and calls to them.
//!
//! # Invariants
//!
//! - Each loaded provider adapter is a provider, named by the name it was loaded under.
//! - A user's own key takes precedence over the deployment's, and goes to the provider it came for
//!   and to no other.
//! - A named provider for which there is no key at all is served by the one at `LLM_BASE_URL`, with
//!   that one's key and models. In records it keeps the name that was requested.
//! - A model that the deployment does not allow is not called, whoever names it. Where there is a
//!   cost limit, a model without a known price is not called.

pub(crate) mod argument_repair;
pub(crate) mod attachments;
mod catalog;
pub mod completion;
mod credentials;
pub(crate) mod image_filter;
pub(crate) mod leaked_calls;
pub(crate) mod provenance;
mod provider;
mod quirks;
pub(crate) mod retry;
#[cfg(test)]
mod tests;
pub(crate) mod tool_names;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use url::Url;

use self::completion::{CallTarget, StreamEvent, complete};
use self::credentials::{COMPATIBLE, ProviderEndpoint};
use self::provider::ModelProvider;
pub(crate) use self::provider::ProviderCheckError;
use crate::config::{Config, ModelSettings};
use crate::manifest::{
    LoadedProvider, Manifest, ManifestProblem, ManifestProblems, SourcePosition, suggest,
};
use lucid_net::egress::{Egress, EgressLimits, KeyInjection, is_loopback};
use lucid_session::{
    AvailableModels, CallCost, CreateError, DeltaKind, DeltaSink, ModelAnswer, ModelFailure,
    ModelRequest, ModelSelection, Models,
};
use lucid_store::blobs::Blobs;
use lucid_types::secret::Secret;
use lucid_types::wit::llm::{CompletionRequest, Delta};
use lucid_types::wit::types::{Error, ErrorKind, Usage};
use lucid_wasm::Plugin;

/// The maximum length at which a requested name is repeated in a message, in characters.
const MAX_SHOWN: usize = 64;

/// The model providers of this deployment.
pub(super) struct Providers {
    egress: Egress,
    blobs: Blobs,
    /// How long transient failures of a call are retried.
    patience: Duration,
    /// All providers, ordered by name.
    all: Vec<Arc<ModelProvider>>,
    default: String,
    /// The provider at `LLM_BASE_URL`, which serves requests for a provider that has no key.
    stand_in: Option<Arc<ModelProvider>>,
}

/// The provider that answers a policy's call.
struct CalledProvider {
    provider: Arc<ModelProvider>,
    /// The model that is called.
    model: String,
    /// The name of its provider in records.
    label: String,
}

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
pub(super) struct ProviderStatus {
    pub(super) base_url: String,
    pub(super) key_place: KeyInjection,
    /// The variable that holds the deployment's key, or would.
    pub(super) variable: String,
    pub(super) has_key: bool,
    /// The models that can be chosen by name. On a server of the operator's own, others may work as
    /// well.
    pub(super) models: Vec<String>,
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
    /// The loaded providers, and warnings for the operator. `blobs` has the files of conversations.
    /// Connections of those `before` are reused where possible.
    pub(super) fn new(
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

    /// Whether a session without a key of its own could call a model.
    pub(super) fn has_usable(&self) -> bool {
        self.all
            .iter()
            .any(|model_provider| model_provider.is_usable(false))
    }

    /// The default provider's model. Empty if there is no such provider.
    pub(super) fn default_model(&self) -> String {
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
    pub(super) fn usable_default(&self) -> Result<(&str, &str), DefaultModelError> {
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
    pub(super) async fn check_default(&self) -> Result<(), ProviderCheckError> {
        let named = self.by_name(&self.default);
        match named.map(|named| self.serving(named, false)) {
            Some(model_provider) if model_provider.is_usable(false) => {
                model_provider.check_reachable(&self.egress).await
            }
            _ => Ok(()),
        }
    }

    /// What a provider is given: its endpoint, its key, and its models.
    pub(super) fn status(&self, name: &str) -> Option<ProviderStatus> {
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
    pub(super) fn readiness(&self) -> Vec<ProviderReadiness> {
        let readiness = |named: &Arc<ModelProvider>| ProviderReadiness {
            name: named.name.clone(),
            ..self.serving(named, false).readiness()
        };
        let mut all: Vec<ProviderReadiness> = self.all.iter().map(readiness).collect();
        all.sort_by_key(|readiness| readiness.name != self.default);
        all
    }

    fn by_name(&self, name: &str) -> Option<&Arc<ModelProvider>> {
        self.all
            .iter()
            .find(|model_provider| model_provider.name.eq_ignore_ascii_case(name))
    }

    /// The provider that serves a session of this provider, which has a key of its own or none.
    fn serving<'a>(
        &'a self,
        named: &'a Arc<ModelProvider>,
        has_key: bool,
    ) -> &'a Arc<ModelProvider> {
        match &self.stand_in {
            Some(stand_in) if named.may_stand_in && !named.is_usable(has_key) => stand_in,
            _ => named,
        }
    }

    /// Resolves a request to a provider and one of its models. A model may carry its provider's
    /// name, as `provider/model`, if none is given separately.
    fn resolve<'a>(
        &'a self,
        provider: Option<&str>,
        model: Option<&'a str>,
    ) -> Result<(&'a Arc<ModelProvider>, Option<&'a str>), CreateError> {
        let unknown = |name: &str| {
            let there = self
                .all
                .iter()
                .map(|model_provider| model_provider.name.as_str());
            let name: String = name.chars().take(MAX_SHOWN).collect();
            let there = suggest(&name, there);
            CreateError::UnknownProvider(name, there)
        };
        if let Some(name) = provider {
            return Ok((self.by_name(name).ok_or_else(|| unknown(name))?, model));
        }
        let default = self.by_name(&self.default);
        if let Some((before, rest)) = model.and_then(|model| model.split_once('/'))
            && let Some(other) = self.by_name(before)
            && !model.is_some_and(|model| default.is_some_and(|d| d.catalog.allows(model)))
        {
            return Ok((other, Some(rest)));
        }
        Ok((default.ok_or_else(|| unknown(&self.default))?, model))
    }

    /// Resolves a policy's call to a provider and a model.
    fn resolve_call(&self, request: &ModelRequest) -> Result<CalledProvider, Error> {
        let called = self.requested(request)?;
        let CalledProvider {
            provider: model_provider,
            model,
            ..
        } = &called;
        if request.cost_limited && !model_provider.catalog.is_priced(model) {
            return Err(refused(
                "price",
                format!(
                    "Nobody knows the price of the model '{model}', and the session has a limit for its cost. Its `prices` can be set in the deployment's manifest."
                ),
            ));
        }
        Ok(called)
    }

    fn requested(&self, request: &ModelRequest) -> Result<CalledProvider, Error> {
        let named = self
            .by_name(&request.provider)
            .ok_or_else(|| provider_removed(&request.provider))?;
        let own = self.serving(named, request.api_key.is_some());
        let by_own = |model: &str| CalledProvider {
            provider: own.clone(),
            model: model.to_owned(),
            label: named.name.clone(),
        };
        let wanted = &request.call.model;
        if wanted.is_empty() || *wanted == request.model {
            return Ok(by_own(&request.model));
        }
        if own.catalog.allows(wanted) {
            return Ok(by_own(wanted));
        }
        if let Some((before, rest)) = wanted.split_once('/')
            && let Some(other) = self.by_name(before)
            && other.catalog.allows(rest)
            // A user's own key never goes to another provider.
            && (Arc::ptr_eq(own, other) || other.is_usable(false))
        {
            return Ok(CalledProvider {
                provider: other.clone(),
                model: rest.to_owned(),
                label: other.name.clone(),
            });
        }
        let excerpt: String = wanted.chars().take(MAX_SHOWN).collect();
        Err(refused(
            "model",
            format!("The agent asked for the model '{excerpt}', which is not offered to it."),
        ))
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

impl Models for Providers {
    fn find(
        &self,
        name: Option<&str>,
        model: Option<&str>,
        has_key: bool,
    ) -> Result<ModelSelection, CreateError> {
        let (named, rest) = self.resolve(name, model)?;
        // A model requested as `provider/model` of another provider does not exist at the one that
        // replaces it.
        let model_provider = if rest == model {
            self.serving(named, has_key)
        } else {
            named
        };
        if !model_provider.is_usable(has_key) {
            return Err(CreateError::MissingKey {
                provider: named.name.clone(),
                variable: named.variable.clone(),
            });
        }
        match rest.or(model_provider.catalog.default()) {
            Some(model) if model_provider.catalog.allows(model) => Ok(ModelSelection {
                name: named.name.clone(),
                model: model.to_owned(),
            }),
            other => Err(CreateError::UnknownModel {
                model: other.unwrap_or_default().chars().take(MAX_SHOWN).collect(),
                provider: named.name.clone(),
                offered: model_provider.catalog.sentence(),
            }),
        }
    }

    fn check_priced(&self, provider: &str, model: &str, has_key: bool) -> Option<CreateError> {
        let named = self.by_name(provider)?;
        let model_provider = self.serving(named, has_key);
        (!model_provider.catalog.is_priced(model)).then(|| CreateError::UnpricedModel {
            model: model.chars().take(MAX_SHOWN).collect(),
            provider: named.name.clone(),
        })
    }

    fn server(&self, provider: &str) -> Option<String> {
        self.by_name(provider)
            .map(|model_provider| model_provider.endpoint.server())
    }

    fn available(
        &self,
        provider: &str,
        model: &str,
        priced: bool,
        has_key: bool,
    ) -> AvailableModels {
        let Some(named) = self.by_name(provider) else {
            return AvailableModels::only(model);
        };
        let own = self.serving(named, has_key);
        let mut available_models = own.catalog.offers(model, priced);
        let others = self.all.iter().filter(|other| !Arc::ptr_eq(own, other));
        for other in others.filter(|other| other.is_usable(false)) {
            let names = other.catalog.offered(priced);
            let full = names.iter().map(|name| format!("{}/{name}", other.name));
            available_models.names.extend(full);
        }
        available_models
    }

    fn check(
        &self,
        provider: &str,
        api_key: Option<Secret>,
    ) -> BoxFuture<'static, Result<(), CreateError>> {
        let named = self.by_name(provider);
        let found = named.map(|named| self.serving(named, api_key.is_some()).clone());
        let egress = self.egress.clone();
        let label = provider.to_owned();
        async move {
            let Some(model_provider) = found else {
                return Ok(());
            };
            let checked = model_provider.check(&egress, api_key).await;
            // In terms of the requested name, even if another provider serves it.
            checked.map_err(|error| match error {
                CreateError::KeyRefused(_) => CreateError::KeyRefused(label),
                other => other,
            })
        }
        .boxed()
    }

    fn call(
        &self,
        request: ModelRequest,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ModelAnswer, ModelFailure>> {
        let called = self.resolve_call(&request);
        let (egress, blobs) = (self.egress.clone(), self.blobs.clone());
        let patience = self.patience;
        async move { ask(&egress, &blobs, patience, called?, request, &deltas).await }.boxed()
    }
}

async fn ask(
    egress: &Egress,
    blobs: &Blobs,
    patience: Duration,
    called: CalledProvider,
    request: ModelRequest,
    deltas: &DeltaSink,
) -> Result<ModelAnswer, ModelFailure> {
    let CalledProvider {
        provider: model_provider,
        model,
        label,
    } = called;
    let own = request.api_key.as_ref();
    let own = own.filter(|_| model_provider.name == request.provider);
    let files = blobs.of(request.session);
    let target = CallTarget {
        egress,
        endpoint: &model_provider.endpoint,
        key: own.or(model_provider.key.as_ref()),
        settings: &model_provider.settings,
        files: Some(&files),
        patience,
        notify: &*request.notices,
    };
    let call = request.call;
    let wanted = CompletionRequest {
        model,
        messages: request.messages,
        tools: call.tools,
        max_output_tokens: call.max_output_tokens,
        params: call.params,
        streaming: true,
    };
    let cost = |usage: Usage, tries| CallCost {
        cost: model_provider.catalog.cost(&wanted.model, &usage),
        usage,
        provider: label.clone(),
        model: wanted.model.clone(),
        tries,
    };
    let mut so_far = PartialUsage::default();
    let show = |event: StreamEvent<'_>| match event {
        StreamEvent::Delta(Delta::Text(text)) => deltas(DeltaKind::Text, text),
        StreamEvent::Delta(Delta::Thinking(text)) => deltas(DeltaKind::Thinking, text),
        StreamEvent::Delta(Delta::ToolCallStarted(_) | Delta::ToolCallArguments(_)) => {}
        StreamEvent::Delta(Delta::Usage(usage)) => {
            so_far.current = Some(*usage);
            request
                .meter
                .report(cost(so_far.sum(), so_far.restarts + 1));
        }
        StreamEvent::Reset => {
            so_far.again();
            deltas(DeltaKind::Reset, "");
        }
    };
    let answered = complete(&model_provider.llm, target, &wanted, show).await;
    let done = answered.map_err(|failed| ModelFailure {
        error: failed.error,
        cost: failed
            .wasted_tokens
            .map(|usage| Box::new(cost(*usage, failed.tries))),
    })?;
    tracing::debug!(
        provider = model_provider.name,
        tries = done.tries,
        fuel = done.usage.fuel,
        micros = done.usage.micros,
        "a model answered"
    );
    let answer = done.completion;
    Ok(ModelAnswer {
        cost: cost(done.cost, done.tries),
        usage: answer.usage,
        message: answer.message,
        stop: answer.stop,
        aside: call.aside,
    })
}

/// The error for a request of a policy that is not permitted.
fn refused(code: &str, message: String) -> Error {
    Error::new(ErrorKind::Forbidden, message).with_code(code)
}

/// The usage so far of a call in progress, as reported by the provider: all that is known of a
/// cancelled one.
#[derive(Default)]
struct PartialUsage {
    /// The usage of tries that broke off.
    earlier_tries: Vec<Usage>,
    /// The usage of the current try. Each report replaces the one before.
    current: Option<Usage>,
    /// How often it restarted after something had been shown.
    restarts: u32,
}

impl PartialUsage {
    fn again(&mut self) {
        self.earlier_tries.extend(self.current.take());
        self.restarts += 1;
    }

    fn sum(&self) -> Usage {
        let all = || self.earlier_tries.iter().chain(&self.current);
        let sum = |part: fn(&Usage) -> u64| {
            all().fold(0_u64, |sum, usage| sum.saturating_add(part(usage)))
        };
        Usage {
            input_tokens: sum(|usage| usage.input_tokens),
            output_tokens: sum(|usage| usage.output_tokens),
            cache_read_tokens: sum(|usage| usage.cache_read_tokens),
            cache_write_tokens: sum(|usage| usage.cache_write_tokens),
        }
    }
}

/// The error for a session that outlived its provider.
fn provider_removed(name: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("This deployment no longer has the model provider '{name}'."),
    )
}
