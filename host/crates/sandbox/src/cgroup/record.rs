//! The record of a host's groups in its runtime folder: which they are, and whether it still lives.
//!
//! # Invariants
//! - A host holds a lock on its record as long as it lives, whatever ends it.
//! - A group is recorded before it is made, so none that a crash leaves behind is unknown.
//! - What a record names is removed only if it has the record's own name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::removal::remove_with_inner;

/// Precedes the names of all groups of hosts.
const PREFIX: &str = "lucid-";
/// The folder of records.
const FOLDER: &str = "cgroups";

/// A host's record. Without a file, it holds nothing.
#[derive(Debug, Default)]
pub(super) struct Record {
    name: String,
    file: Option<(PathBuf, File)>,
}

impl Record {
    /// Starts a record, and removes the groups of hosts that are gone.
    pub(super) fn create(run_dir: &Path) -> io::Result<Self> {
        let folder = run_dir.join(FOLDER);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        // One host at a time: a record that is not locked yet looks like that of a host that is gone.
        let lock = File::open(&folder)?;
        lock.lock()?;
        for entry in fs::read_dir(&folder)?.flatten() {
            remove_leftover(&entry.path());
        }
        let name = format!("{PREFIX}{}", uuid::Uuid::new_v4().simple());
        let path = folder.join(&name);
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.lock()?;
        Ok(Self {
            name,
            file: Some((path, file)),
        })
    }

    /// The name of the host's group in every hierarchy.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Records a group that is about to be made.
    pub(super) fn add(&self, group: &Path) -> io::Result<()> {
        let Some((_, file)) = &self.file else {
            return Err(io::Error::other("there is no record of it"));
        };
        let mut file = file;
        file.write_all(format!("{}\n", group.display()).as_bytes())
    }

    /// Forgets the groups, unless one of them is still there.
    pub(super) fn remove(&self) {
        if let Some((path, _)) = &self.file
            && groups_in(path).iter().all(|group| !group.exists())
        {
            let _ = fs::remove_file(path);
        }
    }
}

fn groups_in(record: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(record).unwrap_or_default();
    let groups = text.lines().map(PathBuf::from);
    groups
        .filter(|group| group.is_absolute() && group.file_name() == record.file_name())
        .collect()
}

/// Removes the groups of a record whose host is gone, and then the record.
fn remove_leftover(record: &Path) {
    let is_record = |name: &str| name.starts_with(PREFIX);
    let name = record.file_name().and_then(|name| name.to_str());
    if !name.is_some_and(is_record) {
        return;
    }
    let Ok(file) = File::open(record) else { return };
    if file.try_lock().is_err() {
        return;
    }
    let mut all = true;
    for group in groups_in(record) {
        if let Err(error) = remove_with_inner(&group) {
            tracing::warn!(path = %group.display(), %error, "a control group of an earlier server cannot be removed");
            all = false;
        }
    }
    if all {
        let _ = fs::remove_file(record);
    }
}
