//! The choice of the sandboxes by the settings.

use rustix::process::{Resource, getrlimit};

use super::error::StartError;
use super::folders::{DataDirs, create_dir};
use crate::builtin;
use crate::config::{Config, SandboxBackend, SandboxNetwork};
use lucid_sandbox::docker;
use lucid_sandbox::proxy::ProxyRules;
use lucid_sandbox::{BackendChoice, Network, PROCESSES, SandboxSettings, Sandboxes};

/// A connection through the proxy takes two descriptors, and one for questions for names three: all of
/// them together a quarter of what this process may have, or a little more.
const PROXY_SHARE: u64 = 8;

/// What commands can be run in.
pub(crate) async fn find_sandboxes(
    config: &Config,
    folders: &DataDirs,
) -> Result<Sandboxes, StartError> {
    create_dir(&folders.root)?;
    let choice = match config.sandbox_backend {
        SandboxBackend::Docker => BackendChoice::Docker,
        SandboxBackend::Auto if config.sandbox_allow_local => BackendChoice::AutoOrLocal,
        SandboxBackend::Auto if config.local => BackendChoice::Auto,
        SandboxBackend::Auto => BackendChoice::AutoForMany,
        SandboxBackend::Bubblewrap => BackendChoice::Bubblewrap,
        SandboxBackend::Landlock => BackendChoice::Landlock,
        SandboxBackend::Local => BackendChoice::Local,
        SandboxBackend::None => BackendChoice::None,
    };
    let network = match config.sandbox_network {
        SandboxNetwork::None => Network::None,
        SandboxNetwork::Proxy => Network::Proxy,
        SandboxNetwork::Host => Network::Host,
    };
    // Workspaces are named by their real path.
    let inner = std::fs::canonicalize(&config.workspace_base_path)
        .unwrap_or_else(|_| config.workspace_base_path.clone());
    let settings = SandboxSettings {
        run_dir: folders.run.clone(),
        memory_bytes: config.sandbox_memory_limit,
        cpus: config.sandbox_cpu_limit,
        processes: PROCESSES,
        users: config.sandbox_uids,
        network,
        direct: !config.sandbox_direct.is_empty(),
        several_users: !config.local,
        workspace_mount: config.workspace_mount_path.clone(),
        docker: Some(docker::DockerSettings {
            host: config.docker_host.clone(),
            image: config.sandbox_image.clone(),
            prefix: config.sandbox_container_prefix.clone(),
            network: config.docker_network.clone(),
            host_path: config
                .host_workspace_path
                .clone()
                .map(|outer| (inner, outer)),
            pool: usize::try_from(config.sandbox_pool_size).unwrap_or(0),
            ..docker::DockerSettings::default()
        }),
    };
    Ok(Box::pin(Sandboxes::detect(choice, settings, builtin::EXEC)).await?)
}

/// What the proxy of all sandboxes may do.
pub(super) fn proxy_rules(config: &Config) -> ProxyRules {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = descriptors / PROXY_SHARE;
    ProxyRules::new(
        config.sandbox_private_hosts.clone(),
        usize::try_from(connections).unwrap_or(usize::MAX),
    )
    .with_direct(config.sandbox_direct.clone())
}
