//! Notices changes of the manifest and of the components that it names.
//!
//! # Invariants
//!
//! - A file's metadata is read before its content, so a change made during reading is noticed
//!   afterwards.
//! - Folders are watched instead of files: editors, package managers and mounted configurations put
//!   a new file in an old one's place by a rename, or swap a link above it.
//! - A notification only says when to look. Where there are none (network file systems, no watches
//!   left) the files are still checked every few seconds.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// What changes within so short a time is one change.
const QUIET: Duration = Duration::from_millis(10);
/// A folder in which something always moves is looked at this often.
const LONGEST: Duration = Duration::from_millis(300);
/// A file that is being written is waited for, until whoever writes it closes it, and no longer than this.
const PATIENT: Duration = Duration::from_secs(3);
/// More files that are being written are not remembered.
const MOST_OPEN: usize = 1_024;
/// How often files are looked at of which nothing is told.
const UNTOLD: Duration = Duration::from_secs(5);

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds, of the content and of the entry.
    times: [i64; 4],
}

impl Stamp {
    /// None of a file that is not there.
    fn of(path: &Path) -> Option<Self> {
        let found: Metadata = path.metadata().ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            times: [
                found.mtime(),
                found.mtime_nsec(),
                found.ctime(),
                found.ctime_nsec(),
            ],
        })
    }
}

/// Watches some files.
#[derive(Debug)]
pub struct Watch {
    /// None where the system has none to give.
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Option<Stamp>>,
    stirred: Arc<Notify>,
    /// Files that were written and not closed since, by their name alone: a folder may have several paths.
    open: Arc<Mutex<HashSet<OsString>>>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> Self {
        let (stirred, open) = (Arc::new(Notify::new()), Arc::default());
        let (tell, writing) = (stirred.clone(), Arc::clone(&open));
        let told = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| only_looks(&event, &writing)) {
                return;
            }
            tell.notify_one();
        };
        let watcher = notify::recommended_watcher(told)
            .inspect_err(|cause| {
                tracing::warn!(%cause, "the deployment's files cannot be watched; they are looked at every few seconds");
            })
            .ok();
        Self {
            watcher,
            folders: BTreeSet::new(),
            files: BTreeMap::new(),
            stirred,
            open,
        }
    }

    /// From here on these files and no others, as they are now.
    pub fn begin(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        self.files.clear();
        self.also(files);
    }

    /// These files as well, as they are now; one that is watched already stays as it was seen.
    pub fn also(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        for file in files {
            let stamp = Stamp::of(&file);
            self.files.entry(file).or_insert(stamp);
        }
        let wanted: BTreeSet<PathBuf> = self
            .files
            .keys()
            .flat_map(|file| folders_of(file))
            .collect();
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for gone in self.folders.difference(&wanted) {
            // It may be gone itself.
            let _ = watcher.unwatch(gone);
        }
        // One that is watched already is asked for again: another folder may have its name by now.
        self.folders = wanted
            .into_iter()
            .filter(|folder| watcher.watch(folder, RecursiveMode::NonRecursive).is_ok())
            .collect();
    }

    /// Waits until one of the files is another than it was seen, and nothing moves any more. May be
    /// dropped while it waits; nothing is lost by that.
    pub async fn changed(&mut self) {
        loop {
            if self.differs().await {
                self.settled().await;
                return;
            }
            tokio::select! {
                () = self.stirred.notified() => {}
                () = sleep(UNTOLD) => {}
            }
        }
    }

    async fn settled(&self) {
        let begun = Instant::now();
        loop {
            let quiet = Instant::now() + QUIET;
            let moved = timeout_at(quiet, self.stirred.notified()).await.is_ok();
            let longest = if self.is_being_written() {
                PATIENT
            } else if moved {
                LONGEST
            } else {
                return;
            };
            if begun.elapsed() >= longest {
                return;
            }
        }
    }

    /// Whether somebody is in the middle of one of the files.
    fn is_being_written(&self) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |file: &PathBuf| file.file_name().map(OsStr::to_owned);
        let real = |file: &PathBuf| file.canonicalize().ok();
        !open.is_empty()
            && self.files.keys().any(|file| {
                let names = [name(file), real(file).and_then(|real| name(&real))];
                names.into_iter().flatten().any(|name| open.contains(&name))
            })
    }

    async fn differs(&self) -> bool {
        let files = self.files.clone();
        // A file system may take its time.
        let looked = tokio::task::spawn_blocking(move || {
            files.iter().any(|(path, seen)| Stamp::of(path) != *seen)
        });
        looked.await.unwrap_or(true)
    }
}

/// Whether an event tells of no change: looking at a file is none, and would be noticed for ever. Notes
/// which files are being written.
fn only_looks(event: &notify::Event, open: &Mutex<HashSet<OsString>>) -> bool {
    let written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
    let closed = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
    let replaced = matches!(
        event.kind,
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_)
    );
    if written || closed || replaced {
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        for name in event.paths.iter().filter_map(|path| path.file_name()) {
            if !written {
                open.remove(name);
            } else if open.len() < MOST_OPEN {
                open.insert(name.to_owned());
            }
        }
    }
    matches!(event.kind, EventKind::Access(_)) && !closed
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

/// The folders in which a change may make a file another one: its own, and that of what it links to.
/// Of one that is not there, the nearest above it that is.
fn folders_of(file: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let parent = |path: &Path| {
        let parent = path.parent().unwrap_or(path);
        if parent.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            parent.to_owned()
        }
    };
    let mut own = parent(file);
    while !own.is_dir() {
        own = parent(&own);
        if own == Path::new(".") || own == Path::new("/") {
            break;
        }
    }
    let target = file.canonicalize().ok().map(|real| parent(&real));
    // Where a link leads through another (`..data` of a mounted configuration), that one is swapped.
    let link = file.read_link().ok().map(|to| parent(&own.join(to)));
    let between = link.as_deref().map(parent);
    [Some(own), link, between, target]
        .into_iter()
        .flatten()
        .filter(|folder| folder.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wide, so that only what hangs meets it, and below the time after which files are looked at
    /// without being told.
    const PATIENCE: Duration = Duration::from_secs(4);

    struct Ground {
        folder: tempfile::TempDir,
        watch: Watch,
    }

    impl Ground {
        fn new(files: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                std::fs::write(folder.path().join(file), "first").unwrap();
            }
            Self {
                folder,
                watch: Watch::new(),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn begin(&mut self, name: &str) {
            self.watch.begin([self.folder.path().join(name)]);
        }

        async fn notices(&mut self, what: &str) {
            let changed = tokio::time::timeout(PATIENCE, self.watch.changed()).await;
            assert!(changed.is_ok(), "{what} was not noticed");
        }

        async fn is_still(&mut self, what: &str) {
            let longer = LONGEST + QUIET * 2;
            let changed = tokio::time::timeout(longer, self.watch.changed()).await;
            assert!(changed.is_err(), "{what} was taken for a change");
        }
    }

    #[tokio::test]
    async fn every_way_to_save_a_file_is_noticed_once() {
        let mut ground = Ground::new(&["plugin.wasm"]);
        let file = ground.path("plugin.wasm");
        ground.begin("plugin.wasm");
        ground.is_still("nothing").await;

        std::fs::write(&file, "second").unwrap();
        ground.notices("a write").await;
        ground.begin("plugin.wasm");
        ground.is_still("a change that was seen").await;

        let draft = ground.path(".plugin.wasm.swp");
        std::fs::write(&draft, "third").unwrap();
        ground.is_still("another file").await;
        std::fs::rename(&draft, &file).unwrap();
        ground.notices("a rename over it").await;
        ground.begin("plugin.wasm");

        // As an editor that keeps a backup.
        std::fs::rename(&file, ground.path("plugin.wasm~")).unwrap();
        std::fs::write(&file, "fourth").unwrap();
        ground.notices("a new file in its place").await;
        ground.begin("plugin.wasm");

        std::fs::remove_file(&file).unwrap();
        ground.notices("its end").await;
        ground.begin("plugin.wasm");
        std::fs::write(&file, "fifth").unwrap();
        ground.notices("its return").await;
    }

    #[tokio::test]
    async fn a_file_that_is_being_written_is_noticed_when_it_is_whole() {
        use std::io::Write as _;
        let mut ground = Ground::new(&["plugin.wasm"]);
        ground.begin("plugin.wasm");
        let mut file = std::fs::File::create(ground.path("plugin.wasm")).unwrap();
        file.write_all(b"the first half").unwrap();
        ground.is_still("half a file").await;
        file.write_all(b" and the second").unwrap();
        drop(file);
        ground.notices("the whole file").await;
    }

    #[tokio::test]
    async fn what_changes_while_it_is_read_is_noticed_afterwards() {
        let mut ground = Ground::new(&["lucid.toml", "plugin.wasm"]);
        ground.begin("lucid.toml");
        std::fs::write(ground.path("lucid.toml"), "changed").unwrap();
        ground
            .watch
            .also([ground.path("lucid.toml"), ground.path("plugin.wasm")]);
        ground
            .notices("a change between the first look and the second")
            .await;
    }

    #[tokio::test]
    async fn a_file_behind_links_that_are_swapped_is_noticed() {
        let mut ground = Ground::new(&[]);
        let at = |name: &str| ground.path(name);
        for version in ["one", "two"] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("lucid.toml"), version).unwrap();
        }
        // As an orchestrator mounts a configuration: a file that links through a link to a folder.
        std::os::unix::fs::symlink("one", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/lucid.toml", at("lucid.toml")).unwrap();
        ground.begin("lucid.toml");
        let link = ground.path("..next");
        std::os::unix::fs::symlink("two", &link).unwrap();
        std::fs::rename(&link, ground.path("..data")).unwrap();
        ground.notices("a swapped link").await;
        ground.begin("lucid.toml");
        std::fs::write(ground.path("two").join("lucid.toml"), "three").unwrap();
        ground.notices("a change of what the link leads to").await;
    }

    #[tokio::test]
    async fn a_file_in_a_folder_that_is_yet_to_be_made_is_noticed() {
        let mut ground = Ground::new(&[]);
        ground.begin("plugins/deep/plugin.wasm");
        std::fs::create_dir_all(ground.path("plugins/deep")).unwrap();
        std::fs::write(ground.path("plugins/deep/plugin.wasm"), "first").unwrap();
        // Nobody tells of a folder below one that is not watched yet.
        let changed = tokio::time::timeout(UNTOLD * 2, ground.watch.changed()).await;
        assert!(changed.is_ok(), "it was not noticed");
    }
}
