//! Whether the host may look into the processes of other users.

use std::fs;

/// CAP_SYS_PTRACE in a set of capabilities (capabilities(7)).
const SYS_PTRACE: u64 = 1 << 19;

/// Whether the host may look at what processes of sandboxes have open and where their mounts are. Without
/// this, root may not for those of other users, who are all of them.
pub(super) fn sees_all() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    !rustix::process::geteuid().is_root() || may_trace(&status)
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
}
