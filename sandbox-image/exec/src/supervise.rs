//! A process above the server, outside its restrictions, for sandboxes without a process namespace.
//!
//! # Invariants
//! - Hostile code below can neither signal nor stop this process, so when the host goes, or the
//!   server does, everything that was ever started below is killed.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, set_child_subreaper,
    set_dumpable_behavior, setsid, waitpid,
};

use crate::children;

/// Runs the server as a child until it or the host is gone.
pub(crate) fn run(json: &str) -> Result<(), String> {
    // Detaches from the host's terminal: only the host decides when it ends.
    let _ = setsid();
    set_child_subreaper(Some(getpid())).map_err(|error| error.to_string())?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| error.to_string())?;
    let itself = std::env::current_exe()
        .map_err(|error| format!("the program cannot find itself: {error}"))?;
    let child = Command::new(itself)
        .args(["--serve", json])
        .stdin(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("the server could not be started: {error}"))?;
    let pid = Pid::from_child(&child);
    let server = pidfd_open(pid, PidfdFlags::empty())
        .map_err(|error| format!("the server cannot be watched: {error}"))?;
    let stdin = std::io::stdin();
    let outcome = loop {
        // No event is requested: the end of the socket is reported anyway.
        let mut watched = [
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::empty()),
            PollFd::from_borrowed_fd(server.as_fd(), PollFlags::IN),
        ];
        match poll(&mut watched, None) {
            Err(error) if error == rustix::io::Errno::INTR => {}
            Err(error) => break Err(format!("nothing can be watched: {error}")),
            Ok(_) if !watched[1].revents().is_empty() => {
                let failed = matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some((_, status))) if status.exit_status() != Some(0));
                break if failed {
                    Err("the server ended badly".to_owned())
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
