//! Counts how often a sandbox hit its limits, as the kernel reports it in its control group.
//!
//! # Invariants
//! - A sandbox whose group cannot be seen, or that has none of its own, counts nothing.
//! - Each hit is reported once.

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
    told: Mutex<(u64, u64)>,
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
        pressure.since_last();
        pressure
    }

    /// How many processes were killed for memory, and how many were refused, since the last call.
    pub(crate) fn since_last(&self) -> (u64, u64) {
        let mut told = self.told.lock();
        let read = |path: &Option<PathBuf>, name| {
            path.as_ref()
                .and_then(|path| std::fs::read_to_string(path).ok())
                .and_then(|text| counter(&text, name))
        };
        let memory = read(&self.memory, MEMORY.1).unwrap_or(told.0);
        let processes = read(&self.processes, PROCESSES.1).unwrap_or(told.1);
        let rose = (
            memory.saturating_sub(told.0),
            processes.saturating_sub(told.1),
        );
        *told = (memory, processes);
        rose
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
    fn a_hit_is_told_once() {
        let dir = std::env::temp_dir().join(format!("lucid-pressure-{}", std::process::id()));
        std::fs::write(&dir, "max 2\n").unwrap();
        let pressure = Pressure {
            memory: None,
            processes: Some(dir.clone()),
            told: Mutex::default(),
        };
        assert_eq!(pressure.since_last(), (0, 2));
        assert_eq!(pressure.since_last(), (0, 0));
        std::fs::write(&dir, "max 5\n").unwrap();
        assert_eq!(pressure.since_last(), (0, 3));
        std::fs::remove_file(&dir).unwrap();
        assert_eq!(pressure.since_last(), (0, 0));
    }
}
