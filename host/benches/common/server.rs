//! Owns the server that is measured: the binary `lucid` itself, in a process of its own.
//!
//! What always holds: it plays the mock without sandbox and delay, in a storage folder of its own,
//! and is gone when the value is dropped.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lucid::auth::Authenticator;
use lucid_types::secret::Secret;
use lucid_types::user::UserId;

/// Signs the tokens. As long as the server wants it at least.
const SECRET: &str = "a secret that is only good for benchmarks";

/// A server that listens.
pub(crate) struct Server {
    /// Its process.
    pub(crate) child: Child,
    address: String,
}

impl Server {
    /// Starts it on a free port, with these settings beside its own, and waits until it says that it
    /// listens.
    pub(crate) fn start(storage: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_binary(Path::new(env!("CARGO_BIN_EXE_lucid")), storage, settings)
    }

    /// Like [`start`](Self::start), of another build.
    pub(crate) fn start_binary(binary: &Path, storage: &Path, settings: &[(&str, &str)]) -> Self {
        let mut child = Command::new(binary)
            .arg("serve")
            .current_dir(storage)
            .env_clear()
            .env("PORT", "0")
            .env("HOST", "127.0.0.1")
            .env("SUPABASE_JWT_SECRET", SECRET)
            .env("WORKSPACE_BASE_PATH", storage)
            .env("SANDBOX_BACKEND", "none")
            .env("MOCK_STEP_DELAY_SECONDS", "0")
            .env("MAX_SESSIONS_PER_USER", "10000")
            .env("RUST_LOG", "error")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let address = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on http://").map(str::to_owned));
        let Some(address) = address else {
            panic!("lucid did not start: {:?}", child.wait());
        };
        Self { child, address }
    }

    /// Where it answers that it is healthy.
    pub(crate) fn health(&self) -> String {
        format!("http://{}/health", self.address)
    }

    /// What a user presents.
    pub(crate) fn token(user: &str) -> String {
        let day = Duration::from_secs(86_400);
        Authenticator::new(Some(&Secret::new(SECRET)), None)
            .issue(&UserId::from(user), day)
            .unwrap()
    }

    /// Where a user's client connects.
    pub(crate) fn socket(&self, user: &str) -> String {
        let token = Self::token(user);
        format!("ws://{}/api/v1/ws?token={token}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
