//! Notices that a workspace's tree may have changed, with one inotify instance for the whole host.
//!
//! Created, removed and renamed names are noticed; writes into files are not, since a tree does not
//! show them.
//!
//! # Invariants
//! - A watch is added to a folder through its open handle, so a name that is swapped meanwhile
//!   leads nowhere.
//! - Watches are bounded, for each workspace and in total.
//! - So is the cost of a workspace that floods the host with events: its watches are removed until
//!   its tree is built again.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

/// The most watched folders of one workspace.
const MOST_OF_ONE: usize = 1024;
/// The most watched folders in total. The kernel takes about a kilobyte for each.
const MOST_IN_ALL: usize = 65_536;
/// Events of one workspace between two of its trees, after which its watches are removed.
const FLOOD: u32 = 4096;
/// The size of the event buffer, in bytes.
const BUFFER: usize = 16 * 1024;

/// Watches workspaces, with a thread of its own. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Watcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    events: Arc<Events>,
    most: usize,
    /// Whether the shortage of watches was logged already.
    short: AtomicBool,
    /// The watch whose removal wakes the thread at the end.
    last: i32,
}

/// The state shared with the thread.
#[derive(Debug)]
struct Events {
    inotify: OwnedFd,
    watches: Watches,
    closed: AtomicBool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.events.closed.store(true, Ordering::SeqCst);
        // Its removal is the event that the thread waits for.
        let _ = inotify::remove_watch(&self.events.inotify, self.last);
    }
}

/// The workspace that each watch belongs to, by number.
type Watches = Mutex<HashMap<i32, Arc<Notification>>>;

/// The notifications of one workspace.
#[derive(Debug, Default)]
struct Notification {
    changed: Notify,
    events: AtomicU32,
    numbers: Mutex<HashSet<i32>>,
}

fn add(inotify: &OwnedFd, folder: BorrowedFd<'_>, what: WatchFlags) -> rustix::io::Result<i32> {
    let flags = what | WatchFlags::ONLYDIR | WatchFlags::EXCL_UNLINK;
    // The folder itself, whatever its name leads to by now.
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    inotify::add_watch(inotify, path, flags)
}

impl Watcher {
    /// Starts watching, if this machine supports it. `base` is a folder that stays, and is not a
    /// workspace itself.
    pub fn start(base: &Path) -> io::Result<Self> {
        Self::with_most(base, MOST_IN_ALL)
    }

    fn with_most(base: &Path, most: usize) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC)?;
        // Shows whether folders can be watched at all.
        let base = std::fs::File::open(base)?;
        let last = add(&inotify, base.as_fd(), WatchFlags::DELETE_SELF)?;
        let events = Arc::new(Events {
            inotify,
            watches: Watches::default(),
            closed: AtomicBool::new(false),
        });
        let shared = Shared {
            events: events.clone(),
            most,
            short: AtomicBool::new(false),
            last,
        };
        std::thread::Builder::new()
            .name("lucid-watch".to_owned())
            .spawn(move || read(&events))?;
        Ok(Self(Arc::new(shared)))
    }

    /// Watches a workspace, from its next tree until the result is dropped.
    #[must_use]
    pub fn workspace(&self) -> WatchedWorkspace {
        WatchedWorkspace {
            watcher: self.clone(),
            slot: Arc::default(),
            complete: AtomicBool::new(false),
            lock: Mutex::default(),
        }
    }

    /// Adds a watch to a folder, if possible.
    fn watch(&self, folder: BorrowedFd<'_>, slot: &Arc<Notification>) -> Option<i32> {
        let shared = &self.0;
        let what =
            WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        // Held over both, so that no event arrives for a watch that is not known yet.
        let mut watches = shared.events.watches.lock();
        let added = if watches.len() < shared.most {
            add(&shared.events.inotify, folder, what)
        } else {
            Err(Errno::NOSPC)
        };
        match added {
            Ok(number) => {
                watches.insert(number, slot.clone());
                slot.numbers.lock().insert(number);
                Some(number)
            }
            Err(cause) => {
                let few = matches!(cause, Errno::NOSPC | Errno::NOMEM);
                if few && !shared.short.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        watches = watches.len(),
                        "no more folders can be watched (fs.inotify.max_user_watches, and {} at most): the trees of some workspaces are looked at after each tool only",
                        shared.most
                    );
                }
                None
            }
        }
    }
}

/// Removes watches of one workspace.
fn forget(
    inotify: &OwnedFd,
    watches: &mut HashMap<i32, Arc<Notification>>,
    numbers: impl IntoIterator<Item = i32>,
) {
    for number in numbers {
        watches.remove(&number);
        // Fails if the folder is gone, and its watch with it.
        let _ = inotify::remove_watch(inotify, number);
    }
}

/// Dispatches events until the watcher ends. Blocks.
fn read(events: &Events) {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
    let mut reader = inotify::Reader::new(&events.inotify, &mut buffer);
    while !events.closed.load(Ordering::SeqCst) {
        match reader.next() {
            Ok(event) => notify(events, event.wd(), event.events()),
            Err(Errno::INTR) => {}
            Err(cause) => {
                tracing::error!(%cause, "workspaces are not watched any more: their trees are looked at after each tool only");
                events.closed.store(true, Ordering::SeqCst);
            }
        }
    }
}

fn notify(all: &Events, number: i32, events: ReadFlags) {
    let mut watches = all.watches.lock();
    if events.contains(ReadFlags::QUEUE_OVERFLOW) {
        // The queue overflowed: any workspace's events may be lost.
        for slot in watches.values() {
            slot.changed.notify_one();
        }
        return;
    }
    let Some(slot) = watches.get(&number).cloned() else {
        return;
    };
    if events.contains(ReadFlags::IGNORED) {
        watches.remove(&number);
        slot.numbers.lock().remove(&number);
        return;
    }
    slot.changed.notify_one();
    if slot.events.fetch_add(1, Ordering::Relaxed) >= FLOOD {
        // It is known to have changed, which is all there is to know until its next tree.
        let numbers = std::mem::take(&mut *slot.numbers.lock());
        forget(&all.inotify, &mut watches, numbers);
    }
}

/// A watched workspace. Its watches are removed with it.
#[derive(Debug)]
pub struct WatchedWorkspace {
    watcher: Watcher,
    slot: Arc<Notification>,
    complete: AtomicBool,
    /// One tree at a time: each adds watches to its folders, and removes the others.
    lock: Mutex<()>,
}

impl WatchedWorkspace {
    /// Waits until something has changed since the last tree was begun, or since the last call
    /// returned.
    pub async fn changed(&self) {
        self.slot.changed.notified().await;
    }

    /// Whether every change to what the last tree shows would be noticed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let over = &self.watcher.0.events.closed;
        self.complete.load(Ordering::Relaxed) && !over.load(Ordering::Relaxed)
    }

    /// Begins a tree.
    pub(super) fn round(&self) -> WatchPass<'_> {
        let turn = self.lock.lock();
        self.slot.events.store(0, Ordering::Relaxed);
        WatchPass {
            watched: self,
            visited: HashSet::new(),
            complete: true,
            _turn: turn,
        }
    }
}

impl Drop for WatchedWorkspace {
    fn drop(&mut self) {
        let events = &self.watcher.0.events;
        let mut watches = events.watches.lock();
        let numbers = std::mem::take(&mut *self.slot.numbers.lock());
        forget(&events.inotify, &mut watches, numbers);
    }
}

/// The folders of one tree.
pub(super) struct WatchPass<'a> {
    watched: &'a WatchedWorkspace,
    visited: HashSet<i32>,
    complete: bool,
    _turn: MutexGuard<'a, ()>,
}

impl WatchPass<'_> {
    /// Adds a folder that the tree is about to read: changes from here on are noticed.
    pub(super) fn folder(&mut self, folder: BorrowedFd<'_>) {
        let number = if self.visited.len() < MOST_OF_ONE {
            self.watched.watcher.watch(folder, &self.watched.slot)
        } else {
            None
        };
        match number {
            Some(number) => {
                self.visited.insert(number);
            }
            None => self.complete = false,
        }
    }
}

impl Drop for WatchPass<'_> {
    fn drop(&mut self) {
        let (events, slot) = (&self.watched.watcher.0.events, &self.watched.slot);
        let mut watches = events.watches.lock();
        let mut numbers = slot.numbers.lock();
        let gone: Vec<i32> = numbers.difference(&self.visited).copied().collect();
        numbers.retain(|number| self.visited.contains(number));
        forget(&events.inotify, &mut watches, gone);
        self.watched
            .complete
            .store(self.complete, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;
    use crate::tests::session_id;
    use crate::workspace::Workspace;

    struct Fixture {
        base: tempfile::TempDir,
        watcher: Watcher,
    }

    impl Fixture {
        fn new(most: usize) -> Self {
            let base = tempfile::tempdir().unwrap();
            let watcher = Watcher::with_most(base.path(), most).unwrap();
            Self { base, watcher }
        }

        fn workspace(&self, name: &str) -> (Workspace, WatchedWorkspace) {
            let workspace =
                Workspace::create(self.base.path(), &"user".into(), session_id(name)).unwrap();
            (workspace, self.watcher.workspace())
        }

        fn watches(&self) -> usize {
            self.watcher.0.events.watches.lock().len()
        }
    }

    /// Waits until a change is noticed.
    async fn noticed(watched: &WatchedWorkspace) {
        tokio::time::timeout(Duration::from_secs(10), watched.changed())
            .await
            .expect("nothing was noticed");
    }

    /// Checks that no change is pending: a later change elsewhere has come through.
    async fn quiet(fixture: &Fixture, watched: &WatchedWorkspace) {
        let (other, witness) = fixture.workspace("witness");
        other.watched_tree(&witness).unwrap();
        fs::write(other.host_path().join("now"), "").unwrap();
        noticed(&witness).await;
        fs::remove_file(other.host_path().join("now")).unwrap();
        tokio::select! {
            biased;
            () = watched.changed() => panic!("a change that is none"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn what_changes_a_tree_is_noticed_and_what_does_not_is_not() {
        let fixture = Fixture::new(100);
        let (workspace, watched) = fixture.workspace("one");
        let root = workspace.host_path();
        for folder in ["src/deep", "node_modules/x", ".git/objects"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        symlink(fixture.base.path(), root.join("out")).unwrap();
        symlink(".", root.join("loop")).unwrap();
        workspace.watched_tree(&watched).unwrap();
        assert!(watched.is_complete());
        assert_eq!(fixture.watches(), 3, "the root, src and src/deep");
        quiet(&fixture, &watched).await;

        fs::write(root.join("src/deep/a"), "").unwrap();
        noticed(&watched).await;
        fs::write(root.join("src/deep/a"), "more").unwrap();
        for unseen in ["node_modules/x/y", ".git/objects/z"] {
            fs::write(root.join(unseen), "").unwrap();
        }
        fs::write(fixture.base.path().join("outside"), "").unwrap();
        quiet(&fixture, &watched).await;
        fs::rename(root.join("src/deep/a"), root.join("b")).unwrap();
        noticed(&watched).await;
        fs::remove_file(root.join("b")).unwrap();
        noticed(&watched).await;

        // A new folder is watched from the next tree on.
        fs::create_dir_all(root.join("new/inner")).unwrap();
        noticed(&watched).await;
        workspace.watched_tree(&watched).unwrap();
        quiet_after(&watched).await;
        fs::write(root.join("new/inner/file"), "").unwrap();
        noticed(&watched).await;
    }

    /// Consumes what was noticed before.
    async fn quiet_after(watched: &WatchedWorkspace) {
        tokio::select! {
            biased;
            () = watched.changed() => {}
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn watches_go_with_their_folders_with_the_tree_and_with_the_session() {
        let fixture = Fixture::new(100);
        let (workspace, watched) = fixture.workspace("one");
        let root = workspace.host_path();
        for number in 0..20 {
            fs::create_dir(root.join(format!("d{number}"))).unwrap();
        }
        workspace.watched_tree(&watched).unwrap();
        assert_eq!(fixture.watches(), 21);
        for number in 0..10 {
            fs::remove_dir(root.join(format!("d{number}"))).unwrap();
        }
        // Not shown, but there.
        fs::create_dir(root.join("build")).unwrap();
        fs::rename(root.join("d10"), root.join("build/d10")).unwrap();
        workspace.watched_tree(&watched).unwrap();
        assert_eq!(fixture.watches(), 10, "the root and nine folders");
        drop(watched);
        assert_eq!(fixture.watches(), 0);
    }

    #[tokio::test]
    async fn hostile_numbers_of_folders_take_no_more_watches_than_there_are() {
        let fixture = Fixture::new(MOST_IN_ALL);
        let (workspace, watched) = fixture.workspace("one");
        for number in 0..MOST_OF_ONE + 100 {
            fs::create_dir(workspace.host_path().join(format!("d{number}"))).unwrap();
        }
        workspace.watched_tree(&watched).unwrap();
        assert_eq!(fixture.watches(), MOST_OF_ONE);
        assert!(!watched.is_complete(), "not all of it is watched");

        let few = Fixture::new(5);
        let (first, watched) = few.workspace("one");
        for number in 0..10 {
            fs::create_dir(first.host_path().join(format!("d{number}"))).unwrap();
        }
        first.watched_tree(&watched).unwrap();
        assert_eq!((few.watches(), watched.is_complete()), (5, false));
        let (second, other) = few.workspace("two");
        second.watched_tree(&other).unwrap();
        assert!(!other.is_complete());
        drop(watched);
        second.watched_tree(&other).unwrap();
        assert!(other.is_complete());
    }

    #[tokio::test]
    async fn a_flood_costs_its_workspace_the_watches_until_the_next_tree() {
        let fixture = Fixture::new(100);
        let (workspace, watched) = fixture.workspace("one");
        workspace.watched_tree(&watched).unwrap();
        let name = workspace.host_path().join("file");
        for _ in 0..FLOOD {
            fs::write(&name, "").unwrap();
            fs::remove_file(&name).unwrap();
        }
        noticed(&watched).await;
        let (other, witness) = fixture.workspace("two");
        other.watched_tree(&witness).unwrap();
        fs::write(other.host_path().join("a"), "").unwrap();
        noticed(&witness).await;
        assert_eq!(fixture.watches(), 1, "only the other's is left");
        workspace.watched_tree(&watched).unwrap();
        quiet_after(&watched).await;
        fs::write(&name, "").unwrap();
        noticed(&watched).await;
    }

    #[tokio::test]
    async fn folders_that_come_and_go_while_they_are_looked_at_leave_no_watch_behind() {
        let fixture = Fixture::new(MOST_IN_ALL);
        let (workspace, watched) = fixture.workspace("one");
        let root = workspace.host_path().to_owned();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for number in 0..20 {
                        let folder = root.join(format!("d{number}"));
                        // Any of these may meet what is not there.
                        let _ = fs::create_dir_all(folder.join("inner"));
                        let _ = fs::rename(&folder, root.join("aside"));
                        let _ = symlink("/etc", &folder);
                        let _ = fs::remove_file(&folder);
                        let _ = fs::remove_dir_all(root.join("aside"));
                    }
                }
            });
            for _ in 0..200 {
                workspace.watched_tree(&watched).unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
        let workspace =
            Workspace::create(fixture.base.path(), &"user".into(), session_id("one")).unwrap();
        workspace.watched_tree(&watched).unwrap();
        assert_eq!(fixture.watches(), 1);
    }

    #[test]
    fn the_thread_ends_with_the_last_handle() {
        let fixture = Fixture::new(10);
        let events = Arc::downgrade(&fixture.watcher.0.events);
        drop(fixture.watcher);
        let begun = std::time::Instant::now();
        while events.upgrade().is_some() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it still reads");
            std::thread::yield_now();
        }
    }
}
