//! Watches the disks that sessions write to: that of the workspaces, and that of the temporary folders of
//! sandboxes if it is another one. The files of no session may take more than their limit. The log's
//! reserve is `log_reserve`'s.
//!
//! While neither the free space of a disk nor the files that it can still hold fall, a look is one system
//! call. When one fell, files are counted; a sandbox whose session takes clearly more than it may is ended
//! with every process in it. Its temporary files go with it. The workspace stays, and the next command may
//! remove some of it.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::SessionEnvironment;
use super::factory::FileLimits;
use lucid_sandbox::BackendKind;
use lucid_sandbox::workspace::QuotaCheck;
use lucid_types::ids::SessionId;

/// How often disks are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How much less must be free before files are counted, unless they may take less than that: bytes, and files.
const FALL: Free = Free {
    bytes: 256 << 20,
    files: 20_000,
};

/// The places that are open. Clones are handles of the same ones.
#[derive(Clone, Default)]
pub(crate) struct OpenEnvironments(Arc<Mutex<Vec<Weak<SessionEnvironment>>>>);

impl OpenEnvironments {
    /// One more, until it is dropped.
    pub(super) fn add(&self, environment: &Arc<SessionEnvironment>) {
        let mut environments = self.0.lock();
        environments.retain(|environment| environment.strong_count() > 0);
        environments.push(Arc::downgrade(environment));
    }

    /// The kind of sandbox that a session has now.
    pub(super) fn kind_of(&self, session: SessionId) -> Option<BackendKind> {
        let environment = self
            .all()
            .into_iter()
            .find(|environment| environment.belongs_to(session))?;
        environment.kind()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<SessionEnvironment>> {
        let environments = self.0.lock();
        environments.iter().filter_map(Weak::upgrade).collect()
    }

    /// A handle that keeps none of them.
    pub(super) fn downgrade(&self) -> WeakOpenEnvironments {
        WeakOpenEnvironments(Arc::downgrade(&self.0))
    }
}

/// The places that are open, as one sees them that lives no longer than they do.
pub(super) struct WeakOpenEnvironments(Weak<Mutex<Vec<Weak<SessionEnvironment>>>>);

impl WeakOpenEnvironments {
    /// The places, while somebody else holds them.
    pub(super) fn upgrade(&self) -> Option<OpenEnvironments> {
        self.0.upgrade().map(OpenEnvironments)
    }
}

/// Looks after the disks that these folders are on, for as long as somebody else holds `open`.
pub(crate) fn watch(folders: &[&Path], limits: FileLimits, open: &OpenEnvironments) {
    let disks = on_different_disks(folders);
    let environments = Arc::downgrade(&open.0);
    tokio::spawn(async move {
        let mut guard = DiskGuard::new(disks, limits);
        // What is taken before the first look counts as well.
        guard.needs_count().await;
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(environments) = environments.upgrade() else {
                return;
            };
            if guard.needs_count().await {
                guard.incomplete = !end_oversized(&OpenEnvironments(environments)).await;
            }
        }
    });
}

/// One folder of each disk.
fn on_different_disks(folders: &[&Path]) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let mut folders = folders.to_vec();
    // One whose disk cannot be told is looked at by itself.
    folders.retain(|folder| fs::metadata(folder).map_or(true, |found| seen.insert(found.dev())));
    folders.into_iter().map(Path::to_owned).collect()
}

/// What is known of the disks.
struct DiskGuard {
    disks: Vec<(PathBuf, DiskState)>,
    /// Not everything could be counted the last time.
    incomplete: bool,
}

impl DiskGuard {
    fn new(folders: Vec<PathBuf>, limits: FileLimits) -> Self {
        let disks = folders.into_iter().map(|it| (it, DiskState::new(limits)));
        Self {
            disks: disks.collect(),
            incomplete: false,
        }
    }

    /// Whether one of the disks has clearly less room than when files were last counted.
    async fn needs_count(&mut self) -> bool {
        let mut needs = self.incomplete;
        for (folder, disk) in &mut self.disks {
            if let Some(free) = free_of(folder.clone()).await {
                needs |= disk.fell(free);
            }
        }
        needs
    }
}

/// What is left of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Free {
    bytes: u64,
    /// The files that it can still hold. Always 0 where inodes are made as they are needed.
    files: u64,
}

/// What is known of one disk.
struct DiskState {
    bytes: Threshold,
    files: Threshold,
}

impl DiskState {
    fn new(limits: FileLimits) -> Self {
        Self {
            bytes: Threshold::new(FALL.bytes.min(limits.bytes / 8)),
            files: Threshold::new(FALL.files.min(limits.entries / 8)),
        }
    }

    fn fell(&mut self, free: Free) -> bool {
        let (bytes, files) = (self.bytes.fell(free.bytes), self.files.fell(free.files));
        bytes || files
    }
}

/// How far a number must fall to count.
struct Threshold {
    fall: u64,
    /// What it was when it last fell as far, or more since then.
    from: Option<u64>,
}

impl Threshold {
    fn new(fall: u64) -> Self {
        Self { fall, from: None }
    }

    fn fell(&mut self, now: u64) -> bool {
        let from = *self.from.get_or_insert(now);
        let fell = from > now && from - now >= self.fall;
        if fell || now > from {
            self.from = Some(now);
        }
        fell
    }
}

async fn free_of(base: PathBuf) -> Option<Free> {
    let looked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(base));
    let disk = looked.await.ok()?.ok()?;
    Some(Free {
        bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        files: disk.f_favail,
    })
}

/// Whether all could be counted.
async fn end_oversized(open: &OpenEnvironments) -> bool {
    let mut sure = true;
    for environment in open.all() {
        let (workspace, quota) = environment.files();
        // One at a time, and it must not wait for the user's own work.
        let counted = tokio::task::spawn_blocking(move || quota.check(&workspace)).await;
        match counted {
            Ok(QuotaCheck::Within) => {}
            Ok(QuotaCheck::Exceeded(sentence)) => environment.end_sandbox(&sentence).await,
            Ok(QuotaCheck::Unknown) | Err(_) => sure = false,
        }
    }
    sure
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn limits(bytes: u64) -> FileLimits {
        FileLimits {
            bytes,
            entries: 500_000,
        }
    }

    fn bytes(bytes: u64) -> Free {
        Free {
            bytes,
            files: 1_000_000,
        }
    }

    #[test]
    fn workspaces_are_counted_only_when_the_free_space_fell() {
        let mut disk = DiskState::new(limits(10 * GIB));
        assert!(!disk.fell(bytes(100 * GIB)), "nothing is known yet");
        let fall = FALL.bytes;
        assert!(!disk.fell(bytes(100 * GIB - fall + 1)));
        assert!(disk.fell(bytes(100 * GIB - fall)));
        assert!(!disk.fell(bytes(100 * GIB - fall)), "counted just now");
        // Slow writing adds up; room that was made counts from there.
        assert!(!disk.fell(bytes(100 * GIB - fall - fall / 2)));
        assert!(disk.fell(bytes(100 * GIB - 2 * fall)));
        assert!(!disk.fell(bytes(200 * GIB)));
        assert!(disk.fell(bytes(199 * GIB)));
        assert!(!disk.fell(bytes(199 * GIB)));
    }

    #[test]
    fn where_workspaces_may_take_little_a_small_fall_counts() {
        let mut disk = DiskState::new(limits(8 << 20));
        disk.fell(bytes(1 << 40));
        assert!(disk.fell(bytes((1 << 40) - (1 << 20))));
    }

    #[test]
    fn many_small_files_count_though_they_take_no_space() {
        let mut disk = DiskState::new(limits(10 * GIB));
        let files = |files| Free { bytes: GIB, files };
        assert!(!disk.fell(files(1_000_000)));
        assert!(!disk.fell(files(1_000_000 - FALL.files + 1)));
        assert!(disk.fell(files(1_000_000 - FALL.files)));
        // A file system that makes inodes as they are needed.
        assert!(!disk.fell(files(2_000_000)));
        let mut other = DiskState::new(limits(10 * GIB));
        assert!(!other.fell(files(0)) && !other.fell(files(0)));
    }

    #[tokio::test]
    async fn files_are_counted_again_until_all_could_be_whatever_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let disks = vec![folder.path().to_owned(), folder.path().join("gone")];
        // So much falls on no machine while this runs.
        let mut guard = DiskGuard::new(disks, limits(1 << 60));
        let fall = FileLimits {
            bytes: 1 << 60,
            entries: 1 << 60,
        };
        for (_, disk) in &mut guard.disks {
            disk.bytes = Threshold::new(fall.bytes);
            disk.files = Threshold::new(fall.entries);
        }
        assert!(!guard.needs_count().await && !guard.needs_count().await);
        guard.incomplete = true;
        assert!(guard.needs_count().await && guard.needs_count().await);
    }

    #[test]
    fn each_disk_is_looked_at_once() {
        let one = tempfile::tempdir().unwrap();
        let inner = one.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let proc = Path::new("/proc");
        let found = on_different_disks(&[one.path(), &inner, proc, Path::new("/proc/self")]);
        assert_eq!(found, [one.path(), proc]);
    }
}
