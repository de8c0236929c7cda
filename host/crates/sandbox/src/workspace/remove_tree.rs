//! Removes a folder that hostile code filled.
//!
//! `std`'s and cap-std's own functions hold a file open and a stack frame for each level, so a tree
//! of ten thousand levels stays, or crashes the host's thread; and neither enters a folder that its
//! owner made inaccessible.
//!
//! # Invariants
//! - Everything is reached by a name in an open folder, so no link, even one swapped in meanwhile,
//!   leads out.
//! - Whatever the tree's depth and size, there is no recursion, only a handful of open files, and
//!   little memory.
//! - It terminates, even against a process that keeps creating files.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, DirEntry, Permissions, PermissionsExt};

/// The number of tries. The pauses between them double, to about a second in total.
const ROUNDS: u32 = 11;
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The most entries that one try looks at, so that it ends even if a process creates them as fast
/// as they go.
const MOST_ENTRIES: u64 = 10_000_000;

/// Removes a folder and everything in it; succeeds if it does not exist. Blocks.
///
/// Folders that this process's user made inaccessible are opened up first. Whatever stays in the
/// way is retried for about a second, since a killed process may write until it is gone; then the
/// first failure is the error.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "a folder without a name cannot be removed",
        ));
    };
    let parent = match Dir::open_ambient_dir(parent, ambient_authority()) {
        Ok(parent) => parent,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut pause = FIRST_PAUSE;
    for _ in 1..ROUNDS {
        if round(&parent, name).is_ok() {
            return Ok(());
        }
        // Nothing signals when the last killed process is gone, or that it ever will be.
        std::thread::sleep(pause);
        pause *= 2;
    }
    round(&parent, name)
}

/// One try, which removes as much as it can.
fn round(parent: &Dir, name: &OsStr) -> io::Result<()> {
    make_accessible(parent, name);
    let root = match parent.open_dir(name) {
        Ok(root) => root,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut sweep = Sweep {
        root: &root,
        prefix: format!(".lucid-erase-{}-", uuid::Uuid::new_v4().simple()),
        moved: 0,
        remaining: MOST_ENTRIES,
        failed: None,
    };
    sweep.empty(&root);
    let mut next = 0;
    while next < sweep.moved {
        let name = sweep.name(next);
        match root.open_dir(&name) {
            Ok(folder) => sweep.empty(&folder),
            Err(error) => sweep.note(error),
        }
        if let Err(error) = root.remove_dir(&name) {
            sweep.note(error);
        }
        next += 1;
    }
    match (sweep.failed, parent.remove_dir(name)) {
        (_, Ok(())) => Ok(()),
        (_, Err(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
        // The obstacle says more than that the folder is not empty.
        (failed, Err(error)) => Err(failed.unwrap_or(error)),
    }
}

/// Gives this user all permissions on a folder. For another user's folder this fails, and so will
/// what follows.
fn make_accessible(folder: &Dir, name: &OsStr) {
    let _ = folder.set_permissions(name, Permissions::from_mode(0o700));
}

/// Flattens a tree while emptying it: a folder that is not empty is moved into the root, under a
/// number, and emptied when its number comes.
struct Sweep<'a> {
    root: &'a Dir,
    /// Prefix of the names of moved folders, which nobody could have used before.
    prefix: String,
    moved: u64,
    remaining: u64,
    /// The first failure.
    failed: Option<io::Error>,
}

impl Sweep<'_> {
    fn name(&self, number: u64) -> String {
        format!("{}{number}", self.prefix)
    }

    fn note(&mut self, error: io::Error) {
        if error.kind() != ErrorKind::NotFound {
            self.failed.get_or_insert(error);
        }
    }

    /// Removes a folder's entries, and moves non-empty folders away.
    fn empty(&mut self, folder: &Dir) {
        let entries = match folder.entries() {
            Ok(entries) => entries,
            Err(error) => return self.note(error),
        };
        for entry in entries {
            let Some(left) = self.remaining.checked_sub(1) else {
                return;
            };
            self.remaining = left;
            let outcome = match entry {
                Ok(entry) => self.remove(folder, &entry),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                self.note(error);
            }
        }
    }

    fn remove(&mut self, folder: &Dir, entry: &DirEntry) -> io::Result<()> {
        let name = entry.file_name();
        // The root is read while folders are moved into it.
        if name.as_encoded_bytes().starts_with(self.prefix.as_bytes()) {
            return Ok(());
        }
        if !entry.file_type()?.is_dir() {
            return folder.remove_file(&name);
        }
        match folder.remove_dir(&name) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
                ) =>
            {
                // Moving a folder to another parent writes to it, so it must be accessible already.
                make_accessible(folder, &name);
                folder.rename(&name, self.root, self.name(self.moved))?;
                self.moved += 1;
                Ok(())
            }
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::process::CommandExt as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Runs a test's body as a user other than root, for whom every folder is accessible.
    fn as_a_plain_user(test: &str, body: fn()) {
        if !rustix::process::geteuid().is_root() {
            return body();
        }
        let (_, module) = module_path!().split_once("::").unwrap();
        // Starts this program through /proc: the user may not be able to reach its path.
        let ran = std::process::Command::new("/proc/self/exe")
            .args(["--exact", &format!("{module}::{test}")])
            .env_remove("TMPDIR")
            .current_dir("/")
            .uid(1000)
            .gid(1000)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(
            ran.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&ran.stderr)
        );
    }

    fn close(folder: &Path, mode: u32) {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn folders_that_their_user_closed_are_removed() {
        as_a_plain_user("folders_that_their_user_closed_are_removed", || {
            let base = tempfile::tempdir().unwrap();
            let root = base.path().join("root");
            for mode in [0o000, 0o100, 0o400, 0o500, 0o555, 0o300] {
                let outer = root.join(format!("{mode:o}"));
                let inner = outer.join("inner/most");
                fs::create_dir_all(&inner).unwrap();
                fs::create_dir(outer.join("empty")).unwrap();
                for folder in [&outer, &outer.join("inner"), &inner] {
                    fs::write(folder.join("file"), "").unwrap();
                }
                for folder in [&inner, &outer.join("inner"), &outer.join("empty"), &outer] {
                    close(folder, mode);
                }
            }
            close(&root, 0o000);
            assert!(
                fs::remove_dir_all(&root).is_err(),
                "nothing here is closed to this user"
            );
            remove_tree(&root).unwrap();
            assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        });
    }

    #[test]
    fn neither_depth_nor_width_nor_names_keep_a_tree_alive() {
        as_a_plain_user(
            "neither_depth_nor_width_nor_names_keep_a_tree_alive",
            || {
                let base = tempfile::tempdir().unwrap();
                let root = base.path().join("root");
                fs::create_dir(&root).unwrap();
                let name = OsStr::from_bytes(b"\xff\n%");
                let mut folder = Dir::open_ambient_dir(&root, ambient_authority()).unwrap();
                for _ in 0..2_000 {
                    folder.create_dir(name).unwrap();
                    let next = folder.open_dir(name).unwrap();
                    next.write("file", "").unwrap();
                    next.create_dir(name).unwrap();
                    let after = next.open_dir(name).unwrap();
                    folder
                        .set_permissions(name, Permissions::from_mode(0o500))
                        .unwrap();
                    folder = after;
                }
                drop(folder);
                let wide = root.join("wide");
                fs::create_dir(&wide).unwrap();
                for number in 0..100_000u32 {
                    let mut name = b"\xfe".to_vec();
                    name.extend(number.to_string().bytes());
                    fs::write(wide.join(OsStr::from_bytes(&name)), "").unwrap();
                }
                close(&wide, 0o555);
                // A stack too small for thousands of nested calls.
                let begun = std::time::Instant::now();
                std::thread::Builder::new()
                    .stack_size(128 << 10)
                    .spawn(move || remove_tree(&root))
                    .unwrap()
                    .join()
                    .unwrap()
                    .unwrap();
                println!("4000 levels and 102000 files in {:?}", begun.elapsed());
                assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
            },
        );
    }

    #[test]
    fn what_links_lead_to_stays_also_while_they_are_swapped_in() {
        let base = tempfile::tempdir().unwrap();
        let (outside, root) = (base.path().join("outside"), base.path().join("root"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "kept").unwrap();
        close(&outside, 0o750);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // Any of these fails if the other side was faster.
                    let _ = fs::create_dir_all(root.join("a/b"));
                    let _ = fs::write(root.join("a/b/file"), "");
                    let _ = fs::rename(root.join("a"), root.join("aside"));
                    let _ = symlink(&outside, root.join("a"));
                    let _ = fs::remove_file(root.join("a"));
                }
            });
            for _ in 0..300 {
                let _ = fs::create_dir(&root);
                let _ = symlink(&outside, root.join("link"));
                let parent = Dir::open_ambient_dir(base.path(), ambient_authority()).unwrap();
                // It may end with the other side's files there; what counts is what it did.
                let _ = round(&parent, OsStr::new("root"));
            }
            over.store(true, Ordering::Relaxed);
        });
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
        let mode = fs::metadata(&outside).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o750, "the rights of a folder outside were changed");
    }

    #[test]
    fn a_folder_that_is_still_written_to_is_removed_once_that_ends() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        fs::create_dir_all(root.join("inner")).unwrap();
        let folder = Dir::open_ambient_dir(root.join("inner"), ambient_authority()).unwrap();
        let (begun, started) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..5000 {
                    // Fails once the folder itself is gone.
                    let _ = folder.write(number.to_string(), "");
                    let _ = begun.send(());
                }
            });
            started.recv().unwrap();
            remove_tree(&root).unwrap();
        });
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_there_is_removed_and_what_is_no_folder_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        remove_tree(&base.path().join("none")).unwrap();
        remove_tree(&base.path().join("none/at/all")).unwrap();
        let file = base.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert_eq!(
            remove_tree(&file).unwrap_err().kind(),
            ErrorKind::NotADirectory
        );
        assert_eq!(fs::read(&file).unwrap(), b"kept");
        assert_eq!(
            remove_tree(Path::new("/")).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
}
