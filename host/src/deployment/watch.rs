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
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// Changes within this time count as one.
const QUIET: Duration = Duration::from_millis(10);
/// A folder that changes constantly is checked this often.
const LONGEST: Duration = Duration::from_millis(300);
/// How long to wait for the writer of a file to close it.
const PATIENT: Duration = Duration::from_secs(3);
/// The maximum number of files being written that are remembered.
const MOST_OPEN: usize = 1_024;
/// How often files without notifications are checked.
const UNTOLD: Duration = Duration::from_secs(5);

/// A fingerprint of a file's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileFingerprint {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the content's and of the inode's last change.
    times: [i64; 4],
}

impl FileFingerprint {
    /// `None` if the file does not exist.
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
pub(crate) struct FileWatcher {
    /// `None` if the system has none available.
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Option<FileFingerprint>>,
    last_event: Arc<Notify>,
    /// Files that were written to and not closed since, by name alone: a folder may have several
    /// paths.
    open: Arc<Mutex<HashSet<OsString>>>,
}

impl FileWatcher {
    /// A watch of nothing.
    pub(crate) fn new() -> Self {
        let (stirred, open) = (Arc::new(Notify::new()), Arc::default());
        let (tell, writing) = (stirred.clone(), Arc::clone(&open));
        let handler = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| is_read_only(&event, &writing)) {
                return;
            }
            tell.notify_one();
        };
        let watcher = notify::recommended_watcher(handler)
            .inspect_err(|cause| {
                tracing::warn!(%cause, "the deployment's files cannot be watched; they are looked at every few seconds");
            })
            .ok();
        Self {
            watcher,
            folders: BTreeSet::new(),
            files: BTreeMap::new(),
            last_event: stirred,
            open,
        }
    }

    /// Watches these files and no others, from their present state.
    pub(crate) fn watch_only(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        self.files.clear();
        self.watch_also(files);
    }

    /// Watches these files as well, from their present state. One that is watched already keeps its
    /// recorded state.
    pub(crate) fn watch_also(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        for file in files {
            let stamp = FileFingerprint::of(&file);
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
        // A folder that is watched already is added again: another one may have its name by now.
        self.folders = wanted
            .into_iter()
            .filter(|folder| watcher.watch(folder, RecursiveMode::NonRecursive).is_ok())
            .collect();
    }

    /// Waits until one of the files has changed and all are quiet again. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        loop {
            if self.has_changed().await {
                self.quiet().await;
                return;
            }
            tokio::select! {
                () = self.last_event.notified() => {}
                () = sleep(UNTOLD) => {}
            }
        }
    }

    async fn quiet(&self) {
        let begun = Instant::now();
        loop {
            let quiet = Instant::now() + QUIET;
            let moved = timeout_at(quiet, self.last_event.notified()).await.is_ok();
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

    /// Whether one of the files is being written.
    fn is_being_written(&self) -> bool {
        let open = self.open.lock();
        let name = |file: &PathBuf| file.file_name().map(OsStr::to_owned);
        let real = |file: &PathBuf| file.canonicalize().ok();
        !open.is_empty()
            && self.files.keys().any(|file| {
                let names = [name(file), real(file).and_then(|real| name(&real))];
                names.into_iter().flatten().any(|name| open.contains(&name))
            })
    }

    async fn has_changed(&self) -> bool {
        let files = self.files.clone();
        // A file system may be slow.
        let looked = tokio::task::spawn_blocking(move || {
            files
                .iter()
                .any(|(path, seen)| FileFingerprint::of(path) != *seen)
        });
        looked.await.unwrap_or(true)
    }
}

/// Whether an event reports no change: looking at a file causes events too, and would trigger
/// forever. Records which files are being written.
fn is_read_only(event: &notify::Event, open: &Mutex<HashSet<OsString>>) -> bool {
    let written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
    let closed = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
    let replaced = matches!(
        event.kind,
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_)
    );
    if written || closed || replaced {
        let mut open = open.lock();
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

impl Default for FileWatcher {
    fn default() -> Self {
        Self::new()
    }
}

/// The folders in which a change may replace a file: its own, and that of its link target. For a
/// missing folder, the nearest existing one above.
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
    // If a link leads through another (`..data` of a mounted configuration), that one is swapped.
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

    /// Long, so that only a hang exceeds it, and below the interval at which files are checked
    /// anyway.
    const TIMEOUT: Duration = Duration::from_secs(4);

    struct Fixture {
        folder: tempfile::TempDir,
        watch: FileWatcher,
    }

    impl Fixture {
        fn new(files: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                std::fs::write(folder.path().join(file), "first").unwrap();
            }
            Self {
                folder,
                watch: FileWatcher::new(),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn begin(&mut self, name: &str) {
            self.watch.watch_only([self.folder.path().join(name)]);
        }

        async fn notices(&mut self, what: &str) {
            let changed = tokio::time::timeout(TIMEOUT, self.watch.changed()).await;
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
        let mut fixture = Fixture::new(&["plugin.wasm"]);
        let file = fixture.path("plugin.wasm");
        fixture.begin("plugin.wasm");
        fixture.is_still("nothing").await;

        std::fs::write(&file, "second").unwrap();
        fixture.notices("a write").await;
        fixture.begin("plugin.wasm");
        fixture.is_still("a change that was seen").await;

        let draft = fixture.path(".plugin.wasm.swp");
        std::fs::write(&draft, "third").unwrap();
        fixture.is_still("another file").await;
        std::fs::rename(&draft, &file).unwrap();
        fixture.notices("a rename over it").await;
        fixture.begin("plugin.wasm");

        // Like an editor that keeps a backup.
        std::fs::rename(&file, fixture.path("plugin.wasm~")).unwrap();
        std::fs::write(&file, "fourth").unwrap();
        fixture.notices("a new file in its place").await;
        fixture.begin("plugin.wasm");

        std::fs::remove_file(&file).unwrap();
        fixture.notices("its end").await;
        fixture.begin("plugin.wasm");
        std::fs::write(&file, "fifth").unwrap();
        fixture.notices("its return").await;
    }

    #[tokio::test]
    async fn a_file_that_is_being_written_is_noticed_when_it_is_whole() {
        use std::io::Write as _;
        let mut fixture = Fixture::new(&["plugin.wasm"]);
        fixture.begin("plugin.wasm");
        let mut file = std::fs::File::create(fixture.path("plugin.wasm")).unwrap();
        file.write_all(b"the first half").unwrap();
        fixture.is_still("half a file").await;
        file.write_all(b" and the second").unwrap();
        drop(file);
        fixture.notices("the whole file").await;
    }

    #[tokio::test]
    async fn what_changes_while_it_is_read_is_noticed_afterwards() {
        let mut fixture = Fixture::new(&["lucid.toml", "plugin.wasm"]);
        fixture.begin("lucid.toml");
        std::fs::write(fixture.path("lucid.toml"), "changed").unwrap();
        fixture
            .watch
            .watch_also([fixture.path("lucid.toml"), fixture.path("plugin.wasm")]);
        fixture
            .notices("a change between the first look and the second")
            .await;
    }

    #[tokio::test]
    async fn a_file_behind_links_that_are_swapped_is_noticed() {
        let mut fixture = Fixture::new(&[]);
        let at = |name: &str| fixture.path(name);
        for version in ["one", "two"] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("lucid.toml"), version).unwrap();
        }
        // Like an orchestrator that mounts a configuration: the file is a link through a link to a
        // folder.
        std::os::unix::fs::symlink("one", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/lucid.toml", at("lucid.toml")).unwrap();
        fixture.begin("lucid.toml");
        let link = fixture.path("..next");
        std::os::unix::fs::symlink("two", &link).unwrap();
        std::fs::rename(&link, fixture.path("..data")).unwrap();
        fixture.notices("a swapped link").await;
        fixture.begin("lucid.toml");
        std::fs::write(fixture.path("two").join("lucid.toml"), "three").unwrap();
        fixture.notices("a change of what the link leads to").await;
    }

    #[tokio::test]
    async fn a_file_in_a_folder_that_is_yet_to_be_made_is_noticed() {
        let mut fixture = Fixture::new(&[]);
        fixture.begin("plugins/deep/plugin.wasm");
        std::fs::create_dir_all(fixture.path("plugins/deep")).unwrap();
        std::fs::write(fixture.path("plugins/deep/plugin.wasm"), "first").unwrap();
        // There are no notifications for a folder below one that is not watched yet.
        let changed = tokio::time::timeout(UNTOLD * 2, fixture.watch.changed()).await;
        assert!(changed.is_ok(), "it was not noticed");
    }
}
