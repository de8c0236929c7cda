//! The engine's port for model providers.

use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::error::CreateError;
use crate::stream::delta::DeltaSink;
use lucid_types::ids::SessionId;
use lucid_types::secret::Secret;
use lucid_types::wit::policy::{ModelCall, ModelOffer};
use lucid_types::wit::types::{Error, Message, StopReason, Usage};

/// The model provider of a session.
#[derive(Debug, Clone, Default)]
pub struct ModelSelection {
    /// The provider's name in this deployment.
    pub name: String,
    /// The model that is used when the policy names none.
    pub model: String,
}

/// The models that a session's policy may call.
#[derive(Debug, Clone)]
pub struct AvailableModels {
    /// The session's own model.
    pub model: ModelOffer,
    /// A cheaper model of the same provider; the session's own if there is none.
    pub small: ModelOffer,
    /// The names of all models.
    pub names: Vec<String>,
}

impl AvailableModels {
    /// One model, of which nothing is known but its name.
    pub fn only(model: &str) -> Self {
        let offer = ModelOffer {
            name: model.to_owned(),
            context_tokens: 0,
            output_tokens: 0,
            images: false,
        };
        Self {
            model: offer.clone(),
            small: offer,
            names: vec![model.to_owned()],
        }
    }
}

/// A model call with its prompt resolved.
pub struct ModelRequest {
    /// The session's id.
    pub session: SessionId,
    /// The provider, unless the policy names a model of another one.
    pub provider: String,
    /// The session's model, which is always allowed.
    pub model: String,
    /// The session's own key; the deployment's is used if there is none.
    pub api_key: Option<Secret>,
    /// Whether the session has a cost limit, so that no model without a known price is asked.
    pub cost_limited: bool,
    /// The call as the policy requested it, with the model's name filled in.
    pub call: ModelCall,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Where to report the cost so far.
    pub meter: UsageMeter,
    /// Where to report that the provider is down, or answers again.
    pub notices: NoticeSink,
}

/// The cost of a model call as far as the provider has reported it: all that is known of one that
/// is cancelled.
#[derive(Debug, Clone, Default)]
pub struct UsageMeter(Arc<Mutex<Option<CallCost>>>);

impl UsageMeter {
    /// Reports the cost so far, of all tries together.
    pub fn report(&self, cost: CallCost) {
        *self.0.lock() = Some(cost);
    }

    pub(crate) fn latest(&self) -> Option<CallCost> {
        self.0.lock().clone()
    }
}

/// A model's answer.
#[derive(Debug)]
pub struct ModelAnswer {
    /// What the model said.
    pub message: Message,
    /// Why it stopped.
    pub stop: StopReason,
    /// Usage of the answer itself: it tells a policy how long its prompt was.
    pub usage: Usage,
    /// The cost, including tries that broke off.
    pub cost: CallCost,
    /// Whether it is for the policy and not for the user.
    pub aside: bool,
}

/// The cost of a model call, whether or not it was answered.
#[derive(Debug, Clone, PartialEq)]
pub struct CallCost {
    /// Usage of all tries together.
    pub usage: Usage,
    /// Cost in millionths of a US dollar; `None` if the model's prices are unknown.
    pub cost: Option<u64>,
    /// The provider that answered.
    pub provider: String,
    /// The model that answered.
    pub model: String,
    /// How often the provider was asked.
    pub tries: u32,
}

/// Why a model call was not answered.
#[derive(Debug)]
pub struct ModelFailure {
    /// What went wrong.
    pub error: Error,
    /// The cost of tries that broke off, as far as the provider reported it.
    pub cost: Option<Box<CallCost>>,
}

impl From<Error> for ModelFailure {
    fn from(error: Error) -> Self {
        Self { error, cost: None }
    }
}

/// Tells the user something about an effect while it runs. Resolves once that is in the session's
/// mailbox.
pub type NoticeSink = Arc<dyn Fn(String) -> BoxFuture<'static, ()> + Send + Sync>;

/// The deployment's model providers.
pub trait Models: Send + Sync {
    /// Returns the provider and the model of these names, or the defaults.
    ///
    /// # Errors
    /// If either is unknown or not allowed, or if neither the caller nor the deployment has a key.
    fn find(
        &self,
        name: Option<&str>,
        model: Option<&str>,
        has_key: bool,
    ) -> Result<ModelSelection, CreateError>;
    /// Returns the server that a user's own key for this provider is sent to, as
    /// `https://host:port`; `None` if there is no such provider.
    fn server(&self, provider: &str) -> Option<String>;
    /// Returns why a session with a cost limit cannot have this model: its price is unknown.
    fn check_priced(&self, provider: &str, model: &str, has_key: bool) -> Option<CreateError>;
    /// Returns the models that the policy of a session with this provider and model may call; only
    /// those with a known price if `priced` is set. `has_key` says whether the session has its own
    /// key.
    fn available(
        &self,
        provider: &str,
        model: &str,
        priced: bool,
        has_key: bool,
    ) -> AvailableModels;
    /// Asks the provider whether it accepts the key, if that is cheap. Only a clear no fails.
    fn check(
        &self,
        provider: &str,
        api_key: Option<Secret>,
    ) -> BoxFuture<'static, Result<(), CreateError>>;
    /// Calls the model.
    fn call(
        &self,
        request: ModelRequest,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ModelAnswer, ModelFailure>>;
}
