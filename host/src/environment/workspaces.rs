//! The workspaces of all sessions: folders below one, a folder for each user and in it one for each
//! session.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lucid_sandbox::workspace::{Workspace, WorkspaceError, safe_name};

/// The folder below which workspaces are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Workspaces {
    base: Arc<Path>,
}

impl Workspaces {
    /// Workspaces below this folder.
    pub(crate) fn new(base: &Path) -> Self {
        Self { base: base.into() }
    }

    /// The folder below which all of them are.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// Whether a session's workspace exists.
    pub(crate) fn contains(&self, user: &str, session: &str) -> bool {
        self.folder_of(user, session).is_dir()
    }

    /// Opens a session's workspace; `None` if it does not exist. Blocks briefly.
    pub(crate) fn find(&self, user: &str, session: &str) -> Option<Workspace> {
        Workspace::find(&self.base, user, session)
    }

    /// Opens a session's workspace, and creates it if it does not exist. Blocks briefly.
    pub(crate) fn create(&self, user: &str, session: &str) -> Result<Workspace, WorkspaceError> {
        Workspace::create(&self.base, user, session)
    }

    fn folder_of(&self, user: &str, session: &str) -> PathBuf {
        self.base.join(safe_name(user)).join(safe_name(session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_for_a_workspace_creates_none() {
        let base = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::new(base.path());
        assert!(workspaces.find("u", "s").is_none() && !workspaces.contains("u", "s"));
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
        let made = workspaces.create("u", "s").unwrap();
        let found = workspaces.find("u", "s").unwrap();
        assert_eq!(found.host_path(), made.host_path());
        assert!(workspaces.contains("u", "s") && workspaces.find("v", "s").is_none());
    }
}
