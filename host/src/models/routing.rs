//! The choice of a provider and a model: for a session's request, and for a policy's call.
//!
//! # Invariants
//!
//! - A user's own key never leads to another provider than the one it came for.
//! - A requested name is repeated in a message only up to a maximum length.

use std::sync::Arc;

use super::Providers;
use super::provider::ModelProvider;
use crate::manifest::suggest;
use lucid_session::{CreateError, ModelRequest};
use lucid_types::wit::types::{Error, ErrorKind};

/// The maximum length at which a requested name is repeated in a message, in characters.
pub(super) const MAX_SHOWN: usize = 64;

/// The provider that answers a policy's call.
pub(super) struct CalledProvider {
    pub(super) provider: Arc<ModelProvider>,
    /// The model that is called.
    pub(super) model: String,
    /// The name of its provider in records.
    pub(super) label: String,
}

impl Providers {
    pub(super) fn by_name(&self, name: &str) -> Option<&Arc<ModelProvider>> {
        self.all
            .iter()
            .find(|model_provider| model_provider.name.eq_ignore_ascii_case(name))
    }

    /// The provider that serves a session of this provider, which has a key of its own or none.
    pub(super) fn serving<'a>(
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
    pub(super) fn resolve<'a>(
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
    pub(super) fn resolve_call(&self, request: &ModelRequest) -> Result<CalledProvider, Error> {
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

/// The error for a request of a policy that is not permitted.
fn refused(code: &str, message: String) -> Error {
    Error::new(ErrorKind::Forbidden, message).with_code(code)
}

/// The error for a session that outlived its provider.
fn provider_removed(name: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("This deployment no longer has the model provider '{name}'."),
    )
}
