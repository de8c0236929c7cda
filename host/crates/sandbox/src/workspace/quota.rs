//! How much of the disk a session's files take, and whether they may take more: its workspace, and what
//! its sandbox has on the disk beside it.
//!
//! # Invariants
//!
//! - What counts is what the disk gives: blocks, so a sparse file is as large as what was written of it, and a
//!   file with several names counts once. All entries count, and links are not followed.
//! - What cannot be counted is not taken for small.
//! - Counting takes a tenth of the time at most, except after a command in a workspace that is counted in a
//!   moment or is full.

use std::collections::HashSet;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use parking_lot::Mutex;
use rustix::fs::FileType;

use super::Workspace;
use super::walk::{DEEPEST, MOST_ENTRIES, Walk, WalkStep};
use lucid_types::disk_reserve::DiskReserve;
use lucid_types::plural;
use lucid_types::sentence::with_advice;

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

/// What a count of files gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DiskUsage {
    /// So many bytes of the disk, and so many files and folders.
    Counted { bytes: u64, entries: u64 },
    /// It cannot be counted, and why, as the end of a sentence.
    Unknown(String),
}

impl DiskUsage {
    /// Nothing at all.
    pub(crate) const NOTHING: Self = Self::Counted {
        bytes: 0,
        entries: 0,
    };

    /// Both together.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (
                Self::Counted { bytes, entries },
                Self::Counted {
                    bytes: more,
                    entries: more_entries,
                },
            ) => Self::Counted {
                bytes: bytes.saturating_add(more),
                entries: entries.saturating_add(more_entries),
            },
            (unknown @ Self::Unknown(_), _) | (_, unknown) => unknown,
        }
    }

    /// The same of a folder that has this name for who reads why it cannot be counted.
    #[must_use]
    pub(crate) fn of_folder(self, name: &str) -> Self {
        match self {
            Self::Unknown(why) => Self::Unknown(format!("in {name}, {why}")),
            counted => counted,
        }
    }

    /// In bytes, its inodes included; none where it cannot be counted.
    #[must_use]
    pub(crate) fn bytes_with_inodes(&self) -> Option<u64> {
        match self {
            Self::Counted { bytes, entries } => {
                Some(bytes.saturating_add(entries.saturating_mul(INODE)))
            }
            Self::Unknown(_) => None,
        }
    }
}

/// What a session has on the disk beside its workspace.
pub(crate) trait FilesBeside: fmt::Debug + Send + Sync {
    /// What that takes, without files that have no name any more. Blocks.
    fn usage(&self) -> DiskUsage;

    /// What files without a name take that are still open. Blocks.
    fn nameless_usage(&self) -> DiskUsage;
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
        self.usage().bytes_with_inodes()
    }
}

/// What a folder takes on the disk that commands write to and that is in no workspace: nothing where it
/// is not there. Blocks.
pub(crate) fn disk_usage_of(folder: &Path) -> DiskUsage {
    let dir = match Dir::open_ambient_dir(folder, ambient_authority()) {
        Ok(dir) => dir,
        Err(error) if error.kind() == ErrorKind::NotFound => return DiskUsage::NOTHING,
        Err(error) => return DiskUsage::Unknown(format!("it cannot be looked into ({error})")),
    };
    let path = folder.to_owned();
    Workspace { dir, path }.usage()
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
        "{} of the disk{}, and may take {}: {} more do not fit. Remove files that are not needed",
        taking(*.takes, *.beside), outside(*.beside), plural::size(*.limit), plural::size(*.growth)
    )]
    Growth {
        /// What the session's files take, in bytes.
        takes: u64,
        /// What of that is outside of the workspace.
        beside: u64,
        /// What they may take.
        limit: u64,
        /// By how much the file would grow.
        growth: u64,
    },
}

/// The beginning of a sentence about what a session's files take, in bytes.
fn taking(takes: u64, beside: u64) -> String {
    let subject = match beside {
        0 => "the workspace takes",
        _ => "the session's files take",
    };
    format!("{subject} {}", plural::size(takes))
}

/// What of that is not in the workspace, in bytes.
fn outside(beside: u64) -> String {
    match beside {
        0 => String::new(),
        bytes => format!(", {} of that {OUTSIDE}", plural::size(bytes)),
    }
}

/// Where files are that are not in the workspace.
const OUTSIDE: &str = "outside of the workspace (temporary files, the home folder, removed files that are still open)";

/// What a count of a session's files gave.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SessionUsage {
    /// All of them.
    all: DiskUsage,
    /// Those beside the workspace.
    beside: BesideUsage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct BesideUsage {
    bytes: u64,
    entries: u64,
}

impl SessionUsage {
    fn new(workspace: DiskUsage, beside: DiskUsage) -> Self {
        let amount = match beside {
            DiskUsage::Counted { bytes, entries } => BesideUsage { bytes, entries },
            DiskUsage::Unknown(_) => BesideUsage::default(),
        };
        Self {
            all: workspace.and(beside),
            beside: amount,
        }
    }
}

/// What is too much about a session's files.
enum Excess<'a> {
    /// They take so many bytes, of which so many are beside the workspace.
    Bytes(u64, u64),
    /// There are so many files and folders, of which so many are beside the workspace.
    Entries(u64, u64),
    /// They cannot be counted, and why.
    Unknown(&'a str),
}

/// How much the files of a session may take, and what is known of what they take.
#[derive(Debug)]
pub struct Quota {
    limit: u64,
    /// How many files and folders there may be.
    entries: u64,
    /// What of the disk no session may take, whatever its own limit.
    reserve: DiskReserve,
    /// Of the current sandbox.
    beside: Mutex<Option<Arc<dyn FilesBeside>>>,
    known: Mutex<QuotaState>,
    /// A command may have changed it since. Beside what is known, which is locked for as long as a count takes.
    stale: AtomicBool,
}

#[derive(Debug, Default)]
struct QuotaState {
    counted: Option<CountedUsage>,
    /// The user knows that it is full.
    user_notified: bool,
}

#[derive(Debug)]
struct CountedUsage {
    usage: SessionUsage,
    at: Instant,
    duration: Duration,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CountScope {
    /// What has a name: it can be removed.
    Named,
    /// What has no name any more too.
    All,
}

impl Quota {
    /// A session's files may take `limit` bytes of the disk.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            entries: MOST_ENTRIES,
            reserve: DiskReserve::none(),
            beside: Mutex::default(),
            known: Mutex::default(),
            stale: AtomicBool::new(false),
        }
    }

    /// Counts what another sandbox has beside the workspace from now on. What the one before had is gone.
    pub(crate) fn set_beside(&self, beside: Arc<dyn FilesBeside>) {
        *self.beside.lock() = Some(beside);
        self.changed();
    }

    /// The same on a disk that has a reserve.
    #[must_use]
    pub fn with_reserve(mut self, reserve: DiskReserve) -> Self {
        self.reserve = reserve;
        self
    }

    /// There may be so many files and folders: each takes one of the disk's inodes, of which there may
    /// be few, and which the log needs as well.
    #[must_use]
    pub fn with_entries(mut self, entries: u64) -> Self {
        self.entries = entries;
        self
    }

    /// Says that a command ran, so that what is known may be wrong.
    pub fn changed(&self) {
        self.stale.store(true, Ordering::Relaxed);
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
        self.count(&mut known, workspace, CountScope::Named);
        let Some(counted) = &mut known.counted else {
            return Ok(());
        };
        if let Some(sentence) = self.full(&counted.usage) {
            return Err(QuotaError::Full(sentence));
        }
        if let DiskUsage::Counted { bytes, .. } = &mut counted.usage.all {
            let after = bytes.saturating_add(growth);
            if after > self.limit {
                return Err(QuotaError::Growth {
                    takes: *bytes,
                    beside: counted.usage.beside.bytes,
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
        self.count(&mut known, workspace, CountScope::Named);
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
        self.changed();
        if !self.count(&mut known, workspace, CountScope::All) {
            return QuotaCheck::Unknown;
        }
        let Some(counted) = &known.counted else {
            return QuotaCheck::Unknown;
        };
        let above = |limit: u64| limit.saturating_add(limit / MARGIN);
        let Some(excess) = self.excess(&counted.usage, above) else {
            return QuotaCheck::Within;
        };
        let limit = plural::size(self.limit);
        QuotaCheck::Exceeded(match excess {
            Excess::Bytes(bytes, 0) => format!(
                "The workspace took {} of the disk; it may take {limit}.",
                plural::size(bytes),
            ),
            Excess::Bytes(bytes, beside) => format!(
                "The session's files took {} of the disk, {} of that {OUTSIDE}, which are gone now; they may take {limit}.",
                plural::size(bytes),
                plural::size(beside),
            ),
            Excess::Entries(entries, 0) => format!(
                "The workspace had {entries} files and folders; it may have {}.",
                self.entries
            ),
            Excess::Entries(entries, beside) => format!(
                "The session had {entries} files and folders, {beside} of them {OUTSIDE}, which are gone now; it may have {}.",
                self.entries
            ),
            Excess::Unknown(why) => {
                format!("The workspace could not be counted, because {why}; it may take {limit}.")
            }
        })
    }

    /// What of a usage is above a limit, where `raised` says how far each may be passed.
    fn excess<'a>(
        &self,
        usage: &'a SessionUsage,
        raised: impl Fn(u64) -> u64,
    ) -> Option<Excess<'a>> {
        let beside = usage.beside;
        match &usage.all {
            DiskUsage::Counted { bytes, .. } if *bytes > raised(self.limit) => {
                Some(Excess::Bytes(*bytes, beside.bytes))
            }
            DiskUsage::Counted { entries, .. } if *entries > raised(self.entries) => {
                Some(Excess::Entries(*entries, beside.entries))
            }
            DiskUsage::Counted { .. } => None,
            DiskUsage::Unknown(why) => Some(Excess::Unknown(why)),
        }
    }

    fn full(&self, usage: &SessionUsage) -> Option<String> {
        let limit = plural::size(self.limit);
        let full = match self.excess(usage, |limit| limit)? {
            Excess::Bytes(bytes, beside) => {
                let it = if beside == 0 { "it" } else { "they" };
                let (taking, outside) = (taking(bytes, beside), outside(beside));
                format!("{taking} of the disk{outside}; {it} may take {limit}")
            }
            Excess::Entries(entries, beside) => {
                let (subject, most) = match beside {
                    0 => ("The workspace", self.entries),
                    _ => ("The session", self.entries),
                };
                let of_them = match beside {
                    0 => String::new(),
                    beside => format!(", {beside} of them {OUTSIDE}"),
                };
                format!("{subject} has {entries} files and folders{of_them}; it may have {most}")
            }
            Excess::Unknown(why) => {
                format!(
                    "The workspace cannot be counted, because {why}, and counts as full; it may take {limit}"
                )
            }
        };
        Some(with_advice(full, Some(UNTIL_THERE_IS_ROOM)))
    }

    /// Counts what the session's files take.
    fn usage(&self, workspace: &Workspace, what: CountScope) -> SessionUsage {
        let beside = self.beside.lock().clone();
        let beside = match beside {
            Some(beside) if what == CountScope::All => beside.usage().and(beside.nameless_usage()),
            Some(beside) => beside.usage(),
            None => DiskUsage::NOTHING,
        };
        SessionUsage::new(workspace.usage(), beside)
    }

    /// Counts, where what is known is too old. Returns whether it did.
    fn count(&self, known: &mut QuotaState, workspace: &Workspace, what: CountScope) -> bool {
        let holds = known.counted.as_ref().is_some_and(|counted| {
            let exact = counted.duration < A_MOMENT || self.full(&counted.usage).is_some();
            let holds = counted.duration * HOLDS;
            match self.stale.load(Ordering::Relaxed) {
                true => !exact && counted.at.elapsed() < holds,
                // What was started in the background may write as well.
                false => counted.at.elapsed() < holds.max(UNHEARD),
            }
        });
        if holds {
            return false;
        }
        let begun = Instant::now();
        // What changes from here on may be missing.
        self.stale.store(false, Ordering::Relaxed);
        let usage = self.usage(workspace, what);
        known.counted = Some(CountedUsage {
            usage,
            at: Instant::now(),
            duration: begun.elapsed(),
        });
        true
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

    /// What a sandbox has beside a workspace.
    #[derive(Debug, Default)]
    struct Beside {
        named: u64,
        nameless: u64,
        entries: u64,
        /// Why it cannot be counted.
        unknown: Option<&'static str>,
    }

    impl FilesBeside for Beside {
        fn usage(&self) -> DiskUsage {
            match self.unknown {
                Some(why) => DiskUsage::Unknown(why.to_owned()).of_folder("/tmp"),
                None => DiskUsage::Counted {
                    bytes: self.named,
                    entries: self.entries,
                },
            }
        }

        fn nameless_usage(&self) -> DiskUsage {
            DiskUsage::Counted {
                bytes: self.nameless,
                entries: 0,
            }
        }
    }

    #[test]
    fn what_a_sandbox_has_beside_its_workspace_counts_with_it_until_there_is_another_sandbox() {
        let (_base, workspace) = workspace();
        let quota = Quota::new(3 * MIB).with_entries(100);
        fill(&workspace, "a", MIB);
        assert_eq!(quota.admit(&workspace, MIB), Ok(()));
        quota.set_beside(Arc::new(Beside {
            named: MIB,
            ..Beside::default()
        }));
        let refused = quota.admit(&workspace, 2 * MIB).unwrap_err().to_string();
        assert!(
            refused.contains("files take 2 MiB of the disk, 1 MiB of that outside"),
            "{refused}"
        );
        let filled = |named, nameless, entries| {
            quota.set_beside(Arc::new(Beside {
                named,
                nameless,
                entries,
                unknown: None,
            }));
        };
        filled(4 * MIB, 0, 9);
        let full = quota.full_message(&workspace).unwrap();
        assert!(
            full.starts_with("The session's files take 5 MiB of the disk, 4 MiB of that outside")
                && full.contains("; they may take 3 MiB. Commands still run"),
            "{full}"
        );
        let QuotaCheck::Exceeded(told) = quota.check(&workspace) else {
            panic!("it is not ended");
        };
        assert!(told.contains("4 MiB of that outside"), "{told}");
        assert!(told.contains("gone now; they may take 3 MiB"), "{told}");
        filled(0, 0, 200);
        let full = quota.full_message(&workspace).unwrap();
        assert!(full.contains("200 of them outside"), "{full}");
        // Files that have no name are gone with the sandbox, and nobody could remove them.
        filled(0, 4 * MIB, 0);
        assert_eq!(quota.full_message(&workspace), None);
        assert!(matches!(quota.check(&workspace), QuotaCheck::Exceeded(_)));
        filled(0, 0, 0);
        assert_eq!(quota.admit(&workspace, MIB), Ok(()));
        assert_eq!(quota.check(&workspace), QuotaCheck::Within);
    }

    #[test]
    fn what_cannot_be_counted_beside_a_workspace_is_not_taken_for_small_either() {
        let (_base, workspace) = workspace();
        let quota = Quota::new(3 * MIB);
        quota.set_beside(Arc::new(Beside {
            unknown: Some("it is too deep"),
            ..Beside::default()
        }));
        let full = quota.full_message(&workspace).unwrap();
        assert!(
            full.contains("because in /tmp, it is too deep, and counts as full"),
            "{full}"
        );
        assert!(matches!(quota.check(&workspace), QuotaCheck::Exceeded(_)));
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
        let bytes = |folder: &Path| disk_usage_of(folder).bytes_with_inodes();
        assert!(bytes(folder).unwrap() >= MIB);
        assert_eq!(bytes(&folder.join("gone")), Some(0));
        assert_eq!(bytes(&folder.join("a")), None, "it is no folder");
        fs::create_dir_all(folder.join("d/".repeat(DEEPEST))).unwrap();
        assert_eq!(bytes(folder), None);
    }
}
