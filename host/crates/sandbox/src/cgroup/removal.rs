//! Ends the processes of a group and removes it.
//!
//! # Invariants
//! - A process is signalled only while it is in the group: its number may belong to another by then.
//! - A group that is gone counts as removed.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long killed processes may take to leave a group.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two looks: nothing that both versions have tells when a group is empty.
const PAUSE: Duration = Duration::from_millis(2);

/// Ends what is in a group, and removes it. Blocks.
pub(super) fn remove(group: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => return Ok(()),
                // Processes are in it.
                ErrorKind::ResourceBusy if Instant::now() < deadline => {}
                _ => return Err(error),
            },
        }
        kill_all(group);
        std::thread::sleep(PAUSE);
    }
}

/// The same with the groups below it.
pub(super) fn remove_with_inner(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    remove(group)
}

fn kill_all(group: &Path) {
    let at_once = group.join("cgroup.kill");
    if at_once.exists() && fs::write(at_once, "1").is_ok() {
        return;
    }
    let open = |process| Some((process, pidfd_open(process, PidfdFlags::empty()).ok()?));
    let opened: Vec<_> = processes(group).into_iter().filter_map(open).collect();
    let still = processes(group);
    for (process, handle) in opened {
        if still.contains(&process) {
            let _ = pidfd_send_signal(handle, Signal::KILL);
        }
    }
}

fn processes(group: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let numbers = text.lines().filter_map(|line| line.parse().ok());
    numbers.filter_map(Pid::from_raw).collect()
}
