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

/// How many folders may be in each other. What is deeper is passed over, and said.
pub(super) const DEEPEST: usize = 128;
/// How many entries are looked at.
pub(super) const MOST_ENTRIES: u64 = 2_000_000;

/// An entry of a workspace.
pub(super) struct Found {
    /// From the workspace's root, without a slash before it.
    pub(super) path: PathBuf,
    /// What it is; of a link, the link itself.
    pub(super) stat: Stat,
    name: CString,
}

impl Found {
    /// What kind of entry it is.
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// The file behind it, for those that have several names.
    pub(super) fn identity(&self) -> Option<(u64, u64)> {
        (self.stat.st_nlink > 1).then_some((self.stat.st_dev, self.stat.st_ino))
    }

    /// What it takes on the disk, in bytes.
    pub(super) fn allocated(&self) -> u64 {
        u64::try_from(self.stat.st_blocks).unwrap_or(0) * 512
    }

    /// How long it is, in bytes.
    pub(super) fn length(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }
}

/// What a walk comes by.
pub(super) enum Step {
    /// An entry. What is in a folder comes right after it.
    Found(Found),
    /// What is in this folder could not be looked at.
    Closed(PathBuf, io::Error),
    /// What is in this folder is too deep to be looked at.
    Deep(PathBuf),
    /// There is more than a walk looks at. The last step.
    Many,
}

/// A walk over a workspace, in no order but that a folder comes before what is in it.
pub(super) struct Walk {
    levels: Vec<(Dir, PathBuf)>,
    left: u64,
}

impl Walk {
    /// Begins at the root, which is no entry itself.
    pub(super) fn new(workspace: &Workspace) -> io::Result<Self> {
        let root = open_folder(&workspace.dir, c".")?;
        Ok(Self {
            levels: vec![(Dir::new(root)?, PathBuf::new())],
            left: MOST_ENTRIES,
        })
    }

    /// Opens an entry that was just found, if it is a regular file now.
    pub(super) fn open(&self, found: &Found) -> io::Result<File> {
        let (folder, _) = self.levels.last().ok_or(io::ErrorKind::NotFound)?;
        // Not blocking: a pipe may have taken its place.
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

    /// Where a link that was just found leads to, as it says itself.
    pub(super) fn target(&self, found: &Found) -> io::Result<PathBuf> {
        let (folder, _) = self.levels.last().ok_or(io::ErrorKind::NotFound)?;
        let target = rustix::fs::readlinkat(folder.fd()?, &found.name, Vec::new())?;
        Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
    }

    fn look(&mut self, name: CString) -> Option<Step> {
        let (folder, above) = self.levels.last()?;
        let path = above.join(Path::new(OsStr::from_bytes(name.as_bytes())));
        let folder = folder.fd().ok()?;
        // What is gone by now is no entry.
        let stat = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let found = Found { path, stat, name };
        if found.kind() != FileType::Directory {
            return Some(Step::Found(found));
        }
        if self.levels.len() >= DEEPEST {
            return Some(Step::Deep(found.path));
        }
        let opened = open_folder(folder, &found.name).and_then(Dir::new);
        match opened {
            Ok(inner) => {
                self.levels.push((inner, found.path.clone()));
                Some(Step::Found(found))
            }
            // Gone, or not a folder any more.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(error) => Some(Step::Closed(found.path, error.into())),
        }
    }
}

impl Iterator for Walk {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            let (folder, path) = self.levels.last_mut()?;
            let name = match folder.read() {
                Some(Ok(entry)) => entry.file_name().to_owned(),
                Some(Err(error)) => {
                    let path = path.clone();
                    self.levels.pop();
                    return Some(Step::Closed(path, error.into()));
                }
                None => {
                    self.levels.pop();
                    continue;
                }
            };
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            let Some(left) = self.left.checked_sub(1) else {
                self.levels.clear();
                return Some(Step::Many);
            };
            self.left = left;
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
