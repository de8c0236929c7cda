//! The host's runtime directory for sandboxes: the installed exec server, a copy of what they see of `/etc`,
//! and one folder for each running session.
//!
//! # Invariants
//! - A program is installed by a rename, never overwritten while it runs.
//! - A session's folder is removed with its sandbox.
//! - What a crashed host left behind is removed by the next one; what a living host uses never is.
//! - No session can change a program that another runs.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat, rename};

use crate::error::{SandboxError, io_error};
use crate::system_etc::SystemEtc;
use crate::system_mounts;
use crate::workspace::remove_tree;
use lucid_types::digest::Digest;
use lucid_types::ids::SessionId;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The files that replace those of `/etc` in a sandbox.
const ETC: [(&str, &str); 4] = [
    (
        "passwd",
        "root:x:0:0::/nonexistent:/bin/false\nagent:x:1000:1000::/home/agent:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
    ),
    ("group", "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n"),
    // Of a sandbox with an interface to the host.
    (RESOLVER, RESOLVER_CONTENT),
];

/// The name of the file that tells programs whom to ask for names.
pub(super) const RESOLVER: &str = "resolv.conf";
/// The host, as [`HOST_ADDRESS`](lucid_exec::protocol::HOST_ADDRESS) has it.
pub(super) const RESOLVER_CONTENT: &str = "nameserver 192.0.0.1\n";

/// How the names of the folders of programs begin.
const BIN: &str = "bin";

/// The name of the folder that is `/etc` in sandboxes, beside theirs, whose names begin with an id.
const SYSTEM_ETC: &str = "etc";

/// The driver of tunnels, as its device file is named and numbered.
const TUNNEL: &str = "/dev/net/tun";
const TUNNEL_NUMBER: (u32, u32) = (10, 200);
/// Read and written by everybody, as most machines have it: what it takes to use it is a right over the
/// network that it is used in.
const OPEN_TO_ALL: u32 = 0o666;

pub(super) struct RuntimeDir {
    run_dir: PathBuf,
    /// The programs of sandboxes. The folder is named by the exec server's digest, so that what runs keeps its
    /// own where another build installs its own.
    bin: PathBuf,
    exec: PathBuf,
    program: Vec<u8>,
    etc: PathBuf,
    sessions: PathBuf,
    system_etc: SystemEtc,
    /// The exec server's file as it was when its content was last compared.
    compared: Mutex<Option<FileState>>,
}

/// What changes of a file when somebody writes to it or takes rights from it. Not the time of its last change,
/// which each sandbox that links it sets.
type FileState = (u64, u32, u64, i64, i64);

fn state_of(path: &Path) -> Option<FileState> {
    let data = fs::metadata(path).ok()?;
    let (inode, mode, size) = (data.ino(), data.mode(), data.size());
    Some((inode, mode, size, data.mtime(), data.mtime_nsec()))
}

impl RuntimeDir {
    /// `user` is one of those that sandboxes run as, if that is not the host's own.
    pub(super) fn install(
        run_dir: &Path,
        exec: &[u8],
        user: Option<u32>,
    ) -> Result<Self, SandboxError> {
        make_folder(run_dir)?;
        let run_dir = run_dir.canonicalize().map_err(io_error(format!(
            "{} cannot be resolved",
            run_dir.display()
        )))?;
        check_reachable(&run_dir, user)?;
        let digest = Digest::of(exec).to_string();
        let bin = run_dir.join(format!("{BIN}-{}", digest.get(..16).unwrap_or_default()));
        remove_leftovers(&run_dir, &bin);
        let sessions = run_dir.join(std::process::id().to_string());
        let runtime = Self {
            exec: bin.join("lucid-exec"),
            bin,
            program: exec.to_vec(),
            etc: run_dir.join("etc"),
            system_etc: SystemEtc::new(sessions.join(SYSTEM_ETC)),
            sessions,
            run_dir,
            compared: Mutex::default(),
        };
        runtime.restore_shared_files()?;
        Ok(runtime)
    }

    /// Restores missing shared files: a machine's cleanup of temporary files, or a session running
    /// as the host's own user, may have removed some.
    pub(super) fn restore_shared_files(&self) -> Result<(), SandboxError> {
        for folder in [&self.run_dir, &self.bin, &self.etc, &self.sessions] {
            make_folder(folder)?;
        }
        let mut compared = self.compared.lock();
        // A megabyte is not read for each sandbox.
        if compared.is_none() || *compared != state_of(&self.exec) {
            write_file(&self.exec, &self.program, 0o755)?;
            *compared = state_of(&self.exec);
        }
        drop(compared);
        for (name, content) in ETC {
            write_file(&self.etc.join(name), content.as_bytes(), 0o644)?;
        }
        link_programs(&self.bin)
    }

    /// The folder of the programs that every sandbox has.
    pub(super) fn bin(&self) -> &Path {
        &self.bin
    }

    /// The installed exec server.
    pub(super) fn exec(&self) -> &Path {
        &self.exec
    }

    /// A file that replaces one of `/etc` in a sandbox.
    pub(super) fn etc(&self, name: &str) -> PathBuf {
        self.etc.join(name)
    }

    /// The folder that is `/etc` in a sandbox, after [`RuntimeDir::refresh_system_etc`].
    pub(super) fn system_etc(&self) -> &Path {
        self.system_etc.path()
    }

    /// Brings that folder up to date: what programs need of the machine's, the files that replace some of
    /// its, and the file that tells them whom to ask for names, if there is somebody. Blocks.
    pub(super) fn refresh_system_etc(&self, resolver: Option<PathBuf>) -> Result<(), SandboxError> {
        let of_machine = system_mounts::etc().into_iter().filter_map(|path| {
            let name = path.strip_prefix("/etc/")?.to_owned();
            Some((PathBuf::from(path), name))
        });
        let replaced = ["passwd", "group", "hosts"].map(|name| (self.etc(name), name.to_owned()));
        let resolver = resolver.map(|path| (path, RESOLVER.to_owned()));
        let listed = of_machine.chain(replaced).chain(resolver);
        self.system_etc
            .refresh(listed.collect())
            .map_err(io_error("the folder /etc of sandboxes cannot be made"))
    }

    /// The device file by which a sandbox makes its interface to the host: the machine's own, or where
    /// that is only for root, one of the same number.
    pub(super) fn tunnel(&self) -> PathBuf {
        let machine = PathBuf::from(TUNNEL);
        let is_open =
            |path: &Path| fs::metadata(path).is_ok_and(|it| it.mode() & OPEN_TO_ALL == OPEN_TO_ALL);
        let own = self.run_dir.join("tun");
        if is_open(&machine) || is_open(&own) {
            return if is_open(&machine) { machine } else { own };
        }
        // Two sandboxes that start at once each make one, and either is put into place whole.
        let draft = self
            .run_dir
            .join(format!("tun-{}", COUNTER.fetch_add(1, Ordering::Relaxed)));
        let device = makedev(TUNNEL_NUMBER.0, TUNNEL_NUMBER.1);
        let made = mknodat(
            CWD,
            &draft,
            FileType::CharacterDevice,
            Mode::empty(),
            device,
        )
        .and_then(|()| chmod(&draft, Mode::from_raw_mode(OPEN_TO_ALL)))
        .and_then(|()| rename(&draft, &own));
        if made.is_err() {
            let _ = fs::remove_file(&draft);
        }
        // A machine that does not let it be made has the one that there is.
        if made.is_ok() { own } else { machine }
    }

    /// Whether a workspace is only there to try a sandbox in.
    pub(super) fn is_probe_workspace(&self, path: &Path) -> bool {
        path.starts_with(&self.sessions)
    }

    pub(super) fn probe_workspace(&self) -> Result<PathBuf, SandboxError> {
        let path = self.sessions.join(format!(
            "probe-workspace-{}",
            COUNTER.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&path)
            .map_err(io_error("a folder to try a sandbox in cannot be made"))?;
        Ok(path)
    }

    /// Creates the folder of a session's sandbox. A number distinguishes a restarted sandbox, and
    /// two that are tried at the same time.
    pub(super) fn session(&self, session: SessionId) -> Result<SessionDir, SandboxError> {
        self.restore_shared_files()?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = SessionDir(self.sessions.join(format!("{session}.{number}")));
        fs::create_dir(&dir.0).map_err(dir.failed())?;
        set_mode(&dir.0, 0o711)?;
        Ok(dir)
    }

    /// Creates in a sandbox's folder what it has nowhere else: its programs, and its temporary and home
    /// folders. `shares`: nothing in the sandbox can change the permissions of the exec server's file, so
    /// it need not be a copy. `user` is the sandbox's, if it is not the host's own.
    pub(super) fn fill(
        &self,
        dir: &SessionDir,
        shares: bool,
        user: Option<u32>,
    ) -> Result<(), SandboxError> {
        let failed = || dir.failed();
        let bin = dir.0.join("bin");
        fs::create_dir(&bin).map_err(failed())?;
        let exec = bin.join("lucid-exec");
        if !shares || fs::hard_link(&self.exec, &exec).is_err() {
            // Not from the shared file, whose permissions a session may have changed.
            fs::write(&exec, &self.program).map_err(failed())?;
            set_mode(&exec, 0o755)?;
        }
        link_programs(&bin)?;
        for name in ["home", "tmp"] {
            let folder = dir.0.join(name);
            fs::create_dir(&folder).map_err(failed())?;
            set_mode(&folder, 0o700)?;
            give_to(&folder, user)?;
        }
        Ok(())
    }
}

/// Links beside the exec server the names by which it is called, and python's usual name where the machine
/// has only the other.
fn link_programs(bin: &Path) -> Result<(), SandboxError> {
    let has = |program: &str| {
        ["/usr/local/bin", "/usr/bin", "/bin"]
            .iter()
            .map(|at| Path::new(at).join(program))
            .find(|at| at.exists())
    };
    let python = has("python3").filter(|_| has("python").is_none());
    let links = [
        ("git-remote-lucid", Some("lucid-exec".into())),
        ("python", python),
    ];
    for (name, target) in links {
        let link = bin.join(name);
        if fs::read_link(&link).ok() == target {
            continue;
        }
        // Made for a machine that had its programs elsewhere.
        let _ = fs::remove_file(&link);
        let Some(target) = target else {
            continue;
        };
        match symlink(target, &link) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io_error(format!("{} cannot be made", link.display()))(
                    error,
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        let mut left = fs::read_dir(&self.sessions).into_iter().flatten().flatten();
        if left.all(|entry| entry.file_name().to_string_lossy().starts_with(SYSTEM_ETC)) {
            self.system_etc.remove();
        }
        // Succeeds only when no sandbox of this process has a folder there any more.
        let _ = fs::remove_dir(&self.sessions);
    }
}

/// The folder of one running sandbox.
pub(super) struct SessionDir(PathBuf);

impl SessionDir {
    /// Wraps a folder that was created elsewhere.
    pub(super) fn existing(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Its name, which no other sandbox of this process has.
    pub(super) fn name(&self) -> String {
        let name = self.0.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn failed(&self) -> impl FnOnce(std::io::Error) -> SandboxError + use<> {
        io_error(format!(
            "the sandbox's folder {} cannot be made",
            self.0.display()
        ))
    }

    /// The path of a file in it, for a command line.
    pub(super) fn path_of(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// Removes the folder, whatever commands did to it. Blocks.
    pub(super) fn remove(&self) {
        if let Err(error) = remove_tree(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a sandbox's folder cannot be removed");
        }
    }
}

impl Drop for SessionDir {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes what processes left that are gone: their folders, and where no other is left, the programs of
/// other builds than this one, whose are in `bin`.
fn remove_leftovers(run_dir: &Path, bin: &Path) {
    let mut others_live = false;
    let mut programs = Vec::new();
    for entry in fs::read_dir(run_dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.split('-').next() == Some(BIN) && entry.path() != bin {
            programs.push(entry.path());
        } else if name.parse::<u32>().is_ok() {
            if Path::new("/proc").join(name).exists() {
                others_live = true;
            } else {
                let _ = remove_tree(&entry.path());
            }
        }
    }
    if !others_live {
        for path in programs {
            let _ = remove_tree(&path);
        }
    }
}

/// Creates a folder that the sandbox's user can enter and only the host's user can list.
fn make_folder(path: &Path) -> Result<(), SandboxError> {
    fs::create_dir_all(path).map_err(io_error(format!(
        "the folder {} cannot be made",
        path.display()
    )))?;
    set_mode(path, 0o711)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), SandboxError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error(format!(
        "the permissions of {} cannot be set",
        path.display()
    )))
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), SandboxError> {
    let failed = || io_error(format!("{} cannot be written", path.display()));
    if fs::read(path).is_ok_and(|there| there == content) {
        return set_mode(path, mode);
    }
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("new-{}-{number}", std::process::id()));
    fs::write(&temporary, content).map_err(failed())?;
    set_mode(&temporary, mode)?;
    fs::rename(&temporary, path).map_err(failed())
}

/// Gives a file or folder to the user of a sandbox, if that differs from the host's.
pub(super) fn give_to(path: &Path, user: Option<u32>) -> Result<(), SandboxError> {
    match user {
        Some(user) => chown(path, Some(user), Some(user)).map_err(io_error(format!(
            "{} cannot be given to user {user}",
            path.display()
        ))),
        None => Ok(()),
    }
}

/// Reports early, by name, which folder on the way to `path` the sandbox's user cannot pass.
pub(super) fn check_reachable(path: &Path, user: Option<u32>) -> Result<(), SandboxError> {
    let path = path.canonicalize().map_err(io_error(format!(
        "the folder {} cannot be resolved",
        path.display()
    )))?;
    let Some(user) = user else {
        return Ok(());
    };
    for folder in path.ancestors().skip(1) {
        let Ok(data) = fs::metadata(folder) else {
            continue;
        };
        let open = data.mode() & 0o001 != 0 || (data.uid() == user && data.mode() & 0o100 != 0);
        if !open {
            return Err(SandboxError::Start(format!(
                "user {user}, as whom sandboxes run, cannot enter {}. Run `chmod o+x` on it, or keep Lucid's data elsewhere",
                folder.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_ask_the_host_for_names_at_the_address_that_it_has() {
        let address = lucid_exec::protocol::HOST_ADDRESS;
        assert_eq!(RESOLVER_CONTENT, format!("nameserver {address}\n"));
    }

    #[test]
    fn a_session_that_takes_rights_from_a_shared_program_takes_them_from_no_other_session() {
        let folder = tempfile::tempdir().unwrap();
        let program = fs::read("/bin/true").unwrap();
        let runtime = RuntimeDir::install(folder.path(), &program, None).unwrap();
        let filled = |shares| {
            let dir = runtime.session(SessionId::new()).unwrap();
            runtime.fill(&dir, shares, None).unwrap();
            dir
        };
        let runs = |dir: &SessionDir| {
            let exec = dir.path_of("bin/lucid-exec");
            std::process::Command::new(exec)
                .status()
                .is_ok_and(|it| it.success())
        };
        let one = filled(false);
        // As an owner can, whatever Landlock restricts.
        for taken in [one.path().join("bin/lucid-exec"), runtime.exec().to_owned()] {
            set_mode(&taken, 0).unwrap();
        }
        let two = filled(false);
        assert!(runs(&two) && !runs(&one));
        // And after a machine's cleanup of temporary files.
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(runs(&filled(true)));
        assert!(runtime.etc("passwd").exists());
        // Where that is impossible, the disk holds the program once.
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let shared = filled(true);
        assert_eq!(
            inode(&shared.path().join("bin/lucid-exec")),
            inode(runtime.exec())
        );
    }
}
