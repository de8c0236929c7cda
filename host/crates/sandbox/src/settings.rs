//! What an operator sets for sandboxes, and what a session asks for.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::users::UserIdChoice;
use lucid_types::ids::SessionId;

/// Where nothing else listens, and the same in every sandbox, so that it may be written to files.
const PROXY_PORT: u16 = 3128;
/// The least memory of a sandbox, in bytes: what runs in it before the first command does needs some.
pub(super) const LEAST_MEMORY: u64 = 64 << 20;
/// The largest shared memory that has a name, in bytes.
const MOST_SHARED_MEMORY: u64 = 64 << 20;

/// The network that a sandbox can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Nothing outside the sandbox.
    #[default]
    None,
    /// What the host's proxy connects it to; see [`proxy`](crate::proxy).
    Proxy,
    /// Everything the host reaches, the host itself included.
    Host,
}

impl Network {
    /// Whether a sandbox with a network namespace has one of its own, which leads nowhere.
    pub(super) fn is_own(self) -> bool {
        self != Self::Host
    }

    /// The port at which programs in a network namespace find the proxy.
    pub(super) fn proxy_port(self) -> Option<u16> {
        (self == Self::Proxy).then_some(PROXY_PORT)
    }
}

/// The number of processes and threads in a sandbox, unless something else is set.
pub const PROCESSES: u32 = 512;

/// Settings common to all sandboxes.
#[derive(Debug, Clone)]
pub struct SandboxSettings {
    /// The host's own folder for programs, sockets and temporary folders of sandboxes.
    pub run_dir: PathBuf,
    /// Memory that a sandbox may use, in bytes, which is also the base for the sizes of temporary
    /// file systems.
    pub memory_bytes: u64,
    /// Number of processors that a sandbox may use; more than there are means all.
    pub cpus: f64,
    /// Maximum number of processes and threads in a sandbox.
    pub processes: u32,
    /// The user ids of sandboxes other than containers.
    pub users: UserIdChoice,
    /// The network that sandboxes can reach.
    pub network: Network,
    /// Whether programs have sockets of their own beside the proxy, where a kind of sandbox can have
    /// them; see [`DirectPorts`](crate::proxy::DirectPorts).
    pub direct: bool,
    /// Whether several users have sandboxes here: a kind that cannot keep them to the proxy then has
    /// no network.
    pub several_users: bool,
    /// The workspace's path as commands see it, with backends that can mount it.
    pub workspace_mount: String,
    /// Settings for containers; without them no engine is looked for.
    pub docker: Option<DockerSettings>,
}

/// Settings of containers, beside [`SandboxSettings`].
#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// Address of the engine, as in `DOCKER_HOST`; the default socket if absent.
    pub host: Option<String>,
    /// The image of every container. It needs a shell, and must already exist on the engine.
    pub image: String,
    /// Prefix of the session's id in a container's name.
    pub prefix: String,
    /// The engine's network that containers with network access join; its default if absent.
    pub network: Option<String>,
    /// The folder of all workspaces, as a path on this host and as a path on the engine's machine.
    pub host_path: Option<(PathBuf, PathBuf)>,
    /// Number of containers that wait for sessions, only after [`adopt`](crate::Sandboxes::adopt).
    pub pool: usize,
    /// The transport to containers. Absent in every deployment: it is detected, since the fallback
    /// is to be used only where no socket passes. Tests and the benchmark set it, to cover both.
    pub transport: Option<Transport>,
}

impl Default for DockerSettings {
    fn default() -> Self {
        Self {
            host: None,
            image: "lucid-sandbox:bookworm".to_owned(),
            prefix: "lucid-".to_owned(),
            network: None,
            host_path: None,
            pool: 0,
            transport: None,
        }
    }
}

/// The transport that carries the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A Unix socket in a folder that host and container share.
    Socket,
    /// One attached `docker exec` for each container: for an engine on another kernel.
    Exec,
}

impl SandboxSettings {
    /// The size of each writable in-memory file system, in bytes. They count as memory, and the kernel
    /// cannot reclaim them: together they must leave room for a command that cleans up.
    pub(super) fn temporary_bytes(&self) -> u64 {
        self.memory_bytes.max(LEAST_MEMORY) / 4
    }

    /// The same for shared memory.
    pub(super) fn shared_memory_bytes(&self) -> u64 {
        self.temporary_bytes().min(MOST_SHARED_MEMORY)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Socket => "socket",
            Self::Exec => "docker exec",
        })
    }
}

/// A sandbox to start.
#[derive(Debug, Clone, Copy)]
pub struct SandboxSpec<'a> {
    /// The session's id; its runtime folder is named after it.
    pub session: SessionId,
    /// The session's workspace on the host.
    pub workspace: &'a Path,
    /// The repository that git in the sandbox reaches through the host's gateway.
    pub repository: Option<&'a str>,
}
