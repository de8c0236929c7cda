//! A small disk of a test's own: a tmpfs, which only root can mount.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted disk. Unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of a size such as `128m` on a folder; none where this machine does not let it.
    pub fn mount(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={size},mode=0755"))
            .arg("tmpfs")
            .arg(folder)
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then(|| Self(folder.to_owned()))
    }

    /// Whether disks can be mounted here; where they cannot, the test that asks is skipped, and says so.
    pub fn possible() -> bool {
        let folder = tempfile::tempdir().unwrap();
        let possible = Self::mount(folder.path(), "1m").is_some();
        if !possible {
            eprintln!("skipped: no file system can be mounted here, which takes root");
        }
        possible
    }

    /// Takes all that is left, with a file of this name.
    pub fn fill(&self, name: &str) {
        let mut file = std::fs::File::create(self.0.join(name)).unwrap();
        let piece = vec![0; 1 << 16];
        while file.write_all(&piece).is_ok() {}
        while file.write_all(&piece[..512]).is_ok() {}
    }

    /// How many bytes of it are left.
    pub fn left(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Makes files in a folder of this name until no more can be made.
    pub fn use_up_files(&self, name: &str) {
        let folder = self.0.join(name);
        std::fs::create_dir(&folder).unwrap();
        let made = (0..)
            .take_while(|number| std::fs::File::create(folder.join(number.to_string())).is_ok());
        made.count();
    }

    /// Removes such a folder.
    pub fn free_files(&self, name: &str) {
        std::fs::remove_dir_all(self.0.join(name)).unwrap();
    }

    /// Removes such a file.
    pub fn free(&self, name: &str) {
        std::fs::remove_file(self.0.join(name)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
