//! A copy of what sandboxes see of `/etc`, as one folder.
//!
//! bwrap reads the table of all mounts for each one that it makes. With one for each of some forty entries
//! that took most of a sandbox's start.
//!
//! # Invariants
//! - The copy has what is listed and everybody may read, and nothing else, as the machine had it some seconds
//!   before the last sandbox started.
//! - Sandboxes see a file whole, and only once its mode is right: it is made elsewhere and renamed.
//! - What cannot be read for a passing reason stays as it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::workspace::remove_tree;

/// For how long the copy is good without another look.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// What is kept of a file's mode: who may read and run it.
const MODE: u32 = 0o755;
/// What others must be allowed with a file, and with a folder.
const READ: u32 = 0o004;
const READ_AND_ENTER: u32 = 0o005;
/// The mode of what is not in its place yet.
const PRIVATE: u32 = 0o600;

/// Where something is on the machine, and its name below the copy.
pub(super) type Listed = (PathBuf, String);

/// A copy of a part of a folder.
pub(super) struct SystemEtc {
    path: PathBuf,
    /// Where the next file is made, on the same file system.
    draft: PathBuf,
    copied: Mutex<Copied>,
}

/// What the copy has.
#[derive(Default)]
struct Copied {
    /// When the machine was looked at last, and for what.
    looked: Option<(Instant, Vec<Listed>)>,
    /// The files as they were on the machine when they were copied.
    files: HashMap<PathBuf, FileState>,
}

/// What changes of a file when anybody writes to it or changes who may read it.
type FileState = (u64, u64, u64, u32, i64, i64);

fn state_of(data: &Metadata) -> FileState {
    let (device, inode, size, mode) = (data.dev(), data.ino(), data.size(), data.mode());
    (device, inode, size, mode, data.ctime(), data.ctime_nsec())
}

impl SystemEtc {
    /// A copy that is made at this path when it is first asked for.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            draft: path.with_extension("new"),
            path,
            copied: Mutex::default(),
        }
    }

    /// The folder, which is there after [`SystemEtc::refresh`].
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has the folder hold what is listed. Blocks.
    ///
    /// # Errors
    /// Fails where there is no copy yet and it cannot be written.
    pub(super) fn refresh(&self, listed: Vec<Listed>) -> io::Result<()> {
        let mut copied = self.copied.lock();
        let is_there = copied.looked.is_some() && self.path.is_dir();
        let is_good = copied
            .looked
            .as_ref()
            .is_some_and(|(at, for_these)| at.elapsed() < GOOD_FOR && *for_these == listed);
        if is_there && is_good {
            return Ok(());
        }
        if !is_there {
            // What another process left is not trusted.
            remove(&self.path)?;
            copied.files.clear();
        }
        match self.copy(&mut copied.files, &listed) {
            Err(error) if is_there => {
                tracing::warn!(%error, "the folder /etc of sandboxes cannot be brought up to date, and is used as it is");
            }
            made => made?,
        }
        copied.looked = Some((Instant::now(), listed));
        Ok(())
    }

    fn copy(&self, files: &mut HashMap<PathBuf, FileState>, listed: &[Listed]) -> io::Result<()> {
        // A link that is listed stands for what it leads to, wherever that is.
        let found = |(from, name): &Listed| {
            let from = fs::canonicalize(from).ok()?;
            Some((PathBuf::from(name), from))
        };
        let wanted: BTreeMap<PathBuf, PathBuf> = listed.iter().filter_map(found).collect();
        make_folder(&self.path)?;
        remove_others(&self.path, Path::new(""), &wanted)?;
        for (name, from) in &wanted {
            self.mirror(files, from, &self.path.join(name))?;
        }
        files.retain(|path, _| fs::symlink_metadata(path).is_ok());
        Ok(())
    }

    /// Makes `to` what `from` is. What others may not read, or is neither file, folder nor link, is left out.
    fn mirror(
        &self,
        files: &mut HashMap<PathBuf, FileState>,
        from: &Path,
        to: &Path,
    ) -> io::Result<()> {
        let data = match fs::symlink_metadata(from) {
            Ok(data) => data,
            Err(error) => return forget(&error, to),
        };
        let may = |bits| data.mode() & bits == bits;
        if data.is_symlink() {
            let target = match fs::read_link(from) {
                Ok(target) => target,
                Err(error) => return forget(&error, to),
            };
            if fs::read_link(to).is_ok_and(|has| has == target) {
                return Ok(());
            }
            return self.replace(to, |draft| symlink(&target, draft));
        }
        if data.is_dir() && may(READ_AND_ENTER) {
            let entries = match fs::read_dir(from) {
                Ok(entries) => entries,
                Err(error) => return forget(&error, to),
            };
            let mut names = BTreeSet::new();
            for entry in entries {
                match entry {
                    Ok(entry) => names.insert(entry.file_name()),
                    // Part of a list is no reason to remove the rest.
                    Err(_) => return Ok(()),
                };
            }
            make_folder(to)?;
            for entry in fs::read_dir(to)? {
                let name = entry?.file_name();
                if !names.contains(&name) {
                    remove(&to.join(name))?;
                }
            }
            return names
                .iter()
                .try_for_each(|name| self.mirror(files, &from.join(name), &to.join(name)));
        }
        if !data.is_file() || !may(READ) {
            return remove(to);
        }
        if files.get(to) == Some(&state_of(&data))
            && fs::symlink_metadata(to).is_ok_and(|has| has.is_file() && has.len() == data.len())
        {
            return Ok(());
        }
        let mut source = match File::open(from) {
            Ok(source) => source,
            Err(error) => return forget(&error, to),
        };
        // What is copied is what was opened, whatever took its place or was forbidden meanwhile.
        let data = source.metadata()?;
        if data.mode() & READ == 0 {
            return remove(to);
        }
        let state = state_of(&data);
        self.replace(to, |draft| {
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(PRIVATE)
                .open(draft)?;
            io::copy(&mut source, &mut file)?;
            file.set_permissions(Permissions::from_mode(data.mode() & MODE))
        })?;
        files.insert(to.to_owned(), state);
        Ok(())
    }

    /// Puts what is made elsewhere in another's place.
    fn replace(&self, to: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        remove(&self.draft)?;
        make(&self.draft)?;
        if fs::symlink_metadata(to).is_ok_and(|data| data.is_dir()) {
            remove(to)?;
        }
        fs::rename(&self.draft, to)
    }

    /// Removes all of it.
    pub(super) fn remove(&self) {
        let _ = remove(&self.path);
        let _ = remove(&self.draft);
    }
}

/// Leaves out what is not there or may not be read. What cannot be read for another reason stays as it was.
fn forget(error: &io::Error, to: &Path) -> io::Result<()> {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied => remove(to),
        _ => Ok(()),
    }
}

/// Removes what is not wanted from a folder of the copy, and makes the folders that lead to what is.
fn remove_others(root: &Path, below: &Path, wanted: &BTreeMap<PathBuf, PathBuf>) -> io::Result<()> {
    let mut leading: BTreeSet<OsString> = BTreeSet::new();
    for path in wanted
        .keys()
        .filter_map(|path| path.strip_prefix(below).ok())
    {
        let mut names = path.iter();
        if let (Some(first), Some(_)) = (names.next(), names.next()) {
            leading.insert(first.to_owned());
        }
    }
    for entry in fs::read_dir(root.join(below))? {
        let name = entry?.file_name();
        if !leading.contains(&name) && !wanted.contains_key(&below.join(&name)) {
            remove(&root.join(below).join(&name))?;
        }
    }
    for name in leading {
        let folder = below.join(name);
        make_folder(&root.join(&folder))?;
        remove_others(root, &folder, wanted)?;
    }
    Ok(())
}

/// A folder that everybody may look into.
fn make_folder(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path).is_ok_and(|data| data.is_dir()) {
        remove(path)?;
        fs::create_dir_all(path)?;
        fs::set_permissions(path, Permissions::from_mode(MODE))?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => remove_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All that is below a folder: what it is, and what is in it.
    fn below(root: &Path) -> BTreeMap<PathBuf, String> {
        let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let data = fs::symlink_metadata(&path).unwrap();
                let text = if data.is_symlink() {
                    format!("-> {}", fs::read_link(&path).unwrap().display())
                } else if data.is_dir() {
                    folders.push(path.clone());
                    "/".to_owned()
                } else {
                    format!("{:o} {}", data.mode(), fs::read_to_string(&path).unwrap())
                };
                found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
            }
        }
        found
    }

    fn listed(from: &Path, names: &[&str]) -> Vec<(PathBuf, String)> {
        let pair = |name: &&str| (from.join(name), (*name).to_owned());
        names.iter().map(pair).collect()
    }

    /// As if the time had passed for which the copy is good.
    fn later(etc: &SystemEtc) {
        if let Some((at, _)) = &mut etc.copied.lock().looked {
            *at -= GOOD_FOR;
        }
    }

    #[test]
    fn the_copy_has_what_is_listed_and_nothing_else_and_follows_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let machine = folder.path().join("machine");
        let write = |path: &str, text: &str| {
            let path = machine.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("shadow", "secret");
        write("ssl/private/key", "secret");
        write("ssl/certs/one.pem", "one");
        write("version", "1");
        symlink("one.pem", machine.join("ssl/certs/link")).unwrap();
        symlink("/nowhere", machine.join("ssl/certs/dead")).unwrap();
        write("elsewhere/zone", "here");
        symlink("elsewhere/zone", machine.join("localtime")).unwrap();
        let etc = SystemEtc::new(folder.path().join("copy"));
        let names = ["ssl/certs", "version", "localtime", "missing"];
        let has = |names: &[&str]| {
            etc.refresh(listed(&machine, names)).unwrap();
            let path = etc.path();
            below(path)
                .into_iter()
                .map(|(path, text)| format!("{} {text}", path.display()))
                .collect::<Vec<_>>()
        };
        let first = [
            "localtime 100644 here",
            "ssl /",
            "ssl/certs /",
            "ssl/certs/dead -> /nowhere",
            "ssl/certs/link -> one.pem",
            "ssl/certs/one.pem 100644 one",
            "version 100644 1",
        ];
        assert_eq!(has(&names), first);

        write("version", "12");
        write("ssl/certs/two.pem", "two");
        fs::remove_file(machine.join("ssl/certs/dead")).unwrap();
        fs::remove_file(machine.join("ssl/certs/link")).unwrap();
        write("ssl/certs/link/inner", "a folder now");
        assert_eq!(has(&names), first, "it is good for a while");
        later(&etc);
        let second = [
            "localtime 100644 here",
            "ssl /",
            "ssl/certs /",
            "ssl/certs/link /",
            "ssl/certs/link/inner 100644 a folder now",
            "ssl/certs/one.pem 100644 one",
            "ssl/certs/two.pem 100644 two",
            "version 100644 12",
        ];
        assert_eq!(has(&names), second);
        assert_eq!(
            has(&["version"]),
            ["version 100644 12"],
            "another list counts at once"
        );
        fs::remove_dir_all(folder.path().join("copy")).unwrap();
        assert_eq!(
            has(&names),
            second,
            "one that is gone is made again at once"
        );
    }

    #[test]
    fn what_others_may_not_read_is_left_out_also_where_that_changes() {
        let folder = tempfile::tempdir().unwrap();
        let machine = folder.path().join("machine");
        fs::create_dir_all(machine.join("certs/private")).unwrap();
        for path in ["certs/private/key", "certs/key", "certs/cert"] {
            fs::write(machine.join(path), path).unwrap();
        }
        let set = |path: &str, mode| {
            fs::set_permissions(machine.join(path), Permissions::from_mode(mode)).unwrap();
        };
        let etc = SystemEtc::new(folder.path().join("copy"));
        let has = || {
            etc.refresh(listed(&machine, &["certs"])).unwrap();
            let path = etc.path();
            let found = below(path).into_keys();
            found
                .map(|path| path.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        set("certs/private", 0o700);
        set("certs/key", 0o600);
        assert_eq!(has(), ["certs", "certs/cert"]);
        later(&etc);
        set("certs/private", 0o755);
        set("certs/key", 0o644);
        set("certs/cert", 0o640);
        assert_eq!(
            has(),
            ["certs", "certs/key", "certs/private", "certs/private/key"]
        );
        later(&etc);
        set("certs/key", 0o600);
        assert_eq!(has(), ["certs", "certs/private", "certs/private/key"]);
    }

    #[test]
    fn a_copy_that_another_process_left_is_not_trusted_and_one_that_cannot_be_renewed_serves_on() {
        let folder = tempfile::tempdir().unwrap();
        let (machine, copy) = (folder.path().join("machine"), folder.path().join("copy"));
        fs::create_dir(&machine).unwrap();
        fs::create_dir(&copy).unwrap();
        fs::write(machine.join("a"), "new").unwrap();
        fs::write(copy.join("a"), "old").unwrap();
        let etc = SystemEtc::new(copy.clone());
        let text = || {
            etc.refresh(listed(&machine, &["a"])).unwrap();
            let path = etc.path();
            fs::read_to_string(path.join("a")).unwrap()
        };
        assert_eq!(text(), "new");
        // Nothing can be made where something stands that cannot be removed in its place.
        fs::write(machine.join("a"), "newer").unwrap();
        let draft = SystemEtc {
            draft: PathBuf::from("/proc/self/new"),
            ..SystemEtc::new(copy)
        };
        *draft.copied.lock() = std::mem::take(&mut *etc.copied.lock());
        later(&draft);
        draft.refresh(listed(&machine, &["a"])).unwrap();
        let path = draft.path();
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "new");
    }

    #[test]
    fn a_file_that_did_not_change_stays_the_file_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        let etc = SystemEtc::new(folder.path().join("copy"));
        let inode = || {
            etc.refresh(listed(folder.path(), &["a"])).unwrap();
            let path = etc.path();
            fs::metadata(path.join("a")).unwrap().ino()
        };
        let first = inode();
        later(&etc);
        assert_eq!(inode(), first);
    }

    proptest! {
        /// Whatever the copy was before, and whatever is left of one that was interrupted, it becomes what the
        /// machine has.
        #[test]
        fn the_copy_becomes_what_the_machine_has_whatever_it_was(
            trees in prop::collection::vec(
                prop::collection::btree_map("[ab](/[ab](/[ab])?)?(\\.new)?", 0_u8..4, 0..8),
                1..4,
            ),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let machine = folder.path().join("machine");
            let etc = SystemEtc::new(folder.path().join("copy"));
            for (number, tree) in trees.into_iter().enumerate() {
                let _ = fs::remove_dir_all(&machine);
                fs::create_dir(&machine).unwrap();
                for (path, kind) in tree {
                    let path = machine.join(path);
                    // What is below a file or a link cannot be made.
                    if fs::create_dir_all(path.parent().unwrap()).is_err() {
                        continue;
                    }
                    let _ = match kind {
                        0 => fs::create_dir(&path),
                        1 => symlink("target", &path),
                        2 => fs::write(&path, "x".repeat(number + 1)),
                        _ => fs::write(&path, "same"),
                    };
                }
                later(&etc);
                let names: Vec<String> = fs::read_dir(&machine)
                    .unwrap()
                    .flatten()
                    // A link that is listed stands for what it leads to.
                    .filter(|entry| !entry.file_type().unwrap().is_symlink())
                    .map(|entry| entry.file_name().into_string().unwrap())
                    .collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                etc.refresh(listed(&machine, &names)).unwrap();
            let path = etc.path();
                let mut wanted = below(&machine);
                wanted.retain(|path, _| {
                    let first = path.iter().next().unwrap();
                    names.iter().any(|name| first == *name)
                });
                prop_assert_eq!(below(path), wanted);
            }
        }
    }
}
