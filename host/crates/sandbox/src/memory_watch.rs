//! Watches the memory of sandboxes whose memory the kernel does not limit as a whole, and ends one that
//! takes more than its limit.
//!
//! Limits of single processes do not count memory that processes share, files in memory, or several
//! processes. Here all of it is added up, as often as a sandbox could have filled what it has left.
//!
//! # Invariants
//! - A page counts once, however many processes have it, unless a process does not let itself be looked
//!   at: then all of its pages count.
//! - Files in memory and memory that is shared count as the larger of the two, since a file that is mapped
//!   is both. So a sandbox has at most twice its limit for a moment, and never seems to have what it has
//!   not.
//! - What counts for a sandbox is of its own processes and mounts, none of the host's.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::handle::{Sandbox, WeakSandbox};
use crate::unlinked::ProcessTable;

/// How many bytes of memory a machine is taken to fill in a second.
const FILLS: u64 = 2 << 30;
/// The bounds of the pause between two looks.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// Where sandboxes have file systems in memory.
const IN_MEMORY: [&str; 3] = ["tmp", "home/agent", "dev/shm"];
/// The type of a file system in memory (statfs(2)).
const TMPFS: u64 = 0x0102_1994;

/// Watches sandboxes. Clones watch the same ones.
#[derive(Clone)]
pub(super) struct MemoryWatch {
    limit: u64,
    watched: Arc<Mutex<Watched>>,
}

#[derive(Default)]
struct Watched {
    sandboxes: Vec<WeakSandbox>,
    /// Whether somebody looks.
    runs: bool,
}

impl MemoryWatch {
    /// For sandboxes with this limit in bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            watched: Arc::default(),
        }
    }

    /// Watches a sandbox until its end.
    pub(super) fn add(&self, sandbox: &Sandbox) {
        let mut watched = self.watched.lock();
        watched.sandboxes.push(sandbox.downgrade());
        if !watched.runs {
            watched.runs = true;
            tokio::spawn(self.clone().run());
        }
    }

    /// Looks until there is nothing to look at.
    async fn run(self) {
        let mut pause = SHORTEST;
        loop {
            tokio::time::sleep(pause).await;
            let sandboxes = {
                let mut watched = self.watched.lock();
                watched.sandboxes.retain(|it| it.upgrade().is_some());
                let alive = watched.sandboxes.iter().filter_map(WeakSandbox::upgrade);
                let alive: Vec<Sandbox> = alive.collect();
                if alive.is_empty() {
                    watched.runs = false;
                    return;
                }
                alive
            };
            let roots: Vec<u32> = sandboxes
                .iter()
                .map(|it| it.first_process().unwrap_or(0))
                .collect();
            let counted = tokio::task::spawn_blocking(move || memory_below(&roots)).await;
            let used = counted.unwrap_or_default();
            for (sandbox, used) in sandboxes.into_iter().zip(&used) {
                if *used > self.limit {
                    self.end(sandbox);
                }
            }
            pause = pause_for(self.limit, used.into_iter().max().unwrap_or(0));
        }
    }

    /// Ends a sandbox, which takes a while, and others are looked at meanwhile.
    fn end(&self, sandbox: Sandbox) {
        let ended = sandbox.downgrade();
        self.watched
            .lock()
            .sandboxes
            .retain(|it| !it.is_same(&ended));
        let reason = end_reason(self.limit);
        tokio::spawn(async move { sandbox.end(&reason).await });
    }
}

fn end_reason(limit: u64) -> String {
    format!(
        "It used more than the {} MiB of memory that it may, and was ended with every process in it.",
        limit >> 20
    )
}

/// How long it takes at least until memory is used up.
fn pause_for(limit: u64, used: u64) -> Duration {
    let left = limit.saturating_sub(used).saturating_mul(1000) / FILLS;
    Duration::from_millis(left).clamp(SHORTEST, LONGEST)
}

/// The bytes that each of these processes uses with all below it; 0 for one that is gone. Blocks.
fn memory_below(roots: &[u32]) -> Vec<u64> {
    let table = ProcessTable::now();
    let of_host = devices_below(Path::new("/"));
    let count = |root: &u32| {
        if *root == 0 {
            return 0;
        }
        let mut usage = MemoryUsage::default();
        for process in table.with_descendants(*root) {
            usage.add_process(process);
            usage.add_file_systems(process, &of_host);
        }
        usage.total()
    };
    roots.iter().map(count).collect()
}

/// What was counted so far.
#[derive(Debug, Default)]
struct MemoryUsage {
    own: u64,
    shared: u64,
    /// Files without a name, by device and inode.
    files: HashMap<(u64, u64), u64>,
    /// File systems in memory, by device.
    file_systems: HashMap<u64, u64>,
}

impl MemoryUsage {
    fn total(&self) -> u64 {
        let files = self.files.values().chain(self.file_systems.values());
        let files = files.fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        self.own.saturating_add(self.shared.max(files))
    }

    fn add_process(&mut self, process: u32) {
        let folder = PathBuf::from(format!("/proc/{process}"));
        let read = |name| fs::read_to_string(folder.join(name)).ok();
        let status = read("status").unwrap_or_default();
        self.own += field(&status, "VmPTE:").unwrap_or(0);
        // A process without memory of its own, such as one that ended, has an empty one.
        if let Some(summary) = read("smaps_rollup")
            && let Some(own) = field(&summary, "Pss_Anon:")
        {
            self.own += own + field(&summary, "SwapPss:").unwrap_or(0);
            self.shared += field(&summary, "Pss_Shmem:").unwrap_or(0);
        } else if let Some(pages) = read("statm") {
            // It does not let itself be looked at, or the kernel does not tell apart what it has. What it
            // has mapped of programs counts too.
            self.own += resident(&pages).unwrap_or(0) + field(&status, "VmSwap:").unwrap_or(0);
        }
        for open in fs::read_dir(folder.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let is_in_memory = fs::read_link(open.path()).is_ok_and(|target| {
                target
                    .as_os_str()
                    .as_encoded_bytes()
                    .starts_with(b"/memfd:")
            });
            if is_in_memory && let Ok(file) = fs::metadata(open.path()) {
                let bytes = file.blocks().saturating_mul(512);
                self.files.insert((file.dev(), file.ino()), bytes);
            }
        }
    }

    /// Adds the file systems in memory that a process sees and the host does not.
    fn add_file_systems(&mut self, process: u32, of_host: &HashSet<u64>) {
        let root = PathBuf::from(format!("/proc/{process}/root"));
        for name in IN_MEMORY {
            let path = root.join(name);
            let Ok(device) = fs::metadata(&path).map(|it| it.dev()) else {
                continue;
            };
            if of_host.contains(&device) || self.file_systems.contains_key(&device) {
                continue;
            }
            if let Ok(found) = rustix::fs::statfs(&path)
                && u64::try_from(found.f_type) == Ok(TMPFS)
            {
                let used = found.f_blocks.saturating_sub(found.f_bfree);
                let block = u64::try_from(found.f_bsize).unwrap_or(4096);
                self.file_systems.insert(device, used.saturating_mul(block));
            }
        }
    }
}

fn devices_below(root: &Path) -> HashSet<u64> {
    let paths = IN_MEMORY.iter().map(|name| root.join(name));
    let devices = paths.filter_map(|path| fs::metadata(path).ok());
    devices.map(|it| it.dev()).collect()
}

/// A line of smaps_rollup or status (proc(5)), in bytes.
fn field(summary: &str, name: &str) -> Option<u64> {
    let line = summary.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The memory of a process by its statm (proc(5)), in bytes.
fn resident(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_look_comes_before_memory_can_be_used_up() {
        assert_eq!(pause_for(256 << 20, 0), Duration::from_millis(125));
        assert_eq!(pause_for(64 << 30, 0), LONGEST);
        assert_eq!(pause_for(1 << 30, 1 << 30), SHORTEST);
        assert_eq!(pause_for(1 << 30, u64::MAX), SHORTEST);
    }

    #[test]
    fn what_the_kernel_tells_of_a_process_is_read_as_bytes() {
        let summary = "5600-7ffc ---p 00000000 00:00 0 [rollup]\nRss: 884 kB\nPss_Anon:             80 kB\nPss_Shmem:  x kB\n";
        assert_eq!(field(summary, "Pss_Anon:"), Some(80 << 10));
        assert_eq!(field(summary, "Pss_Shmem:"), None);
        assert_eq!(field(summary, "Pss_File:"), None);
        let page = rustix::param::page_size() as u64;
        assert_eq!(resident("100 7 3 1 0 9 0\n"), Some(7 * page));
        assert_eq!(resident("100"), None);
    }

    #[test]
    fn the_tables_of_pages_count() {
        let program = "import mmap, sys
m = mmap.mmap(-1, 16 << 30, mmap.MAP_SHARED | 0x4000)
m.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, 16 << 30, 2 << 20): m[at]
print(flush=True); sys.stdin.read()";
        let mut process = Command::new("python3")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let mut usage = MemoryUsage::default();
        usage.add_process(process.id());
        drop(process.stdin.take());
        process.wait().unwrap();
        assert_eq!(line, "\n", "it did not come so far");
        // Each of 8192 pages takes a table of its own.
        assert!(usage.own > 32 << 20, "{usage:?}");
        assert!(usage.shared >= 32 << 20, "{usage:?}");
    }

    #[test]
    fn a_mapped_file_counts_once_and_so_does_one_that_two_have_open() {
        let mut usage = MemoryUsage {
            own: 10,
            shared: 100,
            ..MemoryUsage::default()
        };
        usage.files.insert((1, 2), 100);
        assert_eq!(usage.total(), 110);
        usage.file_systems.insert(3, 7);
        assert_eq!(usage.total(), 117);
    }
}
