//! The restrictions the server puts on itself before it runs anything: resources, files, network.
//!
//! # Invariants
//! - A confinement that was requested and is not enforced at all is an error, and the server then
//!   never starts.
//! - With the network off, only local sockets can be created.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};
use lucid_exec::protocol::{Confine, ResourceLimits, Serve};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The newest Landlock ABI known here; an older kernel enforces the rules it has.
const RULES: ABI = ABI::V10;

/// A limit or a confinement that was requested and is not enforced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// The kernel refused a resource limit.
    #[error("the limit {resource:?} of {value} was refused: {cause}")]
    Limit {
        resource: Resource,
        value: u64,
        #[source]
        cause: Errno,
    },
    /// Landlock was requested, and does not work.
    #[error("Landlock cannot confine this session: {0}")]
    Files(#[source] RestrictionError),
    /// The system call filter was requested, and does not work.
    #[error("seccomp cannot confine this session: {0}")]
    Sockets(#[source] RestrictionError),
    /// The probe failed.
    #[error("Landlock does not work here: {0}")]
    Probe(#[source] RestrictionError),
}

/// A restriction that the kernel does not put on this process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestrictionError {
    /// Landlock refused a rule.
    #[error(transparent)]
    Landlock(#[from] landlock::RulesetError),
    /// Landlock accepted the rules without effect.
    #[error(
        "the kernel enforces none of its rules (it needs Linux 5.13 with `landlock` in its LSM list)"
    )]
    NotEnforced,
    /// The system call filter was not built or not installed.
    #[error(transparent)]
    Seccomp(#[from] seccompiler::Error),
}

/// Applies limits and confinement to this thread and everything it starts from now on.
pub(crate) fn apply(serve: &Serve) -> Result<(), ConfineError> {
    limit(&serve.limits)?;
    if let Some(confine) = &serve.confine {
        restrict_files(confine).map_err(ConfineError::Files)?;
        restrict_sockets(confine.network).map_err(ConfineError::Sockets)?;
    }
    Ok(())
}

/// Checks that Landlock works here. Confines this process, which is about to end.
pub(crate) fn probe() -> Result<(), ConfineError> {
    let confine = Confine {
        read_only: vec!["/".to_owned()],
        ..Confine::default()
    };
    restrict_files(&confine)
        .and_then(|()| restrict_sockets(false))
        .map_err(ConfineError::Probe)
}

fn restrict_files(confine: &Confine) -> Result<(), RestrictionError> {
    let all = AccessFs::from_all(RULES);
    // Connecting to a local socket is allowed below every folder that is let through.
    let read = AccessFs::from_read(RULES) | (all & AccessFs::ResolveUnix);
    let build = || -> Result<_, landlock::RulesetError> {
        let mut rules = Ruleset::default()
            .handle_access(all)?
            .scope(Scope::from_all(RULES))?;
        if !confine.network {
            rules = rules.handle_access(AccessNet::from_all(RULES))?;
        }
        rules
            .create()?
            .add_rules(path_beneath_rules(&confine.read_only, read))?
            .add_rules(path_beneath_rules(&confine.read_write, all))?
            .restrict_self()
    };
    let status = build()?;
    if status.ruleset == RulesetStatus::NotEnforced || !status.no_new_privs {
        return Err(RestrictionError::NotEnforced);
    }
    Ok(())
}

/// Restricts sockets with a small system call filter: on most kernels Landlock covers neither UDP
/// nor raw nor VM sockets. io_uring, which creates sockets past such a filter, is blocked with
/// them.
fn restrict_sockets(network: bool) -> Result<(), RestrictionError> {
    let mut allowed = vec![libc::AF_UNIX];
    if network {
        allowed.extend([libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK]);
    }
    let build = || -> Result<BpfProgram, seccompiler::Error> {
        let others = allowed
            .iter()
            .map(|family| {
                SeccompCondition::new(
                    0,
                    SeccompCmpArgLen::Dword,
                    SeccompCmpOp::Ne,
                    family.cast_unsigned().into(),
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut rules = BTreeMap::new();
        rules.insert(libc::SYS_socket, vec![SeccompRule::new(others)?]);
        rules.insert(libc::SYS_io_uring_setup, Vec::new());
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EACCES.cast_unsigned()),
            std::env::consts::ARCH.try_into()?,
        )?;
        Ok(filter.try_into()?)
    };
    seccompiler::apply_filter(&build()?)?;
    Ok(())
}

fn limit(limits: &ResourceLimits) -> Result<(), ConfineError> {
    let processes = limits.processes
        + if limits.shared_user {
            threads_of_this_user()
        } else {
            0
        };
    let wanted = [
        (Resource::Core, Some(0)),
        (Resource::Nofile, Some(limits.open_files)),
        (Resource::Fsize, Some(limits.file_bytes)),
        (Resource::Nproc, Some(processes)),
        (Resource::Data, limits.data_bytes),
    ];
    for (resource, value) in wanted {
        let Some(value) = value else { continue };
        // Never above this process's own hard limit.
        let value = getrlimit(resource)
            .maximum
            .map_or(value, |most| value.min(most));
        setrlimit(
            resource,
            Rlimit {
                current: Some(value),
                maximum: Some(value),
            },
        )
        .map_err(|cause| ConfineError::Limit {
            resource,
            value,
            cause,
        })?;
    }
    Ok(())
}

fn threads_of_this_user() -> u64 {
    let user = rustix::process::getuid().as_raw();
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(|first: char| first.is_ascii_digit())
        })
        .filter(|entry| entry.metadata().is_ok_and(|data| data.uid() == user))
        .map(|entry| {
            std::fs::read_dir(entry.path().join("task")).map_or(1, |tasks| tasks.count() as u64)
        })
        .sum()
}
