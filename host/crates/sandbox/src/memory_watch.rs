//! Watches the memory of sandboxes whose memory the kernel does not limit as a whole, and ends one that
//! takes more than its limit.
//!
//! Limits of single processes do not count memory that processes share, files in memory, or several
//! processes. Here all of it is added up, as often as a sandbox could have filled what it has left.
//!
//! # Invariants
//! - A page counts once, however many processes have it, unless a process does not let itself be looked
//!   at: then all of its pages count, but for those of files on disks.
//! - Files in memory and memory that is shared count as the larger of the two, since a file that is mapped
//!   is both. So a sandbox has at most twice its limit for a moment, and never seems to have what it has
//!   not.
//! - What counts for a sandbox is of its own processes and mounts, none of the host's.
//! - Each sandbox is looked at by itself, so one that takes long holds up no look at another.
//! - A look has a budget. Of processes that it has no time for, all pages count. A sandbox that cannot be
//!   counted even so has too much.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::handle::{Sandbox, WeakSandbox};
use crate::unlinked::{self, ProcessTable};

/// How many bytes of memory a machine is taken to fill in a second.
const FILLS: u64 = 2 << 30;
/// The bounds of the pause between two looks.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// How much processor time a look may take to find out which pages processes share. The tables of 100
/// GiB of memory in small pages are read in it.
const TIME: Duration = Duration::from_millis(250);
/// How many open files a look may ask for, of all processes of a sandbox.
const OPEN_FILES: u32 = 1 << 17;
/// How many looks there may be at the same time. Each needs a thread.
const LOOKS: usize = 64;
/// How often in a row [`TICK`] may pass without a step of a look before it counts as one that does not end:
/// something in its sandbox keeps it waiting. On a machine whose processors are all in use it goes on slowly,
/// which is not its sandbox's doing.
const PATIENCE: u32 = 10;
/// Time that passed while the host was stopped counts as one of these.
const TICK: Duration = Duration::from_secs(1);
/// Where sandboxes have file systems in memory.
const IN_MEMORY: [&str; 3] = ["tmp", "home/agent", "dev/shm"];
/// The type of a file system in memory (statfs(2)).
const TMPFS: u64 = 0x0102_1994;
/// What the kernel has in memory for each file, besides its content.
const ENTRY: u64 = 1024;

/// Counts the bytes that a process uses with all below it; `None` if there is too much to count.
type CountMemory = fn(u32, &LookProgress) -> Option<u64>;

/// How far a look came, in steps that take a moment each. Clones are the same.
#[derive(Debug, Clone, Default)]
struct LookProgress(Arc<AtomicU64>);

impl LookProgress {
    fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn steps(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Watches sandboxes. Clones share the threads for looks.
#[derive(Clone)]
pub(super) struct MemoryWatch {
    limit: u64,
    count: CountMemory,
    patience: u32,
    looks: Arc<Semaphore>,
}

impl MemoryWatch {
    /// For sandboxes with this limit in bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            count: memory_below,
            patience: PATIENCE,
            looks: Arc::new(Semaphore::new(LOOKS)),
        }
    }

    /// Watches a sandbox until its end.
    pub(super) fn add(&self, sandbox: &Sandbox) {
        tokio::spawn(self.clone().watch(sandbox.downgrade()));
    }

    async fn watch(self, sandbox: WeakSandbox) {
        let mut pause = SHORTEST;
        loop {
            tokio::time::sleep(pause).await;
            let Some(process) = sandbox.upgrade().map(|it| it.first_process()) else {
                return;
            };
            let begun = Instant::now();
            let Some(found) = self.look(process.unwrap_or(0)).await else {
                return;
            };
            match found {
                LookOutcome::Memory(used) if used <= self.limit => {
                    // A look that takes long comes less often, so that it takes half a processor at most.
                    pause = pause_for(self.limit, used).max(begun.elapsed().min(LONGEST));
                }
                found => {
                    if let Some(sandbox) = sandbox.upgrade() {
                        sandbox.end(&end_reason(self.limit, found)).await;
                    }
                    return;
                }
            }
        }
    }

    /// Looks at a sandbox once; `None` if the host stops.
    async fn look(&self, process: u32) -> Option<LookOutcome> {
        // Free again once nobody waits for the look, or those that do not end would be the end of all others.
        let _slot = self.looks.acquire().await.ok()?;
        let count = self.count;
        let progress = LookProgress::default();
        let seen = progress.clone();
        let mut look = tokio::task::spawn_blocking(move || count(process, &progress));
        match self.finished(&mut look, &seen).await {
            Some(Ok(Some(used))) => Some(LookOutcome::Memory(used)),
            Some(Err(error)) if error.is_cancelled() => None,
            Some(Ok(None) | Err(_)) => Some(LookOutcome::TooMuch),
            None => {
                tracing::warn!(
                    process,
                    "the look at a sandbox's memory does not end, so the sandbox is ended"
                );
                Some(LookOutcome::TooMuch)
            }
        }
    }

    /// The result of a look, unless it stands still.
    async fn finished<T>(
        &self,
        look: &mut JoinHandle<T>,
        progress: &LookProgress,
    ) -> Option<Result<T, tokio::task::JoinError>> {
        let (mut still, mut before) = (0, progress.steps());
        while still < self.patience {
            if let Ok(finished) = tokio::time::timeout(TICK, &mut *look).await {
                return Some(finished);
            }
            let now = progress.steps();
            still = if now == before { still + 1 } else { 0 };
            before = now;
        }
        None
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy)]
enum LookOutcome {
    /// So many bytes.
    Memory(u64),
    /// More than can be counted.
    TooMuch,
}

fn end_reason(limit: u64, found: LookOutcome) -> String {
    let limit = limit >> 20;
    match found {
        LookOutcome::Memory(_) => format!(
            "It used more than the {limit} MiB of memory that it may, and was ended with every process in it."
        ),
        LookOutcome::TooMuch => format!(
            "It had so many processes and open files that its memory cannot be counted, of which it may use {limit} MiB, and was ended with every process in it."
        ),
    }
}

/// How long it takes at least until memory is used up.
fn pause_for(limit: u64, used: u64) -> Duration {
    let left = limit.saturating_sub(used).saturating_mul(1000) / FILLS;
    Duration::from_millis(left).clamp(SHORTEST, LONGEST)
}

/// The bytes that a process uses with all below it; 0 for one that is gone. Blocks.
fn memory_below(root: u32, progress: &LookProgress) -> Option<u64> {
    if root == 0 {
        return Some(0);
    }
    let budget = LookBudget {
        time: TIME,
        open_files: OPEN_FILES,
    };
    let processes = ProcessTable::recent().with_descendants(root);
    Some(MemoryUsage::of(processes, budget, progress)?.total())
}

/// What a look may take.
#[derive(Debug, Clone, Copy)]
struct LookBudget {
    /// Processor time of this thread for what processes share.
    time: Duration,
    /// Descriptors of processes.
    open_files: u32,
}

/// The processor time that this thread has had.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}

/// What a process tells everybody of its memory, in bytes.
#[derive(Debug)]
struct ProcessMemory {
    process: u32,
    /// The tables of its pages, which tell how long it takes to look at those.
    tables: u64,
    /// Its pages, with those that it shares with processes that it started or that started it.
    own: u64,
    /// Its pages of files in memory and of shared memory.
    shared: u64,
}

impl ProcessMemory {
    fn of(process: u32) -> Self {
        let read = |name| fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
        let status = read("status");
        let bytes = |name| field(&status, name).unwrap_or(0);
        let own = match field(&status, "RssAnon:") {
            Some(own) => own,
            // The kernel does not tell apart what it has. What it has mapped of programs counts too.
            None => resident(&read("statm")).unwrap_or(0),
        };
        Self {
            process,
            tables: bytes("VmPTE:"),
            own: own.saturating_add(bytes("VmSwap:")),
            shared: bytes("RssShmem:"),
        }
    }
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
    /// Counts processes; `None` if they have more files open than the budget says.
    fn of(
        processes: impl IntoIterator<Item = u32>,
        mut budget: LookBudget,
        progress: &LookProgress,
    ) -> Option<Self> {
        let of_host = devices_below(Path::new("/"));
        let mut usage = Self::default();
        let mut found = Vec::new();
        for process in processes.into_iter().map(unlinked::living) {
            usage.add_file_systems(process, &of_host);
            usage.add_open_files(process, &mut budget.open_files, progress)?;
            found.push(ProcessMemory::of(process));
        }
        // Those that take the least time come first, so that of as many as possible it is known what
        // they share.
        found.sort_unstable_by_key(|it| it.tables);
        let begun = processor_time();
        for process in &found {
            progress.step();
            usage.own = usage.own.saturating_add(process.tables);
            let has_time = processor_time().saturating_sub(begun) < budget.time;
            if !(has_time && usage.add_share(process.process)) {
                usage.own = usage.own.saturating_add(process.own);
                usage.shared = usage.shared.saturating_add(process.shared);
            }
        }
        Some(usage)
    }

    fn total(&self) -> u64 {
        let files = self.files.values().chain(self.file_systems.values());
        let files = files.fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        self.own.saturating_add(self.shared.max(files))
    }

    /// Adds the part of its pages that each process has, if it lets itself be looked at.
    fn add_share(&mut self, process: u32) -> bool {
        // A process without memory of its own, such as one that ended, has an empty one.
        let summary = fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
        let Ok(summary) = summary else { return false };
        let Some(own) = field(&summary, "Pss_Anon:") else {
            return false;
        };
        let swapped = field(&summary, "SwapPss:").unwrap_or(0);
        let shared = field(&summary, "Pss_Shmem:").unwrap_or(0);
        self.own = self.own.saturating_add(own).saturating_add(swapped);
        self.shared = self.shared.saturating_add(shared);
        true
    }

    /// Adds the files in memory without a name that a process has open.
    fn add_open_files(
        &mut self,
        process: u32,
        budget: &mut u32,
        progress: &LookProgress,
    ) -> Option<()> {
        progress.step();
        let open = fs::read_dir(format!("/proc/{process}/fd"));
        for open in open.into_iter().flatten().flatten() {
            progress.step();
            *budget = budget.checked_sub(1)?;
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
        Some(())
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
                let entries = found.f_files.saturating_sub(found.f_ffree);
                let content = used.saturating_mul(block);
                let bytes = content.saturating_add(entries.saturating_mul(ENTRY));
                self.file_systems.insert(device, bytes);
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
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicBool, AtomicU32};

    use super::*;
    use crate::backend::BackendChoice;
    use crate::tests::SandboxFixture;

    /// What no look of these tests uses up.
    const ROOMY: LookBudget = LookBudget {
        time: Duration::from_secs(3600),
        open_files: u32::MAX,
    };

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
        let usage = MemoryUsage::of([process.id()], ROOMY, &LookProgress::default()).unwrap();
        drop(process.stdin.take());
        process.wait().unwrap();
        assert_eq!(line, "\n", "it did not come so far");
        // Each of 8192 pages takes a table of its own.
        assert!(usage.own > 32 << 20, "{usage:?}");
        assert!(usage.shared >= 32 << 20, "{usage:?}");
    }

    /// Three processes that share 64 MiB without a name, until they are told to end.
    fn sharing() -> Child {
        let program = "import mmap, os, sys
m = mmap.mmap(-1, 64 << 20)
for at in range(0, 64 << 20, 4096): m[at] = 1
r, w = os.pipe()
for _ in range(2):
  if os.fork() == 0:
    os.close(w); m.find(b'2'); os.write(1, b'.'); os.read(r, 1); os._exit(0)
m.find(b'2'); os.write(1, b'.'); sys.stdin.read()";
        let mut process = Command::new("python3")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 3];
        let output = process.stdout.as_mut().unwrap();
        output.read_exact(&mut ready).unwrap();
        process
    }

    #[test]
    fn pages_that_processes_share_count_once_or_for_each_that_there_is_no_time_for() {
        let mut process = sharing();
        let below = ProcessTable::now().with_descendants(process.id());
        assert_eq!(below.len(), 3);
        let exact = MemoryUsage::of(below.clone(), ROOMY, &LookProgress::default()).unwrap();
        let hasty = LookBudget {
            time: Duration::ZERO,
            ..ROOMY
        };
        let whole = MemoryUsage::of(below.clone(), hasty, &LookProgress::default()).unwrap();
        let few = LookBudget {
            open_files: 3,
            ..ROOMY
        };
        let too_many = MemoryUsage::of(below, few, &LookProgress::default());
        drop(process.stdin.take());
        process.wait().unwrap();
        let mib = |bytes: u64| bytes >> 20;
        assert!((63..80).contains(&mib(exact.shared)), "{exact:?}");
        assert!((191..240).contains(&mib(whole.shared)), "{whole:?}");
        assert!(whole.own >= exact.own, "{whole:?} {exact:?}");
        assert!(too_many.is_none(), "{too_many:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_look_that_goes_on_slowly_is_waited_for_and_one_that_stands_still_is_not() {
        let watch = MemoryWatch {
            patience: 2,
            ..MemoryWatch::new(0)
        };
        for (goes_on, waited) in [(true, true), (false, false)] {
            let (progress, released) = (LookProgress::default(), Arc::new(AtomicBool::new(false)));
            let (steps, until) = (progress.clone(), Arc::clone(&released));
            let mut look = tokio::task::spawn_blocking(move || {
                // Longer than it is waited for one that stands still.
                for _ in 0..8 {
                    std::thread::sleep(TICK / 2);
                    if goes_on {
                        steps.step();
                    }
                }
                while !goes_on && !until.load(Ordering::SeqCst) {
                    std::thread::sleep(TICK / 100);
                }
            });
            let finished = watch.finished(&mut look, &progress).await;
            released.store(true, Ordering::SeqCst);
            assert_eq!(finished.is_some(), waited);
        }
    }

    /// The first process of the sandbox whose look does not end.
    static ENDLESS: AtomicU32 = AtomicU32::new(0);
    /// How often others were looked at while that look went on.
    static OTHERS: AtomicU32 = AtomicU32::new(0);
    static RELEASED: AtomicBool = AtomicBool::new(false);

    fn count_or_hang(process: u32, _: &LookProgress) -> Option<u64> {
        if process == ENDLESS.load(Ordering::SeqCst) {
            while !RELEASED.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        } else {
            OTHERS.fetch_add(1, Ordering::SeqCst);
        }
        Some(0)
    }

    #[tokio::test]
    async fn a_sandbox_whose_look_does_not_end_holds_up_no_look_at_another_and_is_ended() {
        let fixture = SandboxFixture::new(BackendChoice::Landlock).await;
        let slow = fixture.start("slow", None).await;
        let other = fixture.start("other", None).await;
        ENDLESS.store(slow.first_process().unwrap(), Ordering::SeqCst);
        let watch = MemoryWatch {
            count: count_or_hang,
            patience: 2,
            ..MemoryWatch::new(1 << 30)
        };
        let ended = slow.ended();
        watch.add(&slow);
        watch.add(&other);
        let reason = tokio::time::timeout(Duration::from_secs(60), ended).await;
        let others = OTHERS.load(Ordering::SeqCst);
        RELEASED.store(true, Ordering::SeqCst);
        let reason = reason.expect("it is never ended");
        assert!(reason.contains("cannot be counted"), "{reason}");
        assert!(others > 1, "{others} looks at another in the meantime");
        assert!(other.is_alive());
        other.close().await;
        slow.close().await;
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
