//! The processes below this one: starting them, reaping them, and killing them all.
//!
//! # Invariants
//! - Processes are reaped in one place only.
//! - Every child, our own or an orphan reparented to us as subreaper, is reaped at once, so no
//!   zombie stays.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, WaitIdOptions, WaitOptions, WaitStatus};

use crate::command::Note;

#[derive(Default)]
struct Table {
    /// The channels to notify when a process ends.
    waiting: HashMap<i32, Sender<Note>>,
    /// Incremented with each start, so that the reaper knows there may be children again.
    starts: u64,
}

/// All children of the server.
#[derive(Default)]
pub(crate) struct Children {
    table: Mutex<Table>,
    started: Condvar,
}

impl Children {
    /// Starts the one thread that reaps.
    pub(crate) fn watched() -> io::Result<Arc<Self>> {
        let children = Arc::new(Self::default());
        let reaper = Arc::clone(&children);
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || reaper.reap())?;
        Ok(children)
    }

    /// Starts a process whose end is reported to `notes`. Only this process inherits `open`, under
    /// the same number.
    pub(crate) fn spawn(
        &self,
        command: &mut Command,
        open: Option<&OwnedFd>,
        notes: &Sender<Note>,
    ) -> io::Result<Pid> {
        // The lock is held during the start: std waits for a child whose exec failed, and the
        // reaper must neither take that child away nor reap a good one before it is in the table.
        let mut table = self.table.lock();
        if let Some(open) = open {
            fcntl_setfd(open, FdFlags::empty())?;
        }
        let child = command.spawn();
        if let Some(open) = open {
            fcntl_setfd(open, FdFlags::CLOEXEC)?;
        }
        let child = child?;
        let pid = Pid::from_child(&child);
        table
            .waiting
            .insert(pid.as_raw_nonzero().get(), notes.clone());
        table.starts += 1;
        self.started.notify_all();
        Ok(pid)
    }

    fn reap(&self) {
        loop {
            let seen = self.table.lock().starts;
            // Peeks without reaping: the process that ended may be a failed start that std wants to
            // reap.
            let ended = rustix::process::waitid(
                rustix::process::WaitId::All,
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            );
            let mut table = self.table.lock();
            if ended.is_err_and(|error| error == rustix::io::Errno::CHILD) {
                while table.starts == seen {
                    self.started.wait(&mut table);
                }
                continue;
            }
            while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                if let Some(notes) = table.waiting.remove(&pid.as_raw_nonzero().get()) {
                    let _ = notes.send(Note::Ended(status));
                }
            }
        }
    }
}

/// Kills every descendant of this process, however it hid: orphans are reparented to the subreaper,
/// so each round finds what the last one uncovered. Gives up after some seconds against processes
/// that fork faster.
pub(crate) fn kill_all_below() {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_))) {}
        let below = descendants(std::process::id().cast_signed());
        if below.is_empty() {
            return;
        }
        // Stopped first, so that a fork bomb does not outrun the killing.
        for signal in [Signal::STOP, Signal::KILL] {
            for pid in below.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
        std::thread::yield_now();
    }
}

/// Every living process below `root`, by the parents in /proc.
fn descendants(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(stat) = std::fs::read(entry.path().join("stat")) else {
            continue;
        };
        // The format is `pid (name) state parent …`, and the name may contain anything.
        let Some(end) = stat.iter().rposition(|byte| *byte == b')') else {
            continue;
        };
        let rest = String::from_utf8_lossy(&stat[end + 1..]);
        let mut fields = rest.split_ascii_whitespace();
        let (state, parent) = (
            fields.next(),
            fields.next().and_then(|parent| parent.parse().ok()),
        );
        if let (Some(state), Some(parent)) = (state, parent)
            && state != "X"
        {
            children
                .entry(parent)
                .or_default()
                .push(if state == "Z" { -pid } else { pid });
        }
    }
    let (mut found, mut todo, mut seen) = (Vec::new(), vec![root], HashSet::new());
    while let Some(parent) = todo.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            // A zombie is dead already, but perhaps only its main thread is: look below it too.
            if child > 0 {
                found.push(child);
            }
            if seen.insert(child.abs()) {
                todo.push(child.abs());
            }
        }
    }
    found
}

/// The exit code or the signal of a status.
pub(crate) fn outcome(status: WaitStatus) -> (Option<i32>, Option<i32>) {
    (status.exit_status(), status.terminating_signal())
}
