//! Whether the host may look into the processes of sandboxes.

use std::fs;

/// CAP_SYS_PTRACE in a set of capabilities (capabilities(7)).
const SYS_PTRACE: u64 = 1 << 19;

/// Whether the host may look at what processes of sandboxes have open and where their mounts are. Without
/// this, root may not for those of other users, who are all of them.
pub(super) fn sees_all() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    !rustix::process::geteuid().is_root() || may_trace(&status)
}

/// What an operator has to know where processes of sandboxes are hidden from the host. `counts_memory`: it
/// adds up their memory.
pub(super) fn hidden_remark(sees_them: bool, counts_memory: bool) -> Option<String> {
    let uncounted = if counts_memory {
        "their memory does not count, and neither do files that were removed and are still open"
    } else {
        "files that were removed and are still open do not count"
    };
    (!sees_them).then(|| {
        format!(
            "This server does not see the processes of its sandboxes, since /proc is mounted with hidepid: {uncounted}. Mount /proc without hidepid, or with gid= of a group that the server is in."
        )
    })
}

/// Whether CAP_SYS_PTRACE is effective, by a status (proc(5)).
fn may_trace(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_some_and(|set| set & SYS_PTRACE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_with_the_capability_sees_processes_of_other_users() {
        assert!(may_trace("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        // What Docker gives a container.
        assert!(!may_trace("CapEff:\t00000000a80425fb\n"));
        assert!(!may_trace(""));
    }

    #[test]
    fn it_is_said_what_does_not_count_where_processes_are_hidden() {
        let counted = hidden_remark(false, true).unwrap();
        assert!(
            counted.contains("their memory does not count") && counted.contains("gid="),
            "{counted}"
        );
        let limited = hidden_remark(false, false).unwrap();
        assert!(!limited.contains("memory"), "{limited}");
        assert_eq!(hidden_remark(true, true), None);
    }
}
