//! Owns which model providers this deployment has, and how a model is asked.
//!
//! What always holds: each adapter that is loaded is a provider, called by the adapter's name. A user's
//! own key comes before the deployment's, and goes to the provider it came for and to no other. A
//! model that the deployment does not allow is not asked, whoever names it.

mod choice;
mod served;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::SecretString;

use self::served::{COMPATIBLE, Served};
use crate::blobs::Blobs;
use crate::config::{Config, ProviderSettings};
use crate::egress::{Egress, EgressError, EgressLimits};
use crate::plugins::llm_types::{CompletionRequest, Delta};
use crate::plugins::types::{Error, ErrorKind, Usage};
use crate::plugins::{Plugins, Shown, Target, complete};
use crate::secret::Secret;
use crate::session::{
    CreateError, DeltaKind, DeltaSink, ModelAnswer, ModelFailure, ModelRequest, Models, Offers,
    Provider, Spent,
};

/// The adapters' settings; none so far.
const SETTINGS: &str = "{}";
/// A name that was sent is repeated only so far, in characters.
const SHOWN: usize = 64;

/// Why the providers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// The client, or an endpoint.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// An adapter names an address that is none.
    #[error("the adapter {0} has a base URL that cannot be read")]
    BaseUrl(String),
}

/// The model providers of this deployment.
pub(super) struct Providers {
    egress: Egress,
    blobs: Blobs,
    /// In the order of their names.
    all: Vec<Arc<Served>>,
    default: String,
}

impl Providers {
    /// Each adapter that is loaded is a provider. `blobs` has the files of conversations.
    pub(super) fn new(
        plugins: &Plugins,
        config: &Config,
        blobs: Blobs,
    ) -> Result<Self, ModelsError> {
        let default = default_provider(plugins, config);
        let mut all = Vec::new();
        for llm in plugins.llms() {
            let served = Served::new(llm, &config.models, llm.name() == default)?;
            all.push(Arc::new(served));
        }
        let endpoints = all.iter().map(|served| &served.endpoint);
        Ok(Self {
            egress: Egress::new(EgressLimits::default(), endpoints)?,
            blobs,
            all,
            default,
        })
    }

    /// Whether a session that brings no key could ask a model.
    pub(super) fn any_usable(&self) -> bool {
        self.all.iter().any(|served| served.usable(false))
    }

    /// The default provider's model; empty where there is no such provider.
    pub(super) fn default_model(&self) -> String {
        let model = self
            .named(&self.default)
            .and_then(|served| served.choice.default());
        model.unwrap_or_default().to_owned()
    }

    fn named(&self, name: &str) -> Option<&Arc<Served>> {
        self.all
            .iter()
            .find(|served| served.name.eq_ignore_ascii_case(name))
    }

    /// Which provider a request means, and which of its models. A model may bring its provider's name
    /// along, as `provider/model`, where none is named beside it.
    fn meant<'a>(
        &'a self,
        provider: Option<&str>,
        model: Option<&'a str>,
    ) -> Result<(&'a Arc<Served>, Option<&'a str>), CreateError> {
        let unknown = |name: &str| CreateError::UnknownProvider(name.chars().take(SHOWN).collect());
        if let Some(name) = provider {
            return Ok((self.named(name).ok_or_else(|| unknown(name))?, model));
        }
        let default = self.named(&self.default);
        if let Some((before, rest)) = model.and_then(|model| model.split_once('/'))
            && let Some(other) = self.named(before)
            && !model.is_some_and(|model| default.is_some_and(|d| d.choice.allows(model)))
        {
            return Ok((other, Some(rest)));
        }
        Ok((default.ok_or_else(|| unknown(&self.default))?, model))
    }

    /// Who answers a policy's call, and as which model.
    fn called(&self, request: &ModelRequest) -> Result<(Arc<Served>, String), Error> {
        let own = self
            .named(&request.provider)
            .ok_or_else(|| no_longer(&request.provider))?;
        let wanted = &request.call.model;
        if wanted.is_empty() || *wanted == request.model {
            return Ok((own.clone(), request.model.clone()));
        }
        if own.choice.allows(wanted) {
            return Ok((own.clone(), wanted.clone()));
        }
        if let Some((before, rest)) = wanted.split_once('/')
            && let Some(other) = self.named(before)
            && other.choice.allows(rest)
            // A user's own key never goes to another provider.
            && (Arc::ptr_eq(own, other) || other.usable(false))
        {
            return Ok((other.clone(), rest.to_owned()));
        }
        let shown: String = wanted.chars().take(SHOWN).collect();
        Err(Error {
            kind: ErrorKind::Forbidden,
            code: Some("model".to_owned()),
            message: format!(
                "The agent asked for the model '{shown}', which is not offered to it."
            ),
            retry_after_ms: None,
        })
    }
}

/// Whom a session asks that names nobody: the one that is set; else `openai`, unless only another one
/// has a key.
fn default_provider(plugins: &Plugins, config: &Config) -> String {
    let settings = &config.models;
    if let Some(named) = &settings.default_provider {
        return named.clone();
    }
    let loaded = |name: &str| plugins.llm(name).is_some();
    let keyed = |own: &&ProviderSettings| own.api_key.is_some() && loaded(own.name);
    let general = settings.base_url.is_some() || settings.api_key.is_some();
    let compatible = general || settings.of(COMPATIBLE).as_ref().is_some_and(keyed);
    match settings.providers.iter().find(keyed) {
        Some(own) if !compatible => own.name.to_owned(),
        _ if loaded(COMPATIBLE) => COMPATIBLE.to_owned(),
        _ => plugins
            .llms()
            .next()
            .map(|llm| llm.name().to_owned())
            .unwrap_or_default(),
    }
}

impl Models for Providers {
    fn find(
        &self,
        name: Option<&str>,
        model: Option<&str>,
        has_key: bool,
    ) -> Result<Provider, CreateError> {
        let (served, model) = self.meant(name, model)?;
        if !served.usable(has_key) {
            return Err(CreateError::MissingKey {
                provider: served.name.clone(),
                variable: served.variable,
            });
        }
        match model.or(served.choice.default()) {
            Some(model) if served.choice.allows(model) => Ok(Provider {
                name: served.name.clone(),
                model: model.to_owned(),
            }),
            other => Err(CreateError::UnknownModel {
                model: other.unwrap_or_default().chars().take(SHOWN).collect(),
                provider: served.name.clone(),
                offered: served.choice.sentence(),
            }),
        }
    }

    fn offers(&self, provider: &str, model: &str) -> Offers {
        let Some(own) = self.named(provider) else {
            return Offers::only(model);
        };
        let mut offers = own.choice.offers(model);
        let others = self.all.iter().filter(|other| !Arc::ptr_eq(own, other));
        for other in others.filter(|other| other.usable(false)) {
            let names = other.choice.names();
            let full = names.iter().map(|name| format!("{}/{name}", other.name));
            offers.names.extend(full);
        }
        offers
    }

    fn check(
        &self,
        provider: &str,
        api_key: Option<Secret>,
    ) -> BoxFuture<'static, Result<(), CreateError>> {
        let found = self.named(provider).cloned();
        let egress = self.egress.clone();
        async move {
            match found {
                Some(served) => served.check(&egress, api_key).await,
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn call(
        &self,
        request: ModelRequest,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ModelAnswer, ModelFailure>> {
        let called = self.called(&request);
        let (egress, blobs) = (self.egress.clone(), self.blobs.clone());
        async move {
            let (served, model) = called?;
            ask(&egress, &blobs, &served, model, request, &deltas).await
        }
        .boxed()
    }
}

async fn ask(
    egress: &Egress,
    blobs: &Blobs,
    served: &Served,
    model: String,
    request: ModelRequest,
    deltas: &DeltaSink,
) -> Result<ModelAnswer, ModelFailure> {
    let own = request.api_key.as_ref().map(sendable);
    let own = own.filter(|_| served.name == request.provider);
    let files = blobs.of(&request.session);
    let target = Target {
        egress,
        endpoint: &served.endpoint,
        key: own.as_ref().or(served.key.as_ref()),
        settings: SETTINGS,
        files: files.as_ref(),
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
    let show = |shown: Shown<'_>| match shown {
        Shown::Delta(Delta::Text(text)) => deltas(DeltaKind::Text, text),
        Shown::Delta(Delta::Thinking(text)) => deltas(DeltaKind::Thinking, text),
        Shown::Delta(Delta::ToolCallStarted(_) | Delta::ToolCallArguments(_) | Delta::Usage(_)) => {
        }
        Shown::Reset => deltas(DeltaKind::Reset, ""),
    };
    let answered = complete(&served.llm, target, &wanted, show).await;
    let spent = |usage: Usage, tries| Spent {
        cost: served.choice.cost(&wanted.model, &usage),
        usage,
        provider: served.name.clone(),
        model: wanted.model.clone(),
        tries,
    };
    let done = answered.map_err(|failed| ModelFailure {
        error: failed.error,
        spent: failed
            .wasted
            .map(|usage| Box::new(spent(*usage, failed.tries))),
    })?;
    tracing::debug!(
        provider = served.name,
        tries = done.tries,
        fuel = done.figures.fuel,
        micros = done.figures.micros,
        "a model answered"
    );
    let answer = done.completion;
    Ok(ModelAnswer {
        spent: spent(answer.usage, done.tries),
        message: answer.message,
        stop: answer.stop,
        aside: call.aside,
    })
}

fn sendable(secret: &Secret) -> SecretString {
    SecretString::from(secret.expose().to_owned())
}

/// A session outlived the provider it was made with.
fn no_longer(name: &str) -> Error {
    Error {
        kind: ErrorKind::Unsupported,
        code: None,
        message: format!("This deployment no longer has the model provider '{name}'."),
        retry_after_ms: None,
    }
}
