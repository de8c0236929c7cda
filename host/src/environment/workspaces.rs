//! The workspaces of all sessions: folders below one, a folder for each user and in it one for each
//! session.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lucid_sandbox::workspace::{Workspace, WorkspaceError, folder_of};
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// The folder below which workspaces are. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Workspaces {
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
    pub(crate) fn contains(&self, user: &UserId, session: SessionId) -> bool {
        self.path(user, session).is_dir()
    }

    /// Where a session's workspace is, or would be, from wherever the process is started.
    pub(crate) fn path(&self, user: &UserId, session: SessionId) -> PathBuf {
        let base = self.base.canonicalize();
        folder_of(base.as_deref().unwrap_or(&self.base), user, session)
    }

    /// Opens a session's workspace; `None` if it does not exist. Blocks briefly.
    pub(crate) fn find(&self, user: &UserId, session: SessionId) -> Option<Workspace> {
        Workspace::find(&self.base, user, session)
    }

    /// Opens a session's workspace, and creates it if it does not exist. Blocks briefly.
    pub(crate) fn create(
        &self,
        user: &UserId,
        session: SessionId,
    ) -> Result<Workspace, WorkspaceError> {
        Workspace::create(&self.base, user, session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_for_a_workspace_creates_none() {
        let base = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::new(base.path());
        let (user, other) = (UserId::from("u"), UserId::from("v"));
        let session = SessionId::new();
        assert!(workspaces.find(&user, session).is_none() && !workspaces.contains(&user, session));
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
        let made = workspaces.create(&user, session).unwrap();
        let found = workspaces.find(&user, session).unwrap();
        assert_eq!(found.host_path(), made.host_path());
        assert!(workspaces.contains(&user, session) && workspaces.find(&other, session).is_none());
    }
}
