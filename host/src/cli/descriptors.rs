//! The number of files that this process may have open at a time, sockets among them.
//!
//! The soft limit is 1024 on most systems, for programs that use `select`, which cannot take more. This
//! one does not, so it takes what the hard limit allows, as systemd recommends. Commands in sandboxes
//! have a limit of their own.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one.
pub(super) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // What it is stands in `lucid doctor`.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        );
    }
}

/// The limit as it is now.
pub(super) fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
