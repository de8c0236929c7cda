//! The image that tests run containers of: this machine's own `busybox`, `bash`, `git` and `python3`,
//! and some programs that people run, with the libraries they load, so that no registry and no mirror is asked, in about two seconds.
//!
//! What always holds: its name is made of what goes into it, so an image by that name is the right
//! one; it is given the name when it is whole. Its user is root, on purpose: that commands do not run
//! as root must be the host's doing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

/// What people run beside them: in the image where this machine has it.
const MORE: [&str; 12] = [
    "curl",
    "flock",
    "gzip",
    "make",
    "mktemp",
    "perl",
    "script",
    "sqlite3",
    "ssh-keygen",
    "tar",
    "tmux",
    "xz",
];
/// What those read: modules, descriptions of terminals, and the wheel that a virtual environment begins with.
const MORE_FILES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/perl-base",
    "/usr/lib/aarch64-linux-gnu/perl-base",
    "/usr/share/python-wheels",
    "/usr/lib/locale/C.utf8",
    "/usr/lib/terminfo",
];

const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/bash\n";
const GROUP: &str = "root:x:0:\nagent:x:1000:\n";

/// The image's name. Builds it first when the engine has none by that name; of several processes
/// one does. Blocks.
pub(super) fn name_of_the_built() -> String {
    let parts = Parts::of_this_machine();
    let name = parts.image_name();
    let beside = std::env::current_exe().unwrap();
    let lock = File::create(beside.with_file_name("lucid-test-image.lock")).unwrap();
    lock.lock().unwrap();
    let known = Command::new("docker")
        .args(["image", "inspect", "--format={{.Id}}", &name])
        .output()
        .unwrap();
    if !known.status.success() {
        parts.build(&name);
    }
    name
}

/// What goes in, by absolute paths.
struct Parts {
    bash: PathBuf,
    busybox: PathBuf,
    git: PathBuf,
    git_core: PathBuf,
    python: PathBuf,
    /// Copied as they are, symbolic links followed: programs, libraries, whole folders.
    copied: BTreeSet<PathBuf>,
}

impl Parts {
    fn of_this_machine() -> Self {
        let busybox = program("busybox", "busybox-static");
        // Not what the PATH has first, which may be a version manager's script.
        let python = Path::new("/usr/bin/python3")
            .canonicalize()
            .expect("python3 is missing: bash tests/run installs it");
        let git = program("git", "git");
        let bash = program("bash", "bash");
        let programs = [&bash, &busybox, &git, &python];
        let mut copied: BTreeSet<PathBuf> = programs.into_iter().cloned().collect();
        for program in programs {
            copied.extend(libraries(program));
        }
        let more = MORE.map(|name| Path::new("/usr/bin").join(name));
        for program in more.iter().filter(|program| program.is_file()) {
            copied.extend([program.clone()].into_iter().chain(libraries(program)));
        }
        let files = MORE_FILES.iter().map(PathBuf::from);
        copied.extend(files.filter(|path| path.exists()));
        let stdlib = "import sysconfig; print(sysconfig.get_path('stdlib'))";
        copied.insert(printed(Command::new(&python).args(["-I", "-c", stdlib])).into());
        // {prefix}/lib/git-core or {prefix}/libexec/git-core.
        let git_core = PathBuf::from(printed(Command::new(&git).arg("--exec-path")));
        let templates = git_core
            .ancestors()
            .nth(2)
            .unwrap()
            .join("share/git-core/templates");
        copied.extend(templates.exists().then_some(templates));
        Self {
            bash,
            busybox,
            git,
            git_core,
            python,
            copied,
        }
    }

    /// Another when a part or this recipe changes.
    fn image_name(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(include_str!("image.rs"));
        for path in &self.copied {
            let about = fs::metadata(path).unwrap();
            hash.update(format!("{path:?} {} {}\n", about.len(), about.mtime()));
        }
        let hash = hex::encode(&hash.finalize()[..6]);
        format!("lucid-test:{hash}")
    }

    fn build(&self, name: &str) {
        let folder = tempfile::Builder::new()
            .prefix("lucid-image-")
            .tempdir()
            .unwrap();
        let root = folder.path().join("root");
        self.lay_out(&root);
        let tar = folder.path().join("image.tar");
        let tar = tar.to_str().unwrap();
        printed(
            Command::new("tar")
                .args(["--create", "--file", tar, "--owner=0", "--group=0"])
                .arg("--directory")
                .arg(&root)
                .arg("."),
        );
        printed(
            Command::new("tar")
                .args(["--append", "--file", tar, "--owner=0", "--group=0"])
                .args(["--dereference", "--exclude=__pycache__"])
                .args(["--exclude=*/python3*/test", "--exclude=*/python3*/config-*"])
                .args(["--directory=/"])
                .args(
                    self.copied
                        .iter()
                        .map(|path| path.strip_prefix("/").unwrap()),
                ),
        );
        let made = printed(Command::new("docker").args(["import", tar]));
        printed(Command::new("docker").args(["tag", &made, name]));
    }

    /// What is not copied: folders, accounts, and the names that busybox and python go by.
    fn lay_out(&self, root: &Path) {
        for folder in [
            "bin",
            "etc",
            "home/agent",
            "root",
            "run",
            "usr/bin",
            "workspace",
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::create_dir(root.join("tmp")).unwrap();
        fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        fs::write(root.join("etc/passwd"), PASSWD).unwrap();
        fs::write(root.join("etc/group"), GROUP).unwrap();
        let applets = printed(Command::new(&self.busybox).arg("--list"));
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            symlink(&self.busybox, root.join("bin").join(applet)).unwrap();
        }
        symlink(&self.busybox, root.join("usr/bin/env")).unwrap();
        for name in ["python", "python3"] {
            symlink(&self.python, root.join("usr/bin").join(name)).unwrap();
        }
        symlink(&self.bash, root.join("bin/bash")).unwrap();
        // git runs these by name, the rest within itself.
        let core = root.join(self.git_core.strip_prefix("/").unwrap());
        fs::create_dir_all(&core).unwrap();
        for name in ["git-upload-pack", "git-receive-pack"] {
            symlink(&self.git, core.join(name)).unwrap();
        }
    }
}

/// Where a program is, or a failure that names its Debian package. Never in `/bin`, which is for
/// links in the image.
fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|folder| folder != Path::new("/bin"))
        .chain(["/usr/bin".into()])
        .map(|folder| folder.join(name))
        .find(|found| found.is_file())
        .unwrap_or_else(|| panic!("{package} is missing: bash tests/run installs it"))
}

/// The libraries a program loads, with its loader; none for a static one.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, `linux-vdso.so.1 (0x…)`
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(PathBuf::from)
        })
        .collect()
}

/// What a command prints, trimmed; a failure shows what it said.
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
