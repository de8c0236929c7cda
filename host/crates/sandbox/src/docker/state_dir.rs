//! The host's state directory for containers: this host's identity, and one folder for each
//! container.
//!
//! ```text
//! <run_dir>/docker/instance    the id that this host's containers are labelled with
//!                  lock        held by the one process that adopts containers and keeps a pool
//!                  <owner>/    of one process of this host
//!                    lock              held by it for as long as it lives
//!                    <container>/record.json the session the container belongs to
//!                    <container>/lucid/      what the container sees, read-only, as /run/lucid
//!                    <container>/workspace/  of a waiting container: the workspace it will hand over
//! ```
//!
//! # Invariants
//! - Only the host enters these folders.
//! - What belongs to a living process is left to that process.
//! - A record is replaced as a whole.
//! - A container belongs to a session from the moment its record says so, and never to two
//!   sessions.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{SandboxError, io_error};
use crate::runtime_dir::{RESOLVER, RESOLVER_CONTENT, give_to};
use crate::workspace::sandbox_user;
use lucid_types::ids::SessionId;

#[cfg(test)]
mod tests;

/// Lengths of the names of processes and containers: short enough for socket paths, and long enough
/// to be unique within a host.
const OWNER_LENGTH: usize = 8;
const CONTAINER_NAME_LENGTH: usize = 12;

/// The state directory of this host's containers.
#[derive(Debug, Clone)]
pub(super) struct StateDir {
    path: PathBuf,
    owner: OwnerDir,
    exec: PathBuf,
}

/// The folder of one process of this host, this one or another.
#[derive(Debug, Clone)]
pub(super) struct OwnerDir {
    name: String,
    path: PathBuf,
}

/// The session that a container belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    /// The session's id.
    pub(super) session: SessionId,
    /// Its workspace on the host.
    pub(super) workspace: PathBuf,
    /// The identity of the folder mounted in the container, whatever exists at that path later.
    pub(super) identity: DirIdentity,
}

/// The identity of a folder, which survives a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DirIdentity {
    device: u64,
    inode: u64,
}

impl DirIdentity {
    pub(super) fn of(path: &Path) -> Result<Self, SandboxError> {
        let data = fs::symlink_metadata(path)
            .map_err(io_error(format!("{} cannot be looked at", path.display())))?;
        Ok(Self {
            device: data.dev(),
            inode: data.ino(),
        })
    }
}

impl StateDir {
    /// Opens the state directory, and creates this process's own folder in it. The returned file is
    /// the lock on that folder: releasing it gives up the process's containers to whoever takes
    /// over. `exec` is the installed exec server.
    pub(super) fn open(run_dir: &Path, exec: &Path) -> Result<(Self, File), SandboxError> {
        let path = run_dir.join("docker");
        create_private_dir(&path)?;
        let path = path
            .canonicalize()
            .map_err(io_error(format!("{} cannot be resolved", path.display())))?;
        let name = unique_name(OWNER_LENGTH);
        // Renamed only once it is locked: without a lock it would count as a dead process's.
        let draft = path.join(format!("new-{name}"));
        create_private_dir(&draft)?;
        let lock = lock(&draft)?.ok_or_else(|| {
            SandboxError::Start(format!("{} is locked by somebody else", draft.display()))
        })?;
        let owner = OwnerDir {
            path: path.join(&name),
            name,
        };
        fs::rename(&draft, &owner.path)
            .map_err(io_error(format!("{} cannot be made", owner.path.display())))?;
        let root = Self {
            path,
            owner,
            exec: exec.to_owned(),
        };
        Ok((root, lock))
    }

    /// This process's own folder.
    pub(super) fn owner(&self) -> &OwnerDir {
        &self.owner
    }

    /// The id of this host, created at its first start and kept: a later host with the same folder
    /// is the same one.
    pub(super) fn instance(&self) -> Result<String, SandboxError> {
        let path = self.path.join("instance");
        let fresh = uuid::Uuid::new_v4().to_string();
        // The first link wins, and everybody reads what is there then.
        let draft = self.path.join(format!("instance-{fresh}"));
        let failed = || io_error(format!("{} cannot be written", path.display()));
        if !path.exists() {
            write_private(&draft, fresh.as_bytes()).map_err(failed())?;
            let linked = fs::hard_link(&draft, &path);
            let _ = fs::remove_file(&draft);
            if let Err(error) = linked
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(failed()(error));
            }
        }
        let text = fs::read_to_string(&path)
            .map_err(io_error(format!("{} cannot be read", path.display())))?;
        let id = uuid::Uuid::parse_str(text.trim()).map_err(|_| {
            SandboxError::Start(format!(
                "{} does not hold this host's id. Remove it, and the containers labelled lucid.managed that nobody uses",
                path.display()
            ))
        })?;
        Ok(id.to_string())
    }

    /// The lock of the one process that adopts what dead ones left; `None` if another process holds
    /// it.
    pub(super) fn lock(&self) -> Result<Option<File>, SandboxError> {
        lock(&self.path)
    }

    /// The folders of the other processes, living and dead.
    pub(super) fn others(&self) -> Vec<OwnerDir> {
        named_folders(&self.path, OWNER_LENGTH)
            .filter(|(name, _)| *name != self.owner.name)
            .map(|(name, path)| OwnerDir { name, path })
            .collect()
    }

    /// Creates the folder of a new container. `python` is the target of that name in it.
    pub(super) fn create_container_dir(
        &self,
        python: Option<&str>,
    ) -> Result<ContainerDir, SandboxError> {
        let name = unique_name(CONTAINER_NAME_LENGTH);
        let folder = ContainerDir {
            path: self.owner.path.join(&name),
            name,
        };
        let made = self.populate(&folder, python);
        if made.is_err() {
            folder.remove();
        }
        made.map(|()| folder)
    }

    fn populate(&self, folder: &ContainerDir, python: Option<&str>) -> Result<(), SandboxError> {
        create_private_dir(&folder.path)?;
        let lucid = folder.lucid();
        let failed = || io_error(format!("{} cannot be filled", lucid.display()));
        let bin = lucid.join("bin");
        fs::create_dir_all(&bin).map_err(failed())?;
        for path in [&lucid, &bin] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(failed())?;
        }
        let exec = bin.join("lucid-exec");
        if fs::hard_link(&self.exec, &exec).is_err() {
            fs::copy(&self.exec, &exec).map_err(failed())?;
        }
        symlink("lucid-exec", bin.join("git-remote-lucid")).map_err(failed())?;
        // For containers with an interface to the host.
        let resolver = lucid.join(RESOLVER);
        fs::write(&resolver, RESOLVER_CONTENT).map_err(failed())?;
        fs::set_permissions(&resolver, Permissions::from_mode(0o644)).map_err(failed())?;
        if let Some(python) = python {
            symlink(python, bin.join("python")).map_err(failed())?;
        }
        Ok(())
    }
}

impl OwnerDir {
    /// The value of its containers' owner label.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The lock of a dead process; `None` if the process lives, or just removed its folder.
    pub(super) fn lock_if_dead(&self) -> Result<Option<File>, SandboxError> {
        match lock(&self.path) {
            Err(_) if !self.path.exists() => Ok(None),
            tried => tried,
        }
    }

    /// The folder of an existing container; `None` if there is none of that name.
    pub(super) fn find(&self, name: &str) -> Option<ContainerDir> {
        // A container's label may contain anything.
        let path = self.path.join(name);
        (is_name(name, CONTAINER_NAME_LENGTH) && path.is_dir()).then(|| ContainerDir {
            path,
            name: name.to_owned(),
        })
    }

    /// All containers that have a folder.
    pub(super) fn container_dirs(&self) -> Vec<ContainerDir> {
        named_folders(&self.path, CONTAINER_NAME_LENGTH)
            .map(|(name, path)| ContainerDir { name, path })
            .collect()
    }

    /// Removes the folder if no container's is left in it.
    pub(super) fn remove_if_empty(&self) {
        if named_folders(&self.path, CONTAINER_NAME_LENGTH)
            .next()
            .is_none()
            && let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a folder cannot be removed");
        }
    }
}

/// A new unique name, kept short because the length of a socket's path is limited.
fn unique_name(length: usize) -> String {
    let mut name = uuid::Uuid::new_v4().simple().to_string();
    name.truncate(length);
    name
}

fn is_name(name: &str, length: usize) -> bool {
    name.len() == length && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn named_folders(path: &Path, length: usize) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(move |entry| {
            let name = entry.file_name().into_string().ok()?;
            let path = entry.path();
            (is_name(&name, length) && path.is_dir()).then_some((name, path))
        })
}

/// Locks a folder; `None` if a living process holds the lock.
fn lock(folder: &Path) -> Result<Option<File>, SandboxError> {
    let path = folder.join("lock");
    let failed = || io_error(format!("{} cannot be locked", path.display()));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed())?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(failed()(error)),
    }
}

/// The folder of one container.
#[derive(Debug, Clone)]
pub(super) struct ContainerDir {
    name: String,
    path: PathBuf,
}

impl ContainerDir {
    /// The name of the container among those of this host.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The folder that the container sees as `/run/lucid`.
    pub(super) fn lucid(&self) -> PathBuf {
        self.path.join("lucid")
    }

    /// The path of the workspace until it is given to a session.
    pub(super) fn workspace(&self) -> PathBuf {
        self.path.join("workspace")
    }

    /// Creates the workspace of a container that belongs to nobody yet.
    pub(super) fn make_workspace(&self) -> Result<PathBuf, SandboxError> {
        let path = self.workspace();
        create_private_dir(&path)?;
        give_to(&path, sandbox_user())?;
        Ok(path)
    }

    /// Records the session that the container belongs to.
    pub(super) fn record(&self, record: &ContainerRecord) -> Result<(), SandboxError> {
        let (path, draft) = (
            self.path.join("record.json"),
            self.path.join("record.json.new"),
        );
        let write = || -> std::io::Result<()> {
            let _ = fs::remove_file(&draft);
            write_private(&draft, &serde_json::to_vec(record)?)?;
            fs::rename(&draft, &path)
        };
        write().map_err(io_error(format!("{} cannot be written", path.display())))
    }

    /// The session that the container belongs to; `None` if nobody.
    pub(super) fn recorded(&self) -> Option<ContainerRecord> {
        let bytes = fs::read(self.path.join("record.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Moves the workspace of a waiting container to a session's path. Nothing may exist there.
    pub(super) fn move_workspace(&self, to: &Path) -> std::io::Result<()> {
        fs::rename(self.workspace(), to)
    }

    /// Removes the folder, with a workspace that was never given to a session.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a sandbox's folder cannot be removed");
        }
    }
}

fn create_private_dir(path: &Path) -> Result<(), SandboxError> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)))
        .map_err(io_error(format!("{} cannot be made", path.display())))
}

fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)
}
