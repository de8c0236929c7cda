//! Counts how often a sandbox hit its limits, as the kernel reports it in its control group.
//!
//! # Invariants
//! - A sandbox whose group cannot be seen, or that has none of its own, counts nothing.
//! - A hit is told to each command that ran meanwhile. One that happened while none ran is told to the
//!   next, once.

use std::path::PathBuf;

use parking_lot::Mutex;

/// The files of cgroup v1 and v2 that hold the counter, and its name in them.
const MEMORY: ([&str; 2], &str) = (
    [
        "/sys/fs/cgroup/memory/memory.oom_control",
        "/sys/fs/cgroup/memory.events",
    ],
    "oom_kill",
);
const PROCESSES: ([&str; 2], &str) = (
    [
        "/sys/fs/cgroup/pids/pids.events",
        "/sys/fs/cgroup/pids.events",
    ],
    "max",
);

/// The counters of this sandbox.
pub(crate) struct Pressure {
    memory: Option<PathBuf>,
    processes: Option<PathBuf>,
    told: Mutex<ToldCounts>,
}

/// What the kernel has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PressureCounts {
    /// Processes that were killed for memory.
    pub(crate) memory_kills: u64,
    /// Processes that were refused.
    pub(crate) refused_processes: u64,
}

/// What commands were told.
#[derive(Default)]
struct ToldCounts {
    hits: PressureCounts,
    /// The commands that run.
    running: usize,
}

/// A command that runs.
pub(crate) struct CommandPressure<'a> {
    pressure: &'a Pressure,
    /// What was counted before it and is not for it to tell.
    before: PressureCounts,
}

impl CommandPressure<'_> {
    /// What it has met so far. No command that begins after this is told of that.
    pub(crate) fn hits(&self) -> PressureCounts {
        let mut told = self.pressure.told.lock();
        let now = self.pressure.now(told.hits);
        told.hits = now;
        PressureCounts {
            memory_kills: now.memory_kills.saturating_sub(self.before.memory_kills),
            refused_processes: now
                .refused_processes
                .saturating_sub(self.before.refused_processes),
        }
    }
}

impl Drop for CommandPressure<'_> {
    fn drop(&mut self) {
        self.pressure.told.lock().running -= 1;
    }
}

impl Pressure {
    /// Finds the counters. Their current values are the baseline.
    pub(crate) fn find() -> Self {
        let there = |(paths, _): ([&str; 2], &str)| {
            paths
                .iter()
                .map(PathBuf::from)
                .find(|path| std::fs::File::open(path).is_ok())
        };
        let pressure = Self {
            memory: there(MEMORY),
            processes: there(PROCESSES),
            told: Mutex::default(),
        };
        let hits = pressure.now(PressureCounts::default());
        pressure.told.lock().hits = hits;
        pressure
    }

    /// Begins to count for a command.
    pub(crate) fn begin(&self) -> CommandPressure<'_> {
        let mut told = self.told.lock();
        // What those that run have met is theirs.
        let before = match told.running {
            0 => told.hits,
            _ => self.now(told.hits),
        };
        told.running += 1;
        CommandPressure {
            pressure: self,
            before,
        }
    }

    /// What the kernel has counted by now; what cannot be read is as it was.
    fn now(&self, last: PressureCounts) -> PressureCounts {
        let read = |path: &Option<PathBuf>, name| {
            path.as_ref()
                .and_then(|path| std::fs::read_to_string(path).ok())
                .and_then(|text| counter(&text, name))
        };
        PressureCounts {
            memory_kills: read(&self.memory, MEMORY.1).unwrap_or(last.memory_kills),
            refused_processes: read(&self.processes, PROCESSES.1).unwrap_or(last.refused_processes),
        }
    }
}

fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_by_its_whole_name() {
        let text = "oom_kill_disable 1\nunder_oom 0\noom_kill 3\n";
        assert_eq!(counter(text, "oom_kill"), Some(3));
        assert_eq!(counter(text, "max"), None);
        assert_eq!(counter("max many\n", "max"), None);
    }

    #[test]
    fn a_hit_is_told_to_the_commands_that_ran_meanwhile_and_otherwise_to_the_next() {
        let file = std::env::temp_dir().join(format!("lucid-pressure-{}", std::process::id()));
        let count = |refused: u64| std::fs::write(&file, format!("max {refused}\n")).unwrap();
        count(2);
        let pressure = Pressure {
            memory: None,
            processes: Some(file.clone()),
            told: Mutex::default(),
        };
        let hits = |refused_processes| PressureCounts {
            refused_processes,
            ..PressureCounts::default()
        };
        assert_eq!(pressure.begin().hits(), hits(2));
        let (one, two) = (pressure.begin(), pressure.begin());
        count(3);
        let late = pressure.begin();
        assert_eq!(late.hits(), hits(0), "it began after that");
        assert_eq!((one.hits(), two.hits()), (hits(1), hits(1)));
        drop((one, two, late));
        assert_eq!(pressure.begin().hits(), hits(0), "it is told already");
        count(5);
        assert_eq!(pressure.begin().hits(), hits(2));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(pressure.begin().hits(), hits(0));
    }
}
