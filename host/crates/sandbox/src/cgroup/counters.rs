//! How often a sandbox hit the limits of its group, as the kernel counts it.
//!
//! # Invariants
//! - Each hit is told once.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use parking_lot::Mutex;

use super::{Controller, Group, Version};

/// How much of a file is read, which is several times what the kernel writes.
const LONGEST: usize = 1024;

/// The counters of a sandbox's group. The files stay open: they are read after every command.
#[derive(Debug, Default)]
pub(super) struct Counters {
    memory: Option<File>,
    processes: Option<File>,
    told: Mutex<(u64, u64)>,
}

impl Counters {
    pub(super) fn of(groups: &[Group]) -> Self {
        let file = |controller, one, two| {
            let group = groups
                .iter()
                .find(|it| it.controllers.contains(&controller))?;
            let name = match group.version {
                Version::One => one,
                Version::Two => two,
            };
            File::open(group.path.join(name)).ok()
        };
        Self {
            memory: file(Controller::Memory, "memory.oom_control", "memory.events"),
            processes: file(Controller::Processes, "pids.events", "pids.events"),
            told: Mutex::default(),
        }
    }

    /// How many processes were killed for memory, and how many were refused, since the last call.
    pub(super) fn since_last(&self) -> (u64, u64) {
        let mut told = self.told.lock();
        let now = (
            read(self.memory.as_ref(), "oom_kill").unwrap_or(told.0),
            read(self.processes.as_ref(), "max").unwrap_or(told.1),
        );
        let rose = (now.0.saturating_sub(told.0), now.1.saturating_sub(told.1));
        *told = now;
        rose
    }

    /// Whether a process was ever killed for memory.
    pub(super) fn killed_for_memory(&self) -> bool {
        read(self.memory.as_ref(), "oom_kill").is_some_and(|kills| kills > 0)
    }
}

fn read(file: Option<&File>, name: &str) -> Option<u64> {
    let mut buffer = [0; LONGEST];
    let length = file?.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(&buffer[..length]).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}
