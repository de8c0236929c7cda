//! A root file system of the sandbox's own, for a machine without a sandboxing program. It uses
//! user, mount and IPC namespaces, which the kernel gives to ordinary users where the machine
//! allows it.
//!
//! # Invariants
//! - Of the old root only the named paths stay visible: everything else does not exist, instead of
//!   being refused.
//! - `/tmp`, `/dev/shm` and the terminals of `/dev/pts` are the sandbox's own.
//! - The mounts belong to a user namespace above the one that commands run in, so nothing that they
//!   may become can undo them.
//! - All of it is in place, or the process ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use lucid_exec::protocol::{HostInterface, PrivateRoot};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::{getegid, geteuid, pivot_root};

use crate::interface::{self, HandedInterface};
use crate::network;

/// The mount point of the old root while the new one is built.
const OLD: &str = "/old";
/// Devices that are read-only by themselves, or keep no content.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Always visible where they exist, so a link to a path below one of these is kept as a link.
const ALWAYS_SHOWN: [&str; 2] = ["/usr", "/nix/store"];
/// Shared by all sessions of a host, and owned by its user.
const SHARED: [&str; 5] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/run/lucid/bin",
];
const IN_MEMORY: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const TERMINALS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
/// Where the driver of tunnels is found.
const TUNNEL: &str = "/dev/net/tun";

/// An operation that the machine refused.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox gets no root of its own: {what}: {cause}")]
pub(crate) struct RootError {
    what: String,
    #[source]
    cause: io::Error,
}

/// Adds to an error the operation that failed.
trait Tried<T> {
    fn when(self, what: impl Into<String>) -> Result<T, RootError>;
}

impl<T, E: Into<io::Error>> Tried<T> for Result<T, E> {
    fn when(self, what: impl Into<String>) -> Result<T, RootError> {
        self.map_err(|cause| RootError {
            what: what.into(),
            cause: cause.into(),
        })
    }
}

/// How a path of the old root appears in the new one.
enum Entry {
    /// A symbolic link with the target of the old one.
    Link { target: PathBuf, at: PathBuf },
    /// A bind mount of `from`.
    Bind { from: PathBuf, at: PathBuf },
}

impl Entry {
    /// `None` for a path that does not exist.
    fn of(path: &str) -> Option<Self> {
        let at = PathBuf::from(path);
        let from = fs::canonicalize(&at).ok()?;
        let is_link = fs::symlink_metadata(&at).ok()?.is_symlink();
        if is_link && ALWAYS_SHOWN.iter().any(|shown| from.starts_with(shown)) {
            return Some(Self::Link { target: from, at });
        }
        Some(Self::Bind { from, at })
    }
}

/// Leaves the old root for a new one. Must be called while the process has a single thread.
/// `detached`: the process has no controlling terminal, so that /dev/tty is only ever one that was
/// created in the sandbox. Returns the network interface, if one is wanted.
pub(crate) fn enter(
    root: &PrivateRoot,
    wanted: Option<&HostInterface>,
    detached: bool,
) -> Result<Option<HandedInterface>, RootError> {
    let entries: Vec<Entry> = root
        .shown
        .iter()
        .filter_map(|path| Entry::of(path))
        .collect();
    let placed = root.placed.iter().map(|(from, at)| {
        let from = fs::canonicalize(from).when(from.clone())?;
        Ok((from, PathBuf::from(at)))
    });
    let placed = placed.collect::<Result<Vec<_>, RootError>>()?;
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let mut namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if root.own_network {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    unshare(namespaces).when("the machine lets this user make no namespaces")?;
    // Mounting a file system of terminals requires root.
    map_user((0, user), (0, group))?;
    if root.own_network {
        network::bring_loopback_up().when("the loopback interface")?;
    }
    sethostname("sandbox").when("the host name")?;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    attach(None, Path::new("/"), None, private, None).when("mounts do not become private")?;
    let handed = wanted.map(|wanted| {
        if let Some(device) = &wanted.device {
            // In place of one that only root may open. Where that fails, opening says why.
            let at = Path::new(TUNNEL);
            let _ = attach(Some(device), at, None, MsFlags::MS_BIND, None);
        }
        interface::hand_over()
    });

    start_root(Path::new(&root.mount_point))?;
    for entry in &entries {
        bring(entry)?;
    }
    bind(Path::new("/proc"), Path::new("/proc"))?;
    make_devices(root, detached)?;
    for (from, at) in &placed {
        bind(from, at)?;
    }
    protect_shared()?;
    umount2(OLD, MntFlags::MNT_DETACH).when("the old root does not go away")?;
    fs::remove_dir(OLD).when(OLD)?;
    let kept = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | IN_MEMORY;
    attach(None, Path::new("/"), None, kept, None).when("the new root stays writable")?;

    unshare(CloneFlags::CLONE_NEWUSER).when("a second user namespace")?;
    map_user((root.user, 0), (root.user, 0))?;
    interface::give_up_rights(None).when("capabilities do not go away")?;
    Ok(handed)
}

/// Maps a user id and a group id inside to those outside, given as (inside, outside).
fn map_user(user: (u32, u32), group: (u32, u32)) -> Result<(), RootError> {
    let line = |(inside, outside): (u32, u32)| format!("{inside} {outside} 1\n");
    for (name, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", line(user)),
        ("gid_map", line(group)),
    ] {
        let path = format!("/proc/self/{name}");
        fs::write(&path, text).when(path)?;
    }
    Ok(())
}

/// Makes an empty file system the root, with the old one mounted below it.
fn start_root(mount_point: &Path) -> Result<(), RootError> {
    let options = Some("mode=0755,size=4m");
    attach(None, mount_point, Some("tmpfs"), IN_MEMORY, options)
        .when("the new root cannot be mounted")?;
    let old = mount_point.join("old");
    fs::create_dir(&old).when(OLD)?;
    pivot_root(mount_point, &old).when("the root cannot be changed")?;
    std::env::set_current_dir("/").when("/")
}

fn bring(entry: &Entry) -> Result<(), RootError> {
    match entry {
        Entry::Bind { from, at } => bind(from, at),
        Entry::Link { target, at } => {
            make_parent(at)?;
            symlink(target, at).when(at.display().to_string())
        }
    }
}

fn make_parent(path: &Path) -> Result<(), RootError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).when(parent.display().to_string())
}

/// Binds what the old root has at `from`, with all mounts below it.
fn bind(from: &Path, at: &Path) -> Result<(), RootError> {
    let name = || format!("{} cannot be shown", at.display());
    let from = Path::new(OLD).join(from.strip_prefix("/").unwrap_or(from));
    if fs::metadata(&from).when(name())?.is_dir() {
        fs::create_dir_all(at).when(name())?;
    } else if !at.exists() {
        make_parent(at)?;
        File::create(at).when(name())?;
    }
    let all = MsFlags::MS_BIND | MsFlags::MS_REC;
    attach(Some(&from), at, None, all, None).when(name())
}

/// Makes read-only what sessions share and this user owns: Landlock does not keep an owner from
/// removing permissions, and other sessions need these files.
fn protect_shared() -> Result<(), RootError> {
    for path in SHARED.map(Path::new).into_iter().filter(|at| at.exists()) {
        let name = || format!("{} stays writable", path.display());
        attach(Some(path), path, None, MsFlags::MS_BIND, None).when(name())?;
        let has = statvfs(path).when(name())?.f_flag;
        let kept = [
            (StatVfsMountFlags::NOSUID, MsFlags::MS_NOSUID),
            (StatVfsMountFlags::NODEV, MsFlags::MS_NODEV),
            (StatVfsMountFlags::NOEXEC, MsFlags::MS_NOEXEC),
        ];
        // The flags of the machine's own mount may not be removed.
        let kept = kept.into_iter().filter(|(flag, _)| has.contains(*flag));
        let flags = kept.fold(
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
            |flags, (_, flag)| flags | flag,
        );
        attach(None, path, None, flags, None).when(name())?;
    }
    Ok(())
}

/// Creates the `/dev` that programs expect, with terminals and shared memory of the sandbox's own.
fn make_devices(root: &PrivateRoot, detached: bool) -> Result<(), RootError> {
    let old = Path::new(OLD).join("dev");
    let devices = DEVICES.into_iter().chain(detached.then_some("tty"));
    for name in devices.filter(|name| old.join(name).exists()) {
        let at = Path::new("/dev").join(name);
        bind(&at, &at)?;
    }
    for (target, at) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ] {
        symlink(target, at).when(at)?;
    }
    let options = format!("mode=1777,size={}", root.shared_memory_bytes);
    for (at, kind, flags, options) in [
        ("/dev/shm", "tmpfs", IN_MEMORY, options.as_str()),
        (
            "/dev/pts",
            "devpts",
            TERMINALS,
            "newinstance,ptmxmode=0666,mode=620",
        ),
    ] {
        fs::create_dir(at).when(at)?;
        attach(None, Path::new(at), Some(kind), flags, Some(options)).when(at)?;
    }
    Ok(())
}

/// Calls mount(2). A mount without a source uses its type as the source's name.
fn attach(
    from: Option<&Path>,
    at: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> io::Result<()> {
    let from = from.or(kind.map(Path::new));
    mount(from, at, kind, flags, options).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_into_what_is_always_shown_stays_a_link_and_any_other_path_is_bound() {
        let folder = std::env::temp_dir().join(format!("lucid-root-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let link = folder.join("link");
        let _ = fs::remove_file(&link);
        symlink("/usr/bin", &link).unwrap();
        let of = |path: &Path| Entry::of(path.to_str().unwrap());
        assert!(matches!(of(&link), Some(Entry::Link { .. })));
        assert!(matches!(of(&folder), Some(Entry::Bind { .. })));
        assert!(of(&folder.join("absent")).is_none());
        fs::remove_dir_all(&folder).unwrap();
    }
}
