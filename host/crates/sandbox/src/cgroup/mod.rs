//! Control groups: the limits of a sandbox as a whole, kept by the kernel.
//!
//! The host has a group of its own in each hierarchy that it can use, and every sandbox one below it.
//! Both versions are used where this process may write to its group, version 2 because it was delegated
//! or the process is root.
//!
//! # Layout
//! - `locate` finds the groups that this process is in, `v1` and `v2` make the host's group there and
//!   know the files of their version.
//! - `record` remembers the host's groups, so that those of a host that crashed are removed.
//! - `shares` divides processor time by user.
//! - `removal` ends what is in a group and removes it; `counters` tells which limit was hit.
//!
//! # Invariants
//! - A sandbox's group has its limits before a process joins it.
//! - A host touches no group but its own and those of a host with the same runtime folder that is gone.
//! - A group is used only after a process really joined one here.

mod counters;
mod locate;
mod record;
mod removal;
mod shares;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

pub(crate) use self::counters::CountedCommand;
use self::counters::Counters;
use self::locate::OwnGroup;
use self::record::Record;
use self::shares::Shares;
use crate::busy_program;
use crate::settings::LEAST_MEMORY;
use crate::trace_right;
use lucid_exec::protocol::Launch;

/// The period of a group's processor quota, in microseconds.
const PERIOD: u64 = 100_000;
/// The least quota that the kernel takes, in microseconds.
const LEAST_QUOTA: u64 = 1000;

/// What a group limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Processes,
    Processors,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Processes, Self::Processors];

    /// The kernel's name for it.
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Processes => "pids",
            Self::Processors => "cpu",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Memory => "memory",
            Self::Processes => "processes",
            Self::Processors => "processors",
        })
    }
}

/// The version of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The file that a process with a single thread writes 0 to in order to join a group. In version
    /// 1, moving a thread needs no lock that waits for all processors, and moving a process does.
    fn entry(self) -> &'static str {
        match self {
            Self::One => "tasks",
            Self::Two => "cgroup.procs",
        }
    }
}

/// Why something cannot be had of a hierarchy.
#[derive(Debug, thiserror::Error)]
enum GroupError {
    /// A file or folder of it refuses.
    #[error("{}: {cause}", .path.display())]
    Refused {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// None of the controllers that are wanted is offered to this process.
    #[error("{} offers none of the controllers", .0.display())]
    NoControllers(PathBuf),
    /// This process is in no group that can be found.
    #[error("no hierarchy is mounted that this process is in")]
    None,
    /// No process joins a group.
    #[error("no process can join one: {0}")]
    Join(String),
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> GroupError {
    let path = path.to_owned();
    move |cause| GroupError::Refused { path, cause }
}

/// Writes to a file of a group.
fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), GroupError> {
    fs::write(path, text).map_err(refused(path))
}

/// The limits of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GroupLimits {
    pub(crate) memory_bytes: u64,
    pub(crate) processes: u32,
    pub(crate) processors: f64,
}

impl GroupLimits {
    fn memory(&self) -> u64 {
        self.memory_bytes.max(LEAST_MEMORY)
    }

    /// Microseconds of processor time in each [`PERIOD`].
    fn quota(&self) -> u64 {
        ((self.processors * PERIOD as f64) as u64).max(LEAST_QUOTA)
    }
}

/// A hierarchy with the host's group in it.
#[derive(Debug)]
struct Hierarchy {
    version: Version,
    /// The host's group.
    group: PathBuf,
    controllers: Vec<Controller>,
    /// What was done to the group above it.
    changes: Option<v2::GroupChanges>,
}

impl Hierarchy {
    /// Has a process join a group.
    fn try_one(&self, exec: &Path) -> Result<(), GroupError> {
        let limits = GroupLimits {
            memory_bytes: LEAST_MEMORY,
            processes: 64,
            processors: 1.0,
        };
        let group = self.make("trial", &limits)?;
        let launch = Launch {
            groups: vec![group.entry()],
            ..Launch::default()
        };
        let launch =
            serde_json::to_string(&launch).map_err(|error| GroupError::Join(error.to_string()))?;
        // No other program is on every machine.
        let mut trial = Command::new(exec);
        trial
            .args(["--launch", &launch, "--"])
            .arg(exec)
            .arg("--version")
            .env_clear()
            .stdin(Stdio::null());
        let joined = busy_program::retry(|| trial.output());
        let _ = removal::remove(&group.path);
        let joined = joined.map_err(|error| GroupError::Join(error.to_string()))?;
        if joined.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&joined.stderr);
        let line = stderr.lines().next().unwrap_or_default();
        let line = line.trim_start_matches("lucid-exec: ").to_owned();
        Err(GroupError::Join(line))
    }

    /// Creates a group with its limits.
    fn make(&self, name: &str, limits: &GroupLimits) -> Result<Group, GroupError> {
        let group = Group {
            version: self.version,
            path: self.group.join(name),
            controllers: self.controllers.clone(),
        };
        let made = self
            .create_group(&group.path)
            .and_then(|()| group.limit(limits));
        if let Err(error) = made {
            let _ = removal::remove(&group.path);
            return Err(error);
        }
        Ok(group)
    }

    /// Removes the host's group, and leaves what is above it as it was found.
    fn discard(&self) {
        let _ = removal::remove_with_inner(&self.group);
        if let Some(changes) = &self.changes {
            changes.undo();
        }
    }

    /// Creates the group of a sandbox, and the host's again if somebody removed that. The record still
    /// names it.
    fn create_group(&self, group: &Path) -> Result<(), GroupError> {
        match fs::create_dir(group) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            made => return made.map_err(refused(group)),
        }
        match fs::create_dir(&self.group) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(refused(&self.group)(error));
            }
            _ => {}
        }
        if self.version == Version::Two {
            v2::renew(self)?;
        }
        tracing::warn!(path = %self.group.display(), "the server's control group was gone, and was made again");
        fs::create_dir(group).map_err(refused(group))
    }
}

/// The host's groups.
#[derive(Debug)]
pub(crate) struct ControlGroups {
    hierarchies: Vec<Hierarchy>,
    /// Why the rest cannot be had.
    reasons: Vec<String>,
    record: Record,
    shares: Shares,
}

impl ControlGroups {
    /// Finds what can be had here, and removes what hosts that are gone left behind. `exec` is the
    /// exec server, which joins a group to try it.
    pub(crate) fn find(run_dir: &Path, exec: &Path) -> Self {
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let own = locate::own_groups(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        Self::in_groups(&own, run_dir).that_work(exec)
    }

    /// No groups, as on a machine that offers none.
    #[cfg(test)]
    pub(crate) fn none(_: &Path, _: &Path) -> Self {
        Self {
            hierarchies: Vec::new(),
            reasons: vec!["this test has none".to_owned()],
            record: Record::default(),
            shares: Shares::default(),
        }
    }

    fn in_groups(own: &[OwnGroup], run_dir: &Path) -> Self {
        let mut reasons = Vec::new();
        let record = Record::create(run_dir).unwrap_or_else(|error| {
            reasons.push(error.to_string());
            Record::default()
        });
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        // Version 2 comes first: what it has is not in version 1.
        let (second, first): (Vec<_>, Vec<_>) =
            own.iter().partition(|it| it.version == Version::Two);
        for own in second.into_iter().chain(first) {
            let mut missing = Controller::ALL.to_vec();
            missing.retain(|it| !hierarchies.iter().any(|has| has.controllers.contains(it)));
            let made = match own.version {
                Version::One => v1::host_group(own, &missing, &record),
                Version::Two => v2::host_group(own, &missing, &record),
            };
            match made {
                Ok(Some(hierarchy)) => hierarchies.push(hierarchy),
                Ok(None) => {}
                Err(error) => reasons.push(error.to_string()),
            }
        }
        if own.is_empty() {
            reasons.push(GroupError::None.to_string());
        }
        Self {
            hierarchies,
            reasons,
            record,
            shares: Shares::default(),
        }
    }

    /// Without those hierarchies in which no process can join a group: what is limited elsewhere stays
    /// so.
    fn that_work(mut self, exec: &Path) -> Self {
        for hierarchy in std::mem::take(&mut self.hierarchies) {
            match hierarchy.try_one(exec) {
                Ok(()) => self.hierarchies.push(hierarchy),
                Err(error) => {
                    hierarchy.discard();
                    self.reasons.push(error.to_string());
                }
            }
        }
        self
    }

    /// Whether the kernel limits this for sandboxes as a whole.
    fn has(&self, controller: Controller) -> bool {
        let mut hierarchies = self.hierarchies.iter();
        hierarchies.any(|it| it.controllers.contains(&controller))
    }

    /// Whether the kernel limits the memory of sandboxes.
    pub(crate) fn limit_memory(&self) -> bool {
        self.has(Controller::Memory)
    }

    /// Whether the kernel limits the processes of sandboxes.
    pub(crate) fn limit_processes(&self) -> bool {
        self.has(Controller::Processes)
    }

    /// What the kernel does not limit for sandboxes as a whole, as a sentence for the operator.
    pub(crate) fn shortcoming(&self) -> Option<String> {
        let missing = Controller::ALL.into_iter().filter(|it| !self.has(*it));
        let missing: Vec<String> = missing.map(|it| it.to_string()).collect();
        let (last, others) = missing.split_last()?;
        let what = if others.is_empty() {
            last.clone()
        } else {
            format!("{} and {last}", others.join(", "))
        };
        let why = match &self.reasons[..] {
            [] => "the kernel offers no controller for that".to_owned(),
            reasons => reasons.join("; "),
        };
        let instead = if self.limit_memory() {
            ""
        } else {
            " The server counts their memory itself instead, and ends one that takes more than its limit."
        };
        let lacks = if self.limit_memory() || trace_right::sees_all() {
            ""
        } else {
            " It has no CAP_SYS_PTRACE, so files in memory that no process has mapped do not count."
        };
        Some(format!(
            "No control group limits the {what} of a sandbox as a whole ({why}).{instead}{lacks}"
        ))
    }

    /// Creates the group of a sandbox; `None` if the host has none to create it in. `user` is the folder
    /// of its user's workspaces.
    pub(crate) fn create(
        self: &Arc<Self>,
        name: &str,
        limits: &GroupLimits,
        user: &Path,
    ) -> io::Result<Option<SandboxGroup>> {
        if self.hierarchies.is_empty() {
            return Ok(None);
        }
        let groups = self.make(name, limits).map_err(io::Error::other)?;
        self.shares.join(user, &groups);
        let counters = Counters::of(&groups);
        Ok(Some(SandboxGroup {
            groups,
            counters,
            user: user.to_owned(),
            host: Arc::clone(self),
        }))
    }

    fn make(&self, name: &str, limits: &GroupLimits) -> Result<Vec<Group>, GroupError> {
        let mut groups: Vec<Group> = Vec::new();
        for hierarchy in &self.hierarchies {
            match hierarchy.make(name, limits) {
                Ok(group) => groups.push(group),
                Err(error) => {
                    for group in &groups {
                        let _ = removal::remove(&group.path);
                    }
                    return Err(error);
                }
            }
        }
        Ok(groups)
    }

    fn remove(&self) {
        for hierarchy in &self.hierarchies {
            let _ = removal::remove_with_inner(&hierarchy.group);
        }
        self.record.remove();
    }
}

impl Drop for ControlGroups {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A sandbox's group in one hierarchy.
#[derive(Debug)]
struct Group {
    version: Version,
    path: PathBuf,
    controllers: Vec<Controller>,
}

impl Group {
    fn entry(&self) -> PathBuf {
        self.path.join(self.version.entry())
    }

    fn limit(&self, limits: &GroupLimits) -> Result<(), GroupError> {
        for controller in &self.controllers {
            match self.version {
                Version::One => v1::limit(&self.path, *controller, limits)?,
                Version::Two => v2::limit(&self.path, *controller, limits)?,
            }
        }
        Ok(())
    }
}

/// The group of one sandbox, in all hierarchies. Dropping it ends what is in it.
pub(crate) struct SandboxGroup {
    groups: Vec<Group>,
    counters: Counters,
    user: PathBuf,
    /// Removes the groups above when the last one is gone.
    host: Arc<ControlGroups>,
}

impl SandboxGroup {
    /// The files that a process with a single thread writes 0 to in order to join.
    pub(crate) fn entries(&self) -> Vec<PathBuf> {
        self.groups.iter().map(Group::entry).collect()
    }

    /// Counts what a command that begins now meets of the limits.
    pub(crate) fn begin_command(&self) -> CountedCommand<'_> {
        self.counters.begin()
    }

    /// The reason for the sandbox's end, if it is that memory ran out.
    pub(crate) fn end_reason(&self) -> Option<String> {
        let killed = self.counters.killed_for_memory();
        killed.then(|| "It ended after it had run out of memory.".to_owned())
    }

    /// Ends what is in it, and removes it. Blocks until nothing is in it any more, some seconds at
    /// most.
    pub(crate) fn remove(&self) {
        for group in &self.groups {
            if let Err(error) = removal::remove(&group.path) {
                tracing::warn!(path = %group.path.display(), %error, "a sandbox's control group cannot be removed");
            }
        }
        self.host.shares.leave(&self.user, &self.groups);
    }

    #[cfg(test)]
    pub(crate) fn file(&self, name: &str) -> Option<PathBuf> {
        let mut files = self.groups.iter().map(|group| group.path.join(name));
        files.find(|path| path.exists())
    }
}

impl Drop for SandboxGroup {
    fn drop(&mut self) {
        self.remove();
    }
}
