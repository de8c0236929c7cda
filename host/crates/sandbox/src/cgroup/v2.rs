//! The one hierarchy of version 2.
//!
//! A group that hands controllers to the groups below it may have no processes of its own. So the host
//! moves itself to a leaf beside the sandboxes' groups first.
//!
//! # Invariants
//! - A group that cannot be used is left as it was found, with this process in it.
//! - Other processes are moved only in a container of the host's own, whose root the group is.

use std::fs;
use std::path::{Path, PathBuf};

use super::locate::OwnGroup;
use super::record::Record;
use super::{Controller, GroupError, GroupLimits, Hierarchy, PERIOD, Version, refused, write};

/// The leaf that hosts move to.
const LEAF: &str = "lucid-host";
/// How often processes are moved out of a container's root, which may start others meanwhile.
const ROUNDS: u32 = 5;

/// Makes the host's group; `None` if nothing is missing.
pub(super) fn host_group(
    own: &OwnGroup,
    missing: &[Controller],
    record: &Record,
) -> Result<Option<Hierarchy>, GroupError> {
    if missing.is_empty() {
        return Ok(None);
    }
    let parent = parent_of(own);
    let offered = parent.join("cgroup.controllers");
    let offered = fs::read_to_string(&offered).map_err(refused(&offered))?;
    let offers = |it: &Controller| {
        offered
            .split_ascii_whitespace()
            .any(|name| name == it.name())
    };
    let wanted: Vec<_> = missing.iter().copied().filter(offers).collect();
    if wanted.is_empty() {
        return Err(GroupError::NoControllers(parent));
    }
    let group = parent.join(record.name());
    record.add(&group).map_err(refused(&group))?;
    // Before anything is moved: it tells whether the group is delegated to this process.
    fs::create_dir(&group).map_err(refused(&parent))?;
    let moved = Moved::into_leaf(own, &parent);
    let handed = moved.and_then(|moved| {
        let enabled = enable(&parent, &wanted).and_then(|_| enable(&group, &wanted));
        if enabled.is_err() {
            moved.undo();
        }
        enabled
    });
    match handed {
        Ok(controllers) => Ok(Some(Hierarchy {
            version: Version::Two,
            group,
            controllers,
        })),
        Err(error) => {
            let _ = fs::remove_dir(&group);
            Err(error)
        }
    }
}

/// The group that has the leaf and the sandboxes' groups: this process may be in the leaf already.
fn parent_of(own: &OwnGroup) -> PathBuf {
    let is_leaf = own.path.file_name().is_some_and(|name| name == LEAF);
    let parent = own.path.parent().filter(|_| is_leaf);
    parent.unwrap_or(&own.path).to_owned()
}

/// This process, moved out of its group.
struct Moved<'a> {
    /// The group and the leaf, if it had to move.
    from: Option<(&'a Path, PathBuf)>,
}

impl<'a> Moved<'a> {
    fn into_leaf(own: &OwnGroup, parent: &'a Path) -> Result<Self, GroupError> {
        // Only the root of all groups has no type, and may have processes.
        if own.path != parent || !parent.join("cgroup.type").exists() {
            return Ok(Self { from: None });
        }
        let leaf = parent.join(LEAF);
        if !leaf.exists() {
            fs::create_dir(&leaf).map_err(refused(&leaf))?;
        }
        let procs = leaf.join("cgroup.procs");
        write(&procs, std::process::id().to_string())?;
        if own.is_root {
            move_others(parent, &procs);
        }
        Ok(Self {
            from: Some((parent, leaf)),
        })
    }

    fn undo(self) {
        if let Some((group, leaf)) = self.from {
            let _ = write(&group.join("cgroup.procs"), std::process::id().to_string());
            let _ = fs::remove_dir(leaf);
        }
    }
}

/// Moves what else runs in a container, such as its init.
fn move_others(from: &Path, to: &Path) {
    for _ in 0..ROUNDS {
        let processes = fs::read_to_string(from.join("cgroup.procs")).unwrap_or_default();
        // Processes outside of the container are 0, which would be this one.
        let mut others = processes
            .lines()
            .filter(|process| *process != "0")
            .peekable();
        if others.peek().is_none() {
            return;
        }
        for process in others {
            // It may be gone.
            let _ = write(to, process);
        }
    }
}

/// Hands controllers to the groups below one, and returns those that could be.
fn enable(group: &Path, wanted: &[Controller]) -> Result<Vec<Controller>, GroupError> {
    let file = group.join("cgroup.subtree_control");
    let all: Vec<String> = wanted.iter().map(|it| format!("+{}", it.name())).collect();
    let Err(error) = write(&file, all.join(" ")) else {
        return Ok(wanted.to_vec());
    };
    // One that cannot be must not keep the others.
    let single = |it: &Controller| write(&file, format!("+{}", it.name())).is_ok();
    let enabled: Vec<_> = wanted.iter().copied().filter(single).collect();
    if enabled.is_empty() {
        Err(error)
    } else {
        Ok(enabled)
    }
}

/// Hands controllers to a host's group that was made again, and to those below it.
pub(super) fn renew(hierarchy: &Hierarchy) -> Result<(), GroupError> {
    if let Some(parent) = hierarchy.group.parent() {
        enable(parent, &hierarchy.controllers)?;
    }
    enable(&hierarchy.group, &hierarchy.controllers).map(drop)
}

/// Sets one limit of a sandbox's group.
pub(super) fn limit(
    group: &Path,
    controller: Controller,
    limits: &GroupLimits,
) -> Result<(), GroupError> {
    match controller {
        Controller::Memory => {
            write(&group.join("memory.max"), limits.memory().to_string())?;
            let swap = group.join("memory.swap.max");
            if swap.exists() {
                write(&swap, "0")?;
            }
            // One process is killed, as in a container: the exec server can then say so.
            Ok(())
        }
        Controller::Processes => write(&group.join("pids.max"), limits.processes.to_string()),
        Controller::Processors => {
            let quota = format!("{} {PERIOD}", limits.quota());
            write(&group.join("cpu.max"), quota)
        }
    }
}
