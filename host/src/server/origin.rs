//! Notices that the database was last used on another machine or in another folder, or is an older one that
//! was put back.
//!
//! # Invariants
//! Every start leaves a file of its own beside the workspaces and names it in the database; the older ones
//! are removed only then, so a crash in between leaves both. A database that names another file than the
//! one that is there, or one that was copied, is not the one that was last used here. Nothing is decided by
//! what the clock says: times are compared for being the same only.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use uuid::Uuid;

use super::error::StartError;
use super::folders::DataDirs;
use lucid_store::{HostOrigin, Store};
use lucid_types::digest::sha256_hex;

/// What names a machine.
const MACHINE_ID: &str = "/etc/machine-id";

/// Notes this start, and says how the last one was elsewhere, where it was.
pub(super) async fn begin(store: &Store, storage: &Path) -> Result<Option<String>, StartError> {
    let last = store.read(lucid_store::last_start).await?;
    let folder = DataDirs::under(storage).root.join("starts");
    let failed = |cause| StartError::Folder {
        path: folder.clone(),
        cause,
    };
    let elsewhere = match &last {
        Some(last) => difference(last, storage, &folder).map_err(failed)?,
        None => None,
    };
    let start = mark(storage, &folder).map_err(failed)?;
    let (row, moved) = (start.clone(), elsewhere.is_some());
    let write = move |connection: &_| lucid_store::record_start(connection, &row, moved);
    store.write(write).await?;
    // As after a crash here: the next start removes them. This one is noted, and must not be begun again,
    // since that would find nothing.
    if let Err(cause) = remove_others(&folder, &start.marker) {
        tracing::warn!(%cause, "the files of earlier starts stay in {}", folder.display());
    }
    Ok(elsewhere)
}

/// How the last start was elsewhere.
fn difference(last: &HostOrigin, storage: &Path, folder: &Path) -> io::Result<Option<String>> {
    let machine = machine();
    let here = storage.canonicalize()?.display().to_string();
    let marked = marked(&folder.join(&last.marker))?;
    Ok(
        if last.machine.is_some() && machine.is_some() && last.machine != machine {
            Some("was last used on another machine".to_owned())
        } else if last.folder != here {
            Some(format!("was last used in {}", last.folder))
        } else if marked != Some(last.marked_ns) {
            Some("was restored or copied since it was last used here".to_owned())
        } else {
            None
        },
    )
}

/// Leaves this start's file.
fn mark(storage: &Path, folder: &Path) -> io::Result<HostOrigin> {
    std::fs::create_dir_all(folder)?;
    let marker = Uuid::now_v7().to_string();
    let path = folder.join(&marker);
    std::fs::File::create_new(&path)?.sync_all()?;
    Ok(HostOrigin {
        machine: machine(),
        folder: storage.canonicalize()?.display().to_string(),
        marked_ns: marked(&path)?.unwrap_or_default(),
        marker,
    })
}

fn remove_others(folder: &Path, marker: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() != *marker {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// When a start's file was made, which no program can set, and which neither `chown` nor `chmod` changes; its
/// inode's number where the file system does not say. None where it is not there.
fn marked(path: &PathBuf) -> io::Result<Option<i64>> {
    match std::fs::symlink_metadata(path) {
        Ok(data) => {
            let made = data.created().ok();
            let made = made.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let made = made.and_then(|since| i64::try_from(since.as_nanos()).ok());
            Ok(Some(made.unwrap_or(data.ino().cast_signed())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The machine's id is not to be shown to others as it is, so its digest is kept.
fn machine() -> Option<String> {
    let id = std::fs::read_to_string(MACHINE_ID).ok()?;
    let id = id.trim();
    let named = !id.is_empty() && id != "uninitialized";
    named.then(|| sha256_hex(format!("lucid/{id}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(from: &Path, to: &Path) {
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status();
        assert!(copied.unwrap().success());
    }

    async fn start(storage: &Path) -> Option<String> {
        let mut tries = 0;
        // A program that another test starts just now has the last one's lock for a moment.
        let store = loop {
            match Store::open(DataDirs::under(storage).data()) {
                Err(lucid_store::StoreError::InUse(_)) if tries < 200 => tries += 1,
                opened => break opened.unwrap(),
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        begin(&store, storage).await.unwrap()
    }

    #[tokio::test]
    async fn a_folder_that_is_used_again_is_the_same_and_a_copy_or_an_older_one_is_not() {
        let base = tempfile::tempdir().unwrap();
        let storage = base.path().join("storage");
        std::fs::create_dir(&storage).unwrap();
        for _ in 0..3 {
            assert_eq!(start(&storage).await, None);
        }
        // As containers do before they start what they are for.
        let everything = std::process::Command::new("chmod")
            .args(["-R", "u+rwX,g-w"])
            .arg(&storage)
            .status();
        assert!(everything.unwrap().success());
        assert_eq!(start(&storage).await, None, "rights are not a copy");
        let backup = base.path().join("backup");
        copy(&storage, &backup);
        assert_eq!(
            start(&storage).await,
            None,
            "the copy changes nothing for the original"
        );

        let found = start(&backup).await.unwrap();
        assert!(found.contains(storage.to_str().unwrap()), "{found}");
        assert_eq!(start(&backup).await, None, "it is said once");

        // An older one in the place of the newer.
        let older = base.path().join("older");
        copy(&storage, &older);
        assert_eq!(start(&storage).await, None);
        std::fs::remove_dir_all(&storage).unwrap();
        std::fs::rename(&older, &storage).unwrap();
        let found = start(&storage).await.unwrap();
        assert!(found.contains("restored or copied"), "{found}");

        // The database alone.
        let data = DataDirs::under(&storage).data().to_owned();
        let older = base.path().join("data");
        copy(&data, &older);
        assert_eq!(start(&storage).await, None);
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(&older, &data).unwrap();
        let found = start(&storage).await.unwrap();
        assert!(found.contains("restored or copied"), "{found}");
    }

    #[tokio::test]
    async fn what_was_noticed_is_said_though_an_older_starts_file_cannot_be_removed() {
        let base = tempfile::tempdir().unwrap();
        let storage = base.path().join("storage");
        std::fs::create_dir(&storage).unwrap();
        assert_eq!(start(&storage).await, None);
        let copied = base.path().join("copied");
        copy(&storage, &copied);
        std::fs::create_dir(DataDirs::under(&copied).root.join("starts/folder")).unwrap();
        let found = start(&copied).await.expect("it is noticed");
        assert!(found.contains(storage.to_str().unwrap()), "{found}");
    }

    #[tokio::test]
    async fn another_machine_is_noticed() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("starts");
        let here = mark(base.path(), &folder).unwrap();
        assert_eq!(difference(&here, base.path(), &folder).unwrap(), None);
        if here.machine.is_none() {
            // A container's, mostly: then the folder decides.
            return;
        }
        let there = HostOrigin {
            machine: Some("another".to_owned()),
            ..here
        };
        let found = difference(&there, base.path(), &folder).unwrap().unwrap();
        assert!(found.contains("another machine"), "{found}");
    }
}
