//! A host over a real engine.

use uuid::Uuid;

use super::{Sweep, TestEngine};
use crate::host::{Host, HostBuilder};

/// A host whose containers have names that nobody else's have.
pub struct ContainerNames {
    prefix: String,
    settings: HostBuilder,
    _sweep: Sweep,
}

impl ContainerNames {
    /// With no container waiting, and no network.
    pub async fn new(engine: TestEngine) -> Self {
        let prefix = format!("lucid-e2e-{}-", Uuid::new_v4().simple());
        let mut settings = Host::with_defaults()
            .set("SANDBOX_BACKEND", "docker")
            .set("SANDBOX_IMAGE", engine.image().await)
            .set("SANDBOX_CONTAINER_PREFIX", &prefix)
            .set("SANDBOX_NETWORK", "none")
            .set("SANDBOX_POOL_SIZE", "0")
            .set("MAX_SESSIONS_PER_USER", "100");
        if let Ok(address) = std::env::var("DOCKER_HOST") {
            settings = settings.set("DOCKER_HOST", address);
        }
        Self {
            _sweep: engine.sweep_named(&prefix),
            prefix,
            settings,
        }
    }

    /// One setting more, or another value for one.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings = self.settings.set(name, value);
        self
    }

    /// Starts the host, and waits until it listens.
    #[must_use]
    pub fn start(self) -> (Host, Containers) {
        let (settings, containers) = self.into_parts();
        (settings.start(), containers)
    }

    /// The host that is not started yet, and what goes with it.
    pub(crate) fn into_parts(self) -> (HostBuilder, Containers) {
        let containers = Containers {
            prefix: self.prefix,
            _sweep: self._sweep,
        };
        (self.settings, containers)
    }
}

/// The host's containers, which go when the test does.
pub struct Containers {
    /// What their names begin with.
    pub prefix: String,
    _sweep: Sweep,
}
