//! A session's workspace, as the host reads and writes it.
//!
//! # Invariants
//! - Every path is resolved below an open directory handle, so neither `..` nor a symbolic link,
//!   nor one swapped in meanwhile by hostile code, leads out.
//! - Only regular files are ever read, so a pipe or a device cannot hang the host.
//! - Sizes and counts are bounded.

mod archive;
mod names;
mod owner;
mod path;
mod quota;
mod remove_tree;
#[cfg(test)]
mod tests;
mod tree;
mod walk;
mod watch;

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use rustix::fs::OFlags;

pub(crate) use self::owner::adopt;
use self::owner::set_owner;
pub use self::path::WorkspacePath;
pub(crate) use self::quota::{DiskUsage, FilesBeside, disk_usage_of};
pub use self::quota::{Quota, QuotaCheck, QuotaError};
pub use self::remove_tree::remove_tree;
pub use self::tree::{TreeNode, TreeNodeKind};
pub use self::watch::{WatchedWorkspace, Watcher};
use lucid_types::digest::sha256_hex;
use lucid_types::ids::SessionId;
use lucid_types::plural;
use lucid_types::user::UserId;

/// A prefix that every path may have, whatever the sandbox.
const MOUNT: &str = "/workspace";
/// The user of sandboxes that share one, and of containers, if the host is root.
pub(crate) const SANDBOX_USER: u32 = 1000;

/// The user that owns the files of containers, and of workspaces that had no sandbox yet: one of their
/// own if the host is root, otherwise `None`, for the host's user.
#[must_use]
pub fn sandbox_user() -> Option<u32> {
    rustix::process::geteuid().is_root().then_some(SANDBOX_USER)
}

/// A file name for any text, a different one for each.
#[must_use]
fn safe_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => name.push(byte.into()),
            b'.' if at > 0 => name.push('.'),
            // `%` and `~` are always escaped, so an escape cannot be confused with a literal.
            other => name.push_str(&format!("%{other:02x}")),
        }
    }
    if name.is_empty() {
        return "~".to_owned();
    }
    if name.len() > 100 {
        return format!("~{}", sha256_hex(text));
    }
    name
}

/// An error in reading or writing a file.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// The path, or a link on it, leads out of the workspace.
    #[error("path traversal not allowed")]
    Traversal,
    /// The file does not exist.
    #[error("file not found: {0}")]
    NotFound(String),
    /// The file is larger than the limit for reading.
    #[error("{path} is {}; at most {limit} can be read", plural::count(.size.to_owned(), "byte"))]
    TooLarge {
        /// The file's path.
        path: String,
        /// The file's size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The path is a folder, a pipe or a device.
    #[error("{0} is not a regular file")]
    NotAFile(String),
    /// The file's permissions keep the host out.
    #[error("{0} cannot be opened: its permissions forbid it")]
    Forbidden(String),
    /// Any other failure.
    #[error("{path}: {cause}")]
    Io {
        /// The path.
        path: String,
        /// The cause.
        #[source]
        cause: io::Error,
    },
}

/// The path of a session's folder below `base`.
#[must_use]
pub fn folder_of(base: &Path, user: &UserId, session: SessionId) -> PathBuf {
    base.join(safe_name(user.as_str()))
        .join(session.to_string())
}

/// A session's workspace folder.
#[derive(Debug)]
pub struct Workspace {
    dir: Dir,
    path: PathBuf,
}

impl Workspace {
    /// Creates or opens the folder of a session below `base`.
    pub fn create(base: &Path, user: &UserId, session: SessionId) -> Result<Self, WorkspaceError> {
        let path = folder_of(base, user, session);
        let failed = |cause| WorkspaceError::Io {
            path: path.display().to_string(),
            cause,
        };
        std::fs::create_dir_all(&path).map_err(failed)?;
        // The sandbox's user must pass through, but must not see which sessions exist.
        for folder in [base, path.parent().unwrap_or(base)] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
                .map_err(failed)?;
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).map_err(failed)?;
        let workspace = Self { dir, path };
        // One that was just created; any other has the user of its sandboxes.
        if workspace.owner().map_err(failed)? == Some(0) {
            set_owner(&workspace.dir, SANDBOX_USER).map_err(failed)?;
        }
        Ok(workspace)
    }

    /// Opens the folder of a session below `base`; `None` if it does not exist or cannot be opened.
    #[must_use]
    pub fn find(base: &Path, user: &UserId, session: SessionId) -> Option<Self> {
        let path = folder_of(base, user, session);
        let path = path.canonicalize().ok()?;
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).ok()?;
        Some(Self { dir, path })
    }

    /// The folder's path on the host.
    #[must_use]
    pub fn host_path(&self) -> &Path {
        &self.path
    }

    /// Checks that a path stays inside, for a workspace that does not exist yet.
    pub fn check(text: &str) -> Result<(), WorkspaceError> {
        WorkspacePath::parse(text, &[MOUNT]).map(drop)
    }

    /// Validates a path that a client or a model wrote.
    pub fn path(&self, text: &str) -> Result<WorkspacePath, WorkspaceError> {
        WorkspacePath::parse(text, &[MOUNT, &self.path.to_string_lossy()])
    }

    /// Opens a file for reading, and returns its length in bytes. It may grow, shrink or change
    /// while it is read.
    pub fn open(&self, path: &WorkspacePath) -> Result<(std::fs::File, u64), WorkspaceError> {
        let failed = |cause| explain(path, cause);
        let mut options = OpenOptions::new();
        // Non-blocking: opening a pipe would wait for its other end.
        options
            .read(true)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32);
        let file = self
            .dir
            .open_with(path.on_disk(), &options)
            .map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        if !data.is_file() {
            return Err(WorkspaceError::NotAFile(path.display()));
        }
        Ok((file.into_std(), data.len()))
    }

    /// Reads a file of at most `max` bytes.
    pub fn read(&self, path: &WorkspacePath, max: u64) -> Result<Vec<u8>, WorkspaceError> {
        let failed = |cause| explain(path, cause);
        let (file, length) = self.open(path)?;
        let too_large = |size| WorkspaceError::TooLarge {
            path: path.display(),
            size,
            limit: max,
        };
        if length > max {
            return Err(too_large(length));
        }
        let mut content = Vec::new();
        // It may grow while it is read.
        file.take(max.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(failed)?;
        if content.len() as u64 > max {
            return Err(too_large(content.len() as u64));
        }
        Ok(content)
    }

    /// Writes a file atomically, creating the folders it needs.
    pub fn write(&self, path: &WorkspacePath, content: &[u8]) -> Result<(), WorkspaceError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let failed = |cause| explain(path, cause);
        if path.is_root() {
            return Err(WorkspaceError::NotAFile(path.display()));
        }
        // Checked before any folder is created in vain.
        if path.is_too_long() {
            return Err(failed(rustix::io::Errno::NAMETOOLONG.into()));
        }
        self.make_parents(path)?;
        // A link is written through, if it stays inside; the check is the handle's, not this
        // lookup.
        let target = self.dir.canonicalize(path.on_disk());
        let target = match target {
            Ok(target) => target,
            // A dangling link must not create a file.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.dir.symlink_metadata(path.on_disk()).is_ok() {
                    return Err(failed(error));
                }
                path.below_root().to_owned()
            }
            Err(error) => return Err(failed(error)),
        };
        let mode = match self.dir.metadata(&target) {
            Ok(data) if data.is_file() => data.permissions().mode() & 0o777,
            Ok(_) => return Err(WorkspaceError::NotAFile(path.display())),
            Err(_) => 0o644,
        };
        let name = format!(
            ".lucid-{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let temporary = target.with_file_name(name);
        let put = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = self
                .dir
                .open_with(&temporary, options.write(true).create_new(true).mode(0o600))?;
            file.write_all(content)?;
            if let Some(user) = self.owner()? {
                set_owner(&file, user)?;
            }
            file.set_permissions(Permissions::from_mode(mode))?;
            self.dir.rename(&temporary, &self.dir, &target)
        };
        put().map_err(|error| {
            let _ = self.dir.remove_file(&temporary);
            failed(error)
        })
    }

    /// Removes a file, to undo its creation.
    pub fn remove_file(&self, path: &WorkspacePath) -> Result<(), WorkspaceError> {
        self.dir
            .remove_file(path.on_disk())
            .map_err(|cause| explain(path, cause))
    }

    /// Whether the path is a folder.
    pub fn is_folder(&self, path: &WorkspacePath) -> Result<bool, WorkspaceError> {
        self.dir
            .metadata(path.on_disk())
            .map(|data| data.is_dir())
            .map_err(|cause| explain(path, cause))
    }

    /// The sorted names in a folder, those of folders with a trailing slash; at most `most` of
    /// them.
    pub fn list(&self, path: &WorkspacePath, most: usize) -> Result<Vec<String>, WorkspaceError> {
        let failed = |cause| explain(path, cause);
        let mut found = Vec::new();
        for entry in self
            .dir
            .read_dir(path.on_disk())
            .map_err(failed)?
            .take(most)
        {
            let entry = entry.map_err(failed)?;
            let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            found.push(format!(
                "{}{}",
                names::encode_name(&entry.file_name()),
                if folder { "/" } else { "" }
            ));
        }
        found.sort();
        Ok(found)
    }

    /// Removes the folder and everything in it, whatever a sandbox did to it. Blocks; if something
    /// stays in the way, for about a second.
    pub fn remove(&self) -> Result<(), WorkspaceError> {
        remove_tree(&self.path).map_err(|cause| WorkspaceError::Io {
            path: self.path.display().to_string(),
            cause,
        })?;
        // The user's folder is removed with the last session; while others exist, this fails.
        let _ = self.path.parent().map(std::fs::remove_dir);
        Ok(())
    }

    fn make_parents(&self, path: &WorkspacePath) -> Result<(), WorkspaceError> {
        let failed = |cause| explain(path, cause);
        let mut made = PathBuf::new();
        for part in path
            .below_root()
            .parent()
            .into_iter()
            .flat_map(Path::components)
        {
            made.push(part);
            match self.dir.create_dir(&made) {
                Ok(()) => {
                    if let Some(user) = self.owner().map_err(failed)? {
                        // On the open folder, which is not a link: by now the name may be something
                        // else.
                        let folder = self.dir.open_dir(&made).map_err(failed)?;
                        set_owner(&folder, user).map_err(failed)?;
                    }
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

fn explain(path: &WorkspacePath, cause: io::Error) -> WorkspaceError {
    let system = cause
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error);
    match (cause.kind(), system) {
        // The resolver's result for a path that leads out: an error of its own, or the kernel's
        // EXDEV.
        (ErrorKind::CrossesDevices, _) | (ErrorKind::PermissionDenied, None) => {
            WorkspaceError::Traversal
        }
        (ErrorKind::PermissionDenied, _) => WorkspaceError::Forbidden(path.display()),
        (ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename, _)
        // Links in a circle, and names that no file system accepts.
        | (_, Some(rustix::io::Errno::LOOP | rustix::io::Errno::NAMETOOLONG))
        | (ErrorKind::InvalidInput, _) => WorkspaceError::NotFound(path.display()),
        (ErrorKind::IsADirectory, _)
        // A socket, or a device without a driver.
        | (_, Some(rustix::io::Errno::NXIO | rustix::io::Errno::NODEV)) => {
            WorkspaceError::NotAFile(path.display())
        }
        _ => WorkspaceError::Io {
            path: path.display(),
            cause,
        },
    }
}
