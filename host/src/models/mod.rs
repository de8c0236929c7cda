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
mod call;
mod catalog;
pub mod completion;
mod credentials;
pub(crate) mod image_filter;
pub(crate) mod leaked_calls;
mod port;
pub(crate) mod provenance;
mod provider;
mod quirks;
mod readiness;
pub(crate) mod retry;
mod routing;
mod setup;
#[cfg(test)]
mod tests;
pub(crate) mod tool_names;

use std::sync::Arc;
use std::time::Duration;

use self::provider::ModelProvider;
pub(crate) use self::provider::ProviderCheckError;
pub(crate) use self::readiness::ProviderReadiness;
use lucid_net::egress::Egress;
use lucid_store::blobs::Blobs;

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
