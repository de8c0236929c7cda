//! Keeps a reserve of disk for the log: how much is free, whether that is too little, and a file that
//! holds part of the reserve against programs that are faster than any look.
//!
//! # Invariants
//!
//! - Below the reserve nothing of ours that can wait takes disk: tools that write are refused, and no
//!   session begins. The log goes on. Above it everything is allowed again, without anybody's doing.
//! - The held part exists only where the disk is nearly full; it is given to the log in small pieces, each
//!   only when the log found no room, so that a program that fills the disk meanwhile gains little.
//! - A disk that cannot be looked at counts as having room.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::plural;

/// The file that holds a part of the reserve.
const RESERVE_FILE: &str = "reserve";
/// So many times the reserve must be free for it to be made; with more than `NEAR` it is not needed.
const ROOM: u64 = 2;
/// With so many times the reserve free, the disk counts as nearly full.
const NEAR: u64 = 8;
/// Of so many files that a disk can hold less than one is left where they are few.
const FEW_FILES: u64 = 64;
/// So many files the log may need at the most: itself, and what SQLite has beside it.
const FILES_FOR_LOG: u64 = 1024;
/// In how many pieces the held part is given away.
const PIECES: u64 = 8;
/// Nothing writes faster than so many bytes in a second.
const FASTEST: u64 = 4 << 30;
/// How often the disk is looked at, at the least and at the most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How often while it is short.
const WHILE_SHORT: Duration = Duration::from_millis(50);

/// The reserve of one disk. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct DiskReserve(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    /// On the disk that is looked at.
    folder: PathBuf,
    bytes: u64,
    is_short: AtomicBool,
    /// It can hold few more files, whatever its bytes.
    lacks_files: AtomicBool,
    /// Until when what was seen last is as good as a look.
    good_until: Mutex<Option<Instant>>,
}

impl DiskReserve {
    /// So many bytes of the disk that the log's folder is on; 0 is no reserve.
    pub fn new(folder: &Path, bytes: u64) -> Self {
        let inner = Inner {
            folder: folder.to_owned(),
            bytes,
            is_short: AtomicBool::new(false),
            lacks_files: AtomicBool::new(false),
            good_until: Mutex::new(None),
        };
        if bytes == 0 {
            inner.release_all();
            return Self::none();
        }
        let reserve = Self(Some(Arc::new(inner)));
        reserve.check();
        reserve
    }

    /// No reserve: there is always room.
    pub fn none() -> Self {
        Self(None)
    }

    /// Looks how much is free, and says so; none where there is no reserve, or it cannot be told. Blocks
    /// shortly.
    pub fn check(&self) -> Option<u64> {
        let inner = self.0.as_ref()?;
        let disk = statvfs(&inner.folder).ok()?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let few_files = are_few_files(disk.f_favail, disk.f_files);
        inner.lacks_files.store(few_files, Ordering::Relaxed);
        let is_short = free < inner.bytes;
        let was_short = inner.is_short.swap(is_short, Ordering::Relaxed);
        match (was_short, is_short) {
            (false, true) => tracing::warn!(
                free,
                reserve = inner.bytes,
                "the disk is nearly full: what is left is kept for the log, so tools that write are refused and no session begins"
            ),
            (true, false) => tracing::info!(free, "the disk has room again"),
            _ => {}
        }
        // Last, so that whoever trusts it finds what was seen.
        *inner.good_until.lock() = Some(Instant::now() + self.next_look(free));
        Some(free)
    }

    /// A sentence where the disk was short when it was last looked at.
    pub fn shortage(&self) -> Option<String> {
        let inner = self.0.as_ref()?;
        inner.is_short.load(Ordering::Relaxed).then(|| {
            format!(
                "The server's disk is nearly full: the last {} of it are kept for its log.",
                plural::size(inner.bytes)
            )
        })
    }

    /// Whether the disk could hold few more files when it was last looked at, so that the log may soon
    /// find none for what SQLite keeps beside it.
    pub fn lacks_files(&self) -> bool {
        let inner = self.0.as_ref();
        inner.is_some_and(|inner| inner.lacks_files.load(Ordering::Relaxed))
    }

    /// [`Self::shortage`] after a look now. Blocks shortly.
    pub fn shortage_now(&self) -> Option<String> {
        self.check();
        self.shortage()
    }

    /// The same off the async threads, and without a look where nothing can have gone wrong since the last.
    pub async fn check_in_background(&self) -> Option<String> {
        let good_until = *self.0.as_ref()?.good_until.lock();
        if good_until.is_some_and(|until| Instant::now() < until) {
            return self.shortage();
        }
        let reserve = self.clone();
        let looked = tokio::task::spawn_blocking(move || reserve.shortage_now());
        looked.await.ok()?
    }

    /// Whether a folder is on the disk that the reserve is of.
    pub fn covers(&self, folder: &Path) -> bool {
        let Some(inner) = &self.0 else {
            return false;
        };
        let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev());
        match (device(&inner.folder), device(folder)) {
            (Ok(own), Ok(other)) => own == other,
            // Then it cannot be told, and room for the log matters more.
            _ => true,
        }
    }

    /// The same for who writes below a folder: none where that is on another disk.
    #[must_use]
    pub fn for_folder(&self, folder: &Path) -> Self {
        if self.covers(folder) {
            self.clone()
        } else {
            Self::none()
        }
    }

    /// Whether so little is free on the disk of a folder that files which nobody works on should go: before
    /// the reserve is reached, so that nobody who works is refused for their sake, and before no more files
    /// can be made. The operator's word holds for every disk: without a reserve they stay. Blocks shortly.
    pub fn is_low(&self, folder: &Path) -> bool {
        let Ok(disk) = statvfs(folder) else {
            return false;
        };
        // File systems that make inodes as they are needed say that they have none.
        let few_files = disk.f_favail < disk.f_files / FEW_FILES;
        self.is_nearly_full(disk.f_bavail.saturating_mul(disk.f_frsize))
            || (self.0.is_some() && few_files)
    }

    /// How long nothing can go wrong with so much free.
    pub fn next_look(&self, free: u64) -> Duration {
        let Some(inner) = &self.0 else {
            return LOOKS.1;
        };
        let Some(left) = free.checked_sub(inner.bytes) else {
            return WHILE_SHORT;
        };
        let millis = left.saturating_mul(1000) / FASTEST;
        Duration::from_millis(millis).clamp(LOOKS.0, LOOKS.1)
    }

    /// Whether the disk is so full that whoever fills it should be known soon.
    pub fn is_nearly_full(&self, free: u64) -> bool {
        let inner = self.0.as_ref();
        inner.is_some_and(|inner| free < inner.bytes.saturating_mul(ROOM))
    }

    /// Holds a part of the reserve where the disk is nearly full and has room for it. Blocks shortly.
    pub fn hold(&self, free: u64) {
        let Some(inner) = &self.0 else {
            return;
        };
        let bounds = inner.bytes.saturating_mul(ROOM)..inner.bytes.saturating_mul(NEAR);
        if bounds.contains(&free)
            && inner.held() < inner.part()
            && let Err(cause) = inner.hold()
        {
            tracing::debug!(%cause, "no part of the reserve can be held on this file system");
        }
    }

    /// Gives a piece of the held part back, for the log to be written. Blocks shortly.
    pub fn release(&self) {
        let Some(inner) = &self.0 else {
            return;
        };
        let held = inner.held();
        if held > 0 {
            let left = held.saturating_sub(inner.part() / PIECES);
            tracing::info!(left, "a piece of the disk's reserve goes to the log");
            inner.shrink(left);
        }
    }
}

/// Whether so few files can still be made that they are kept for the log. File systems that make
/// inodes as they are needed say that they have none.
fn are_few_files(free: u64, all: u64) -> bool {
    free < FILES_FOR_LOG.min(all / FEW_FILES)
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody looks after it any more.
        self.release_all();
    }
}

impl Inner {
    fn path(&self) -> PathBuf {
        self.folder.join(RESERVE_FILE)
    }

    /// The part that is held, when all of it is.
    fn part(&self) -> u64 {
        self.bytes / 2
    }

    fn held(&self) -> u64 {
        self.path().metadata().map_or(0, |found| found.len())
    }

    fn hold(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file: File = options.open(self.path())?;
        if let Err(cause) = fallocate(&file, FallocateFlags::empty(), 0, self.part()) {
            drop(file);
            self.release_all();
            return Err(cause.into());
        }
        Ok(())
    }

    fn shrink(&self, left: u64) {
        if left == 0 {
            return self.release_all();
        }
        // Where it cannot be shortened, it can go.
        let opened = OpenOptions::new().write(true).open(self.path());
        if opened.and_then(|file| file.set_len(left)).is_err() {
            self.release_all();
        }
    }

    fn release_all(&self) {
        // Fails where there is none.
        let _ = std::fs::remove_file(self.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_disk_with_less_than_the_reserve_is_short_until_it_has_more() {
        let folder = tempfile::tempdir().unwrap();
        let small = DiskReserve::new(folder.path(), 1);
        assert_eq!(small.shortage_now(), None);
        let free = small.check().unwrap();
        let large = DiskReserve::new(folder.path(), free.saturating_mul(2));
        let told = large.shortage_now().unwrap();
        assert!(told.contains("nearly full"), "{told}");
        assert_eq!(DiskReserve::new(folder.path(), 0).shortage_now(), None);
        assert!(small.covers(folder.path()));
        assert!(!small.covers(Path::new("/proc")));
    }

    #[test]
    fn the_last_files_that_a_disk_can_hold_are_kept_too() {
        assert!(are_few_files(1023, 1_000_000) && !are_few_files(1024, 1_000_000));
        // A small disk has few at all.
        assert!(are_few_files(99, 6400) && !are_few_files(100, 6400));
        assert!(!are_few_files(0, 0), "inodes are made as they are needed");
    }

    #[test]
    fn files_that_nobody_works_on_go_by_the_operators_word_before_anybody_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let free = DiskReserve::new(folder.path(), 1).check().unwrap();
        let little = |bytes| DiskReserve::new(folder.path(), bytes).is_low(folder.path());
        // Wide: others write on this disk too.
        assert!(little(free / 4 * 3) && !little(free / 4));
        assert!(!little(0), "nothing is kept, so nothing goes for it");
        let reserve = DiskReserve::new(folder.path(), free / 4 * 3);
        assert_eq!(reserve.shortage_now(), None, "that comes later");
    }

    #[test]
    fn on_another_disk_than_the_logs_nobody_is_refused_but_files_that_nobody_works_on_go() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = DiskReserve::new(folder.path(), u64::MAX / 2);
        // A file system of its own without room.
        let other = Path::new("/proc");
        assert!(reserve.for_folder(folder.path()).shortage_now().is_some());
        assert_eq!(reserve.for_folder(other).shortage_now(), None);
        assert!(reserve.is_low(other));
        assert!(!reserve.for_folder(other).is_low(other), "not its word");
    }

    #[test]
    fn the_fuller_the_disk_the_sooner_it_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = DiskReserve::new(folder.path(), 256 * MIB);
        assert_eq!(reserve.next_look(100 << 30), LOOKS.1);
        let soon = reserve.next_look(512 * MIB);
        assert!(soon > LOOKS.0 && soon < LOOKS.1, "{soon:?}");
        assert_eq!(reserve.next_look(257 * MIB), LOOKS.0);
        assert_eq!(reserve.next_look(255 * MIB), WHILE_SHORT);
        assert!(reserve.is_nearly_full(300 * MIB) && !reserve.is_nearly_full(600 * MIB));
    }

    #[test]
    fn a_part_is_held_only_on_a_disk_that_is_nearly_full_and_goes_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(RESERVE_FILE);
        let held = || file.metadata().map_or(0, |found| found.len());
        let reserve = DiskReserve::new(folder.path(), 2 * MIB);
        reserve.hold(100 * MIB);
        assert_eq!(held(), 0, "there is room enough");
        reserve.hold(3 * MIB);
        assert_eq!(held(), 0, "it would make the disk short");
        reserve.hold(10 * MIB);
        assert_eq!(held(), MIB);
        reserve.release();
        assert_eq!(held(), MIB - MIB / PIECES);
        for _ in 0..PIECES {
            reserve.release();
        }
        assert!(!file.exists());
        reserve.hold(10 * MIB);
        drop(reserve);
        assert!(!file.exists(), "nobody looks after it");
    }
}
