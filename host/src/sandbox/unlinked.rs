//! Finds what processes hold of the disk in files that have no name any more, which no look into folders
//! does.
//!
//! # Invariants
//! - Looked at are the processes below one, by the parents that /proc tells; a file counts once, however
//!   many of them hold it.
//! - What may not be looked at counts as nothing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Bytes of nameless files that processes below `root`, and `root` itself, hold on the disk of a folder.
/// Blocks shortly.
pub(super) fn held_below(root: u32, folder: &Path) -> u64 {
    let Ok(disk) = fs::metadata(folder).map(|found| found.dev()) else {
        return 0;
    };
    let mut files = HashMap::new();
    for process in with_descendants(root) {
        let open = fs::read_dir(format!("/proc/{process}/fd"));
        for file in open.into_iter().flatten().flatten() {
            if let Ok(file) = fs::metadata(file.path())
                && file.is_file()
                && file.nlink() == 0
                && file.dev() == disk
            {
                files.insert(file.ino(), file.blocks() * 512);
            }
        }
    }
    files.into_values().fold(0, u64::saturating_add)
}

fn with_descendants(root: u32) -> HashSet<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(process) = name.to_str().and_then(|name| name.parse().ok())
            && let Some(parent) = parent_of(&entry.path())
        {
            children.entry(parent).or_default().push(process);
        }
    }
    let (mut found, mut left) = (HashSet::new(), vec![root]);
    while let Some(process) = left.pop() {
        if found.insert(process) {
            left.extend(children.remove(&process).into_iter().flatten());
        }
    }
    found
}

fn parent_of(process: &Path) -> Option<u32> {
    let status = fs::read(process.join("status")).ok()?;
    // The name of a process, which stands before, has no line breaks of its own: they are escaped.
    let mut lines = status.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(b"PPid:"))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_file_that_a_process_removed_and_goes_on_with_counts_for_whoever_started_that() {
        let folder = tempfile::tempdir().unwrap();
        let script = "exec 3<>big; rm big; head -c 300000 /dev/zero >&3; (exec sleep 60) & read done; kill $!";
        let mut process = Command::new("sh")
            .args(["-c", script])
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mine = std::process::id();
        while held_below(process.id(), folder.path()) < 300_000 {
            std::thread::yield_now();
        }
        assert!(held_below(mine, folder.path()) >= 300_000);
        assert!(
            held_below(process.id(), folder.path()) < 600_000,
            "held by two"
        );
        assert_eq!(held_below(process.id(), Path::new("/proc")), 0);
        process.stdin.take().unwrap().write_all(b"\n").unwrap();
        process.wait().unwrap();
        assert_eq!(held_below(mine, folder.path()), 0);
    }
}
