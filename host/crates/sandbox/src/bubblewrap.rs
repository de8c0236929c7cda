//! The command line of a bubblewrap sandbox.
//!
//! # Invariants
//! - The sandbox's root is built from nothing and is read-only.
//! - Of the host it sees the system's programs, a copy of what they need of `/etc`, the programs that every
//!   sandbox has, this session's workspace and this session's runtime folder.
//! - Every writable in-memory file system has a size limit.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::command_env::environment;
use crate::error::SandboxError;
use crate::runtime_dir::{RESOLVER, RuntimeDir, SessionDir};
use crate::settings::{Network, SandboxSettings, SandboxSpec};
use crate::system_mounts;
use lucid_exec::protocol::{HostInterface, Serve, Sockets};

/// Why there is no bubblewrap to use.
#[derive(Debug, thiserror::Error)]
pub(super) enum BubblewrapError {
    /// There is none.
    #[error("bwrap is not installed (`apt-get install bubblewrap`)")]
    Missing,
    /// It could not be run.
    #[error("bwrap does not run: {0}")]
    Run(#[source] std::io::Error),
    /// It cannot limit the size of an in-memory file system.
    #[error("this bwrap is too old: 0.7 or later is needed")]
    Old,
}

/// The installed bwrap, and its capabilities.
#[derive(Clone)]
pub(super) struct InstalledBwrap {
    path: PathBuf,
    disable_user_namespaces: bool,
    /// Whether it lets the exec server make an interface to the host.
    pub(super) gives_rights: bool,
}

impl InstalledBwrap {
    pub(super) async fn find() -> Result<Self, BubblewrapError> {
        let path = [
            "/usr/bin/bwrap",
            "/usr/local/bin/bwrap",
            "/bin/bwrap",
            "/run/current-system/sw/bin/bwrap",
        ]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or(BubblewrapError::Missing)?;
        let help = Command::new(&path)
            .arg("--help")
            .output()
            .await
            .map_err(BubblewrapError::Run)?;
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        if !help.contains("--size") {
            return Err(BubblewrapError::Old);
        }
        Ok(Self {
            path,
            disable_user_namespaces: help.contains("--disable-userns"),
            gives_rights: help.contains("--cap-add"),
        })
    }

    fn has_interface(&self, settings: &SandboxSettings) -> bool {
        settings.direct && self.gives_rights
    }

    /// The file that tells programs whom to ask for names, if there is somebody.
    pub(super) fn resolver(
        &self,
        settings: &SandboxSettings,
        runtime: &RuntimeDir,
    ) -> Option<PathBuf> {
        if settings.network == Network::Host {
            return Some(system_mounts::RESOLVER.into());
        }
        let has_interface = self.has_interface(settings);
        has_interface.then(|| runtime.etc(RESOLVER))
    }

    pub(super) fn command(
        &self,
        settings: &SandboxSettings,
        dir: &SessionDir,
        runtime: &RuntimeDir,
        spec: SandboxSpec<'_>,
        serve: Serve,
    ) -> Result<Command, SandboxError> {
        let has_interface = self.has_interface(settings);
        let serve = Serve {
            sockets: Some(Sockets::Ip),
            proxy: settings.network.proxy_port(),
            // Not bwrap's network namespace: that belongs to a user namespace above the one in which
            // the exec server has its rights.
            interface: has_interface.then(|| HostInterface {
                own_namespace: true,
                ..HostInterface::default()
            }),
            ..serve
        };
        let serve = serde_json::to_string(&serve)
            .map_err(|error| SandboxError::Start(error.to_string()))?;
        let size = settings.temporary_bytes().to_string();
        let shared_memory = settings.shared_memory_bytes().to_string();
        let mut arguments = Arguments(Vec::new());
        arguments.add([
            "--unshare-all",
            "--unshare-user",
            "--uid",
            "1000",
            "--gid",
            "1000",
        ]);
        arguments.add([
            "--die-with-parent",
            "--new-session",
            // Otherwise the first process is bwrap's own, from which commands could take the host's
            // socket.
            "--as-pid-1",
            "--hostname",
            "sandbox",
        ]);
        if self.disable_user_namespaces {
            arguments.add(["--disable-userns"]);
        }
        arguments.system_folders();
        arguments.bind("--ro-bind", runtime.system_etc(), "/etc");
        if settings.network == Network::Host {
            arguments.add(["--share-net"]);
        }
        arguments.add(["--proc", "/proc", "--dev", "/dev"]);
        if has_interface {
            arguments.interface(runtime);
        }
        arguments.add([
            "--size",
            &shared_memory,
            "--perms",
            "1777",
            "--tmpfs",
            "/dev/shm",
            "--remount-ro",
            "/dev",
        ]);
        arguments.add(["--size", &size, "--perms", "1777", "--tmpfs", "/tmp"]);
        arguments.add(["--symlink", "../tmp", "/var/tmp"]);
        arguments.add(["--size", &size, "--perms", "0700", "--tmpfs", "/home/agent"]);
        arguments.bind("--ro-bind", runtime.bin(), "/run/lucid/bin");
        arguments.bind("--ro-bind", dir.path(), "/run/lucid/session");
        arguments.bind("--bind", spec.workspace, &settings.workspace_mount);
        // Nobody needs to write to /proc, and what is there lets the kernel end a process later.
        arguments.add(["--remount-ro", "/proc", "--remount-ro", "/"]);
        arguments.add(["--chdir", &settings.workspace_mount]);
        arguments.add(["--", "/run/lucid/bin/lucid-exec", "--serve", &serve]);

        let mut command = Command::new(&self.path);
        command.args(arguments.0).env_clear().current_dir("/");
        command.envs(environment(
            "/run/lucid/bin",
            "/home/agent",
            "/tmp",
            "/run/lucid/session/git.sock",
            spec.repository,
        ));
        Ok(command)
    }
}

struct Arguments(Vec<std::ffi::OsString>);

impl Arguments {
    fn add<'a>(&mut self, arguments: impl IntoIterator<Item = &'a str>) {
        self.0.extend(arguments.into_iter().map(Into::into));
    }

    fn bind(&mut self, how: &str, from: &Path, to: &str) {
        self.0.extend([
            OsStr::new(how).to_owned(),
            from.as_os_str().to_owned(),
            to.into(),
        ]);
    }

    /// What it takes to make an interface to the host, which the exec server gives up again.
    fn interface(&mut self, runtime: &RuntimeDir) {
        // To enter a network namespace, to make an interface in it, and to give these rights up for good.
        for right in ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SETPCAP"] {
            self.add(["--cap-add", right]);
        }
        self.bind("--dev-bind-try", &runtime.tunnel(), "/dev/net/tun");
    }

    /// `/usr` and its siblings: links, folders.
    fn system_folders(&mut self) {
        self.add(["--ro-bind", system_mounts::USR, system_mounts::USR]);
        for path in system_mounts::BESIDE_USR {
            if let Ok(target) = std::fs::read_link(path) {
                self.bind("--symlink", &target, path);
            } else {
                self.add(["--ro-bind-try", path, path]);
            }
        }
    }
}
