//! A process above the server, outside its restrictions, for sandboxes without a process namespace.
//!
//! # Invariants
//! - Hostile code below can neither signal nor stop this process, so when the host goes, or the
//!   server does, everything that was ever started below is killed.

use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, set_child_subreaper,
    set_dumpable_behavior, setsid, waitpid,
};

use crate::children;

/// Why the server did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperviseError {
    /// The process cannot adopt orphans, or not protect itself.
    #[error(transparent)]
    Process(Errno),
    /// The path of the program is unknown.
    #[error("the program cannot find itself: {0}")]
    Executable(#[source] io::Error),
    /// The server did not start.
    #[error("the server could not be started: {0}")]
    Start(#[source] io::Error),
    /// The end of the server cannot be noticed.
    #[error("the server cannot be watched: {0}")]
    Watch(#[source] Errno),
    /// Neither its end nor the host's can be waited for.
    #[error("nothing can be watched: {0}")]
    Poll(#[source] Errno),
    /// The server failed.
    #[error("the server ended badly")]
    Failed,
}

/// Runs the server as a child until it or the host is gone.
pub(crate) fn run(json: &str) -> Result<(), SuperviseError> {
    // Detaches from the host's terminal: only the host decides when it ends.
    let _ = setsid();
    set_child_subreaper(Some(getpid())).map_err(SuperviseError::Process)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(SuperviseError::Process)?;
    let itself = std::env::current_exe().map_err(SuperviseError::Executable)?;
    let child = Command::new(itself)
        .args(["--serve", json])
        .stdin(Stdio::inherit())
        .spawn()
        .map_err(SuperviseError::Start)?;
    let pid = Pid::from_child(&child);
    let server = pidfd_open(pid, PidfdFlags::empty()).map_err(SuperviseError::Watch)?;
    let stdin = std::io::stdin();
    let outcome = loop {
        // No event is requested: the end of the socket is reported anyway.
        let mut watched = [
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::empty()),
            PollFd::from_borrowed_fd(server.as_fd(), PollFlags::IN),
        ];
        match poll(&mut watched, None) {
            Err(Errno::INTR) => {}
            Err(error) => break Err(SuperviseError::Poll(error)),
            Ok(_) if !watched[1].revents().is_empty() => {
                let failed = matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some((_, status))) if status.exit_status() != Some(0));
                break if failed {
                    Err(SuperviseError::Failed)
                } else {
                    Ok(())
                };
            }
            Ok(_) => break Ok(()),
        }
    };
    children::kill_all_below();
    outcome
}
