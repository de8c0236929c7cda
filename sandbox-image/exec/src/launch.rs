//! The step between the host and the first process of a sandbox: the host starts this program with its
//! own rights, and it becomes the other one.
//!
//! # Invariants
//! - The control groups are joined first, while there is one process of one thread, so that nothing a
//!   sandbox starts is ever outside of them.
//! - The rights of the host are gone before the other program begins.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use lucid_exec::protocol::Launch;
use nix::sched::{CloneFlags, unshare};

/// How early the kernel ends this process when memory runs out.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Why the other program did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// There is none.
    #[error("there is no program to launch")]
    Program,
    /// A control group did not take this process.
    #[error("the control group {} cannot be joined: {cause}", .group.display())]
    Group {
        group: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// It cannot be run.
    #[error("{} cannot be run: {cause}", .program.display())]
    Run {
        program: OsString,
        #[source]
        cause: io::Error,
    },
}

/// Becomes the program, and returns only if it cannot.
pub(crate) fn run(launch: &Launch, program: &[OsString]) -> Result<(), LaunchError> {
    let (program, arguments) = program.split_first().ok_or(LaunchError::Program)?;
    for group in &launch.groups {
        // 0 is whoever writes it.
        fs::write(group, "0").map_err(|cause| LaunchError::Group {
            group: group.clone(),
            cause,
        })?;
    }
    // Fails where /proc is read-only, which no command can change either.
    let _ = fs::write(OOM_SCORE, launch.oom_score_adj.to_string());
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(user) = launch.user {
        // What System V and POSIX keep beyond processes ends with the sandbox. A kind with namespaces makes
        // its own, and a machine may refuse.
        let _ = unshare(CloneFlags::CLONE_NEWIPC);
        // std drops the supplementary groups along with the user.
        command.uid(user).gid(user);
    }
    Err(LaunchError::Run {
        program: program.clone(),
        cause: command.exec(),
    })
}
