//! What fails while a host starts, and a host that is told to stop while it starts.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::begun;
use lucid_tests::{Host, SmallDisk, command, counting, eventually};

/// Longer than any write waits for a lock by itself.
const HELD: Duration = Duration::from_secs(12);

/// A server that need not come as far as to listen.
struct Starting {
    child: Child,
    folder: TempDir,
}

impl Starting {
    /// Started in a folder by a command line of a shell, in which `$0` is the server.
    fn in_shell(folder: TempDir, line: &str) -> Self {
        let printed = || Stdio::from(File::options().append(true).open(log_of(&folder)).unwrap());
        File::create(log_of(&folder)).unwrap();
        let server = command(folder.path(), &[]);
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).arg(server.get_program());
        for (name, value) in server.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let child = shell
            .current_dir(folder.path())
            .env("PORT", "0")
            .env("SANDBOX_BACKEND", "none")
            .stdin(Stdio::null())
            .stdout(printed())
            .stderr(printed())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(log_of(&self.folder)).unwrap()
    }

    async fn says(&self, text: &str) {
        let what = format!("the server to say {text:?}");
        eventually(&what, async || self.log().contains(text).then_some(())).await;
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has ended, and says how long that took.
    async fn ended_well(&mut self) -> Duration {
        let from = Instant::now();
        let ended = async || self.child.try_wait().unwrap();
        let status = eventually("the server to end", ended).await;
        assert!(status.success(), "{status}: {}", self.log());
        from.elapsed()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn log_of(folder: &TempDir) -> std::path::PathBuf {
    folder.path().join("log")
}

fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("lucid-start-")
        .tempdir()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_a_lock_that_another_process_holds_and_its_sessions_go_on() {
    let mut host = Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .set("MOCK_STEP_DELAY_SECONDS", "1")
        .start();
    drop(begun(&host, 1).await);
    host.stop().await;
    let database = host.folder().join("storage/.lucid/data/lucid.db");
    let other = Connection::open(database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let held = std::thread::spawn(move || {
        std::thread::sleep(HELD);
        other.execute_batch("ROLLBACK").unwrap();
    });
    host.start_again();
    held.join().unwrap();
    host.says("cannot start yet, and tries again").await;
    host.says("sessions of the last run go on").await;
    let first = serde_json::json!({"task": "Task 0"});
    let mut again = lucid_tests::Socket::open(&host, "user-0", first).await;
    again.completed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_room_on_a_full_disk() {
    if !SmallDisk::possible() {
        return;
    }
    let mut host = Host::with_defaults()
        .on_disk_of("128m")
        .set("SANDBOX_BACKEND", "none")
        .set("DISK_RESERVE", "0")
        .start();
    host.stop().await;
    host.disk().fill("filler");
    let filler = host.folder().join("storage/filler");
    let full = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(3));
        std::fs::remove_file(filler).unwrap();
    });
    host.start_again();
    full.join().unwrap();
    host.says("cannot start yet, and tries again").await;
    let first = serde_json::json!({"task": "Task 0"});
    let mut socket = lucid_tests::Socket::open(&host, "user-0", first).await;
    socket.completed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_ends_a_start_at_once() {
    let folder = folder();
    let data = folder.path().join("storage/.lucid/data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("lucid.db"), "no database at all ".repeat(100)).unwrap();
    let mut server = Starting::in_shell(folder, "exec $0 serve");
    let ended = async || server.child.try_wait().unwrap();
    let status = eventually("the server to end", ended).await;
    assert_eq!(status.code(), Some(1), "{}", server.log());
    let log = server.log();
    assert!(log.contains("file is not a database"), "{log}");
    assert!(!log.contains("tries again"), "{log}");
}

/// A folder whose manifest names plugins that no server has compiled yet.
fn with_plugins_to_compile() -> TempDir {
    let folder = folder();
    let mut manifest = String::new();
    for number in 0..8 {
        let file = format!("{number}.wasm");
        std::fs::write(folder.path().join(&file), counting(number, "good")).unwrap();
        writeln!(
            manifest,
            "[policies.number-{number}]\ncomponent = \"{file}\""
        )
        .unwrap();
    }
    std::fs::write(folder.path().join("lucid.toml"), manifest).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_server_that_compiles_or_waits_for_its_database() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut compiling = Starting::in_shell(with_plugins_to_compile(), "exec $0 serve");
        compiling.says("compiling a component").await;
        compiling.signal(signal);
        let took = compiling.ended_well().await;
        assert!(took < Duration::from_secs(20), "{took:?}");
        compiling.says("stopped while the server started").await;
    }

    // It was there before, and another process has it now.
    let folder = folder();
    let mut first = Starting::in_shell(folder, "exec $0 serve");
    first.says("listening on").await;
    first.signal(Signal::TERM);
    first.ended_well().await;
    let folder = std::mem::replace(&mut first.folder, self::folder());
    let database = folder.path().join("storage/.lucid/data/lucid.db");
    let other = Connection::open(database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut waiting = Starting::in_shell(folder, "exec $0 serve");
    waiting.says("the log cannot be written").await;
    waiting.signal(Signal::TERM);
    waiting.says("stopping").await;
    let took = waiting.ended_well().await;
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_hangup_is_ignored_outlives_its_terminal() {
    let folder = folder();
    let mut server = Starting::in_shell(folder, "exec nohup $0 serve");
    server.says("listening on").await;
    server.signal(Signal::HUP);
    server.signal(Signal::HUP);
    let log = server.log();
    let address = log.split("listening on http://").nth(1).unwrap();
    let address = address.lines().next().unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"ok\""), "{answer}");
    server.signal(Signal::TERM);
    server.ended_well().await;
    server.says("SIGTERM").await;
    assert!(!server.log().contains("SIGHUP"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_serves_also_where_nothing_that_it_says_can_be_printed() {
    let folder = folder();
    let mut server = Starting::in_shell(folder, "exec $0 serve >/dev/full");
    server.says("a line could not be printed to stdout").await;
    server.signal(Signal::TERM);
    server.says("stopping").await;
    server.ended_well().await;
}
