//! An LLM component, which implements a model provider's API, as a plain async type.
//!
//! # Invariants
//! - `encode`, `classify` and `models` each run in a store of their own.
//! - A response has one instance from its first frame to its end, and after a failed call that
//!   instance is gone.

use wasmtime::Store;
use wasmtime::component::{Instance, ResourceAny};

use super::admission::{DescriptorError, LoadError};
use super::core::{PluginCore, PluginMetadata};
use super::engine::PoolClass;
use super::exports::{ComponentExports, InstanceExports};
use super::host_state::HostState;
use super::instance::{PluginInstance, boxed, call, fresh, not_started};
use super::kind::PluginKind;
use super::limits::{CallError, CallOutcome, CallUsage, sanitize_error};
use super::plugin::{Inner, TypedPlugin, World, about};
use lucid_types::wit::llm::{
    Completion, CompletionRequest, Delta, Descriptor, Encoded, Frame, ModelInfo,
};
use lucid_types::wit::types;

/// The functions of the decoder, which is a resource.
const NEW_DECODER: &str = "[constructor]decoder";
const PUSH: &str = "[method]decoder.push";
const FINISH: &str = "[method]decoder.finish";

/// An admitted provider adapter. A clone is the same adapter.
pub type LlmPlugin = TypedPlugin<LlmWorld>;

/// The world of provider adapters.
#[derive(Debug)]
pub enum LlmWorld {}

impl World for LlmWorld {
    const KIND: PluginKind = PluginKind::Llm;
    type Descriptor = Descriptor;
    /// The models that the adapter knows without settings. That is pure, so it is asked once.
    type Known = Vec<ModelInfo>;

    fn check_types(
        plugin: &InstanceExports<'_>,
        store: &mut Store<HostState>,
    ) -> wasmtime::Result<()> {
        plugin.function::<(&str,), Vec<ModelInfo>>(store, "models")?;
        plugin.function::<(&str,), Option<types::HttpRequest>>(store, "probe")?;
        plugin.function::<(&str, &CompletionRequest), Result<Encoded, types::Error>>(
            store, "encode",
        )?;
        plugin.function::<(u16, &[types::Header], &[u8]), types::Error>(store, "classify")?;
        plugin.function::<(&str,), ResourceAny>(store, NEW_DECODER)?;
        plugin
            .function::<(ResourceAny, &[Frame]), Result<Vec<Delta>, types::Error>>(store, PUSH)?;
        plugin.function::<(ResourceAny,), Result<Completion, types::Error>>(store, FINISH)?;
        Ok(())
    }

    fn about(descriptor: &mut Descriptor) -> PluginMetadata {
        about!(descriptor)
    }

    fn check(_: &mut Descriptor) -> Result<(), DescriptorError> {
        Ok(())
    }

    async fn known(
        core: &PluginCore,
        exports: &ComponentExports,
    ) -> Result<Vec<ModelInfo>, LoadError> {
        boxed(async move {
            let mut live = core.open(PoolClass::Call, "models").await?;
            let called = call!(core, live, "models", {
                let plugin = exports.instantiate(&mut live.store).await?;
                let models = plugin.call(&mut live.store, "models", ("{}",)).await;
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
    pub async fn models(&self, settings: &str) -> CallOutcome<Vec<ModelInfo>> {
        let settings = settings.to_owned();
        fresh!(self, "models", |plugin, store| {
            let models = plugin.call(store, "models", (settings.as_str(),)).await;
            models.map(Ok)
        })
    }

    /// A cheap request that succeeds only with a valid key, where the provider has one.
    pub async fn probe(&self, settings: &str) -> CallOutcome<Option<types::HttpRequest>> {
        let settings = settings.to_owned();
        fresh!(self, "probe", |plugin, store| {
            let probe = plugin.call(store, "probe", (settings.as_str(),)).await;
            probe.map(Ok)
        })
    }

    /// Encodes a request in the provider's format.
    pub async fn encode(
        &self,
        settings: &str,
        request: &CompletionRequest,
    ) -> CallOutcome<Encoded> {
        let settings = settings.to_owned();
        fresh!(self, "encode", |plugin, store| {
            plugin
                .call(store, "encode", (settings.as_str(), request))
                .await
        })
    }

    /// Classifies a provider's refusal. The returned error is fit to be shown.
    pub async fn classify(
        &self,
        status: u16,
        headers: &[types::Header],
        body: &[u8],
    ) -> CallOutcome<types::Error> {
        let called = fresh!(self, "classify", |plugin, store| {
            let error = plugin
                .call(store, "classify", (status, headers, body))
                .await;
            error.map(Ok)
        });
        called.map(sanitize_error)
    }

    /// Creates the decoder of one response.
    pub async fn decoder(&self, model: &str) -> CallOutcome<DecoderSession> {
        let Inner { core, exports, .. } = &*self.0;
        boxed(async move {
            let mut live = match core.open(PoolClass::Stream, "decoder").await {
                Ok(live) => live,
                Err(error) => return not_started(error),
            };
            let called = call!(core, live, "decoder", {
                let plugin = exports.instantiate(&mut live.store).await?;
                let decoder = plugin.call(&mut live.store, NEW_DECODER, (model,)).await?;
                Ok(Ok((plugin.instance, decoder)))
            });
            let figures = called.usage;
            called.map(|(instance, decoder)| DecoderSession {
                plugin: self.clone(),
                state: Some(State {
                    live,
                    instance,
                    decoder,
                }),
                usage: figures,
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
    usage: CallUsage,
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
            .field("figures", &self.usage)
            .finish_non_exhaustive()
    }
}

impl DecoderSession {
    /// The usage of all calls for this response so far, including the decoder's creation.
    pub fn usage(&self) -> CallUsage {
        self.usage
    }

    /// Decodes the next frames.
    pub async fn push(&mut self, frames: &[Frame]) -> CallOutcome<Vec<Delta>> {
        let Inner { core, exports, .. } = &*self.plugin.0;
        // Taken out during the call: a future dropped half-way leaves no instance to call again.
        let Some(mut state) = self.state.take() else {
            return not_started(over(core, "push"));
        };
        let (called, state) = boxed(async move {
            let State {
                live,
                instance,
                decoder,
            } = &mut state;
            let called = call!(core, live, "push", {
                let plugin = exports.of(*instance);
                plugin.call(&mut live.store, PUSH, (*decoder, frames)).await
            });
            (called, state)
        })
        .await;
        self.usage += called.usage;
        if called.result.is_ok() {
            self.state = Some(state);
        }
        called
    }

    /// Finishes the response.
    pub async fn finish(&mut self) -> CallOutcome<Completion> {
        let Inner { core, exports, .. } = &*self.plugin.0;
        let Some(mut state) = self.state.take() else {
            return not_started(over(core, "finish"));
        };
        let called = boxed(async move {
            let State {
                live,
                instance,
                decoder,
            } = &mut state;
            call!(core, live, "finish", {
                let plugin = exports.of(*instance);
                plugin.call(&mut live.store, FINISH, (*decoder,)).await
            })
        })
        .await;
        self.usage += called.usage;
        called
    }
}

fn over(core: &PluginCore, call: &'static str) -> CallError {
    core.internal(call, "this response has come to its end")
}
