//! The restrictions the server puts on itself before it runs anything: resources, files, system
//! calls, network, keys.
//!
//! # Invariants
//! - A confinement that was requested and is not enforced at all is an error, and the server then
//!   never starts.
//! - Where the kernel cannot limit TCP to the proxy's port, only local sockets can be created.

use std::os::unix::fs::MetadataExt;

use keyutils::Keyring;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use lucid_exec::protocol::{Confine, ResourceLimits, Serve, Sockets};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::proxy::ProxyListener;
use crate::system_calls;

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
    SystemCalls(#[source] RestrictionError),
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

/// Applies limits and confinement to this thread and everything it starts from now on. Returns
/// whether the proxy can be reached from here.
pub(crate) fn apply(serve: &Serve, proxy: Option<&ProxyListener>) -> Result<bool, ConfineError> {
    limit(&serve.limits)?;
    let sockets = serve.sockets.map(enforceable);
    if let Some(confine) = &serve.confine {
        let port = proxy.map(ProxyListener::port);
        restrict_files(confine, sockets.unwrap_or(Sockets::Ip), port)
            .map_err(ConfineError::Files)?;
    }
    if let Some(sockets) = sockets {
        restrict_system_calls(sockets).map_err(ConfineError::SystemCalls)?;
    }
    Ok(sockets != Some(Sockets::Local))
}

/// Leaves the session keyring that was inherited from the host, with its keys. A kernel without
/// keyrings has none to leave.
pub(crate) fn leave_session_keyring() {
    let _ = Keyring::join_anonymous_session();
}

/// Checks that Landlock works here. Confines this process, which is about to end.
pub(crate) fn probe() -> Result<(), ConfineError> {
    let confine = Confine {
        read_only: vec!["/".to_owned()],
        ..Confine::default()
    };
    restrict_files(&confine, Sockets::Local, None)
        .and_then(|()| restrict_system_calls(Sockets::Local))
        .map_err(ConfineError::Probe)
}

/// What the kernel can enforce of it: rules for TCP ports came with Linux 6.7.
fn enforceable(sockets: Sockets) -> Sockets {
    let knows_ports = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessNet::ConnectTcp)
            .is_ok()
    };
    match sockets {
        Sockets::Proxy if !knows_ports() => Sockets::Local,
        sockets => sockets,
    }
}

fn restrict_files(
    confine: &Confine,
    sockets: Sockets,
    proxy: Option<u16>,
) -> Result<(), RestrictionError> {
    let all = AccessFs::from_all(RULES);
    // Connecting to a local socket is allowed below every folder that is let through.
    let read = AccessFs::from_read(RULES) | (all & AccessFs::ResolveUnix);
    let build = || -> Result<_, landlock::RulesetError> {
        let mut rules = Ruleset::default()
            .handle_access(all)?
            .scope(Scope::from_all(RULES))?;
        if sockets != Sockets::Ip {
            rules = rules.handle_access(AccessNet::from_all(RULES))?;
        }
        let mut rules = rules.create()?;
        if let (Sockets::Proxy, Some(port)) = (sockets, proxy) {
            rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
        rules
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

fn restrict_system_calls(sockets: Sockets) -> Result<(), RestrictionError> {
    for filter in [system_calls::allowed()?, system_calls::sockets(sockets)?] {
        seccompiler::apply_filter(&filter)?;
    }
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
        (Resource::Fsize, Some(limits.file_bytes)),
        (Resource::Nproc, Some(processes)),
        (Resource::Data, limits.data_bytes),
    ];
    for (resource, value) in wanted {
        let Some(value) = value else { continue };
        set(resource, value)?;
    }
    let most = getrlimit(Resource::Nofile).maximum;
    most.map_or(Ok(()), |most| set(Resource::Nofile, most))
}

/// Limits the open files of this process and of what it starts. Only after this process has sent the host
/// its descriptors: the kernel counts those that any process of this user sent and nobody received yet,
/// and one that may have no more open files than that many sends none. So commands that fill
/// queues with descriptors, here or in another sandbox of the same user, do not keep one that may have more
/// than they may from starting.
pub(crate) fn limit_open_files(most: u64) -> Result<(), ConfineError> {
    set(Resource::Nofile, most)
}

/// Sets both limits, never above this process's own hard limit.
fn set(resource: Resource, value: u64) -> Result<(), ConfineError> {
    let value = getrlimit(resource)
        .maximum
        .map_or(value, |most| value.min(most));
    let both = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    setrlimit(resource, both).map_err(|cause| ConfineError::Limit {
        resource,
        value,
        cause,
    })
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
