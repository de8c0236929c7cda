//! The parameters every container of this host is created with. Pure, so that each limit can be
//! tested without an engine.
//!
//! # Invariants
//! - No capabilities, no way to gain new privileges, a read-only root, and no swap. With an interface to
//!   the host, the exec server has a few until it has made that, and nothing runs before.
//! - Everything else that can be written has a size limit, except the workspace, also where the
//!   image declares volumes.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, DeviceMapping, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountTmpfsOptions, MountType,
};
use sha2::{Digest, Sha256};

use super::image::ImageConfig;
use crate::command_env::environment as sandbox_environment;
use crate::error::SandboxError;
use crate::runtime_dir::RESOLVER;
use crate::settings::{DockerSettings, Network, SandboxSettings, Transport};
use crate::system_mounts;
use crate::workspace::sandbox_user;
use lucid_exec::protocol::{HostInterface, ResourceLimits, Serve, Sockets, VERSION};
use lucid_types::ids::SessionId;

#[cfg(test)]
mod tests;

/// Where the exec server is among the processes of its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerPlace {
    /// It is the first one. What a command leaves behind becomes its child.
    First,
    /// It is the only one that the first one has started, which is the engine's. What a command leaves
    /// behind becomes a child of the exec server.
    ChildOfFirst,
}

/// Path in the container of its folder on the host.
pub(super) const LUCID: &str = "/run/lucid";
/// Path in the container of the socket to the host.
pub(super) const SOCKET: &str = "/run/lucid/exec.sock";
/// The exec server's path in the container.
pub(super) const EXEC: &str = "/run/lucid/bin/lucid-exec";
/// The label of everything that this program creates.
pub(super) const MANAGED: &str = "lucid.managed";
/// The label with the host that created it.
pub(super) const INSTANCE: &str = "lucid.instance";
/// The label with the process of that host.
pub(super) const OWNER: &str = "lucid.owner";
/// The label with the name of its folder there.
pub(super) const CONTAINER_LABEL: &str = "lucid.box";
/// The label with a digest of its parameters: a container with other parameters is not adopted.
pub(super) const SHAPE: &str = "lucid.shape";
const SESSION: &str = "lucid.session_id";
const USER: &str = "lucid.user_id";
const HOME: &str = "/home/agent";
const TUNNEL: &str = "/dev/net/tun";
const HOSTNAME: &str = "sandbox";
/// The `PATH` of images that set none.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Seconds without a host after which a container ends itself, so that a host that is gone for good
/// leaves nothing running. A restarted host connects at once to the containers of sessions that go
/// on, since their environments are reopened with them; how long such a session is idle makes no
/// difference.
const PATIENCE_SECONDS: u64 = 30 * 60;
/// For so many bytes of an in-memory file system, it may hold one file, but never fewer than the least.
const BYTES_FOR_FILE: i64 = 2048;
const LEAST_FILES: i64 = 8192;
/// OOM score adjustment: the kernel kills what is in a sandbox before anything else on the machine.
const FIRST_TO_GO: i64 = 500;

/// The parameters common to all containers of a host.
#[derive(Debug, Clone)]
pub(super) struct ContainerTemplate {
    pub(super) instance: String,
    pub(super) prefix: String,
    pub(super) workspace_mount: String,
    image: String,
    path: String,
    /// The paths of the image's volumes, which are neither read-only nor limited in size.
    volumes: Vec<String>,
    shell: String,
    user: String,
    memory: i64,
    nano_cpus: i64,
    processes: i64,
    network: String,
    proxy: Option<u16>,
    /// Whether containers have an interface to the host.
    direct: bool,
    host_path: Option<(PathBuf, PathBuf)>,
}

/// The parameters of one container.
pub(super) struct ContainerSpec<'a> {
    pub(super) name: &'a str,
    /// The process that creates it.
    pub(super) owner: &'a str,
    pub(super) session: Option<SessionId>,
    /// The transport known to work, if any.
    pub(super) transport: Option<Transport>,
    /// The folder on the host that becomes [`LUCID`].
    pub(super) lucid: &'a Path,
    pub(super) workspace: &'a Path,
}

impl ContainerTemplate {
    /// `cpus` is the number of the engine's machine; `image` is what the image brings.
    pub(super) fn new(
        common: &SandboxSettings,
        own: &DockerSettings,
        instance: String,
        cpus: Option<i64>,
        image: &ImageConfig,
    ) -> Self {
        let image_path = image
            .environment
            .iter()
            .find_map(|entry| entry.strip_prefix("PATH="))
            .unwrap_or(USUAL_PATH);
        let most_cpus = cpus
            .filter(|cpus| *cpus > 0)
            .map_or(f64::MAX, |cpus| cpus as f64);
        let user = sandbox_user().unwrap_or_else(|| rustix::process::geteuid().as_raw());
        Self {
            instance,
            prefix: own.prefix.clone(),
            workspace_mount: common.workspace_mount.clone(),
            image: own.image.clone(),
            path: format!("{LUCID}/bin:{image_path}"),
            volumes: volumes(&image.volumes, &common.workspace_mount),
            shell: "/bin/sh".to_owned(),
            user: format!("{user}:{user}"),
            memory: common.memory_bytes.cast_signed().max(64 << 20),
            // The engine refuses more than its machine has, and less than a hundredth.
            nano_cpus: (common.cpus.clamp(0.01, most_cpus) * 1e9) as i64,
            processes: common.processes.into(),
            network: match (common.network, &own.network) {
                (Network::None | Network::Proxy, _) => "none".to_owned(),
                (Network::Host, Some(name)) => name.clone(),
                (Network::Host, None) => "default".to_owned(),
            },
            proxy: common.network.proxy_port(),
            direct: common.direct,
            host_path: own.host_path.clone(),
        }
    }

    /// The image of every container.
    pub(super) fn image(&self) -> &str {
        &self.image
    }

    /// The user and the group of commands.
    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Whether containers have an interface to the host.
    pub(super) fn has_interfaces(&self) -> bool {
        self.direct
    }

    /// Where the exec server is among a container's processes.
    pub(super) fn server_place(&self) -> ServerPlace {
        if self.direct {
            ServerPlace::First
        } else {
            ServerPlace::ChildOfFirst
        }
    }

    /// Has containers do without an interface to the host.
    pub(super) fn without_interfaces(mut self) -> Self {
        self.direct = false;
        self
    }

    /// Sets the shell that the image was found to have.
    pub(super) fn set_shell(&mut self, path: &str) {
        path.clone_into(&mut self.shell);
    }

    /// The exec server's parameters. The container's own limits replace most of its.
    pub(super) fn serve(&self) -> Serve {
        Serve {
            limits: ResourceLimits {
                // A user's count covers the whole machine; the container has one of its own.
                processes: u64::MAX,
                shared_user: false,
                open_files: 4096,
                file_bytes: 8 << 30,
                data_bytes: None,
            },
            sockets: Some(Sockets::Ip),
            proxy: self.proxy,
            ..Serve::default()
        }
    }

    /// A digest of the parameters, equal for all containers that are interchangeable.
    pub(super) fn fingerprint(&self) -> String {
        let digest = Sha256::digest(format!("{VERSION} {self:?}"));
        hex::encode(&digest[..8])
    }

    /// The size of each in-memory file system, in bytes. They count as memory, and the kernel
    /// cannot reclaim them: together they must leave room for a command that cleans up.
    fn temporary_bytes(&self) -> i64 {
        self.memory / 4
    }

    /// How many files an in-memory file system of a size may hold. Each takes memory, whatever is in it.
    fn temporary_files(size: i64) -> i64 {
        (size / BYTES_FOR_FILE).max(LEAST_FILES)
    }

    /// A small in-memory file system. All of these together are a quarter of one of the others.
    fn volume_tmpfs(&self, at: &str) -> Mount {
        let count = i64::try_from(self.volumes.len()).unwrap_or(i64::MAX);
        Mount {
            typ: Some(MountType::TMPFS),
            target: Some(at.to_owned()),
            tmpfs_options: Some(MountTmpfsOptions {
                size_bytes: Some((self.temporary_bytes() / 4 / count.max(1)).max(4096)),
                mode: Some(0o1777),
                ..MountTmpfsOptions::default()
            }),
            ..Mount::default()
        }
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let mut environment = sandbox_environment("", HOME, "/tmp", "/run/lucid/git.sock", None);
        environment.insert("PATH".to_owned(), self.path.clone());
        environment.insert("SHELL".to_owned(), self.shell.clone());
        environment
    }

    /// The engine's path for a path of the host's.
    fn engine_path(&self, path: &Path) -> Result<String, SandboxError> {
        let Some((inner, outer)) = &self.host_path else {
            return Ok(path.to_string_lossy().into_owned());
        };
        let below = path.strip_prefix(inner).map_err(|_| {
            SandboxError::Start(format!(
                "{} is not below {}, which HOST_WORKSPACE_PATH stands for, so the Docker engine cannot find it",
                path.display(),
                inner.display()
            ))
        })?;
        Ok(outer.join(below).to_string_lossy().into_owned())
    }

    fn labels(&self, wanted: &ContainerSpec<'_>) -> HashMap<String, String> {
        let mut labels = vec![
            (MANAGED, "true"),
            (INSTANCE, &self.instance),
            (OWNER, wanted.owner),
            (CONTAINER_LABEL, wanted.name),
        ];
        let shape = self.fingerprint();
        labels.push((SHAPE, &shape));
        // A session's workspace lies in its user's folder.
        let user = wanted.workspace.parent().and_then(Path::file_name);
        let session = wanted.session.as_ref().map(SessionId::to_string);
        if let Some(session) = &session {
            labels.push((SESSION, session));
            labels.extend(user.and_then(|user| user.to_str()).map(|user| (USER, user)));
        }
        labels
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// The body of the engine's create request.
    pub(super) fn body(
        &self,
        wanted: &ContainerSpec<'_>,
    ) -> Result<ContainerCreateBody, SandboxError> {
        let (user, group) = self
            .user
            .split_once(':')
            .unwrap_or((&self.user, &self.user));
        let serve = Serve {
            interface: self.direct.then(|| HostInterface {
                user: user.parse().ok(),
                ..HostInterface::default()
            }),
            // No host ever connects to the main process when frames go through `docker exec`.
            patience_seconds: (wanted.transport != Some(Transport::Exec))
                .then_some(PATIENCE_SECONDS),
            ..self.serve()
        };
        let serve = serde_json::to_string(&serve)
            .map_err(|error| SandboxError::Start(error.to_string()))?;
        let size = self.temporary_bytes();
        let sized = |size| {
            let files = Self::temporary_files(size);
            format!("rw,exec,nosuid,nodev,size={size},nr_inodes={files}")
        };
        let temporary = HashMap::from([
            ("/tmp".to_owned(), format!("{},mode=1777", sized(size))),
            (
                "/var/tmp".to_owned(),
                format!("{},mode=1777", sized(size / 4)),
            ),
            (
                HOME.to_owned(),
                format!("{},mode=0700,uid={user},gid={group}", sized(size)),
            ),
        ]);
        let mount = |from: &Path, to: &str, read_only| {
            Ok::<_, SandboxError>(Mount {
                typ: Some(MountType::BIND),
                source: Some(self.engine_path(from)?),
                target: Some(to.to_owned()),
                read_only: Some(read_only),
                ..Mount::default()
            })
        };
        let mut mounts = vec![
            mount(wanted.lucid, LUCID, true)?,
            mount(wanted.workspace, &self.workspace_mount, false)?,
        ];
        if self.direct {
            mounts.push(mount(
                &wanted.lucid.join(RESOLVER),
                system_mounts::RESOLVER,
                true,
            )?);
        }
        mounts.extend(self.volumes.iter().map(|at| self.volume_tmpfs(at)));
        let devices = self.direct.then(|| {
            vec![DeviceMapping {
                path_on_host: Some(TUNNEL.to_owned()),
                path_in_container: Some(TUNNEL.to_owned()),
                cgroup_permissions: Some("rw".to_owned()),
            }]
        });
        // To make the interface, to become the user of commands, and to give all of this up for good.
        let rights = ["NET_ADMIN", "SETUID", "SETGID", "SETPCAP"].map(str::to_owned);
        let host = HostConfig {
            memory: Some(self.memory),
            // Memory and swap together, so none of it is swap.
            memory_swap: Some(self.memory),
            nano_cpus: Some(self.nano_cpus),
            pids_limit: Some(self.processes),
            oom_score_adj: Some(FIRST_TO_GO),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: self.direct.then(|| rights.into()),
            devices,
            security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
            privileged: Some(false),
            readonly_rootfs: Some(true),
            tmpfs: Some(temporary),
            shm_size: Some(size.min(64 << 20)),
            mounts: Some(mounts),
            network_mode: Some(self.network.clone()),
            // Without a network the engine adds no address for the container's own name.
            extra_hosts: Some(vec![format!("{HOSTNAME}:127.0.0.1")]),
            ipc_mode: Some("private".to_owned()),
            // The engine's own first process would keep the rights that the exec server gives up.
            init: Some(!self.direct),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(HashMap::from([
                    ("max-size".to_owned(), "64k".to_owned()),
                    ("max-file".to_owned(), "1".to_owned()),
                ])),
            }),
            ..HostConfig::default()
        };
        let environment = self.environment();
        Ok(ContainerCreateBody {
            image: Some(self.image.clone()),
            hostname: Some(HOSTNAME.to_owned()),
            user: Some(if self.direct {
                // Only root is given rights. The exec server becomes the other user by itself.
                "0:0".to_owned()
            } else {
                self.user.clone()
            }),
            // The image's own entry point would run in front of the exec server.
            entrypoint: Some(vec![EXEC.to_owned()]),
            cmd: Some(vec!["--connect".to_owned(), SOCKET.to_owned(), serve]),
            env: Some(
                environment
                    .into_iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect(),
            ),
            working_dir: Some(self.workspace_mount.clone()),
            labels: Some(self.labels(wanted)),
            host_config: Some(host),
            // The image's own would run beside the exec server, outside of its limits and as its user.
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            // As the container's first process the exec server is not ended by a signal from outside.
            stop_timeout: self.direct.then_some(1),
            ..ContainerCreateBody::default()
        })
    }

    /// The name of a session's container, or of another, in the characters that engines accept.
    pub(super) fn container_name(&self, of: impl Display) -> String {
        let name = format!("{}{of}", self.prefix);
        name.chars()
            .map(|c| match c {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' => c,
                _ => '-',
            })
            .collect()
    }
}

/// The paths of an image's volumes, except those that have something mounted anyway.
fn volumes(named: &[String], workspace_mount: &str) -> Vec<String> {
    let taken = [workspace_mount, LUCID, HOME, "/tmp", "/var/tmp"].map(cleaned);
    let mut volumes: Vec<String> = named.iter().map(|path| cleaned(path)).collect();
    volumes.retain(|path| !taken.contains(path));
    volumes.sort_unstable();
    volumes.dedup();
    volumes
}

/// Normalises a path as the engine does to compare it.
fn cleaned(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
