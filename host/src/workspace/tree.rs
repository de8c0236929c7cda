//! Owns the tree of a workspace that clients are shown.
//!
//! What always holds: its depth and its size are bounded, links are shown and not followed, and what
//! nobody looks for is left out.

use cap_std::fs::ReadDir;
use serde::Serialize;

use super::{Workspace, WorkspaceError, WorkspacePath, explain};

/// The deepest folder of a tree that is shown.
const MAX_DEPTH: usize = 24;
/// The most nodes of a tree that are shown.
pub(super) const MAX_NODES: usize = 10_000;
/// What a tree leaves out, besides every folder whose name starts with a dot.
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
pub struct Node {
    /// The entry's own name.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: NodeKind,
    /// From the workspace's root, with a leading slash.
    pub path: String,
    /// What is in it, for folders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub children: Option<Vec<Node>>,
}

/// What a node is. A symbolic link is a file: it is shown and not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// Anything that is not a folder.
    File,
    /// A folder.
    Folder,
}

impl Workspace {
    /// The tree that clients are shown: bounded, without what nobody looks for, links not followed.
    pub fn tree(&self) -> Result<Vec<Node>, WorkspaceError> {
        let mut left = MAX_NODES;
        let entries = self
            .dir
            .entries()
            .map_err(|cause| explain(&WorkspacePath::root(), cause))?;
        Ok(branch(entries, "", MAX_DEPTH, &mut left))
    }
}

fn branch(entries: ReadDir, parent: &str, depth: usize, left: &mut usize) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut folders = Vec::new();
    for entry in entries.flatten() {
        if *left == 0 {
            break;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if LEFT_OUT.contains(&name.as_str())
            || name.starts_with(".lucid-")
            || (folder && name.starts_with('.'))
        {
            continue;
        }
        *left -= 1;
        let path = format!("{parent}/{name}");
        let kind = if folder {
            NodeKind::Folder
        } else {
            NodeKind::File
        };
        if folder {
            folders.push((nodes.len(), entry));
        }
        nodes.push(Node {
            name,
            kind,
            path,
            children: folder.then(Vec::new),
        });
    }
    // A whole level first, so that one deep folder does not use up what all share.
    for (at, entry) in folders {
        if depth == 0 || *left == 0 {
            break;
        }
        // Opened as an entry of its own folder: a link that took its place is not followed.
        if let Ok(inner) = entry.open_dir().and_then(|folder| folder.entries()) {
            let children = branch(inner, &nodes[at].path, depth - 1, left);
            nodes[at].children = Some(children);
        }
    }
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    nodes
}
