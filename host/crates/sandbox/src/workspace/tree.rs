//! The file tree of a workspace that clients are shown.
//!
//! # Invariants
//! - Its depth and its size are bounded, and so is the number of entries that are read for it, those
//!   that it does not show included.
//! - Links are shown and not followed.
//! - Folders that nobody looks for are left out.

use std::os::fd::AsFd;

use cap_std::fs::{Dir, ReadDir};
use serde::Serialize;

use super::names::encode_name;
use super::{WatchedWorkspace, Workspace, WorkspaceError, WorkspacePath, explain};
use lucid_types::user_work::CancelFlag;

/// The depth limit of a tree.
const MAX_DEPTH: usize = 24;
/// The most nodes of a tree.
pub(super) const MAX_NODES: usize = 10_000;
/// The most bytes that a tree's names and paths take together: the tree is logged each time it
/// changes.
const MAX_BYTES: usize = 1 << 20;
/// The most entries that are read for a tree. What is left out of it takes time all the same.
pub(super) const MAX_READ: usize = 50_000;
/// After how many of them others have the processor, who may wait for less than a time slice.
const PIECE: usize = 512;
/// Folders left out of a tree, besides those whose name starts with a dot.
const LEFT_OUT: [&str; 12] = [
    ".git",
    "node_modules",
    "__pycache__",
    ".next",
    ".venv",
    "venv",
    ".mypy_cache",
    ".pytest_cache",
    "dist",
    "build",
    ".tox",
    ".eggs",
];

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TreeNode {
    /// The entry's own name.
    pub name: String,
    /// The entry's kind.
    #[serde(rename = "type")]
    pub kind: TreeNodeKind,
    /// The path from the workspace's root, with a leading slash.
    pub path: String,
    /// The entries of a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub children: Option<Vec<TreeNode>>,
}

/// The kind of a node. A symbolic link counts as a file: it is shown and not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TreeNodeKind {
    /// Anything that is not a folder.
    File,
    /// A folder.
    Folder,
}

impl Workspace {
    /// The tree that clients are shown: bounded, without folders that nobody looks for, links not
    /// followed.
    pub fn tree(&self) -> Result<Vec<TreeNode>, WorkspaceError> {
        self.tree_until(&CancelFlag::default())
    }

    /// The same tree, for somebody who may leave: it is then cut short.
    pub fn tree_until(&self, cancelled: &CancelFlag) -> Result<Vec<TreeNode>, WorkspaceError> {
        self.tree_of(cancelled, &mut |_| {})
    }

    /// The same tree, whose folders are watched from here on.
    pub fn watched_tree(
        &self,
        watched: &WatchedWorkspace,
    ) -> Result<Vec<TreeNode>, WorkspaceError> {
        let mut round = watched.round();
        self.tree_of(&CancelFlag::default(), &mut |folder| {
            round.folder(folder.as_fd())
        })
    }

    fn tree_of(
        &self,
        cancelled: &CancelFlag,
        visit: &mut dyn FnMut(&Dir),
    ) -> Result<Vec<TreeNode>, WorkspaceError> {
        let mut left = TreeBudget {
            nodes: MAX_NODES,
            bytes: MAX_BYTES,
            reads: MAX_READ,
            cancelled,
        };
        visit(&self.dir);
        let entries = self
            .dir
            .entries()
            .map_err(|cause| explain(&WorkspacePath::root(), cause))?;
        Ok(branch(entries, "", MAX_DEPTH, &mut left, visit))
    }
}

/// The remaining limits of a tree.
struct TreeBudget<'a> {
    nodes: usize,
    bytes: usize,
    /// Entries that may still be read.
    reads: usize,
    cancelled: &'a CancelFlag,
}

impl TreeBudget<'_> {
    /// Takes one entry to be read; false if there is none left, or nobody wants the tree any more.
    fn read(&mut self) -> bool {
        if self.nodes == 0 || self.reads == 0 || self.cancelled.is_set() {
            return false;
        }
        self.reads -= 1;
        if self.reads.is_multiple_of(PIECE) {
            std::thread::yield_now();
        }
        true
    }

    /// Takes space for an entry with names of that many bytes; false if there is none left.
    fn take(&mut self, bytes: usize) -> bool {
        let Some(left) = self.bytes.checked_sub(bytes) else {
            self.nodes = 0;
            return false;
        };
        self.bytes = left;
        self.nodes -= 1;
        true
    }
}

/// The entries of a folder. Each folder is passed to `visit` before it is read.
fn branch(
    entries: ReadDir,
    parent: &str,
    depth: usize,
    left: &mut TreeBudget<'_>,
    visit: &mut dyn FnMut(&Dir),
) -> Vec<TreeNode> {
    let mut nodes = Vec::new();
    let mut folders = Vec::new();
    for entry in entries {
        if !left.read() {
            break;
        }
        let Ok(entry) = entry else { continue };
        let name = encode_name(&entry.file_name());
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if LEFT_OUT.contains(&name.as_str())
            || name.starts_with(".lucid-")
            || (folder && name.starts_with('.'))
        {
            continue;
        }
        let path = format!("{parent}/{name}");
        if !left.take(name.len() + path.len()) {
            break;
        }
        let kind = if folder {
            TreeNodeKind::Folder
        } else {
            TreeNodeKind::File
        };
        if folder {
            folders.push((nodes.len(), entry));
        }
        nodes.push(TreeNode {
            name,
            kind,
            path,
            children: folder.then(Vec::new),
        });
    }
    // A whole level first, so that one deep folder does not use up the shared limits.
    for (at, entry) in folders {
        if depth == 0 || left.nodes == 0 {
            break;
        }
        // Opened as an entry of its own folder: a link that replaced it is not followed.
        let opened = entry.open_dir().and_then(|folder| {
            visit(&folder);
            folder.entries()
        });
        if let Ok(inner) = opened {
            let children = branch(inner, &nodes[at].path, depth - 1, left, visit);
            nodes[at].children = Some(children);
        }
    }
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::ids::SessionId;

    #[test]
    fn hidden_names_count_and_nothing_is_read_for_somebody_who_left() {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), &"user".into(), SessionId::new()).unwrap();
        for number in 0..20 {
            let root = workspace.host_path();
            std::fs::write(root.join(format!(".lucid-{number}")), "").unwrap();
            std::fs::create_dir(root.join(format!(".d{number}"))).unwrap();
        }
        let nothing = CancelFlag::default();
        let mut left = TreeBudget {
            nodes: MAX_NODES,
            bytes: MAX_BYTES,
            reads: 30,
            cancelled: &nothing,
        };
        let nodes = branch(
            workspace.dir.entries().unwrap(),
            "",
            MAX_DEPTH,
            &mut left,
            &mut |_| {},
        );
        assert_eq!((nodes.len(), left.nodes, left.reads), (0, MAX_NODES, 0));

        std::fs::write(workspace.host_path().join("a"), "").unwrap();
        assert_eq!(workspace.tree().unwrap().len(), 1);
        let gone = CancelFlag::default();
        drop(gone.on_drop());
        assert_eq!(workspace.tree_until(&gone).unwrap(), []);
    }
}
