//! How often a sandbox hit the limits of its group, as the kernel counts it.
//!
//! # Invariants
//! - A hit is told to each command that ran meanwhile. One that happened while none ran is told to the
//!   next, once.

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
    told: Mutex<ToldHits>,
}

/// What the kernel has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LimitHits {
    /// Processes that were killed for memory.
    pub(crate) memory_kills: u64,
    /// Processes that were refused.
    pub(crate) refused_processes: u64,
}

impl LimitHits {
    fn since(self, before: Self) -> Self {
        Self {
            memory_kills: self.memory_kills.saturating_sub(before.memory_kills),
            refused_processes: self
                .refused_processes
                .saturating_sub(before.refused_processes),
        }
    }
}

/// What commands were told.
#[derive(Debug, Default)]
struct ToldHits {
    hits: LimitHits,
    /// The commands that run.
    running: usize,
}

/// A command that runs.
pub(crate) struct CountedCommand<'a> {
    counters: &'a Counters,
    /// What was counted before it and is not for it to tell.
    before: LimitHits,
}

impl CountedCommand<'_> {
    /// What it has met so far. Nobody who begins after this is told of that.
    pub(crate) fn hits(&self) -> LimitHits {
        let mut told = self.counters.told.lock();
        told.hits = self.counters.now(told.hits);
        told.hits.since(self.before)
    }
}

impl Drop for CountedCommand<'_> {
    fn drop(&mut self) {
        self.counters.told.lock().running -= 1;
    }
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

    /// Begins to count for a command.
    pub(super) fn begin(&self) -> CountedCommand<'_> {
        let mut told = self.told.lock();
        // What those that run have met is theirs.
        let before = match told.running {
            0 => told.hits,
            _ => self.now(told.hits),
        };
        told.running += 1;
        CountedCommand {
            counters: self,
            before,
        }
    }

    /// What the kernel has counted by now; what cannot be read is as it was.
    fn now(&self, last: LimitHits) -> LimitHits {
        LimitHits {
            memory_kills: read(self.memory.as_ref(), "oom_kill").unwrap_or(last.memory_kills),
            refused_processes: read(self.processes.as_ref(), "max")
                .unwrap_or(last.refused_processes),
        }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn hits(memory_kills: u64) -> LimitHits {
        LimitHits {
            memory_kills,
            ..LimitHits::default()
        }
    }

    #[test]
    fn a_hit_is_told_to_the_commands_that_ran_meanwhile_and_otherwise_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.events");
        let count = |kills: u64| fs::write(&path, format!("oom_kill {kills}\n")).unwrap();
        count(0);
        let counters = Counters {
            memory: File::open(&path).ok(),
            ..Counters::default()
        };
        let (one, two) = (counters.begin(), counters.begin());
        count(1);
        let late = counters.begin();
        assert_eq!(late.hits(), hits(0), "it began after that");
        assert_eq!(two.hits(), hits(1));
        drop(two);
        count(2);
        assert_eq!((one.hits(), late.hits()), (hits(2), hits(1)));
        drop((one, late));
        assert_eq!(counters.begin().hits(), hits(0), "it is told already");
        // Nobody runs, but what was left behind does.
        count(5);
        assert_eq!(counters.begin().hits(), hits(3));
        // One that was given up told nobody.
        let given_up = counters.begin();
        count(6);
        drop(given_up);
        assert_eq!(counters.begin().hits(), hits(1));
        assert_eq!(counters.begin().hits(), hits(0));
    }
}
