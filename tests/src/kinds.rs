//! Hosts with each kind of sandbox that this machine has.

use crate::docker::{self, ContainerNames, Containers};
use crate::host::{Host, HostBuilder};

/// A host that is not started yet, and what its sandboxes are.
pub struct HostOfKind {
    /// As `SANDBOX_BACKEND` has it.
    pub kind: &'static str,
    /// To be started.
    pub host: HostBuilder,
    /// To be kept for as long as the host is.
    pub containers: Option<Containers>,
}

/// One for each kind; with containers where an engine answers.
pub async fn hosts_of_each_kind() -> Vec<HostOfKind> {
    let mut hosts: Vec<HostOfKind> = ["bubblewrap", "landlock"]
        .map(|kind| HostOfKind {
            kind,
            host: Host::with_defaults().set("SANDBOX_BACKEND", kind),
            containers: None,
        })
        .into();
    if let Some(engine) = docker::engine().await {
        let (host, containers) = ContainerNames::new(engine).await.into_parts();
        hosts.push(HostOfKind {
            kind: "docker",
            host,
            containers: Some(containers),
        });
    }
    hosts
}
