//! The host: started on a free port with a storage folder of its own, killed at the end.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Client, Method};
use serde_json::Value;
use tempfile::TempDir;

use crate::disk::SmallDisk;
use crate::token::{JWT_SECRET, token};
use crate::wait::{DEADLINE, eventually};

/// The binary `lucid`. Cargo builds it for the tests of its package, and says where it is.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("CARGO_BIN_EXE_lucid") {
        Some(path) => path.into(),
        None => panic!(
            "CARGO_BIN_EXE_lucid does not say where `lucid` is: run the tests with `cargo test`, or set it"
        ),
    })
}

/// A call of the binary in a folder, with nothing of this process's environment but what commands
/// need to be found, and no setting.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    prepared(Command::new(binary()), folder, arguments)
}

/// The same in a process that may have so many files open as its hard limit, and few as its soft one.
pub fn command_with_descriptors(folder: &Path, arguments: &[&str], descriptors: u64) -> Command {
    command_through(folder, &with_descriptors(descriptors), arguments)
}

/// The same, called by another program that becomes the command behind its own arguments.
pub fn command_through(folder: &Path, program: &[String], arguments: &[&str]) -> Command {
    let (first, rest) = program.split_first().unwrap();
    let mut command = Command::new(first);
    command.args(rest).arg(binary());
    prepared(command, folder, arguments)
}

/// A program for [`command_through`] that first runs a shell script in mounts of its own, which takes
/// root.
pub fn in_own_mounts(script: &str) -> Vec<String> {
    let script = format!("{script} && exec \"$@\"");
    ["unshare", "--mount", "sh", "-c", &script, "sh"]
        .map(str::to_owned)
        .into()
}

fn with_descriptors(descriptors: u64) -> Vec<String> {
    let script = format!("ulimit -S -n 64 && ulimit -H -n {descriptors} && exec \"$@\"");
    ["sh", "-c", &script, "sh"].map(str::to_owned).into()
}

fn prepared(mut command: Command, folder: &Path, arguments: &[&str]) -> Command {
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .stdin(Stdio::null());
    for name in ["PATH", "HOME", "LANG", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("RUST_BACKTRACE", "1");
    command
}

/// What to start.
pub struct HostBuilder {
    settings: Vec<(String, String)>,
    disk: Option<String>,
    run_disk: Option<String>,
    program: Option<Vec<String>>,
}

impl HostBuilder {
    /// One setting more, or another value for one.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.into()));
        self
    }

    /// One setting less.
    #[must_use]
    pub fn unset(mut self, name: &str) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self
    }

    /// With a storage folder on a small disk of its own, of a size such as `128m`.
    #[must_use]
    pub fn on_disk_of(mut self, size: &str) -> Self {
        self.disk = Some(size.to_owned());
        self
    }

    /// With the temporary folders of sandboxes on a small disk of their own.
    #[must_use]
    pub fn run_on_disk_of(mut self, size: &str) -> Self {
        self.run_disk = Some(size.to_owned());
        self
    }

    /// With a hard limit of open files.
    #[must_use]
    pub fn with_descriptors(self, descriptors: u64) -> Self {
        self.through(with_descriptors(descriptors))
    }

    /// Called by another program; see [`command_through`].
    #[must_use]
    pub fn through(mut self, program: Vec<String>) -> Self {
        self.program = Some(program);
        self
    }

    /// Starts it, and waits until it listens.
    pub fn start(self) -> Host {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let folder = tempfile::Builder::new()
            .prefix("lucid-test-")
            .tempdir()
            .unwrap();
        let storage = folder.path().join("storage");
        let disk = self
            .disk
            .map(|size| SmallDisk::mount(&storage, &size).expect("a small disk cannot be mounted"));
        let run_disk = self.run_disk.map(|size| {
            let folder = storage.join(".lucid/run");
            SmallDisk::mount(&folder, &size).expect("a small disk cannot be mounted")
        });
        let log = Arc::new(Mutex::new(String::new()));
        let command = host_command(&folder, &["serve"], self.program.as_deref());
        let (child, address) = spawn(command, &folder, &self.settings, &log);
        Host {
            child,
            address,
            log,
            _run_disk: run_disk,
            disk,
            folder,
            settings: self.settings,
            program: self.program,
            client: Client::builder().no_proxy().build().unwrap(),
        }
    }
}

/// A running host.
pub struct Host {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
    // Unmounted before the folder goes.
    _run_disk: Option<SmallDisk>,
    disk: Option<SmallDisk>,
    folder: TempDir,
    settings: Vec<(String, String)>,
    program: Option<Vec<String>>,
    client: Client,
}

/// What the host answered.
#[derive(Debug)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// `Content-Type`.
    pub media_type: String,
    /// The body, `null` where it is not JSON.
    pub body: Value,
    /// The body as it came.
    pub text: String,
    /// All headers.
    pub headers: HeaderMap,
}

impl HttpAnswer {
    /// All of a response.
    pub(crate) async fn read(response: reqwest::Response) -> Self {
        let status = response.status().as_u16();
        let media_type = response
            .headers()
            .get("content-type")
            .map(|value| value.to_str().unwrap().to_owned());
        let headers = response.headers().clone();
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Self {
            status,
            media_type: media_type.unwrap_or_default(),
            body,
            text,
            headers,
        }
    }

    /// The body of a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.media_type.starts_with("application/json"), "{self:?}");
        self.body
    }

    /// Checks a refusal: its status, its form, and its sentence.
    #[track_caller]
    pub fn refused(&self, status: u16, detail: &str) {
        self.problem(status);
        assert_eq!(self.body["detail"], detail, "{self:?}");
    }

    /// Checks a refusal's status and form, and gives its sentence.
    #[track_caller]
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.media_type, "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], status, "{self:?}");
        assert!(
            self.body["title"].is_string() && self.body["type"].is_string(),
            "{self:?}"
        );
        let id = self
            .headers
            .get("x-request-id")
            .map(|id| id.to_str().unwrap());
        assert_eq!(self.body["requestId"].as_str(), id, "{self:?}");
        assert!(id.is_some(), "{self:?}");
        let detail = self.body["detail"].as_str().unwrap_or_default();
        assert!(!detail.is_empty(), "{self:?}");
        detail.to_owned()
    }
}

impl Host {
    /// A host for other people's sessions: tokens are signed with [`JWT_SECRET`], the mock does not
    /// pause, repositories and models on this machine are allowed.
    #[must_use]
    pub fn with_defaults() -> HostBuilder {
        HostBuilder {
            settings: Vec::new(),
            disk: None,
            run_disk: None,
            program: None,
        }
        .set("SUPABASE_JWT_SECRET", JWT_SECRET)
        .set("HOST", "127.0.0.1")
        .set("MOCK_STEP_DELAY_SECONDS", "0")
        .set("ALLOW_PRIVATE_REPOSITORIES", "true")
        .set("MAX_SESSIONS_PER_USER", "1000")
        // A test of a provider that never recovers is to hear of it.
        .set("MODEL_OUTAGE_PATIENCE", "3s")
        // What every machine has; tests of containers say so themselves.
        .set("SANDBOX_BACKEND", "bubblewrap")
    }

    /// Where it listens, such as `127.0.0.1:4711`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its working directory, above the storage folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its small disk, where it has one.
    pub fn disk(&self) -> &SmallDisk {
        self.disk
            .as_ref()
            .expect("this host has no disk of its own")
    }

    /// The workspace of a session, where it was made.
    pub fn workspace(&self, session: &str) -> PathBuf {
        // What starts with a dot is the host's own, and may be named after the session too.
        let own =
            |entry: &std::fs::DirEntry| !entry.file_name().as_encoded_bytes().starts_with(b".");
        let users = std::fs::read_dir(self.folder.path().join("storage"))
            .into_iter()
            .flatten()
            .flatten();
        users
            .filter(own)
            .find_map(|entry| find(&entry.path(), session))
            .unwrap_or_else(|| {
                panic!(
                    "no folder for session {session} below {}",
                    self.folder.path().display()
                )
            })
    }

    /// All it printed so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it printed this: a line of the log comes a moment after what it is about.
    pub async fn says(&self, text: &str) {
        let what = format!("the log to say {text:?}");
        crate::eventually(&what, async || self.log().contains(text).then_some(())).await;
    }

    /// SIGKILL: nothing of it can tidy up.
    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Another value for a setting, from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, as an operator stops it; returns when it has ended, and fails where it did not say so
    /// itself.
    pub async fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        self.stopped().await;
    }

    /// Waits until it has ended by itself, and well.
    pub async fn stopped(&mut self) {
        let status = self.ended().await;
        assert!(status.success(), "{status}");
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        eventually("the host to stop", async || self.child.try_wait().unwrap()).await
    }

    /// Starts it again over the same storage, on another port.
    pub fn start_again(&mut self) {
        self.start_again_with(&["serve"]);
    }

    /// The same, with other arguments.
    pub fn start_again_with(&mut self, arguments: &[&str]) {
        assert!(
            self.child.try_wait().unwrap().is_some(),
            "the host still runs"
        );
        self.log.lock().unwrap().push_str("--- started again ---\n");
        let command = host_command(&self.folder, arguments, self.program.as_deref());
        (self.child, self.address) = spawn(command, &self.folder, &self.settings, &self.log);
    }

    /// A REST call for a user.
    pub async fn call(
        &self,
        user: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> HttpAnswer {
        let bearer = format!("Bearer {}", token(user));
        self.send(
            method,
            path,
            &[("authorization", &bearer)],
            body.map(Value::to_string),
        )
        .await
    }

    /// GET for a user.
    pub async fn get(&self, user: &str, path: &str) -> HttpAnswer {
        self.call(user, "GET", path, None).await
    }

    /// POST for a user.
    pub async fn post(&self, user: &str, path: &str, body: Value) -> HttpAnswer {
        self.call(user, "POST", path, Some(&body)).await
    }

    /// DELETE for a user.
    pub async fn delete(&self, user: &str, path: &str) -> HttpAnswer {
        self.call(user, "DELETE", path, None).await
    }

    /// Any call.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> HttpAnswer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self
            .client
            .request(method, format!("http://{}{path}", self.address))
            .timeout(DEADLINE);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            if !headers
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
            {
                request = request.header("content-type", "application/json");
            }
            request = request.body(body);
        }
        let response = request
            .send()
            .await
            .unwrap_or_else(|e| panic!("{path} was not answered: {e:?}"));
        HttpAnswer::read(response).await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        remove_control_groups(self.folder.path());
        if std::thread::panicking() {
            eprintln!("--- what the host printed ---\n{}--- end ---", self.log());
        }
    }
}

/// Removes the control groups of a host that was killed, as the next one over its folder would. Its
/// sandboxes end by themselves, and a group cannot be removed before.
fn remove_control_groups(folder: &Path) {
    let records = find(folder, "cgroups").and_then(|records| std::fs::read_dir(records).ok());
    let records = records.into_iter().flatten().flatten();
    let texts = records.filter_map(|record| std::fs::read_to_string(record.path()).ok());
    let deadline = Instant::now() + DEADLINE;
    for text in texts {
        for group in text.lines().map(Path::new) {
            while group.is_dir() && Instant::now() < deadline {
                for inner in std::fs::read_dir(group).into_iter().flatten().flatten() {
                    std::fs::remove_dir(inner.path()).ok();
                }
                if std::fs::remove_dir(group).is_err() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

/// What a child wrote to one of its streams.
pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The first path below a folder with this name.
pub fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries.flatten().find_map(|entry| {
        if entry.file_name() == name {
            return Some(entry.path());
        }
        entry
            .file_type()
            .ok()?
            .is_dir()
            .then(|| find(&entry.path(), name))?
    })
}

fn host_command(folder: &TempDir, arguments: &[&str], program: Option<&[String]>) -> Command {
    match program {
        Some(program) => command_through(folder.path(), program, arguments),
        None => command(folder.path(), arguments),
    }
}

fn spawn(
    mut command: Command,
    folder: &TempDir,
    settings: &[(String, String)],
    log: &Arc<Mutex<String>>,
) -> (Child, String) {
    let mut child = command
        .env("PORT", "0")
        .env("WORKSPACE_BASE_PATH", folder.path().join("storage"))
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (found, address) = mpsc::channel();
    copy(child.stdout.take().unwrap(), log, &found);
    copy(child.stderr.take().unwrap(), log, &found);
    drop(found);
    match address.recv_timeout(DEADLINE) {
        Ok(address) => (child, address),
        Err(why) => {
            child.kill().ok();
            let status = child.wait().unwrap();
            panic!(
                "the host never said where it listens ({why}, {status}); it printed:\n{}",
                log.lock().unwrap()
            )
        }
    }
}

/// Copies a stream into the log, in a thread of its own so that the host never waits for it.
fn copy(
    stream: impl Read + Send + 'static,
    log: &Arc<Mutex<String>>,
    found: &mpsc::Sender<String>,
) {
    let (log, found) = (log.clone(), found.clone());
    std::thread::spawn(move || {
        let mut found = Some(found);
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let line = text_of(&line);
            if let Some((_, rest)) = line.split_once("listening on http://")
                && let Some(found) = found.take()
            {
                let end = rest
                    .find(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c)))
                    .unwrap_or(rest.len());
                found.send(rest[..end].to_owned()).ok();
            }
            log.lock().unwrap().push_str(&(line + "\n"));
        }
    });
}
