//! Attacks on the limits of a sandbox as a whole, by programs in it: memory, processes, processors. Each
//! in every kind of sandbox that this machine has without an engine; with control groups, where there
//! are some, and without.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use super::walls::{KINDS, Kind};
use super::*;
use crate::cgroup::ControlGroups;
use crate::trace_right;
use crate::workspace::{Quota, QuotaCheck, Workspace};

const MEMORY: u64 = 256 << 20;
const CPUS: f64 = 1.5;
/// How long a command may take whose sandbox is to be ended.
const LONG: Duration = Duration::from_secs(60);

/// Who limits the memory of a sandbox as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LimitedBy {
    /// The kernel where it does, and otherwise the host.
    Machine,
    /// The host.
    Host,
}

const BY: [LimitedBy; 2] = [LimitedBy::Machine, LimitedBy::Host];

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A host whose sandboxes are of a kind.
struct LimitedHost {
    dir: tempfile::TempDir,
    sandboxes: Sandboxes,
}

impl LimitedHost {
    async fn new(kind: Kind, by: LimitedBy) -> Self {
        Self::in_folder(folder(), kind, by).await
    }

    /// One whose sandboxes have one user, and a proxy.
    async fn of_one_user(kind: Kind) -> Self {
        Self::with(folder(), kind, LimitedBy::Machine, |settings| {
            settings.users = UserIdChoice::Shared;
            settings.network = Network::Proxy;
        })
        .await
    }

    /// A host over the data of another, that has ended.
    async fn in_folder(dir: tempfile::TempDir, kind: Kind, by: LimitedBy) -> Self {
        Self::with(dir, kind, by, |_| ()).await
    }

    async fn with(
        dir: tempfile::TempDir,
        kind: Kind,
        by: LimitedBy,
        change: impl FnOnce(&mut SandboxSettings),
    ) -> Self {
        let mut settings = SandboxSettings {
            run_dir: dir.path().join("run"),
            memory_bytes: MEMORY,
            cpus: CPUS,
            processes: 100,
            users: UserIdChoice::Auto,
            network: Network::None,
            direct: false,
            several_users: false,
            workspace_mount: "/workspace".to_owned(),
            docker: None,
        };
        change(&mut settings);
        let find = match by {
            LimitedBy::Machine => ControlGroups::find,
            LimitedBy::Host => ControlGroups::none,
        };
        let detected = Sandboxes::detect_with(kind.choice(), settings, EXEC, find);
        let sandboxes = Box::pin(detected).await.unwrap();
        kind.set(&sandboxes);
        Self { dir, sandboxes }
    }

    fn workspace(&self, session: &str) -> Workspace {
        let storage = self.dir.path().join("storage");
        Workspace::create(&storage, &"user".into(), session_id(session)).unwrap()
    }

    async fn start(&self, session: &str) -> Sandbox {
        let workspace = self.workspace(session);
        let spec = SandboxSpec {
            session: session_id(session),
            workspace: workspace.host_path(),
            repository: None,
        };
        self.sandboxes.start(spec).await.unwrap()
    }

    /// Whether the kernel limits memory here.
    fn has_groups(&self) -> bool {
        let remark = self.sandboxes.remark().unwrap_or_default();
        !remark.contains("No control group")
    }
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

async fn python(sandbox: &Sandbox, program: &str) -> Result<ExecResult, SandboxError> {
    let request = ExecRequest::argv(["python3", "-c", program]).timeout(LONG);
    sandbox.exec(request, |_| {}).await
}

/// Asserts that memory ran out, and that whoever reads the command's outcome is told.
async fn assert_out_of_memory(host: &LimitedHost, sandbox: &Sandbox, program: &str, what: &str) {
    let ran = python(sandbox, program).await;
    if host.has_groups() {
        let ran = ran.unwrap();
        assert_eq!(ran.limit, Some(LimitHit::Memory), "{what}: {ran:?}");
        assert!(ran.output.contains("memory limit"), "{what}: {ran:?}");
        assert!(!ran.output.contains("passed"), "{what}: {ran:?}");
        let most = ["memory.max_usage_in_bytes", "memory.peak"];
        let most = most.iter().find_map(|name| sandbox.group_file(name));
        if let Some(most) = most {
            let most: u64 = fs::read_to_string(most).unwrap().trim().parse().unwrap();
            assert!(most <= MEMORY, "{what}: {most}");
        }
        // What it left behind may run out of memory after it.
        let next = shell(sandbox, "echo well").await.output;
        assert!(next.starts_with("well\n"), "{what}: {next}");
    } else {
        let gone = ran.unwrap_err();
        assert!(
            gone.to_string().contains("256 MiB of memory"),
            "{what}: {gone}"
        );
    }
}

/// Each takes 3 GiB that no limit of a single process counts.
const TAKES_SHARED_MEMORY: [(&str, &str); 4] = [
    (
        "shared memory without a name",
        "import mmap
m = mmap.mmap(-1, 3 << 30)
for at in range(0, 3 << 30, 4096): m[at] = 1
print('passed')",
    ),
    (
        "a file in memory that nothing maps",
        "import os
f = os.memfd_create('x')
for _ in range(3 << 10): os.write(f, b'x' * (1 << 20))
print('passed')",
    ),
    (
        "a process whose first thread has ended",
        "import ctypes, mmap, threading, time
def fill():
  time.sleep(0.1)
  m = mmap.mmap(-1, 3 << 30)
  for at in range(0, 3 << 30, 4096): m[at] = 1
  print('passed')
threading.Thread(target=fill).start()
ctypes.CDLL(None).syscall(60, 0)",
    ),
    (
        "many processes",
        "import os
for _ in range(3):
  if os.fork() == 0:
    b = bytearray(b'x') * (200 << 20)
    os.read(os.pipe()[0], 1)
os.wait()
os._exit(9)",
    ),
];

#[tokio::test]
async fn memory_that_processes_share_ends_at_the_limit_of_their_sandbox() {
    for (kind, by) in all() {
        let host = LimitedHost::new(kind, by).await;
        for (name, program) in TAKES_SHARED_MEMORY {
            let sandbox = host.start(name).await;
            let what = format!("{kind:?} {by:?} {name}");
            assert_out_of_memory(&host, &sandbox, program, &what).await;
            sandbox.close().await;
        }
    }
}

fn all() -> impl Iterator<Item = (Kind, LimitedBy)> {
    KINDS.into_iter().flat_map(|kind| BY.map(|by| (kind, by)))
}

#[tokio::test]
async fn files_in_memory_count_as_memory() {
    for (kind, by) in all() {
        // There, nothing that can be written is in memory.
        if kind == Kind::LandlockWithoutNamespaces {
            continue;
        }
        let host = LimitedHost::new(kind, by).await;
        let remark = host.sandboxes.remark().unwrap_or_default();
        if remark.contains("CAP_SYS_PTRACE") {
            // They do not, and the operator reads it.
            continue;
        }
        let sandbox = host.start("one").await;
        let what = format!("{kind:?} {by:?}");
        let fill = "head -c 60000000 /dev/zero > /dev/shm/x";
        assert_eq!(shell(&sandbox, fill).await.exit_code, 0, "{what}");
        // By itself, it is below the limit.
        let program = "b = bytearray(220 << 20)
for at in range(0, len(b), 4096): b[at] = 1
import time
time.sleep(50)
print('passed')";
        assert_out_of_memory(&host, &sandbox, program, &what).await;
        sandbox.close().await;
    }
}

#[tokio::test]
async fn names_of_files_in_memory_count_as_memory_though_nothing_is_in_them() {
    for (kind, by) in all() {
        if kind == Kind::LandlockWithoutNamespaces {
            continue;
        }
        let host = LimitedHost::new(kind, by).await;
        let remark = host.sandboxes.remark().unwrap_or_default();
        if remark.contains("CAP_SYS_PTRACE") {
            continue;
        }
        let sandbox = host.start("one").await;
        let program = "import time
for i in range(400000): open('/dev/shm/%d' % i, 'w').close()
time.sleep(50)
print('passed')";
        let what = format!("{kind:?} {by:?}");
        assert_out_of_memory(&host, &sandbox, program, &what).await;
        sandbox.close().await;
    }
}

#[tokio::test]
async fn a_sandbox_whose_memory_takes_too_long_to_count_is_ended() {
    for kind in KINDS {
        let host = LimitedHost::new(kind, LimitedBy::Host).await;
        let remark = host.sandboxes.remark().unwrap_or_default();
        if remark.contains("CAP_SYS_PTRACE") {
            continue;
        }
        let sandbox = host.start("one").await;
        let program = "import os
files = [os.open('/dev/null', os.O_RDONLY) for _ in range(4000)]
for _ in range(40):
  if os.fork() == 0: os.read(os.pipe()[0], 1)
os.read(os.pipe()[0], 1)";
        let gone = python(&sandbox, program).await.unwrap_err().to_string();
        assert!(gone.contains("cannot be counted"), "{kind:?}: {gone}");
        sandbox.close().await;
    }
}

#[tokio::test]
async fn what_a_sandbox_writes_to_the_disk_beside_its_workspace_counts_for_its_session() {
    const MIB: u64 = 1 << 20;
    for kind in KINDS {
        let host = LimitedHost::new(kind, LimitedBy::Machine).await;
        let workspace = host.workspace("one");
        let is_on_disk = kind != Kind::Bubblewrap;
        let writes = [
            ("head -c 8M /dev/urandom > ${TMPDIR:-/tmp}/big", is_on_disk),
            ("head -c 8M /dev/urandom > $HOME/big", is_on_disk),
            ("cd ${TMPDIR:-/tmp} && touch $(seq 200)", is_on_disk),
            // In the workspace.
            (
                "python3 -c 'import os, time; f = open(\"big\", \"wb\"); os.remove(\"big\"); f.write(os.urandom(8 << 20)); f.flush(); open(\"done\", \"w\"); time.sleep(50)' >/dev/null 2>&1 & while [ ! -e done ]; do sleep 0.01; done; rm done",
                trace_right::sees_all(),
            ),
        ];
        for (command, counts) in writes {
            let what = format!("{kind:?} {command}");
            let sandbox = host.start("one").await;
            let quota = Quota::new(4 * MIB).with_entries(100);
            sandbox.count_files_in(&quota);
            assert_eq!(quota.check(&workspace), QuotaCheck::Within, "{what}");
            let wrote = shell(&sandbox, command).await;
            assert_eq!(wrote.exit_code, 0, "{what}: {wrote:?}");
            let found = quota.check(&workspace);
            let is_too_much = matches!(&found, QuotaCheck::Exceeded(why) if why.contains("outside of the workspace"));
            assert_eq!(is_too_much, counts, "{what}: {found:?}");
            sandbox.close().await;
            assert_eq!(quota.check(&workspace), QuotaCheck::Within, "{what}");
        }
    }
}

#[tokio::test]
async fn a_fork_bomb_in_one_sandbox_refuses_nothing_to_another() {
    let _room = PROCESS_TABLE_LOCK.write().await;
    for (kind, by) in all() {
        let host = LimitedHost::new(kind, by).await;
        let (one, two) = (host.start("one").await, host.start("two").await);
        let what = format!("{kind:?} {by:?}");
        let mark = mark();
        let bomb = format!(
            "import os\nwhile True:\n  try:\n    if os.fork() == 0: os.execvp('sleep', ['sleep', '{mark}'])\n  except OSError: open('full', 'w').close()"
        );
        let request = ExecRequest::argv(["python3", "-c", &bomb]).timeout(Duration::from_secs(3));
        let full = host.workspace("one").host_path().join("full");
        let bombed = one.exec(request, |_| {});
        let others = async {
            let deadline = Instant::now() + LONG;
            while !full.exists() {
                assert!(Instant::now() < deadline, "{what}: there is no end to it");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            two.exec(
                ExecRequest::shell("for i in 1 2 3; do (true | cat) & done; wait; echo well"),
                |_| {},
            )
            .await
        };
        let (bombed, others) = tokio::join!(bombed, others);
        let bombed = bombed.unwrap();
        assert!(
            bombed.timed_out && running(&mark) <= 100,
            "{what}: {}",
            running(&mark)
        );
        if host.has_groups() {
            assert_eq!(
                bombed.limit,
                Some(LimitHit::Processes),
                "{what}: {bombed:?}"
            );
        }
        // Without namespaces and without ids of their own, sandboxes share the count of one user.
        if is_root() || kind != Kind::LandlockWithoutNamespaces {
            assert_eq!(others.unwrap().output, "well\n", "{what}");
        }
        one.close().await;
        all_gone(&mark).await;
        two.close().await;
    }
}

#[tokio::test]
async fn processors_are_a_sandboxs_up_to_its_limit() {
    for kind in KINDS {
        let host = LimitedHost::new(kind, LimitedBy::Machine).await;
        let (one, two) = (host.start("one").await, host.start("two").await);
        let spin =
            "timeout 1 sh -c 'while :; do :; done' & timeout 1 sh -c 'while :; do :; done'; wait";
        let (_, _) = tokio::join!(shell(&one, spin), shell(&two, spin));
        for sandbox in [&one, &two] {
            let read = |name| Some(fs::read_to_string(sandbox.group_file(name)?).unwrap());
            let quota = read("cpu.cfs_quota_us").or_else(|| read("cpu.max"));
            let Some(quota) = quota else {
                assert!(!host.has_groups(), "{kind:?}");
                continue;
            };
            assert!(quota.starts_with("150000"), "{kind:?}: {quota}");
            let stat = read("cpu.stat").unwrap();
            let periods = stat
                .lines()
                .find_map(|line| line.strip_prefix("nr_periods "));
            assert!(periods.is_some_and(|it| it != "0"), "{kind:?}: {stat}");
        }
        one.close().await;
        two.close().await;
    }
}

#[tokio::test]
async fn what_is_in_a_sandbox_is_ended_before_the_host_and_cannot_change_that() {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let own: i32 = own.trim().parse().unwrap();
    let expected = format!("{}\n", (own + 500).min(1000));
    for kind in KINDS {
        let host = LimitedHost::new(kind, LimitedBy::Machine).await;
        let sandbox = host.start("one").await;
        let file = "/proc/self/oom_score_adj";
        for change in ["true", "echo -1000 > $f", "echo 0 > $f", "echo 499 > $f"] {
            let command = format!("f={file}; {{ {change}; }} 2>/dev/null; cat $f");
            let seen = shell(&sandbox, &command).await;
            assert_eq!(seen.output, expected, "{kind:?} {change}");
        }
        sandbox.close().await;
    }
    let fixture = SandboxFixture::new(BackendChoice::Local).await;
    let sandbox = fixture.start("one", None).await;
    let seen = shell(&sandbox, "cat /proc/self/oom_score_adj").await;
    assert_eq!(seen.output, expected);
    sandbox.close().await;
}

#[tokio::test]
async fn a_group_is_gone_with_its_sandbox_however_that_ends() {
    for kind in KINDS {
        let host = LimitedHost::new(kind, LimitedBy::Machine).await;
        let (closed, dropped) = (host.start("one").await, host.start("two").await);
        let Some(groups) = [&closed, &dropped]
            .iter()
            .map(|it| it.group_file("cgroup.procs"))
            .collect::<Option<Vec<_>>>()
        else {
            assert!(
                !host.has_groups() && host.sandboxes.shortcoming().is_some(),
                "{kind:?}"
            );
            continue;
        };
        assert!(groups.iter().all(|it| it.exists()));
        shell(&closed, "setsid sleep 1000 & true").await;
        closed.close().await;
        assert!(!groups[0].exists(), "{kind:?}");
        drop(dropped);
        let deadline = Instant::now() + LONG;
        while groups[1].exists() {
            assert!(Instant::now() < deadline, "{kind:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn no_process_of_a_sandbox_is_outside_of_its_group_or_can_change_it() {
    for kind in KINDS {
        let host = LimitedHost::new(kind, LimitedBy::Machine).await;
        let sandbox = host.start("one").await;
        let Some(group) = sandbox.group_file("cgroup.procs") else {
            assert!(!host.has_groups(), "{kind:?}");
            continue;
        };
        shell(&sandbox, "setsid sleep 1000 & sleep 1000 & true").await;
        let inside = fs::read_to_string(&group).unwrap();
        let table = ProcessTable::now();
        let below = table.with_descendants(sandbox.first_process().unwrap());
        for process in &below {
            let in_it = inside.lines().any(|line| line == process.to_string());
            assert!(in_it, "{kind:?}: {process} is not in {inside:?}");
        }
        assert!(below.len() >= 4, "{kind:?}: {below:?}");
        for file in ["cgroup.procs", "memory.limit_in_bytes", "memory.max"] {
            let path = group.with_file_name(file);
            let wrote = shell(&sandbox, &format!("echo 1 > {}", path.display())).await;
            assert_ne!(wrote.exit_code, 0, "{kind:?} {file}");
        }
        sandbox.close().await;
    }
}

/// Fills the buffers of connections to itself, until no more fits or they have 1 GiB, and prints how many
/// bytes they have.
const FILLS_SOCKETS: &str = "import socket
held, filled = [], 0
try:
  # Where a command may make sockets at all.
  listener = socket.create_server(('127.0.0.1', 0), backlog=1000)
  while len(held) < 1000 and filled < 1 << 30:
    one = socket.create_connection(listener.getsockname(), timeout=2)
    listener.settimeout(2)
    two, _ = listener.accept()
    held.append((one, two))
    for end in (one, two):
      end.setblocking(False)
      try:
        while True: filled += end.send(b'x' * 65536)
      except BlockingIOError: pass
except OSError: pass
print(filled)";

#[tokio::test]
async fn what_is_in_the_buffers_of_sockets_has_a_limit() {
    for kind in KINDS {
        let host = LimitedHost::new(kind, LimitedBy::Machine).await;
        let sandbox = host.start("one").await;
        // Version 2 counts it as memory.
        let Some(limit) = sandbox.group_file("memory.kmem.tcp.limit_in_bytes") else {
            eprintln!("SKIPPED for {kind:?}: there is no control group of version 1");
            continue;
        };
        let limit = fs::read_to_string(limit).unwrap();
        assert!(
            limit.trim().parse::<u64>().unwrap() <= MEMORY,
            "{kind:?}: {limit}"
        );
        let ran = python(&sandbox, FILLS_SOCKETS).await.unwrap();
        let filled = ran.output.trim().parse::<u64>();
        let filled = filled.unwrap_or_else(|_| panic!("{kind:?}: {ran:?}"));
        assert!(filled < MEMORY, "{kind:?}: {filled}");
        sandbox.close().await;
    }
}

/// Leaves more descriptors in queues than a command may have open, and a process that holds these.
const FILLS_QUEUES: &str = "import os, socket
pairs = [socket.socketpair() for _ in range(40)]
sent = 0
for one, _ in pairs:
  one.setblocking(False)
  try:
    while True:
      socket.send_fds(one, [b'x'], [0] * 250)
      sent += 250
  except OSError: pass
print(sent, flush=True)
if os.fork(): os._exit(0)
os.close(1)
os.close(2)
os.read(os.pipe()[0], 1)";

#[tokio::test]
async fn descriptors_that_a_sandbox_leaves_in_queues_keep_no_other_from_starting() {
    for kind in KINDS {
        // Those of one user are counted together.
        let host = LimitedHost::of_one_user(kind).await;
        let one = host.start("one").await;
        let ran = python(&one, FILLS_QUEUES).await.unwrap();
        let sent = ran.output.trim().parse::<u64>();
        let sent = sent.unwrap_or_else(|_| panic!("{kind:?}: {ran:?}"));
        assert!(sent > 4096, "{kind:?}: {sent}");
        let two = host.start("two").await;
        assert_eq!(shell(&two, "echo well").await.output, "well\n", "{kind:?}");
        let limit = shell(&two, "ulimit -n; ulimit -Hn").await.output;
        assert_eq!(limit, "4096\n4096\n", "{kind:?}");
        two.close().await;
        one.close().await;
    }
}

#[tokio::test]
async fn each_session_has_a_user_of_its_own_that_it_keeps_over_a_restart() {
    for kind in KINDS {
        let host = LimitedHost::new(kind, LimitedBy::Machine).await;
        let (one, two) = (host.start("one").await, host.start("two").await);
        let (user, other) = (one.user(), two.user());
        assert_eq!(user.is_some(), is_root(), "{kind:?}");
        if is_root() {
            assert_ne!(user, other, "{kind:?}");
        }
        let wrote = "mkdir d && echo x > d/f && ln -s f d/l";
        assert_eq!(shell(&one, wrote).await.exit_code, 0, "{kind:?}");
        let path = host.workspace("one");
        path.write(&path.path("e/host").unwrap(), b"y").unwrap();
        let files = ["", "d", "d/f", "d/l", "e", "e/host"];
        let owners = |host: &LimitedHost| {
            let root = host.workspace("one").host_path().to_owned();
            files.map(|file| fs::symlink_metadata(root.join(file)).unwrap().uid())
        };
        let expected = user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        assert_eq!(owners(&host), [expected; 6], "{kind:?}");
        one.close().await;
        two.close().await;
        let LimitedHost { dir, sandboxes } = host;
        drop(sandboxes);

        let next = LimitedHost::in_folder(dir, kind, LimitedBy::Machine).await;
        // In the other order, so that nothing is by chance as before.
        let (two, one) = (next.start("two").await, next.start("one").await);
        assert_eq!((one.user(), two.user()), (user, other), "{kind:?}");
        assert_eq!(owners(&next), [expected; 6], "{kind:?}");
        let changed = "cat d/f e/host && echo z > e/host && rm -r d";
        assert_eq!(shell(&one, changed).await.output, "x\ny", "{kind:?}");
        one.close().await;
        two.close().await;
    }
}

#[tokio::test]
async fn a_workspace_of_before_gets_its_own_user_and_nothing_outside_of_it_does() {
    if !is_root() {
        // A host that is not root gives nothing away.
        let host = LimitedHost::new(Kind::Landlock, LimitedBy::Machine).await;
        assert_eq!(host.start("one").await.user(), None);
        return;
    }
    let host = LimitedHost::new(Kind::Landlock, LimitedBy::Machine).await;
    let root = host.workspace("one").host_path().to_owned();
    let outside = host.dir.path().join("outside");
    let roots = host.dir.path().join("roots");
    fs::create_dir_all(root.join("a/b")).unwrap();
    for file in [&root.join("a/b/f"), &outside, &roots] {
        fs::write(file, "x").unwrap();
    }
    symlink(&outside, root.join("a/link")).unwrap();
    symlink("..", root.join("a/up")).unwrap();
    fs::hard_link(&roots, root.join("a/of-root")).unwrap();
    let before = ["", "a", "a/b", "a/b/f", "a/link", "a/up"].map(|name| root.join(name));
    for path in before.iter().chain([&outside]) {
        std::os::unix::fs::lchown(path, Some(1000), Some(1000)).unwrap();
    }
    let sandbox = host.start("one").await;
    let user = sandbox.user().unwrap();
    let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
    for path in &before {
        assert_eq!(owner(path), user, "{}", path.display());
    }
    assert_eq!((owner(&outside), owner(&roots)), (1000, 0));
    let wrote = shell(&sandbox, "echo y > a/b/f && rm a/link && cat a/b/f").await;
    assert_eq!(wrote.output, "y\n");
    sandbox.close().await;
}
