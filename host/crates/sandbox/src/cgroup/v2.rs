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
    let mut changes = GroupChanges {
        parent,
        handed: Vec::new(),
        leaf: None,
        is_root: own.is_root,
    };
    let handed = changes.move_to_leaf(own).and_then(|()| {
        changes.hand(&wanted)?;
        enable(&group, &wanted)
    });
    match handed {
        Ok(controllers) => Ok(Some(Hierarchy {
            version: Version::Two,
            group,
            controllers,
            changes: Some(changes),
        })),
        Err(error) => {
            let _ = fs::remove_dir(&group);
            changes.undo();
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

/// What was done to the group that this process was found in, besides making groups in it.
#[derive(Debug)]
pub(super) struct GroupChanges {
    parent: PathBuf,
    /// The controllers that it hands to the groups below it and did not hand to them before.
    handed: Vec<Controller>,
    /// The leaf that this process moved to, if it had to.
    leaf: Option<PathBuf>,
    /// Other processes were moved too.
    is_root: bool,
}

impl GroupChanges {
    fn move_to_leaf(&mut self, own: &OwnGroup) -> Result<(), GroupError> {
        // Only the root of all groups has no type, and may have processes.
        if own.path != self.parent || !self.parent.join("cgroup.type").exists() {
            return Ok(());
        }
        let leaf = self.parent.join(LEAF);
        if !leaf.exists() {
            fs::create_dir(&leaf).map_err(refused(&leaf))?;
        }
        let procs = leaf.join("cgroup.procs");
        self.leaf = Some(leaf);
        write(&procs, std::process::id().to_string())?;
        if self.is_root {
            move_others(&self.parent, &procs);
        }
        Ok(())
    }

    /// Hands controllers to the groups below.
    fn hand(&mut self, wanted: &[Controller]) -> Result<(), GroupError> {
        let before = self.parent.join("cgroup.subtree_control");
        let before = fs::read_to_string(before).unwrap_or_default();
        let has = |it: &Controller| {
            before
                .split_ascii_whitespace()
                .any(|name| name == it.name())
        };
        let mut handed = enable(&self.parent, wanted)?;
        handed.retain(|it| !has(it));
        self.handed = handed;
        Ok(())
    }

    /// Undoes it, after the groups below that this host made are gone. What another host needs stays:
    /// the kernel takes no controller from groups that hand it on, and moves no process to a group that
    /// hands one on.
    pub(super) fn undo(&self) {
        if !self.handed.is_empty() {
            let file = self.parent.join("cgroup.subtree_control");
            let names = self.handed.iter().map(|it| format!("-{}", it.name()));
            let names: Vec<String> = names.collect();
            let _ = write(&file, names.join(" "));
        }
        if let Some(leaf) = &self.leaf {
            let procs = self.parent.join("cgroup.procs");
            let _ = write(&procs, std::process::id().to_string());
            if self.is_root {
                move_others(leaf, &procs);
            }
            let _ = fs::remove_dir(leaf);
        }
    }
}

/// Moves what else runs in a container, such as its init, between groups.
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
