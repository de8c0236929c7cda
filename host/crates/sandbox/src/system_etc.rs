//! A copy of what sandboxes see of `/etc`, as one folder.
//!
//! bwrap reads the table of all mounts for each one that it makes. With one for each of some forty entries
//! that took most of a sandbox's start.
//!
//! # Invariants
//! - The copy has what is listed and nothing else, as the machine has it or had it some seconds ago.
//! - A file that changed is replaced by a rename, so that sandboxes that have the folder see it whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::workspace::remove_tree;

/// For how long the copy is good without another look.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// What is kept of a file's mode: who may read and run it.
const MODE: u32 = 0o755;
/// The end of the name of what is put into place next.
const DRAFT: &str = ".new";

/// A copy of a part of a folder.
pub(super) struct SystemEtc {
    path: PathBuf,
    looked: Mutex<Option<Instant>>,
}

impl SystemEtc {
    /// A copy that is made at this path when it is first asked for.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            looked: Mutex::default(),
        }
    }

    /// The folder, with these paths, each copied to the name below it that stands beside it. Blocks.
    ///
    /// # Errors
    /// Fails where it cannot be written. What cannot be read is not in it.
    pub(super) fn refreshed(&self, listed: &[(PathBuf, String)]) -> io::Result<&Path> {
        let mut looked = self.looked.lock();
        if looked.is_some_and(|at| at.elapsed() < GOOD_FOR) && self.path.exists() {
            return Ok(&self.path);
        }
        // A link that is listed stands for what it leads to, wherever that is.
        let found = |(from, name): &(PathBuf, String)| {
            let from = fs::canonicalize(from).ok()?;
            Some((PathBuf::from(name), from))
        };
        let wanted: BTreeMap<PathBuf, PathBuf> = listed.iter().filter_map(found).collect();
        make_folder(&self.path)?;
        remove_others(&self.path, Path::new(""), &wanted)?;
        for (name, from) in &wanted {
            mirror(from, &self.path.join(name))?;
        }
        *looked = Some(Instant::now());
        Ok(&self.path)
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

/// Makes `to` what `from` is. What cannot be read, or is neither file, folder nor link, is left out.
fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(data) = fs::symlink_metadata(from) else {
        return remove(to);
    };
    if data.is_symlink() {
        return match fs::read_link(from) {
            Ok(target) if fs::read_link(to).is_ok_and(|has| has == target) => Ok(()),
            Ok(target) => replace(to, |draft| symlink(&target, draft)),
            Err(_) => remove(to),
        };
    }
    if data.is_dir() {
        let Ok(entries) = fs::read_dir(from) else {
            return remove(to);
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        let names: BTreeSet<OsString> = names.collect();
        make_folder(to)?;
        for entry in fs::read_dir(to)? {
            let name = entry?.file_name();
            if !names.contains(&name) {
                remove(&to.join(name))?;
            }
        }
        return names
            .iter()
            .try_for_each(|name| mirror(&from.join(name), &to.join(name)));
    }
    if !data.is_file() {
        return remove(to);
    }
    let is_same = fs::symlink_metadata(to).is_ok_and(|has| {
        let times = (has.modified().ok(), data.modified().ok());
        has.is_file() && has.len() == data.len() && times.0 == times.1
    });
    let mut source = match File::open(from) {
        _ if is_same => return Ok(()),
        Ok(source) => source,
        Err(_) => return remove(to),
    };
    replace(to, |draft| {
        let mut file = File::create_new(draft)?;
        io::copy(&mut source, &mut file)?;
        file.set_permissions(Permissions::from_mode(data.permissions().mode() & MODE))?;
        file.set_modified(data.modified()?)
    })
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

/// Puts what is made at a path of its own in another's place.
fn replace(to: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut draft = to.as_os_str().to_owned();
    draft.push(DRAFT);
    let draft = PathBuf::from(draft);
    remove(&draft)?;
    if fs::symlink_metadata(to).is_ok_and(|data| data.is_dir()) {
        remove(to)?;
    }
    make(&draft)?;
    fs::rename(&draft, to)
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
    use std::os::unix::fs::MetadataExt;

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
        *etc.looked.lock() = None;
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
            let path = etc.refreshed(&listed(&machine, names)).unwrap();
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
        later(&etc);
        assert_eq!(has(&["version"]), ["version 100644 12"]);
        fs::remove_dir_all(folder.path().join("copy")).unwrap();
        assert_eq!(
            has(&names),
            second,
            "one that is gone is made again at once"
        );
    }

    #[test]
    fn a_file_that_did_not_change_stays_the_file_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        let etc = SystemEtc::new(folder.path().join("copy"));
        let inode = || {
            let path = etc.refreshed(&listed(folder.path(), &["a"])).unwrap();
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
                let path = etc.refreshed(&listed(&machine, &names)).unwrap();
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
