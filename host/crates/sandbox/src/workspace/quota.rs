//! How much of the disk a workspace takes, and whether it may take more.
//!
//! # Invariants
//!
//! - What counts is what the disk gives: blocks, so a sparse file is as large as what was written of it, and a
//!   file with several names counts once. All entries count, and links are not followed.
//! - What cannot be counted is not taken for small.
//! - Counting takes a tenth of the time at most, except after a command in a workspace that is counted in a
//!   moment or is full.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use parking_lot::Mutex;
use rustix::fs::FileType;

use super::Workspace;
use super::walk::{DEEPEST, MOST_ENTRIES, Walk, WalkStep};
use lucid_types::disk_reserve::DiskReserve;
use lucid_types::plural;

/// What an inode takes of most file systems, in bytes.
const INODE: u64 = 256;
/// By which part of the limit it may be passed before a sandbox is ended for it.
const MARGIN: u64 = 10;
/// A count that takes less than this is made whenever it is wanted.
const A_MOMENT: Duration = Duration::from_millis(100);
/// How much longer than it took a count holds.
const HOLDS: u32 = 9;

/// What holds meanwhile.
const UNTIL_THERE_IS_ROOM: &str = "Commands still run, so that files can be removed; until there is room again, the editor writes none.";

/// How long a count holds at least while no command ran.
const UNHEARD: Duration = Duration::from_secs(30);

/// What a count of a workspace gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DiskUsage {
    /// So many bytes of the disk, and so many files and folders.
    Counted { bytes: u64, entries: u64 },
    /// It cannot be counted, and why, as the end of a sentence.
    Unknown(String),
}

impl Workspace {
    /// Counts what all of it takes on the disk. Blocks; two million entries take seconds.
    pub(super) fn usage(&self) -> DiskUsage {
        let closed = |path: &Path, error: &std::io::Error| {
            DiskUsage::Unknown(format!(
                "the folder /{} cannot be looked into ({error})",
                path.display()
            ))
        };
        let walk = match Walk::new(self) {
            Ok(walk) => walk,
            Err(error) => return closed(Path::new(""), &error),
        };
        let (mut bytes, mut entries) = (0_u64, 0_u64);
        let mut seen = HashSet::new();
        for step in walk {
            let found = match step {
                WalkStep::Found(found) => found,
                WalkStep::Closed(path, error) => return closed(&path, &error),
                WalkStep::Deep(path) => {
                    return DiskUsage::Unknown(format!(
                        "/{} is more than {DEEPEST} folders deep",
                        shortened(&path)
                    ));
                }
                WalkStep::Many => {
                    return DiskUsage::Unknown(format!("it holds more than {MOST_ENTRIES} files"));
                }
            };
            let again = found.kind() != FileType::Directory
                && found.identity().is_some_and(|file| !seen.insert(file));
            if !again {
                bytes = bytes.saturating_add(found.allocated());
                entries += 1;
            }
        }
        DiskUsage::Counted { bytes, entries }
    }

    /// What all of it takes on the disk, in bytes, its inodes included; none where it cannot be counted.
    /// Blocks.
    pub fn disk_usage(&self) -> Option<u64> {
        match self.usage() {
            DiskUsage::Counted { bytes, entries } => {
                Some(bytes.saturating_add(entries.saturating_mul(INODE)))
            }
            DiskUsage::Unknown(_) => None,
        }
    }
}

/// What a folder takes on the disk that commands write to and that is in no workspace, in bytes: nothing
/// where it is not there, and none where it cannot be counted. Blocks.
pub fn disk_usage_of(folder: &Path) -> Option<u64> {
    let dir = match Dir::open_ambient_dir(folder, ambient_authority()) {
        Ok(dir) => dir,
        Err(error) => return (error.kind() == ErrorKind::NotFound).then_some(0),
    };
    let path = folder.to_owned();
    Workspace { dir, path }.disk_usage()
}

/// The beginning of a path, which may be as long as hostile code likes.
fn shortened(path: &Path) -> String {
    path.to_string_lossy().chars().take(80).collect()
}

/// Whether a workspace takes so much that its sandbox must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuotaCheck {
    /// It does not.
    Within,
    /// It does, as a sentence says.
    Exceeded(String),
    /// It was counted too short a time ago to be counted again.
    Unknown,
}

/// Why a file may not grow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// The workspace is full, or its disk nearly is, as this sentence says.
    #[error("{0}")]
    Full(String),
    /// It would not fit.
    #[error(
        "the workspace takes {} of the disk, and may take {}: {} more do not fit. Remove files that are not needed",
        plural::size(*.takes), plural::size(*.limit), plural::size(*.growth)
    )]
    Growth {
        /// What the workspace takes, in bytes.
        takes: u64,
        /// What it may take.
        limit: u64,
        /// By how much the file would grow.
        growth: u64,
    },
}

/// What is too much about a workspace.
enum Excess<'a> {
    /// It takes so many bytes.
    Bytes(u64),
    /// It has so many files and folders.
    Entries(u64),
    /// It cannot be counted, and why.
    Unknown(&'a str),
}

/// How much a workspace may take, and what is known of what it takes.
#[derive(Debug)]
pub struct Quota {
    limit: u64,
    /// How many files and folders a workspace may have.
    entries: u64,
    /// What of the disk no workspace may take, whatever its own limit.
    reserve: DiskReserve,
    known: Mutex<QuotaState>,
}

#[derive(Debug, Default)]
struct QuotaState {
    counted: Option<CountedUsage>,
    /// A command may have changed it since.
    stale: bool,
    /// The user knows that it is full.
    user_notified: bool,
}

#[derive(Debug)]
struct CountedUsage {
    usage: DiskUsage,
    at: Instant,
    duration: Duration,
}

impl Quota {
    /// A workspace may take `limit` bytes of the disk.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            entries: MOST_ENTRIES,
            reserve: DiskReserve::none(),
            known: Mutex::default(),
        }
    }

    /// The same on a disk that has a reserve.
    #[must_use]
    pub fn with_reserve(mut self, reserve: DiskReserve) -> Self {
        self.reserve = reserve;
        self
    }

    /// It may have so many files and folders: each takes one of the disk's inodes, of which there may
    /// be few, and which the log needs as well.
    #[must_use]
    pub fn with_entries(mut self, entries: u64) -> Self {
        self.entries = entries;
        self
    }

    /// Says that a command ran, so that what is known may be wrong.
    pub fn changed(&self) {
        self.known.lock().stale = true;
    }

    /// Lets a file become `growth` bytes larger, which it is then taken to be. What makes nothing larger is always
    /// allowed: it may be what makes room. Blocks.
    ///
    /// # Errors
    /// If that does not fit.
    pub fn admit(&self, workspace: &Workspace, growth: u64) -> Result<(), QuotaError> {
        if growth == 0 {
            return Ok(());
        }
        if let Some(sentence) = self.disk_shortage() {
            return Err(QuotaError::Full(sentence));
        }
        let mut known = self.known.lock();
        self.count(&mut known, workspace);
        let Some(counted) = &mut known.counted else {
            return Ok(());
        };
        if let Some(sentence) = self.full(&counted.usage) {
            return Err(QuotaError::Full(sentence));
        }
        if let DiskUsage::Counted { bytes, .. } = &mut counted.usage {
            let after = bytes.saturating_add(growth);
            if after > self.limit {
                return Err(QuotaError::Growth {
                    takes: *bytes,
                    limit: self.limit,
                    growth,
                });
            }
            *bytes = after;
        }
        Ok(())
    }

    /// A sentence where the workspace is full. Blocks.
    pub fn full_message(&self, workspace: &Workspace) -> Option<String> {
        let mut known = self.known.lock();
        self.count(&mut known, workspace);
        let counted = known.counted.as_ref();
        let full = counted.and_then(|counted| self.full(&counted.usage));
        let full = full.or_else(|| self.disk_shortage());
        known.user_notified &= full.is_some();
        full
    }

    /// A sentence where what is left of the disk is kept for the log.
    fn disk_shortage(&self) -> Option<String> {
        let shortage = self.reserve.shortage_now()?;
        Some(format!("{shortage} {UNTIL_THERE_IS_ROOM}"))
    }

    /// The same, once: not again before there was room in between. For the user. Blocks.
    pub fn take_full_notice(&self, workspace: &Workspace) -> Option<String> {
        let full = self.full_message(workspace)?;
        (!std::mem::replace(&mut self.known.lock().user_notified, true)).then_some(full)
    }

    /// Whether it takes more than it may by a tenth, or cannot be counted. Blocks.
    pub fn check(&self, workspace: &Workspace) -> QuotaCheck {
        let mut known = self.known.lock();
        known.stale = true;
        self.count(&mut known, workspace);
        if known.stale {
            return QuotaCheck::Unknown;
        }
        let Some(counted) = &known.counted else {
            return QuotaCheck::Unknown;
        };
        let above = |limit: u64| limit.saturating_add(limit / MARGIN);
        let Some(excess) = self.excess(&counted.usage, above) else {
            return QuotaCheck::Within;
        };
        QuotaCheck::Exceeded(match excess {
            Excess::Bytes(bytes) => format!(
                "The workspace took {} of the disk; it may take {}.",
                plural::size(bytes),
                plural::size(self.limit)
            ),
            Excess::Entries(entries) => format!(
                "The workspace had {entries} files and folders; it may have {}.",
                self.entries
            ),
            Excess::Unknown(why) => format!(
                "The workspace could not be counted, because {why}; it may take {}.",
                plural::size(self.limit)
            ),
        })
    }

    /// What of a usage is above a limit, where `raised` says how far each may be passed.
    fn excess<'a>(&self, usage: &'a DiskUsage, raised: impl Fn(u64) -> u64) -> Option<Excess<'a>> {
        match usage {
            DiskUsage::Counted { bytes, .. } if *bytes > raised(self.limit) => {
                Some(Excess::Bytes(*bytes))
            }
            DiskUsage::Counted { entries, .. } if *entries > raised(self.entries) => {
                Some(Excess::Entries(*entries))
            }
            DiskUsage::Counted { .. } => None,
            DiskUsage::Unknown(why) => Some(Excess::Unknown(why)),
        }
    }

    fn full(&self, usage: &DiskUsage) -> Option<String> {
        let limit = plural::size(self.limit);
        let full = match self.excess(usage, |limit| limit)? {
            Excess::Bytes(bytes) => {
                let takes = plural::size(bytes);
                format!("takes {takes} of the disk; it may take {limit}")
            }
            Excess::Entries(entries) => {
                let most = self.entries;
                format!("has {entries} files and folders; it may have {most}")
            }
            Excess::Unknown(why) => {
                format!("cannot be counted, because {why}, and counts as full; it may take {limit}")
            }
        };
        Some(format!("The workspace {full}. {UNTIL_THERE_IS_ROOM}"))
    }

    /// Counts, where what is known is too old.
    fn count(&self, known: &mut QuotaState, workspace: &Workspace) {
        let holds = known.counted.as_ref().is_some_and(|counted| {
            let exact = counted.duration < A_MOMENT || self.full(&counted.usage).is_some();
            let holds = counted.duration * HOLDS;
            match known.stale {
                true => !exact && counted.at.elapsed() < holds,
                // What was started in the background may write as well.
                false => counted.at.elapsed() < holds.max(UNHEARD),
            }
        });
        if holds {
            return;
        }
        let begun = Instant::now();
        let usage = workspace.usage();
        known.stale = false;
        known.counted = Some(CountedUsage {
            usage,
            at: Instant::now(),
            duration: begun.elapsed(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use lucid_types::ids::SessionId;

    const MIB: u64 = 1 << 20;

    fn workspace() -> (tempfile::TempDir, Workspace) {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), &"user".into(), SessionId::new()).unwrap();
        (base, workspace)
    }

    fn counted(workspace: &Workspace) -> u64 {
        match workspace.usage() {
            DiskUsage::Counted { bytes, .. } => bytes,
            DiskUsage::Unknown(why) => panic!("{why}"),
        }
    }

    fn fill(workspace: &Workspace, name: &str, bytes: u64) {
        let content = vec![b'x'; usize::try_from(bytes).unwrap()];
        let path = workspace.host_path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::File::open(path).unwrap().sync_all().unwrap();
    }

    #[test]
    fn blocks_are_counted_once_and_holes_and_what_links_lead_to_are_not() {
        let (base, workspace) = workspace();
        let root = workspace.host_path();
        fill(&workspace, "deep/down/one", MIB);
        let one = counted(&workspace);
        assert!((MIB..MIB + 200_000).contains(&one), "{one}");

        fs::create_dir(root.join("node_modules")).unwrap();
        for number in 0..50 {
            let name = root.join(format!("node_modules/{number}"));
            fs::hard_link(root.join("deep/down/one"), name).unwrap();
        }
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        fs::write(base.path().join("outside"), vec![1; 4 << 20]).unwrap();
        std::os::unix::fs::symlink(base.path().join("outside"), root.join("link")).unwrap();
        std::os::unix::fs::symlink(base.path(), root.join("above")).unwrap();
        std::os::unix::fs::symlink(".", root.join("loop")).unwrap();
        let all = counted(&workspace);
        assert!(all < one + 200_000, "{one} became {all}");

        fill(&workspace, ".git/objects/two", 2 * MIB);
        assert!(counted(&workspace) >= 3 * MIB);
    }

    #[test]
    fn a_full_workspace_takes_no_more_until_there_is_room_and_the_user_hears_of_it_once() {
        let (_base, workspace) = workspace();
        let quota = Quota::new(3 * MIB);
        assert_eq!(quota.admit(&workspace, MIB), Ok(()));
        fill(&workspace, "a", MIB);
        assert_eq!(quota.take_full_notice(&workspace), None);
        let refused = quota.admit(&workspace, 3 * MIB).unwrap_err().to_string();
        assert!(
            refused.contains("3 MiB more do not fit") && refused.contains("may take 3 MiB"),
            "{refused}"
        );

        // A command writes past the limit; nobody could stop it.
        fill(&workspace, "b", 4 * MIB);
        quota.changed();
        let told = quota.take_full_notice(&workspace).unwrap();
        assert!(told.contains("may take 3 MiB"), "{told}");
        assert_eq!(quota.take_full_notice(&workspace), None, "told twice");
        assert!(quota.full_message(&workspace).is_some());
        assert_eq!(quota.admit(&workspace, 1), Err(QuotaError::Full(told)));
        assert_eq!(
            quota.admit(&workspace, 0),
            Ok(()),
            "what grows nothing may be what makes room"
        );

        fs::remove_file(workspace.host_path().join("b")).unwrap();
        quota.changed();
        assert_eq!(quota.admit(&workspace, 1), Ok(()));
        assert_eq!(quota.full_message(&workspace), None);

        fill(&workspace, "b", 4 * MIB);
        quota.changed();
        assert!(
            quota.take_full_notice(&workspace).is_some(),
            "full a second time"
        );
    }

    #[test]
    fn files_without_a_byte_in_them_fill_a_workspace_too() {
        let (_base, workspace) = workspace();
        let quota = Quota::new(100 * MIB).with_entries(100);
        for number in 0..105 {
            fs::write(workspace.host_path().join(number.to_string()), "").unwrap();
        }
        let told = quota.full_message(&workspace).unwrap();
        assert!(
            told.contains("105 files and folders; it may have 100"),
            "{told}"
        );
        assert!(matches!(
            quota.admit(&workspace, 1),
            Err(QuotaError::Full(_))
        ));
        assert_eq!(
            quota.check(&workspace),
            QuotaCheck::Within,
            "by less than a tenth"
        );
        for number in 105..120 {
            fs::write(workspace.host_path().join(number.to_string()), "").unwrap();
        }
        let QuotaCheck::Exceeded(told) = quota.check(&workspace) else {
            panic!("it is not ended");
        };
        assert!(told.contains("120 files"), "{told}");
    }

    #[test]
    fn writes_are_added_up_without_counting_again() {
        let (_base, workspace) = workspace();
        let quota = Quota::new(3 * MIB);
        assert_eq!(quota.admit(&workspace, MIB), Ok(()));
        // Nothing was written, so a new count would find room.
        assert_eq!(quota.admit(&workspace, MIB), Ok(()));
        assert!(quota.admit(&workspace, MIB + 1).is_err());
        quota.changed();
        assert_eq!(quota.admit(&workspace, MIB + 1), Ok(()));
    }

    #[test]
    fn what_is_too_deep_to_be_counted_is_not_taken_for_small() {
        let (_base, workspace) = workspace();
        let mut path = workspace.host_path().to_owned();
        for _ in 0..DEEPEST {
            path.push("d");
        }
        fs::create_dir_all(&path).unwrap();
        let quota = Quota::new(1 << 40);
        let full = quota.full_message(&workspace).unwrap();
        assert!(
            full.contains("folders deep") && full.contains("counts as full"),
            "{full}"
        );
        fs::remove_dir(path).unwrap();
        quota.changed();
        assert_eq!(quota.full_message(&workspace), None);
    }

    #[test]
    fn a_folder_that_is_not_there_takes_nothing_and_one_that_cannot_be_counted_is_not_small() {
        let (_base, workspace) = workspace();
        let folder = workspace.host_path();
        fill(&workspace, "a", MIB);
        assert!(disk_usage_of(folder).unwrap() >= MIB);
        assert_eq!(disk_usage_of(&folder.join("gone")), Some(0));
        assert_eq!(disk_usage_of(&folder.join("a")), None, "it is no folder");
        fs::create_dir_all(folder.join("d/".repeat(DEEPEST))).unwrap();
        assert_eq!(disk_usage_of(folder), None);
    }
}
