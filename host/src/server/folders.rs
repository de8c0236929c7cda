//! The folders of a server: its own, below `WORKSPACE_BASE_PATH`, and how they are made.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::StartError;

/// The folders below one base.
pub(crate) struct DataDirs {
    pub(super) root: PathBuf,
    pub(super) data: PathBuf,
    pub(super) cache: PathBuf,
    pub(super) run: PathBuf,
}

impl DataDirs {
    pub(crate) fn under(base: &Path) -> Self {
        let own = base.join(".lucid");
        Self {
            data: own.join("data"),
            cache: own.join("cache"),
            run: own.join("run"),
            root: own,
        }
    }

    /// Where the store is.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }
}

/// A folder that others may pass through, as sandboxes must, and not look into.
pub(crate) fn create_dir(folder: &Path) -> Result<(), StartError> {
    let made = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o711)));
    made.map_err(|cause| StartError::Folder {
        path: folder.to_owned(),
        cause,
    })
}
