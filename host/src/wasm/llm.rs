//! An LLM component, which implements a model provider's API, as a plain async type.
//!
//! # Invariants
//! - `encode`, `classify` and `models` each run in a store of their own.
//! - A response has one instance from its first frame to its end, and after a failed call that
//!   instance is gone.

use std::sync::Arc;

use wasmtime::component::ResourceAny;

use super::admission::{Kind, LoadError, other_types};
use super::engine::{Engine, PoolClass};
use super::host_state::Guest;
use super::instance::{PluginCore, PluginInstance, boxed, call, front, not_begun};
use super::limits::{CallError, CallUsage, Called, Limits, cleaned};
use super::{compile, described};
use crate::models::quirks::Learned;
use lucid_types::wit::llm::{
    Completion, CompletionRequest, Delta, Descriptor, Encoded, Frame, ModelInfo,
};
use lucid_types::wit::llm_world::{LlmPlugin as Instance, LlmPluginPre};
use lucid_types::wit::types;

/// An admitted provider adapter. A clone is the same adapter.
#[derive(Clone)]
pub struct LlmPlugin(Arc<Inner>);

struct Inner {
    loaded: PluginCore,
    pre: LlmPluginPre<Guest>,
    descriptor: Descriptor,
    models: Vec<ModelInfo>,
    /// What the adapter's servers turned out to require.
    learned: Learned,
}

front!(LlmPlugin);

/// Makes one call in a fresh instance.
macro_rules! fresh {
    ($plugin:expr, $call:literal, |$provider:ident, $store:ident| $run:expr) => {{
        let Inner { loaded, pre, .. } = &*$plugin.0;
        boxed(async move {
            let mut live = match loaded.open(PoolClass::Call, $call).await {
                Ok(live) => live,
                Err(error) => return not_begun(error),
            };
            call!(loaded, live, $call, {
                let instance = pre.instantiate_async(&mut live.store).await?;
                let $provider = instance.lucid_llm_provider();
                let $store = &mut live.store;
                $run
            })
        })
        .await
    }};
}

impl LlmPlugin {
    /// Compiles a component, checks it, and calls for its descriptor.
    pub async fn load(
        engine: &Engine,
        name: &str,
        wasm: &[u8],
        limits: &Limits,
    ) -> Result<Self, LoadError> {
        let admitted = compile(engine, Kind::Llm, name, wasm).await?;
        let pre = LlmPluginPre::new(admitted.pre)
            .map_err(|error| other_types(name, Kind::Llm, &error))?;
        let loaded = PluginCore::new(engine, name, admitted.digest, limits);
        let mut descriptor = describe(&loaded, &pre).await?;
        described(
            name,
            &descriptor.name,
            &descriptor.version,
            &mut descriptor.description,
        )?;
        let mut inner = Inner {
            loaded,
            pre,
            descriptor,
            models: Vec::new(),
            learned: Learned::default(),
        };
        inner.models = known_models(&inner.loaded, &inner.pre).await?;
        Ok(Self(Arc::new(inner)))
    }

    /// What the adapter's servers turned out to require.
    pub(crate) fn learned(&self) -> &Learned {
        &self.0.learned
    }

    /// The models that the adapter knows without settings; others may work as well.
    pub fn known_models(&self) -> &[ModelInfo] {
        &self.0.models
    }

    /// The models that the adapter knows with these settings.
    pub async fn models(&self, settings: &str) -> Called<Vec<ModelInfo>> {
        let settings = settings.to_owned();
        fresh!(self, "models", |provider, store| {
            provider.call_models(store, &settings).await.map(Ok)
        })
    }

    /// A cheap request that succeeds only with a valid key, where the provider has one.
    pub async fn probe(&self, settings: &str) -> Called<Option<types::HttpRequest>> {
        let settings = settings.to_owned();
        fresh!(self, "probe", |provider, store| {
            provider.call_probe(store, &settings).await.map(Ok)
        })
    }

    /// Encodes a request in the provider's format.
    pub async fn encode(&self, settings: &str, request: &CompletionRequest) -> Called<Encoded> {
        let settings = settings.to_owned();
        fresh!(self, "encode", |provider, store| {
            provider.call_encode(store, &settings, request).await
        })
    }

    /// Classifies a provider's refusal. The returned error is fit to be shown.
    pub async fn classify(
        &self,
        status: u16,
        headers: &[types::Header],
        body: &[u8],
    ) -> Called<types::Error> {
        let called = fresh!(self, "classify", |provider, store| {
            let said = provider.call_classify(store, status, headers, body).await;
            said.map(Ok)
        });
        called.map(cleaned)
    }

    /// Creates the decoder of one response.
    pub async fn decoder(&self, model: &str) -> Called<DecoderSession> {
        let Inner { loaded, pre, .. } = &*self.0;
        boxed(async move {
            let mut live = match loaded.open(PoolClass::Stream, "decoder").await {
                Ok(live) => live,
                Err(error) => return not_begun(error),
            };
            let called = call!(loaded, live, "decoder", {
                let instance = pre.instantiate_async(&mut live.store).await?;
                let maker = instance.lucid_llm_provider().decoder();
                let decoder = maker.call_constructor(&mut live.store, model).await?;
                Ok(Ok((instance, decoder)))
            });
            let figures = called.figures;
            called.map(|(instance, decoder)| DecoderSession {
                plugin: self.clone(),
                state: Some(State {
                    live,
                    instance,
                    decoder,
                }),
                figures,
            })
        })
        .await
    }
}

/// The decoder of one response, and the instance it lives in. Dropping it frees the instance.
pub struct DecoderSession {
    plugin: LlmPlugin,
    /// `None` once a call failed.
    state: Option<State>,
    figures: CallUsage,
}

struct State {
    live: PluginInstance,
    instance: Instance,
    decoder: ResourceAny,
}

impl std::fmt::Debug for DecoderSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecoderSession")
            .field("plugin", &self.plugin)
            .field("figures", &self.figures)
            .finish_non_exhaustive()
    }
}

impl DecoderSession {
    /// The usage of all calls for this response so far, including the decoder's creation.
    pub fn figures(&self) -> CallUsage {
        self.figures
    }

    /// Decodes the next frames.
    pub async fn push(&mut self, frames: &[Frame]) -> Called<Vec<Delta>> {
        let loaded = &self.plugin.0.loaded;
        // Taken out during the call: a future dropped half-way leaves no instance to call again.
        let Some(mut state) = self.state.take() else {
            return not_begun(over(loaded, "push"));
        };
        let (called, state) = boxed(async move {
            let State {
                live,
                instance,
                decoder,
            } = &mut state;
            let called = call!(loaded, live, "push", {
                let guest = instance.lucid_llm_provider().decoder();
                guest.call_push(&mut live.store, *decoder, frames).await
            });
            (called, state)
        })
        .await;
        self.figures += called.figures;
        if called.result.is_ok() {
            self.state = Some(state);
        }
        called
    }

    /// Finishes the response.
    pub async fn finish(&mut self) -> Called<Completion> {
        let loaded = &self.plugin.0.loaded;
        let Some(mut state) = self.state.take() else {
            return not_begun(over(loaded, "finish"));
        };
        let called = boxed(async move {
            let State {
                live,
                instance,
                decoder,
            } = &mut state;
            call!(loaded, live, "finish", {
                let guest = instance.lucid_llm_provider().decoder();
                guest.call_finish(&mut live.store, *decoder).await
            })
        })
        .await;
        self.figures += called.figures;
        called
    }
}

fn over(loaded: &PluginCore, call: &'static str) -> CallError {
    loaded.internal(call, "this response has come to its end")
}

async fn describe(loaded: &PluginCore, pre: &LlmPluginPre<Guest>) -> Result<Descriptor, LoadError> {
    boxed(async move {
        let mut live = loaded.open(PoolClass::Call, "describe").await?;
        let called = call!(loaded, live, "describe", {
            let plugin = pre.instantiate_async(&mut live.store).await?;
            let provider = plugin.lucid_llm_provider();
            provider.call_describe(&mut live.store).await.map(Ok)
        });
        Ok(called.result?)
    })
    .await
}

/// Pure, so it is called once, without settings.
async fn known_models(
    loaded: &PluginCore,
    pre: &LlmPluginPre<Guest>,
) -> Result<Vec<ModelInfo>, LoadError> {
    boxed(async move {
        let mut live = loaded.open(PoolClass::Call, "models").await?;
        let settings = "{}".to_owned();
        let called = call!(loaded, live, "models", {
            let plugin = pre.instantiate_async(&mut live.store).await?;
            let provider = plugin.lucid_llm_provider();
            let models = provider.call_models(&mut live.store, &settings).await;
            models.map(Ok)
        });
        Ok(called.result?)
    })
    .await
}
