//! The system calls that processes in a sandbox may make: two seccomp filters, for all kinds of
//! sandboxes.
//!
//! The list is that of the profile that Docker gives to containers without capabilities, and smaller
//! by what nobody needs in a sandbox: no keyrings, no BPF, no performance counters, no io_uring, no
//! user faults, no mounts, no modules, no namespaces, no reaching into other processes but by ptrace.
//! A call that is not in it fails as on a kernel that does not know it, so that programs use another.
//!
//! # Invariants
//! - What is not named is refused, and with it every call that a later kernel or another calling
//!   convention (x32) adds.
//! - No process can enter or create a namespace.

use std::collections::BTreeMap;

use libc::c_long;
use lucid_exec::protocol::Sockets;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Gives the calling thread descriptors of its own; `libc` has no name for it on every target.
const CLOSE_RANGE_UNSHARE: i32 = 2;
/// The flags of clone(2) that create a namespace.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
/// The persona of personality(2) in which the machine calls itself a 32-bit one.
const LINUX32: i32 = 8;
/// The bits of the second argument of socket(2) that hold no flags.
const TYPE: i32 = 0xf;

/// Calls that are the same on all architectures.
const CALLS: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_adjtimex,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_get_mempolicy,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_io_cancel,
    libc::SYS_io_destroy,
    libc::SYS_io_getevents,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_ioctl,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_madvise,
    libc::SYS_mbind,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
    libc::SYS_mremap,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_process_mrelease,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pselect6,
    libc::SYS_ptrace,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_remap_file_pages,
    libc::SYS_removexattr,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_sendfile,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_mempolicy,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setitimer,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setrlimit,
    libc::SYS_setsid,
    libc::SYS_setsockopt,
    libc::SYS_setuid,
    libc::SYS_setxattr,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_shmget,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_sysinfo,
    libc::SYS_tee,
    libc::SYS_tgkill,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_tkill,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Older calls, which an architecture has beside the ones that replaced them.
#[cfg(target_arch = "x86_64")]
const OLDER_CALLS: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_CALLS: &[c_long] = &[libc::SYS_renameat];

/// Lets the named calls through, whatever their arguments are, but for those that could create a
/// namespace or change how the process is run.
pub(crate) fn allowed() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = CALLS
        .iter()
        .chain(OLDER_CALLS)
        .map(|call| (*call, Vec::new()))
        .collect();
    // clone3(2) has its flags in memory, where no filter sees them; the C libraries use clone(2)
    // where it is missing.
    //
    // Threads of a process share its descriptors: the host looks at those of the first one.
    let thread = libc::CLONE_THREAD | libc::CLONE_FILES;
    rules.insert(
        libc::SYS_clone,
        vec![
            rule(vec![masked(0, NAMESPACES | libc::CLONE_THREAD, 0)?])?,
            rule(vec![masked(0, NAMESPACES | thread, thread)?])?,
        ],
    );
    let shared = masked(2, CLOSE_RANGE_UNSHARE, 0)?;
    rules.insert(libc::SYS_close_range, vec![rule(vec![shared])?]);
    // Limits of this process alone, and those of others only to look: in a sandbox without a process
    // namespace there are others of this user.
    let own = rule(vec![equal(0, 0)?])?;
    let reads = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![own, rule(vec![reads])?]);
    let personas = [
        0,
        libc::ADDR_NO_RANDOMIZE,
        libc::UNAME26,
        LINUX32,
        LINUX32 | libc::UNAME26,
        // Asks what it is.
        -1,
    ];
    let personas = personas.map(|persona| rule(vec![equal(0, persona)?]));
    rules.insert(
        libc::SYS_personality,
        personas.into_iter().collect::<Result<_, _>>()?,
    );
    program(
        rules,
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        SeccompAction::Allow,
    )
}

/// Refuses to create any other socket than these, and with [`Sockets::Proxy`] the ways around rules for
/// TCP's ports.
pub(crate) fn sockets(wanted: Sockets) -> Result<BpfProgram, seccompiler::Error> {
    let mut refused = vec![other_family(wanted)?];
    if wanted != Sockets::Local {
        // What interfaces and routes there are, and nothing else that the kernel tells this way.
        refused.push(rule(vec![
            equal(0, libc::AF_NETLINK)?,
            different(2, libc::NETLINK_ROUTE)?,
        ])?);
    }
    if wanted == Sockets::Proxy {
        // Landlock's rules are for TCP alone: any other socket would reach past them.
        let others = (0..=TYPE).filter(|kind| *kind != libc::SOCK_STREAM);
        for family in [libc::AF_INET, libc::AF_INET6] {
            for kind in others.clone() {
                refused.push(rule(vec![equal(0, family)?, masked(1, TYPE, kind)?])?);
            }
            refused.push(rule(vec![
                equal(0, family)?,
                different(2, 0)?,
                different(2, libc::IPPROTO_TCP)?,
            ])?);
        }
    }
    let mut rules = BTreeMap::from([(libc::SYS_socket, refused)]);
    if wanted == Sockets::Proxy {
        // Connects without a call to connect(2).
        for (call, flags) in [
            (libc::SYS_sendto, 3),
            (libc::SYS_sendmsg, 2),
            (libc::SYS_sendmmsg, 3),
        ] {
            let fast_open = masked(flags, libc::MSG_FASTOPEN, libc::MSG_FASTOPEN)?;
            rules.insert(call, vec![rule(vec![fast_open])?]);
        }
        // Finds a port without a call to bind(2).
        rules.insert(libc::SYS_listen, Vec::new());
    }
    let refusal = SeccompAction::Errno(libc::EACCES.cast_unsigned());
    program(rules, SeccompAction::Allow, refusal)
}

/// Applies to sockets of another family than these.
fn other_family(wanted: Sockets) -> Result<SeccompRule, seccompiler::Error> {
    let families: &[i32] = match wanted {
        Sockets::Local => &[libc::AF_UNIX],
        Sockets::Proxy | Sockets::Ip => &[
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_NETLINK,
        ],
    };
    let conditions = families.iter().map(|family| different(0, *family));
    rule(conditions.collect::<Result<_, _>>()?)
}

/// Applies where all conditions are met.
fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, seccompiler::Error> {
    Ok(SeccompRule::new(conditions)?)
}

fn equal(argument: u8, value: i32) -> Result<SeccompCondition, seccompiler::Error> {
    compare(argument, SeccompCmpOp::Eq, value)
}

fn different(argument: u8, value: i32) -> Result<SeccompCondition, seccompiler::Error> {
    compare(argument, SeccompCmpOp::Ne, value)
}

/// Met if these bits of the argument are those of the value.
fn masked(argument: u8, mask: i32, value: i32) -> Result<SeccompCondition, seccompiler::Error> {
    let mask = mask.cast_unsigned().into();
    compare(argument, SeccompCmpOp::MaskedEq(mask), value)
}

/// The kernel takes these arguments as 32 bits wide, whatever else is in their registers.
fn compare(
    argument: u8,
    operator: SeccompCmpOp,
    value: i32,
) -> Result<SeccompCondition, seccompiler::Error> {
    let value = value.cast_unsigned().into();
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        operator,
        value,
    )?)
}

/// `otherwise` is for calls without a rule that applies.
fn program(
    rules: BTreeMap<c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, otherwise, matched, architecture)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_filters_are_ones_that_the_kernel_takes() {
        assert!(allowed().unwrap().len() < 4096);
        for wanted in [Sockets::Local, Sockets::Proxy, Sockets::Ip] {
            assert!(sockets(wanted).unwrap().len() < 4096);
        }
    }

    #[test]
    fn nothing_that_reaches_keys_namespaces_or_other_processes_is_named() {
        for call in [
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_memfd_secret,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_clone3,
            libc::SYS_pidfd_getfd,
        ] {
            assert!(
                !CALLS.contains(&call) && !OLDER_CALLS.contains(&call),
                "{call}"
            );
        }
    }
}
