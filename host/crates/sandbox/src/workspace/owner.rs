//! The user that a workspace belongs to, and giving it to another.
//!
//! # Invariants
//! - Nothing outside of the workspace is given away: no link is followed, and what belongs to a user
//!   who is no sandbox's stays theirs, also if it has a name in the workspace.
//! - The workspace's own folder is given away last, so that one that was given away in part is found
//!   as such.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::fs::{AtFlags, Gid, Uid, chownat, fstat};

use super::Workspace;
use super::walk::{DEEPEST, MOST_ENTRIES, Walk, WalkStep};

impl Workspace {
    /// The user that owns what a sandbox may write; `None` for the host's own.
    pub(super) fn owner(&self) -> io::Result<Option<u32>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        Ok(Some(fstat(&self.dir)?.st_uid))
    }
}

/// Gives a workspace to a user: its folder, and everything in it that belongs to the user it had, or to
/// one of those that `is_sandbox_user` tells. Blocks.
pub(crate) fn adopt(
    path: &Path,
    user: u32,
    is_sandbox_user: impl Fn(u32) -> bool,
) -> io::Result<()> {
    let dir = Dir::open_ambient_dir(path, ambient_authority())?;
    let owner = fstat(&dir)?.st_uid;
    if owner == user {
        return Ok(());
    }
    let workspace = Workspace {
        dir,
        path: path.to_owned(),
    };
    let mut walk = Walk::new(&workspace)?;
    while let Some(step) = walk.next() {
        let kept = match step {
            WalkStep::Found(found) => {
                let was = found.stat.st_uid;
                // What root has is root's: the host gives away what it writes for a sandbox.
                let belongs = was != 0 && (was == owner || is_sandbox_user(was));
                if belongs && was != user {
                    walk.give(&found, user)?;
                }
                continue;
            }
            WalkStep::Closed(path, error) => format!("{}: {error}", path.display()),
            WalkStep::Deep(path) => {
                format!("{}: more than {DEEPEST} folders deep", path.display())
            }
            WalkStep::Many => format!("what comes after the first {MOST_ENTRIES} entries"),
        };
        tracing::warn!(workspace = %path.display(), kept, "a part of a workspace keeps its user");
    }
    set_owner(&workspace.dir, user)
}

/// Sets the owner of what is open.
pub(super) fn set_owner(open: impl AsFd, user: u32) -> io::Result<()> {
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
    Ok(chownat(open, "", user, group, AtFlags::EMPTY_PATH)?)
}
