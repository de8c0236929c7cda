//! The command line of a sandbox on a machine without a sandboxing program: the exec server under
//! its own supervisor, confined by Landlock, or unconfined where the operator wants that.
//!
//! # Invariants
//! - When confined, only the workspace, the session's own folders and terminals, and its own shared
//!   memory are writable.
//! - Of the system only named paths are readable, none of which holds a secret. Where the machine
//!   lets its users create namespaces, nothing else exists; elsewhere access to anything else is
//!   refused.

use tokio::process::Command;

use crate::command_env::environment;
use crate::error::SandboxError;
use crate::runtime_dir::{RESOLVER, RuntimeDir, SessionDir};
use crate::settings::{Network, SandboxSettings, SandboxSpec};
use crate::system_mounts;
use lucid_exec::protocol::{Confine, HostInterface, PrivateRoot, Serve, Sockets};

/// What commands may read of the host when they have no root of their own: the kernel's view of
/// processes, and names of users and machines. None of it holds a password.
const AS_THE_HOST_HAS_IT: [&str; 4] = ["/proc", "/etc/passwd", "/etc/group", "/etc/hosts"];
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];
/// Writable paths in a private root, beside the workspace.
const OWN: [&str; 6] = [
    "/tmp",
    "/var/tmp",
    "/home/agent",
    "/dev/shm",
    "/dev/pts",
    "/dev/tty",
];
/// The user id of commands in a private root, as in its `/etc/passwd`.
const AGENT: u32 = 1000;
/// Stands for a port that is free.
const ANY_PORT: u16 = 0;

/// How strongly commands are isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isolation {
    /// Not at all.
    Off,
    /// Landlock on the host's own root.
    HostRoot,
    /// Landlock on a root of the session's own.
    PrivateRoot,
}

impl Isolation {
    /// The workspace's path as commands see it.
    pub(super) fn workspace(self, settings: &SandboxSettings, spec: SandboxSpec<'_>) -> String {
        match self {
            Self::PrivateRoot => settings.workspace_mount.clone(),
            Self::Off | Self::HostRoot => spec.workspace.to_string_lossy().into_owned(),
        }
    }
}

/// The confinement of commands in the host's root.
fn in_host_root(settings: &SandboxSettings, dir: &SessionDir, spec: SandboxSpec<'_>) -> Confine {
    let mut read_only = system_paths(settings.network);
    read_only.extend(AS_THE_HOST_HAS_IT.map(str::to_owned));
    read_only.push(dir.path().to_string_lossy().into_owned());
    let mut read_write: Vec<String> = DEVICES.map(str::to_owned).into();
    read_write.extend([
        dir.path_of("tmp"),
        dir.path_of("home"),
        spec.workspace.to_string_lossy().into_owned(),
    ]);
    Confine {
        read_write,
        read_only,
        root: None,
    }
}

/// The confinement of commands in a private root, where everything that exists may be read.
fn in_private_root(
    settings: &SandboxSettings,
    dir: &SessionDir,
    runtime: &RuntimeDir,
    spec: SandboxSpec<'_>,
) -> Confine {
    let etc = |name: &str| runtime.etc(name).to_string_lossy().into_owned();
    let placed = [
        (etc("passwd"), "/etc/passwd".to_owned()),
        (etc("group"), "/etc/group".to_owned()),
        (etc("hosts"), "/etc/hosts".to_owned()),
        (dir.path_of("tmp"), "/tmp".to_owned()),
        (dir.path_of("tmp"), "/var/tmp".to_owned()),
        (dir.path_of("home"), "/home/agent".to_owned()),
        (
            dir.path().to_string_lossy().into_owned(),
            "/run/lucid".to_owned(),
        ),
        (
            spec.workspace.to_string_lossy().into_owned(),
            settings.workspace_mount.clone(),
        ),
    ];
    let resolver = settings
        .direct
        .then(|| (etc(RESOLVER), system_mounts::RESOLVER.to_owned()));
    let writable = DEVICES.into_iter().chain(OWN).map(str::to_owned);
    Confine {
        read_write: writable.chain([settings.workspace_mount.clone()]).collect(),
        read_only: vec!["/".to_owned()],
        root: Some(PrivateRoot {
            mount_point: dir.path_of("bin"),
            shown: system_paths(settings.network),
            placed: placed.into_iter().chain(resolver).collect(),
            shared_memory_bytes: settings.shared_memory_bytes(),
            own_network: settings.network.is_own(),
            user: AGENT,
        }),
    }
}

fn system_paths(network: Network) -> Vec<String> {
    let fixed = [system_mounts::USR]
        .into_iter()
        .chain(system_mounts::BESIDE_USR);
    let fixed = fixed.chain((!network.is_own()).then_some(system_mounts::RESOLVER));
    fixed
        .map(str::to_owned)
        .chain(system_mounts::etc())
        .collect()
}

pub(super) fn command(
    settings: &SandboxSettings,
    dir: &SessionDir,
    runtime: &RuntimeDir,
    spec: SandboxSpec<'_>,
    isolation: Isolation,
    mut serve: Serve,
) -> Result<Command, SandboxError> {
    match isolation {
        Isolation::Off => {}
        Isolation::HostRoot => {
            serve.confine = Some(in_host_root(settings, dir, spec));
            serve.sockets = Some(match settings.network {
                // The rule for a port holds for every address: of any machine that listens there.
                Network::Proxy if !settings.several_users => Sockets::Proxy,
                Network::None | Network::Proxy => Sockets::Local,
                Network::Host => Sockets::Ip,
            });
            // Other sessions listen on the same interface.
            serve.proxy = (serve.sockets == Some(Sockets::Proxy)).then_some(ANY_PORT);
        }
        Isolation::PrivateRoot => {
            serve.confine = Some(in_private_root(settings, dir, runtime, spec));
            serve.sockets = Some(Sockets::Ip);
            serve.proxy = settings.network.proxy_port();
            serve.interface = settings.direct.then(|| HostInterface {
                device: Some(runtime.tunnel()),
                ..HostInterface::default()
            });
        }
    }
    let serve =
        serde_json::to_string(&serve).map_err(|error| SandboxError::Start(error.to_string()))?;
    let mut command = Command::new(dir.path_of("bin/lucid-exec"));
    command
        .args(["--supervise", &serve])
        .env_clear()
        .current_dir(spec.workspace);
    let (bin, home, temporary, socket) = match isolation {
        Isolation::PrivateRoot => (
            "/run/lucid/bin".to_owned(),
            "/home/agent".to_owned(),
            "/tmp".to_owned(),
            "/run/lucid/git.sock".to_owned(),
        ),
        Isolation::Off | Isolation::HostRoot => (
            dir.path_of("bin"),
            dir.path_of("home"),
            dir.path_of("tmp"),
            dir.path_of("git.sock"),
        ),
    };
    command.envs(environment(
        &bin,
        &home,
        &temporary,
        &socket,
        spec.repository,
    ));
    // tmux reads no other variable, and without it uses /tmp.
    command.env("TMUX_TMPDIR", &temporary);
    if isolation == Isolation::HostRoot {
        // Git fails on a file that exists and may not be read.
        command.env("GIT_CONFIG_NOSYSTEM", "1");
    }
    Ok(command)
}
