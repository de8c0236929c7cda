//! Owns that no core dump of this process holds a key.
//!
//! A process that dies of a signal (a fault in native code, an abort, an operator's `kill -ABRT`) may
//! leave all of its memory in a file: in its working directory, or with whatever the machine's
//! `core_pattern` names, where it is kept, copied and sent in as a bug report. This process's memory
//! holds users' keys. What always holds: from the first line of `main` on there is none, in two ways,
//! since a core that is piped to a program has no limit in size: the size is 0, and no mapping of
//! memory belongs to it. Processes that are started from here inherit both.
//!
//! The process stays "dumpable" (`PR_SET_DUMPABLE`) all the same. That would also hide it from
//! debuggers and profilers of the operator's own, and what runs in a sandbox is kept away from it by
//! the sandbox.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Which mappings a core dump holds, see core(5). Where the kernel knows no core dumps it is missing.
const FILTER: &str = "/proc/self/coredump_filter";

/// From here on a crash leaves nothing behind.
pub(super) fn forbid() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Less is always granted.
    let _ = setrlimit(Resource::Core, none);
    let _ = std::fs::write(FILTER, "0");
}
