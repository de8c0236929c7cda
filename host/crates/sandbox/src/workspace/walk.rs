//! Walks everything in a workspace, including what its tree does not show.
//!
//! # Invariants
//! - Each step is one name in an open folder and no link is followed, so nothing leads out.
//! - There is no recursion, at most [`DEEPEST`] folders are open, and the walk ends, however many
//!   entries hostile code creates.
//! - What is skipped is reported.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Workspace;
use super::owner::set_owner;

/// The deepest nesting of folders. Deeper ones are skipped, and reported.
pub(super) const DEEPEST: usize = 128;
/// The most entries that are visited.
pub(super) const MOST_ENTRIES: u64 = 2_000_000;

/// An entry of a workspace.
pub(super) struct WalkEntry {
    /// The path relative to the workspace's root.
    pub(super) path: PathBuf,
    /// The entry's metadata; of a link, the link's own.
    pub(super) stat: Stat,
    name: CString,
}

impl WalkEntry {
    /// The entry's type.
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// The identity of a hard-linked file.
    pub(super) fn identity(&self) -> Option<(u64, u64)> {
        (self.stat.st_nlink > 1).then_some((self.stat.st_dev, self.stat.st_ino))
    }

    /// The space it takes on disk, in bytes.
    pub(super) fn allocated(&self) -> u64 {
        u64::try_from(self.stat.st_blocks).unwrap_or(0) * 512
    }

    /// Its length in bytes.
    pub(super) fn length(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }
}

/// A step of a walk.
pub(super) enum WalkStep {
    /// An entry. The contents of a folder follow it.
    Found(WalkEntry),
    /// A folder that could not be read.
    Closed(PathBuf, io::Error),
    /// A folder too deep to be read.
    Deep(PathBuf),
    /// There are more entries than a walk visits. The last step.
    Many,
}

/// A walk over a workspace. The order is unspecified, except that a folder precedes its contents.
pub(super) struct Walk {
    levels: Vec<(Dir, PathBuf)>,
    remaining: u64,
}

impl Walk {
    /// Starts at the root, which is not an entry itself.
    pub(super) fn new(workspace: &Workspace) -> io::Result<Self> {
        let root = open_folder(&workspace.dir, c".")?;
        Ok(Self {
            levels: vec![(Dir::new(root)?, PathBuf::new())],
            remaining: MOST_ENTRIES,
        })
    }

    /// Opens an entry that was just found, if it is still a regular file.
    pub(super) fn open(&self, found: &WalkEntry) -> io::Result<File> {
        let (folder, _) = self.levels.last().ok_or(io::ErrorKind::NotFound)?;
        // Non-blocking: a pipe may have replaced it.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder.fd()?, &found.name, flags, Mode::empty())?;
        let file = File::from(file);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// The target of a link that was just found.
    pub(super) fn target(&self, found: &WalkEntry) -> io::Result<PathBuf> {
        let (folder, _) = self.levels.last().ok_or(io::ErrorKind::NotFound)?;
        let target = rustix::fs::readlinkat(folder.fd()?, &found.name, Vec::new())?;
        Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
    }

    /// Gives an entry that was just found to a user, if it still is what it was.
    pub(super) fn give(&self, found: &WalkEntry, user: u32) -> io::Result<()> {
        let (folder, path) = self.levels.last().ok_or(io::ErrorKind::NotFound)?;
        if found.kind() == FileType::Directory {
            // Its own level is the last one, if it could be opened.
            return if *path == found.path {
                set_owner(folder.fd()?, user)
            } else {
                Ok(())
            };
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = match rustix::fs::openat(folder.fd()?, &found.name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            entry => entry?,
        };
        let stat = rustix::fs::fstat(&entry)?;
        let same = (stat.st_dev, stat.st_ino) == (found.stat.st_dev, found.stat.st_ino);
        if same && stat.st_uid == found.stat.st_uid {
            set_owner(&entry, user)?;
        }
        Ok(())
    }

    fn look(&mut self, name: CString) -> Option<WalkStep> {
        let (folder, above) = self.levels.last()?;
        let path = above.join(Path::new(OsStr::from_bytes(name.as_bytes())));
        let folder = folder.fd().ok()?;
        // An entry that is gone by now is skipped.
        let stat = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let found = WalkEntry { path, stat, name };
        if found.kind() != FileType::Directory {
            return Some(WalkStep::Found(found));
        }
        if self.levels.len() >= DEEPEST {
            return Some(WalkStep::Deep(found.path));
        }
        let opened = open_folder(folder, &found.name).and_then(Dir::new);
        match opened {
            Ok(inner) => {
                self.levels.push((inner, found.path.clone()));
                Some(WalkStep::Found(found))
            }
            // Gone, or no longer a folder.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(error) => Some(WalkStep::Closed(found.path, error.into())),
        }
    }
}

impl Iterator for Walk {
    type Item = WalkStep;

    fn next(&mut self) -> Option<WalkStep> {
        loop {
            let (folder, path) = self.levels.last_mut()?;
            let name = match folder.read() {
                Some(Ok(entry)) => entry.file_name().to_owned(),
                Some(Err(error)) => {
                    let path = path.clone();
                    self.levels.pop();
                    return Some(WalkStep::Closed(path, error.into()));
                }
                None => {
                    self.levels.pop();
                    continue;
                }
            };
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            let Some(left) = self.remaining.checked_sub(1) else {
                self.levels.clear();
                return Some(WalkStep::Many);
            };
            self.remaining = left;
            if let Some(step) = self.look(name) {
                return Some(step);
            }
        }
    }
}

fn open_folder(parent: impl AsFd, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}
