//! What a process that compiles gives up before it reads a byte of a component.
//!
//! The limits of resources always hold. The rest is a second wall, where the kernel has it: a
//! compiler opens no file, no socket and no program, so one that wants to was taken over. A kernel
//! without Landlock or seccomp still runs Lucid.

use std::collections::BTreeMap;

use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, Scope};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::process::LARGEST_CODE;

/// The newest Landlock ABI known here; an older kernel enforces the rules it has.
const RULES: ABI = ABI::V10;

/// Where the kernel reads whom to end first when the machine's memory runs out.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// What a compiler never calls, and is refused.
const REFUSED_CALLS: [libc::c_long; 9] = [
    libc::SYS_socket,
    libc::SYS_io_uring_setup,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
];

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
    // See the first comment: both may be missing.
    let _ = no_files();
    let _ = no_calls();
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

fn no_calls() -> Result<(), seccompiler::Error> {
    let rules: BTreeMap<_, _> = REFUSED_CALLS
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EACCES.cast_unsigned()),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}
