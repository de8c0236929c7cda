//! What a process that compiles gives up before it reads a byte of a component.
//!
//! The limits of resources always hold. The rest is a second wall, where the kernel has it: a
//! compiler opens no file, no socket and no program, starts nothing but threads, and has no business
//! with any other process, so one that wants to was taken over. A kernel without Landlock or seccomp
//! still runs Lucid.

use std::collections::BTreeMap;

use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, Scope};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::process::LARGEST_CODE;

/// The newest Landlock ABI known here; an older kernel enforces the rules it has.
const RULES: ABI = ABI::V10;

/// Where the kernel reads whom to end first when the machine's memory runs out.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// What a compiler never calls, and is refused.
const REFUSED_CALLS: [libc::c_long; 13] = [
    libc::SYS_socket,
    libc::SYS_io_uring_setup,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pidfd_getfd,
];

/// The calls besides clone(2) that start a process. The flags of clone3(2) are in memory, where no filter
/// sees them; the C libraries use clone(2) where it is missing.
#[cfg(target_arch = "x86_64")]
const FORKS: &[libc::c_long] = &[libc::SYS_clone3, libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const FORKS: &[libc::c_long] = &[libc::SYS_clone3];

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

/// A limit that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("the limit {resource:?} of {value} was refused: {cause}")]
pub struct ResourceLimitError {
    resource: Resource,
    value: u64,
    #[source]
    cause: Errno,
}

/// Limits this process, which is to compile one component: its memory in bytes and its processor time in
/// seconds. It ends with the thread that started it, and has no files and no network from here on.
///
/// # Errors
///
/// A limit could not be set.
pub fn confine(memory: u64, seconds: u64) -> Result<(), ResourceLimitError> {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // Raising it is always permitted. Without it the machine may end the server in its place.
    let _ = std::fs::write(OOM_SCORE, "1000");
    for (resource, value) in [
        (Resource::Core, 0),
        (Resource::Data, memory),
        (Resource::Cpu, seconds),
        (Resource::Fsize, LARGEST_CODE),
    ] {
        // Never above this process's own hard limit.
        let most = getrlimit(resource).maximum;
        let value = most.map_or(value, |most| value.min(most));
        // At the hard limit the kernel kills without a word, so the soft one has to come first.
        let grace = if matches!(resource, Resource::Cpu) {
            5
        } else {
            0
        };
        let limit = Rlimit {
            current: Some(value),
            maximum: Some(most.map_or(value + grace, |most| most.min(value + grace))),
        };
        setrlimit(resource, limit).map_err(|cause| ResourceLimitError {
            resource,
            value,
            cause,
        })?;
    }
    // See the first comment: all may be missing.
    let _ = no_files();
    let _ = refused_calls().and_then(|rules| refuse(rules, libc::EACCES));
    let _ = process_starts().and_then(|rules| refuse(rules, libc::ENOSYS));
    Ok(())
}

fn no_files() -> Result<(), landlock::RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .scope(Scope::from_all(RULES))?
        .create()?
        .restrict_self()?;
    Ok(())
}

/// What is refused: the calls above, and those of others that are not about this process itself.
fn refused_calls() -> Result<Rules, seccompiler::Error> {
    let mut rules: Rules = REFUSED_CALLS
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    // It could change its parent's limits.
    rules.insert(libc::SYS_prlimit64, vec![first_is_not(0)?]);
    // Its own threads: so does abort(3) end it.
    rules.insert(libc::SYS_tgkill, vec![first_is_not(std::process::id())?]);
    Ok(rules)
}

/// Everything that starts a process, and no thread.
fn process_starts() -> Result<Rules, seccompiler::Error> {
    let mut rules: Rules = FORKS.iter().map(|call| (*call, Vec::new())).collect();
    let threads = u64::from(libc::CLONE_THREAD.cast_unsigned());
    rules.insert(
        libc::SYS_clone,
        vec![first_argument(SeccompCmpOp::MaskedEq(threads), 0)?],
    );
    Ok(rules)
}

fn first_is_not(value: u32) -> Result<SeccompRule, seccompiler::BackendError> {
    first_argument(SeccompCmpOp::Ne, value.into())
}

/// Compares the first argument of a call, of which the kernel takes 32 bits.
fn first_argument(
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}

/// Answers these calls with an error from here on.
fn refuse(rules: Rules, error: libc::c_int) -> Result<(), seccompiler::Error> {
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(error.cast_unsigned()),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use landlock::{CompatLevel, Compatible as _};
    use rustix::process::{Pid, getppid, prlimit, test_kill_process};
    use std::fs::File;
    use std::io;
    use std::os::unix::net::UnixDatagram;
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::Command;

    /// The test that [`CHILD`] runs, in a process of its own.
    const CHILD: &str = "confinement::tests::says_what_it_may_do_before_and_after";

    fn code<T>(result: io::Result<T>) -> i32 {
        result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0)
    }

    fn parents_limit(parent: Pid) -> io::Result<()> {
        prlimit(Some(parent), Resource::Core, getrlimit(Resource::Core))?;
        Ok(())
    }

    /// Tries what a compiler never does, and prints the error of each, or 0.
    fn try_all(parent: Pid) {
        println!("file {}", code(File::open("/proc/self/status")));
        println!("socket {}", code(UnixDatagram::unbound()));
        // It is not there, so that Landlock has nothing to refuse.
        println!(
            "execve {}",
            code(Err::<(), _>(Command::new("/nowhere").exec()))
        );
        println!("process {}", code(Command::new("/nowhere").spawn()));
        println!(
            "signal {}",
            code(test_kill_process(parent).map_err(io::Error::from))
        );
        println!("limits {}", code(parents_limit(parent)));
        let thread = std::thread::Builder::new().spawn(|| ());
        println!(
            "thread {}",
            code(thread.map(|thread| thread.join().unwrap()))
        );
    }

    #[test]
    #[ignore = "it gives up everything: another test runs it in a process of its own"]
    fn says_what_it_may_do_before_and_after() {
        let parent = getppid().unwrap();
        try_all(parent);
        confine(1 << 30, 60).unwrap();
        println!("confined");
        try_all(parent);
        let memory = getrlimit(Resource::Data).current;
        assert!(memory.is_some_and(|memory| memory <= 1 << 30));
        // By a signal to itself.
        std::process::abort();
    }

    /// Whether this kernel has it, asked in another way than the tested one.
    fn has_landlock() -> bool {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))
            .and_then(|ruleset| ruleset.create());
        ruleset.is_ok()
    }

    #[test]
    fn a_confined_process_opens_no_file_and_no_socket_and_starts_nothing() {
        let itself = std::env::current_exe().unwrap();
        let output = Command::new(itself)
            .args(["--exact", CHILD, "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let (before, after) = printed.split_once("confined\n").expect(&printed);
        let before_expected = [
            "file 0",
            "socket 0",
            "execve 2",
            "process 2",
            "signal 0",
            "limits 0",
            "thread 0",
        ];
        assert!(before.ends_with(&lines(&before_expected)), "{before}");
        if !has_landlock() {
            eprintln!("SKIPPED: this kernel has no Landlock, so a confined process opens files");
        }
        let file = if has_landlock() { "file 13" } else { "file 0" };
        let after_expected = [
            file,
            "socket 13",
            "execve 13",
            "process 38",
            "signal 13",
            "limits 13",
            "thread 0",
        ];
        assert_eq!(after, lines(&after_expected));
        assert_eq!(output.status.signal(), Some(Signal::ABORT.as_raw()));
    }

    fn lines(lines: &[&str]) -> String {
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}
