//! A PostgreSQL of its own: a data folder, a Unix socket, no port.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::wait::DEADLINE;

/// Supabase's own side.
const SUPABASE: &str = include_str!("supabase.sql");

/// Where PostgreSQL's programs are; Debian has them in a folder for each version.
pub(super) fn find() -> Result<PathBuf, String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter();
    let newest = versions
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let programs = entry.path().join("bin");
            programs
                .join("initdb")
                .exists()
                .then_some((version, programs))
        })
        .max();
    newest
        .map(|(_, programs)| programs)
        .ok_or_else(|| "PostgreSQL is not installed (Debian: postgresql)".to_owned())
}

/// The user and group that PostgreSQL runs as: it refuses to be root. None where this is not root.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line
        .expect("PostgreSQL is installed without its user")
        .split(':');
    let uid = fields.nth(2).and_then(|uid| uid.parse().ok()).unwrap();
    let gid = fields.next().and_then(|gid| gid.parse().ok()).unwrap();
    Some((uid, gid))
}

/// A program that runs in a folder, and not as root.
pub(super) fn program(path: &Path, folder: &Path) -> Command {
    let mut command = Command::new(path);
    command
        .current_dir(folder)
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null());
    if let Some((uid, gid)) = other_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// A running PostgreSQL.
pub(super) struct Postgres {
    child: Option<Child>,
    folder: TempDir,
    programs: PathBuf,
}

impl Postgres {
    /// With Supabase's side, and the migrations where they are wanted, in it. They are run once and kept
    /// beside the binary; each test starts over a copy.
    pub(super) fn start(migrated: bool) -> Self {
        let programs = find().unwrap();
        let template = template(&programs, migrated);
        let mut postgres = Self::in_a_folder(&programs);
        copy(&template, postgres.folder());
        postgres.run();
        postgres
    }

    fn in_a_folder(programs: &Path) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("lucid-pg-")
            .tempdir()
            .unwrap();
        if let Some((uid, gid)) = other_user() {
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid)).unwrap();
        }
        Self {
            child: None,
            folder,
            programs: programs.to_owned(),
        }
    }

    /// Where its socket is.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it over its data, and waits until it answers.
    pub(super) fn run(&mut self) {
        assert!(self.child.is_none(), "PostgreSQL runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder().join("log"))
            .unwrap();
        let settings = [
            "listen_addresses=",
            // What was acknowledged is in the operating system's hands, which outlives this process.
            "fsync=off",
            "full_page_writes=off",
            "shared_buffers=32MB",
            "max_connections=50",
        ];
        let mut command = program(&self.programs.join("postgres"), self.folder());
        command.arg("-D").arg("data").arg("-k").arg(self.folder());
        for setting in settings {
            command.args(["-c", setting]);
        }
        let child = command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let began = Instant::now();
        while self.try_sql("SELECT 1").is_err() {
            assert!(
                began.elapsed() < DEADLINE,
                "PostgreSQL did not come up; it printed:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGQUIT: it drops everything and goes.
    pub(super) fn crash(&mut self) {
        self.end(Signal::QUIT);
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), signal).ok();
            child.wait().ok();
        }
    }

    pub(super) fn sql(&self, sql: &str) -> String {
        self.try_sql(sql)
            .unwrap_or_else(|why| panic!("SQL failed: {why}\n{sql}"))
    }

    fn try_sql(&self, sql: &str) -> Result<String, String> {
        let output = program(&self.programs.join("psql"), self.folder())
            .arg("-h")
            .arg(self.folder())
            .args([
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-XqAt",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                sql,
            ])
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    pub(super) fn migrate(&self) {
        for (name, sql) in migrations() {
            if let Err(why) = self.try_sql(&sql) {
                panic!("{name} failed: {why}");
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end(Signal::QUIT);
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(4000);
            let tail = log.get(tail..).unwrap_or(&log);
            eprintln!("--- what PostgreSQL printed last ---\n{tail}--- end ---");
        }
    }
}

/// The migrations for Supabase by name, in their order.
fn migrations() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("migrations/supabase"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    files.into_iter().map(read).collect()
}

/// A data folder with everything in it, for these migrations and this PostgreSQL.
fn template(programs: &Path, migrated: bool) -> PathBuf {
    let mut digest = Sha256::new();
    digest.update(programs.as_os_str().as_encoded_bytes());
    digest.update(SUPABASE);
    for (name, sql) in migrations().into_iter().filter(|_| migrated) {
        digest.update(name);
        digest.update(sql);
    }
    let digest = hex::encode(&digest.finalize()[..8]);
    let kept = super::rest::kept("lucid-tests-postgres");
    std::fs::create_dir_all(&kept).unwrap();
    let lock = File::create(kept.join("lock")).unwrap();
    // Tests run side by side.
    lock.lock().unwrap();
    let template = kept.join(&digest);
    if template.join("data").is_dir() {
        return template;
    }
    let mut postgres = Postgres::in_a_folder(programs);
    let made = program(&programs.join("initdb"), postgres.folder())
        .args(["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"])
        .args(["--no-sync", "--no-instructions"])
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "initdb failed: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    postgres.run();
    postgres.sql(SUPABASE);
    if migrated {
        postgres.migrate();
    }
    // In peace, so that a copy does not begin with a recovery.
    postgres.end(Signal::INT);
    let half = kept.join(format!("{digest}-half"));
    std::fs::remove_dir_all(&half).ok();
    std::fs::create_dir(&half).unwrap();
    copy(postgres.folder(), &half);
    std::fs::rename(&half, &template).unwrap();
    template
}

/// Copies the data, with its owner.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-a")
        .arg(from.join("data"))
        .arg(to)
        .status();
    assert!(
        copied.unwrap().success(),
        "{} was not copied",
        from.display()
    );
}
