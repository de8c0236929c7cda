//! The providers as the session engine's port for models.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::Providers;
use super::call::ask;
use super::routing::MAX_SHOWN;
use lucid_session::{
    AvailableModels, CreateError, DeltaSink, ModelAnswer, ModelFailure, ModelRequest,
    ModelSelection, Models,
};
use lucid_types::secret::Secret;

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
