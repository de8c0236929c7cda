//! An LLM component, which implements a model provider's API, as a plain async type.
//!
//! # Invariants
//! - `encode`, `classify` and `models` each run in a store of their own.
//! - A response has one instance from its first frame to its end, and after a failed call that
//!   instance is gone.

use wasmtime::Store;
use wasmtime::component::{InstancePre, ResourceAny};

use super::admission::{Kind, LoadError};
use super::engine::PoolClass;
use super::host_state::Guest;
use super::instance::{PluginInstance, boxed, call, fresh, not_begun};
use super::limits::{CallError, CallUsage, Called, cleaned};
use super::plugin::{About, Inner, Plugin, PluginCore, TypedPlugin, World, about};
use lucid_types::wit::llm::{
    Completion, CompletionRequest, Delta, Descriptor, Encoded, Frame, ModelInfo,
};
use lucid_types::wit::llm_world::{LlmPlugin as Instance, LlmPluginPre};
use lucid_types::wit::types;

/// An admitted provider adapter. A clone is the same adapter.
pub type LlmPlugin = TypedPlugin<LlmWorld>;

/// The world of provider adapters.
#[derive(Debug)]
pub enum LlmWorld {}

impl World for LlmWorld {
    const KIND: Kind = Kind::Llm;
    type Pre = LlmPluginPre<Guest>;
    type Descriptor = Descriptor;
    /// The models that the adapter knows without settings. That is pure, so it is asked once.
    type Known = Vec<ModelInfo>;

    fn link(pre: InstancePre<Guest>) -> wasmtime::Result<Self::Pre> {
        LlmPluginPre::new(pre)
    }

    async fn describe(pre: &Self::Pre, store: &mut Store<Guest>) -> wasmtime::Result<Descriptor> {
        let plugin = pre.instantiate_async(&mut *store).await?;
        plugin.lucid_llm_provider().call_describe(store).await
    }

    fn about(descriptor: &mut Descriptor) -> About {
        about!(descriptor)
    }

    fn check(_: &mut Descriptor) -> Result<(), String> {
        Ok(())
    }

    async fn known(core: &PluginCore, pre: &Self::Pre) -> Result<Vec<ModelInfo>, LoadError> {
        boxed(async move {
            let mut live = core.open(PoolClass::Call, "models").await?;
            let settings = "{}".to_owned();
            let called = call!(core, live, "models", {
                let plugin = pre.instantiate_async(&mut live.store).await?;
                let provider = plugin.lucid_llm_provider();
                let models = provider.call_models(&mut live.store, &settings).await;
                models.map(Ok)
            });
            Ok(called.result?)
        })
        .await
    }
}

impl LlmPlugin {
    /// The models that the adapter knows without settings; others may work as well.
    pub fn known_models(&self) -> &[ModelInfo] {
        &self.0.known
    }

    /// The models that the adapter knows with these settings.
    pub async fn models(&self, settings: &str) -> Called<Vec<ModelInfo>> {
        let settings = settings.to_owned();
        fresh!(self, "models", |plugin, store| {
            let provider = plugin.lucid_llm_provider();
            provider.call_models(store, &settings).await.map(Ok)
        })
    }

    /// A cheap request that succeeds only with a valid key, where the provider has one.
    pub async fn probe(&self, settings: &str) -> Called<Option<types::HttpRequest>> {
        let settings = settings.to_owned();
        fresh!(self, "probe", |plugin, store| {
            let provider = plugin.lucid_llm_provider();
            provider.call_probe(store, &settings).await.map(Ok)
        })
    }

    /// Encodes a request in the provider's format.
    pub async fn encode(&self, settings: &str, request: &CompletionRequest) -> Called<Encoded> {
        let settings = settings.to_owned();
        fresh!(self, "encode", |plugin, store| {
            let provider = plugin.lucid_llm_provider();
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
        let called = fresh!(self, "classify", |plugin, store| {
            let provider = plugin.lucid_llm_provider();
            let said = provider.call_classify(store, status, headers, body).await;
            said.map(Ok)
        });
        called.map(cleaned)
    }

    /// Creates the decoder of one response.
    pub async fn decoder(&self, model: &str) -> Called<DecoderSession> {
        let Inner { core, pre, .. } = &*self.0;
        boxed(async move {
            let mut live = match core.open(PoolClass::Stream, "decoder").await {
                Ok(live) => live,
                Err(error) => return not_begun(error),
            };
            let called = call!(core, live, "decoder", {
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
        let core = self.plugin.core();
        // Taken out during the call: a future dropped half-way leaves no instance to call again.
        let Some(mut state) = self.state.take() else {
            return not_begun(over(core, "push"));
        };
        let (called, state) = boxed(async move {
            let State {
                live,
                instance,
                decoder,
            } = &mut state;
            let called = call!(core, live, "push", {
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
        let core = self.plugin.core();
        let Some(mut state) = self.state.take() else {
            return not_begun(over(core, "finish"));
        };
        let called = boxed(async move {
            let State {
                live,
                instance,
                decoder,
            } = &mut state;
            call!(core, live, "finish", {
                let guest = instance.lucid_llm_provider().decoder();
                guest.call_finish(&mut live.store, *decoder).await
            })
        })
        .await;
        self.figures += called.figures;
        called
    }
}

fn over(core: &PluginCore, call: &'static str) -> CallError {
    core.internal(call, "this response has come to its end")
}
