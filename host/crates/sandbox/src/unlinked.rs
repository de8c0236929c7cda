//! Finds what processes hold of the disk in files that have no name any more, which no look into folders
//! does.
//!
//! # Invariants
//! - Looked at are the processes below one, by the parents that /proc tells; a file counts once, however
//!   many of them hold it.
//! - A file is held by who has it open, and by who has it mapped, be it closed.
//! - What cannot be looked at is said to be missing, and so is what a look has no time for. What went
//!   meanwhile counts as nothing.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many descriptors, and mappings of files without a name, of one sandbox are looked at.
const MOST: u32 = 1 << 17;
/// How many times as many mappings of any kind are read: libraries have hundreds for each process.
const LINES: u32 = 32;
/// How many threads of a process whose first one has ended are looked at for one that lives.
const MOST_THREADS: usize = 4096;
/// How long a table counts as recent, if it was not made of very many processes.
const RECENT: Duration = Duration::from_millis(40);
/// How much longer than it took to make one counts as recent.
const REST: u32 = 4;

/// The last table that somebody wanted a recent one of.
static LAST: Mutex<Option<LastTable>> = Mutex::new(None);

struct LastTable {
    table: Arc<ProcessTable>,
    made_at: Instant,
    duration: Duration,
}

/// What files without a name take of disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct UnlinkedUsage {
    pub(super) bytes: u64,
    pub(super) files: u64,
    /// Why there may be more.
    pub(super) gap: Option<UnlinkedGap>,
}

/// Why not everything could be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnlinkedGap {
    /// A process does not let the host look into it.
    Closed,
    /// There is more than a look has time for.
    TooMany,
}

/// Which processes there were at one moment, by who started them.
#[derive(Debug)]
pub struct ProcessTable {
    children: HashMap<u32, Vec<u32>>,
}

impl ProcessTable {
    /// Those that there are now. Blocks shortly.
    pub fn now() -> Self {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            if let Some(process) = name.to_str().and_then(|name| name.parse().ok())
                && let Some(status) = ProcessStatus::of(process)
            {
                children.entry(status.parent).or_default().push(process);
            }
        }
        Self { children }
    }

    /// Those that there were a moment ago: whoever asks at about the same time gets the same table, so that
    /// making them takes a fifth of the time at most, however many processes and sandboxes there are.
    /// Blocks shortly.
    pub(super) fn recent() -> Arc<Self> {
        let mut last = LAST.lock();
        if let Some(last) = &*last
            && last.made_at.elapsed() < RECENT.max(last.duration * REST)
        {
            return Arc::clone(&last.table);
        }
        let begun = Instant::now();
        let table = Arc::new(Self::now());
        *last = Some(LastTable {
            table: Arc::clone(&table),
            made_at: Instant::now(),
            duration: begun.elapsed(),
        });
        table
    }

    /// The nameless files that processes below `root`, and `root` itself, hold on the disks of these
    /// folders. Blocks shortly.
    pub(super) fn unlinked(&self, root: u32, folders: &[&Path]) -> UnlinkedUsage {
        let mut files = UnlinkedFiles::on_disks_of(folders, MOST);
        let processes: Vec<_> = self
            .with_descendants(root)
            .into_iter()
            .map(living)
            .collect();
        // What is open is counted exactly, whoever has it mapped.
        let looked = processes
            .iter()
            .try_for_each(|process| files.open(*process))
            .and_then(|()| {
                processes
                    .iter()
                    .try_for_each(|process| files.mapped(*process))
            });
        files.usage(looked.is_none())
    }

    pub(super) fn with_descendants(&self, root: u32) -> HashSet<u32> {
        let (mut found, mut left) = (HashSet::new(), vec![root]);
        while let Some(process) = left.pop() {
            if found.insert(process) {
                left.extend(self.children.get(&process).into_iter().flatten());
            }
        }
        found
    }
}

/// A thread of a process whose folder in /proc tells what the process has: the first one, unless that has ended
/// before the others.
pub(super) fn living(process: u32) -> u32 {
    let is_zombie = |id| ProcessStatus::of(id).is_some_and(|status| status.is_zombie);
    if !is_zombie(process) {
        return process;
    }
    let threads = fs::read_dir(format!("/proc/{process}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let ids = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    ids.take(MOST_THREADS)
        .find(|id| !is_zombie(*id))
        .unwrap_or(process)
}

/// What /proc says to everybody of a process.
struct ProcessStatus {
    parent: u32,
    /// It ended, and holds nothing.
    is_zombie: bool,
}

impl ProcessStatus {
    fn of(process: u32) -> Option<Self> {
        let status = fs::read(format!("/proc/{process}/status")).ok()?;
        // The name of a process, which stands before, has no line breaks of its own: they are escaped.
        let value = |name: &[u8]| {
            let mut lines = status.split(|byte| *byte == b'\n');
            let line = lines.find_map(|line| line.strip_prefix(name))?;
            std::str::from_utf8(line).ok().map(str::trim)
        };
        Some(Self {
            parent: value(b"PPid:")?.parse().ok()?,
            is_zombie: value(b"State:")?.starts_with(['Z', 'X']),
        })
    }
}

/// What was found so far. What looks at more is over where nothing is left of the budget.
struct UnlinkedFiles {
    disks: HashSet<u64>,
    /// Their bytes, by disk and inode.
    files: HashMap<(u64, u64), u64>,
    budget: u32,
    /// How many mappings of any kind may still be read.
    lines: u32,
    /// Something could not be looked at.
    is_closed: bool,
}

impl UnlinkedFiles {
    fn on_disks_of(folders: &[&Path], budget: u32) -> Self {
        let mut files = Self {
            disks: HashSet::new(),
            files: HashMap::new(),
            budget,
            lines: budget.saturating_mul(LINES),
            is_closed: false,
        };
        for folder in folders {
            match fs::metadata(folder) {
                Ok(found) => {
                    files.disks.insert(found.dev());
                }
                Err(error) => files.is_closed |= error.kind() != io::ErrorKind::NotFound,
            }
        }
        files
    }

    fn usage(&self, is_over: bool) -> UnlinkedUsage {
        let gap = if is_over {
            Some(UnlinkedGap::TooMany)
        } else {
            self.is_closed.then_some(UnlinkedGap::Closed)
        };
        UnlinkedUsage {
            bytes: self
                .files
                .values()
                .fold(0, |sum: u64, it| sum.saturating_add(*it)),
            files: self.files.len() as u64,
            gap,
        }
    }

    /// What a process has open.
    fn open(&mut self, process: u32) -> Option<()> {
        let descriptors = match fs::read_dir(format!("/proc/{process}/fd")) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                self.is_closed |= !has_vanished(&error, process);
                return Some(());
            }
        };
        for file in descriptors.flatten() {
            self.budget = self.budget.checked_sub(1)?;
            if let Ok(file) = fs::metadata(file.path()) {
                self.add(&file);
            }
        }
        Some(())
    }

    /// What a process has mapped.
    fn mapped(&mut self, process: u32) -> Option<()> {
        let maps = match File::open(format!("/proc/{process}/maps")) {
            Ok(maps) => maps,
            Err(error) => {
                self.is_closed |= !has_vanished(&error, process);
                return Some(());
            }
        };
        // Names may hold any bytes but line breaks, which are escaped. An error is the process's end.
        let lines = BufReader::new(maps).split(b'\n').map_while(Result::ok);
        for line in lines {
            self.lines = self.lines.checked_sub(1)?;
            if let Some(mapping) = Mapping::of_nameless(&line) {
                self.budget = self.budget.checked_sub(1)?;
                self.add_mapping(process, &mapping);
            }
        }
        Some(())
    }

    fn add_mapping(&mut self, process: u32, mapping: &Mapping) {
        // Only a privileged host may look at the file itself.
        if let Ok(file) = fs::metadata(format!("/proc/{process}/map_files/{}", mapping.range)) {
            self.add(&file);
            return;
        }
        let file = (mapping.disk, mapping.inode);
        if !self.disks.contains(&mapping.disk) || self.files.contains_key(&file) {
            return;
        }
        if mapping.is_shared {
            // Writing to it takes more of the disk, and its length does not tell.
            self.is_closed = true;
        } else {
            self.files.insert(file, mapping.length);
        }
    }

    fn add(&mut self, file: &fs::Metadata) {
        if file.is_file() && file.nlink() == 0 && self.disks.contains(&file.dev()) {
            self.files
                .insert((file.dev(), file.ino()), file.blocks() * 512);
        }
    }
}

/// Whether a process that cannot be looked at is gone by now.
fn has_vanished(error: &io::Error, process: u32) -> bool {
    error.kind() != io::ErrorKind::PermissionDenied
        || ProcessStatus::of(process).is_none_or(|status| status.is_zombie)
}

/// A file without a name in a process's memory, as a line of /proc/…/maps has it.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    range: String,
    disk: u64,
    inode: u64,
    /// In bytes.
    length: u64,
    /// What is written to it goes to the file.
    is_shared: bool,
}

impl Mapping {
    fn of_nameless(line: &[u8]) -> Option<Self> {
        let fields = line.strip_suffix(b" (deleted)")?;
        let fields = String::from_utf8_lossy(fields);
        let mut fields = fields.split_ascii_whitespace();
        let (range, access) = (fields.next()?, fields.next()?);
        let (disk, inode) = (fields.nth(1)?, fields.next()?);
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (from, to) = range.split_once('-')?;
        let (major, minor) = disk.split_once(':')?;
        let device = |text| u32::from_str_radix(text, 16).ok();
        Some(Self {
            range: range.to_owned(),
            disk: rustix::fs::makedev(device(major)?, device(minor)?),
            inode: inode.parse().ok()?,
            length: number(to)?.saturating_sub(number(from)?),
            is_shared: access.ends_with('s'),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn held(process: &Child, folder: &Path) -> Option<u64> {
        let found = ProcessTable::now().unlinked(process.id(), &[folder]);
        found.gap.is_none().then_some(found.bytes)
    }

    /// Waits until a process holds as much, which it does at once but for its start.
    fn wait_to_hold(process: &Child, folder: &Path, bytes: u64) {
        let begun = Instant::now();
        while held(process, folder).is_some_and(|files| files < bytes) {
            let waited = begun.elapsed();
            assert!(
                waited < Duration::from_secs(30),
                "{:?} after {waited:?}",
                held(process, folder)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_file_that_a_process_removed_and_goes_on_with_counts_for_whoever_started_that() {
        let folder = tempfile::tempdir().unwrap();
        let script = "exec 3<>big; rm big; head -c 300000 /dev/urandom >&3; (exec sleep 60) & read done; kill $!; exec 3>&-; read done";
        let mut process = Command::new("sh")
            .args(["-c", script])
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        wait_to_hold(&process, folder.path(), 300_000);
        let mine = ProcessTable::now().unlinked(std::process::id(), &[folder.path()]);
        assert!(mine.bytes >= 300_000, "{mine:?}");
        let table = ProcessTable::now();
        let found = table.unlinked(process.id(), &[Path::new("/proc"), folder.path()]);
        assert!(found.bytes < 600_000, "held by two: {found:?}");
        assert_eq!(found.files, 1);
        let elsewhere = [Path::new("/proc"), &folder.path().join("gone")];
        let none = table.unlinked(process.id(), &elsewhere);
        assert_eq!(none, UnlinkedUsage::default());

        let mut input = process.stdin.take().unwrap();
        input.write_all(b"\n").unwrap();
        let begun = Instant::now();
        while held(&process, folder.path()) != Some(0) {
            assert!(begun.elapsed() < Duration::from_secs(30), "it is let go of");
            std::thread::sleep(Duration::from_millis(5));
        }
        input.write_all(b"\n").unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn a_removed_file_that_is_only_mapped_counts_or_cannot_be_counted() {
        let folder = tempfile::tempdir().unwrap();
        let script = "import mmap, os, sys\nf = open('big', 'w+b'); f.write(os.urandom(300000)); f.flush(); m = mmap.mmap(os.dup(f.fileno()), 300000)\nos.closerange(3, 64); os.remove('big'); print(flush=True); sys.stdin.read()";
        let started = Command::new("python3")
            .args(["-c", script])
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut process) = started else {
            eprintln!("SKIPPED: there is no python3");
            return;
        };
        let mut line = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "\n", "it did not come so far");
        let bytes = held(&process, folder.path());
        assert!(bytes.is_none_or(|bytes| bytes >= 300_000), "{bytes:?}");
        drop(process.stdin.take());
        process.wait().unwrap();
    }

    #[test]
    fn a_mapping_of_a_file_without_a_name_is_read_whatever_that_was() {
        let line = "7f0000000000-7f0000004000 rw-s 00001000 08:11 4711                       /a b\\012 (x) (deleted)";
        let found = Mapping::of_nameless(line.as_bytes()).unwrap();
        let expected = Mapping {
            range: "7f0000000000-7f0000004000".to_owned(),
            disk: rustix::fs::makedev(8, 17),
            inode: 4711,
            length: 0x4000,
            is_shared: true,
        };
        assert_eq!(found, expected);
        let private = line.replace("rw-s", "r-xp");
        assert!(!Mapping::of_nameless(private.as_bytes()).unwrap().is_shared);
        for other in [
            &line[..line.len() - 10],
            "",
            " (deleted)",
            "7f00-8000 rw-p 0 0:0 0",
        ] {
            assert_eq!(Mapping::of_nameless(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn more_than_there_is_time_for_cannot_be_counted() {
        let mut files = UnlinkedFiles::on_disks_of(&[], 1);
        let mine = std::process::id();
        assert_eq!(files.open(mine), None);
        files.budget = 1;
        assert_eq!(files.mapped(mine), None);
        assert_eq!(files.usage(true).gap, Some(UnlinkedGap::TooMany));
    }

    #[test]
    fn who_asks_for_a_recent_table_at_about_the_same_time_gets_the_same_one_and_later_another() {
        let begun = Instant::now();
        let one = ProcessTable::recent();
        loop {
            let two = ProcessTable::recent();
            if !Arc::ptr_eq(&one, &two) {
                break;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "it stays for ever"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        let made = LAST.lock().as_ref().map(|last| Arc::clone(&last.table));
        assert!(made.is_some_and(|table| !Arc::ptr_eq(&one, &table)));
        let shared = std::iter::repeat_with(ProcessTable::recent).take(2);
        let shared: Vec<_> = shared.collect();
        assert!(shared[0].with_descendants(1).contains(&1));
    }
}
