//! Hierarchies of version 1, one for each controller or a few of them.
//!
//! # Invariants
//! - The host's group is below the one that this process is in, so whatever limits that limits it too.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::locate::OwnGroup;
use super::record::Record;
use super::{Controller, GroupError, GroupLimits, Hierarchy, PERIOD, Version, refused, write};

/// The part of a sandbox's memory that its sockets may have on top of it.
const PART_OF_SOCKETS: u64 = 8;

/// Makes the host's group; `None` if the hierarchy has nothing of what is missing.
pub(super) fn host_group(
    own: &OwnGroup,
    missing: &[Controller],
    record: &Record,
) -> Result<Option<Hierarchy>, GroupError> {
    let has = |controller: &Controller| own.controllers.iter().any(|it| it == controller.name());
    let controllers: Vec<_> = missing.iter().copied().filter(has).collect();
    if controllers.is_empty() {
        return Ok(None);
    }
    let group = own.path.join(record.name());
    record.add(&group).map_err(refused(&group))?;
    fs::create_dir(&group).map_err(refused(&own.path))?;
    Ok(Some(Hierarchy {
        version: Version::One,
        group,
        controllers,
        changes: None,
    }))
}

/// Sets one limit of a sandbox's group.
pub(super) fn limit(
    group: &Path,
    controller: Controller,
    limits: &GroupLimits,
) -> Result<(), GroupError> {
    match controller {
        Controller::Memory => {
            let memory = limits.memory().to_string();
            write(&group.join("memory.limit_in_bytes"), &memory)?;
            // Memory and swap together, where the kernel counts swap.
            let with_swap = group.join("memory.memsw.limit_in_bytes");
            if with_swap.exists() {
                write(&with_swap, &memory)?;
            } else {
                // Otherwise nothing of it goes to swap, as far as the kernel lets that be said.
                let _ = write(&group.join("memory.swappiness"), "0");
            }
            // Version 1 counts what is in the buffers of sockets by itself, and all processes of the
            // machine share the kernel's maximum.
            let sockets = group.join("memory.kmem.tcp.limit_in_bytes");
            if sockets.exists() {
                let bytes = limits.memory() / PART_OF_SOCKETS;
                write(&sockets, bytes.to_string())?;
            }
            Ok(())
        }
        Controller::Processes => write(&group.join("pids.max"), limits.processes.to_string()),
        Controller::Processors => {
            write(&group.join("cpu.cfs_period_us"), PERIOD.to_string())?;
            match write(&group.join("cpu.cfs_quota_us"), limits.quota().to_string()) {
                // A group above has less, which then holds for this one too.
                Err(GroupError::Refused { cause, .. })
                    if cause.kind() == ErrorKind::InvalidInput =>
                {
                    Ok(())
                }
                set => set,
            }
        }
    }
}
