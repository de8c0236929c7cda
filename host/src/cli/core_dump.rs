//! Keeps this process's memory out of core dumps.
//!
//! A process that dies of a signal (a fault in native code, an abort, an operator's `kill -ABRT`)
//! may leave all of its memory in a file: in its working directory, or wherever the machine's
//! `core_pattern` says, where it is kept, copied and attached to bug reports. This process's memory
//! holds users' keys.
//!
//! Core dumps are therefore disabled from the first line of `main` on, in two ways, since the size
//! limit does not apply to a core that is piped to a program: the size limit is 0, and no memory
//! mapping is included. Child processes inherit both.
//!
//! The process stays "dumpable" (`PR_SET_DUMPABLE`) all the same. Clearing that flag would also
//! shut out the operator's own debuggers and profilers, and code in a sandbox is kept away from
//! this process by the sandbox.

use rustix::process::{Resource, Rlimit, setrlimit};

/// The mask of mappings in a core dump, see core(5). Missing if the kernel has no core dumps.
const FILTER: &str = "/proc/self/coredump_filter";

/// Disables core dumps from here on.
pub(super) fn forbid() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Lowering a limit is always permitted.
    let _ = setrlimit(Resource::Core, none);
    let _ = std::fs::write(FILTER, "0");
}
