//! Owns which model providers this deployment has, and how a model is asked.
//!
//! What always holds: the key of the deployment goes to the endpoint it was set for and to no other:
//! `OPENAI_API_KEY` never to `LLM_BASE_URL`. A user's own key comes before the deployment's.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use url::Url;

use crate::config::Config;
use crate::egress::{Answer, Egress, EgressError, EgressLimits, Endpoint, Injection};
use crate::plugins::llm_types::{CompletionRequest, Delta, Framing};
use crate::plugins::types::{Error, ErrorKind};
use crate::plugins::{LlmPlugin, Plugins, Target, complete};
use crate::secret::Secret;
use crate::session::{
    CreateError, DeltaKind, DeltaSink, ModelAnswer, ModelRequest, Models, Provider,
};

/// The adapter's settings; none so far.
const SETTINGS: &str = "{}";
/// A name that was sent is repeated only so far, in characters.
const SHOWN: usize = 64;
/// How long a session waits to hear whether its key is good.
const CHECK: Duration = Duration::from_secs(5);
/// How many good keys are remembered for each provider.
const REMEMBERED: usize = 1024;

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
    /// In the order of their names.
    all: Vec<Arc<Served>>,
    default: String,
}

struct Served {
    name: String,
    llm: LlmPlugin,
    endpoint: Endpoint,
    key: Option<SecretString>,
    /// A server of the operator's own may want no key.
    keyless: bool,
    model: String,
    /// Digests of keys the provider took, so that each is asked about once.
    taken: Mutex<HashSet<[u8; 32]>>,
}

impl Providers {
    /// Each adapter that is loaded is a provider.
    pub(super) fn new(plugins: &Plugins, config: &Config) -> Result<Self, ModelsError> {
        let mut all = Vec::new();
        for llm in plugins.llms() {
            let name = llm.name().to_owned();
            let descriptor = llm.descriptor();
            // The only adapter there is speaks the protocol that LLM_BASE_URL is for.
            let (base_url, key) = match &config.llm_base_url {
                Some(url) => (url.clone(), config.llm_api_key.as_ref()),
                None => {
                    let url = Url::parse(&descriptor.default_base_url);
                    let url = url.map_err(|_| ModelsError::BaseUrl(name.clone()))?;
                    (
                        url,
                        config
                            .openai_api_key
                            .as_ref()
                            .or(config.llm_api_key.as_ref()),
                    )
                }
            };
            all.push(Arc::new(Served {
                endpoint: Endpoint::new(base_url, Injection::Bearer)?,
                key: key.map(sendable),
                keyless: config.llm_base_url.is_some(),
                model: config
                    .llm_model
                    .clone()
                    .unwrap_or_else(|| descriptor.default_model.clone()),
                llm: llm.clone(),
                taken: Mutex::default(),
                name,
            }));
        }
        let default = config.default_model_provider.clone();
        let default = default
            .or_else(|| all.first().map(|served| served.name.clone()))
            .unwrap_or_default();
        Ok(Self {
            egress: Egress::new(EgressLimits::default())?,
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
        self.named(&self.default)
            .map(|served| served.model.clone())
            .unwrap_or_default()
    }

    fn named(&self, name: &str) -> Option<&Arc<Served>> {
        self.all
            .iter()
            .find(|served| served.name.eq_ignore_ascii_case(name))
    }
}

impl Served {
    fn usable(&self, own_key: bool) -> bool {
        own_key || self.keyless || self.key.is_some()
    }

    /// Fails where the provider says that it does not know the key. A provider that is slow, down or
    /// answers oddly is no reason to refuse a session: the first call says more.
    async fn check(&self, egress: &Egress, api_key: Option<Secret>) -> Result<(), CreateError> {
        let own = api_key.as_ref().map(sendable);
        let Some(key) = own.as_ref().or(self.key.as_ref()) else {
            return Ok(());
        };
        let digest: [u8; 32] = Sha256::digest(key.expose_secret().as_bytes()).into();
        if self.taken().contains(&digest) {
            return Ok(());
        }
        let asked = tokio::time::timeout(CHECK, async {
            let request = self.llm.probe(SETTINGS).await.result.ok()??;
            let framing = Framing::WholeBody;
            match egress
                .send(&self.endpoint, Some(key), &request, framing)
                .await
                .ok()?
            {
                Answer::Frames(_) => Some(true),
                Answer::Refused(no) => {
                    let means = self.llm.classify(no.status, &no.headers, &no.body).await;
                    let unknown = means.result.ok()?.kind == ErrorKind::Unauthenticated;
                    unknown.then_some(false)
                }
            }
        });
        match asked.await {
            Ok(Some(false)) => Err(CreateError::KeyRefused(self.name.clone())),
            Ok(Some(true)) => {
                let mut taken = self.taken();
                if taken.len() >= REMEMBERED {
                    taken.clear();
                }
                taken.insert(digest);
                Ok(())
            }
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<[u8; 32]>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Models for Providers {
    fn find(&self, name: Option<&str>, has_key: bool) -> Result<Provider, CreateError> {
        let name = name.unwrap_or(&self.default);
        let served = self
            .named(name)
            .ok_or_else(|| CreateError::UnknownProvider(name.chars().take(SHOWN).collect()))?;
        if !served.usable(has_key) {
            return Err(CreateError::MissingKey(served.name.clone()));
        }
        Ok(Provider {
            name: served.name.clone(),
            model: served.model.clone(),
        })
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
    ) -> BoxFuture<'static, Result<ModelAnswer, Error>> {
        let found = self.named(&request.provider).cloned();
        let egress = self.egress.clone();
        async move {
            let Some(served) = found else {
                return Err(no_longer(&request.provider));
            };
            ask(&egress, &served, request, &deltas).await
        }
        .boxed()
    }
}

async fn ask(
    egress: &Egress,
    served: &Served,
    request: ModelRequest,
    deltas: &DeltaSink,
) -> Result<ModelAnswer, Error> {
    let own = request.api_key.as_ref().map(sendable);
    let target = Target {
        egress,
        endpoint: &served.endpoint,
        key: own.as_ref().or(served.key.as_ref()),
        settings: SETTINGS,
    };
    let call = request.call;
    let wanted = CompletionRequest {
        model: call.model,
        messages: request.messages,
        tools: call.tools,
        max_output_tokens: call.max_output_tokens,
        params: call.params,
        streaming: true,
    };
    let show = |delta: &Delta| match delta {
        Delta::Text(text) => deltas(DeltaKind::Text, text),
        Delta::Thinking(text) => deltas(DeltaKind::Thinking, text),
        Delta::ToolCallStarted(_) | Delta::ToolCallArguments(_) | Delta::Usage(_) => {}
    };
    let done = complete(&served.llm, target, &wanted, show).await?;
    tracing::debug!(
        provider = served.name,
        tries = done.tries,
        fuel = done.figures.fuel,
        micros = done.figures.micros,
        "a model answered"
    );
    let answer = done.completion;
    Ok(ModelAnswer {
        message: answer.message,
        stop: answer.stop,
        usage: answer.usage,
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
