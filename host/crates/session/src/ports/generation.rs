//! The deployment, as the engine sees it: one generation after another.

use std::sync::Arc;

use tokio::sync::watch;

use super::models::Models;
use super::policy::Policies;
use super::tools::ToolProvider;

/// The deployment at one time. It never changes; another generation takes its place.
pub struct Generation {
    /// The generation's number, counted up from 1.
    pub number: u64,
    /// The policies.
    pub policies: Arc<dyn Policies>,
    /// The model providers.
    pub models: Arc<dyn Models>,
    /// The tools beside the sandbox's. If nothing about them changed it is the very same value as
    /// in the generation before, and sessions keep what they have open.
    pub tools: Arc<dyn ToolProvider>,
}

/// The current generation of the deployment.
pub type Deployment = watch::Receiver<Arc<Generation>>;
