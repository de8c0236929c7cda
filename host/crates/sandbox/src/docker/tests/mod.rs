//! Tests with real containers on a real engine. Where none answers, these tests say so and end,
//! unless `LUCID_DOCKER=required` is set, as `tests/run` and CI do: then they fail.

#[path = "../../../../../../tests/src/docker/image.rs"]
mod image;

mod direct;
mod engine;
mod everyday;
mod faulty;
mod life;
mod limits;
mod restart;
mod waiting;
mod work;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::super::{
    BackendChoice, BackendKind, ExecRequest, ExecResult, Network, Sandbox, SandboxError,
    SandboxSpec, Sandboxes,
};
use super::{DockerSettings, Transport};
use crate::tests::session_id;
use crate::workspace::Workspace;
use lucid_tests::EXEC;

const BOTH: [Transport; 2] = [Transport::Socket, Transport::Exec];
/// The process limit of these tests' containers.
const PROCESSES: u32 = 100;
const MEMORY: u64 = 256 << 20;
/// Generous, so that only a hang exceeds it.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The name of the image; `None` if there is no engine to run it.
fn image() -> Option<&'static str> {
    static IMAGE: OnceLock<Option<String>> = OnceLock::new();
    let found = IMAGE.get_or_init(|| {
        let answers = Command::new("docker")
            .args(["info", "--format", "{{.ID}}"])
            .output()
            .is_ok_and(|output| output.status.success());
        answers.then(image::name_of_the_built)
    });
    if found.is_none() {
        assert!(
            std::env::var_os("LUCID_DOCKER").is_none(),
            "no Docker engine answers, but LUCID_DOCKER=required"
        );
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // `eprintln!` would be captured, and a passing test shows nothing of it.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {test}: no Docker engine answers"
        );
    }
    found.as_deref()
}

/// The address of the engine that the tests use; `None` for the default.
fn engine_host() -> Option<String> {
    std::env::var("DOCKER_HOST").ok()
}

/// The same as a socket's path, for a test that puts a proxy in between.
fn engine_socket() -> String {
    let host = engine_host().unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
    let path = host.strip_prefix("unix://");
    path.expect("these tests need an engine on a Unix socket")
        .to_owned()
}

/// The output of `docker ARGUMENTS`, trimmed.
fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The data folder of a host, which outlives it. What the host leaves on the engine is removed with
/// it.
struct Data {
    dir: tempfile::TempDir,
    /// Other tests, and other runs of them, have the same sessions on the same engine.
    prefix: String,
}

impl Data {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let prefix = format!("lucid-unit-{}-", uuid::Uuid::new_v4().simple());
        Self { dir, prefix }
    }

    fn name(&self, session: &str) -> String {
        format!("{}{}", self.prefix, session_id(session))
    }

    fn settings(&self, change: impl FnOnce(&mut DockerSettings)) -> super::super::SandboxSettings {
        let mut docker = DockerSettings {
            host: engine_host(),
            image: image().unwrap_or_default().to_owned(),
            prefix: self.prefix.clone(),
            transport: Some(Transport::Socket),
            ..DockerSettings::default()
        };
        change(&mut docker);
        super::super::SandboxSettings {
            run_dir: self.dir.path().join("storage/.lucid/run"),
            memory_bytes: MEMORY,
            cpus: 0.5,
            processes: PROCESSES,
            users: crate::UserIdChoice::Auto,
            network: Network::None,
            direct: false,
            several_users: false,
            workspace_mount: "/workspace".to_owned(),
            docker: Some(docker),
        }
    }

    /// The same for what is not the containers' alone.
    async fn host_with(&self, change: impl FnOnce(&mut crate::SandboxSettings)) -> Sandboxes {
        let mut settings = self.settings(|_| {});
        change(&mut settings);
        Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
            .await
            .unwrap()
    }

    /// Starts a host over this folder.
    async fn host(&self, change: impl FnOnce(&mut DockerSettings)) -> Sandboxes {
        let settings = self.settings(change);
        Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
            .await
            .unwrap()
    }

    fn workspace_path(&self, session: &str) -> PathBuf {
        let user = self.dir.path().join("storage/user");
        user.join(session_id(session).to_string())
    }

    fn workspace(&self, session: &str) -> Workspace {
        let storage = self.dir.path().join("storage");
        Workspace::create(&storage, &"user".into(), session_id(session)).unwrap()
    }

    async fn start(&self, host: &Sandboxes, session: &str) -> Sandbox {
        self.try_start(host, session).await.unwrap()
    }

    async fn try_start(&self, host: &Sandboxes, session: &str) -> Result<Sandbox, SandboxError> {
        let workspace = self.workspace(session);
        let spec = SandboxSpec {
            session: session_id(session),
            workspace: workspace.host_path(),
            repository: None,
        };
        Box::pin(host.start(spec)).await
    }

    fn instance(&self) -> Option<String> {
        let path = self.dir.path().join("storage/.lucid/run/docker/instance");
        std::fs::read_to_string(path).ok()
    }

    /// The names of this host's containers.
    fn containers(&self) -> Vec<String> {
        self.listed(&["--all"])
    }

    /// The names of those in a state.
    fn containers_that(&self, state: &str) -> Vec<String> {
        self.listed(&["--filter", &format!("status={state}")])
    }

    fn listed(&self, which: &[&str]) -> Vec<String> {
        let Some(instance) = self.instance() else {
            return Vec::new();
        };
        let filter = format!("label=lucid.instance={instance}");
        let list = ["ps", "--format", "{{.Names}}", "--filter", &filter];
        docker(&[&list, which].concat())
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// How many containers have a folder.
    fn folders(&self) -> usize {
        let folders = |path: PathBuf| {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.path())
                .filter(|path| path.is_dir())
        };
        folders(self.dir.path().join("storage/.lucid/run/docker"))
            .flat_map(folders)
            .count()
    }

    /// Waits until this host has that many containers.
    async fn until_containers(&self, count: usize) {
        until(&format!("{count} containers"), || {
            self.containers().len() == count
        })
        .await;
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        for name in self.containers() {
            let _ = Command::new("docker").args(["rm", "-f", &name]).output();
        }
    }
}

/// Containers with the network that sandboxes have, for the tests of walls: what to keep for as long as
/// they are used, and where workspaces are. `None` if there is no engine.
pub(crate) async fn wall_sandboxes() -> Option<(impl Drop, Sandboxes, PathBuf)> {
    image()?;
    let data = Data::new();
    let mut settings = data.settings(|_| {});
    settings.network = Network::Proxy;
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC)).await;
    let storage = data.dir.path().join("storage");
    Some((data, host.unwrap(), storage))
}

/// Polls a condition that nothing signals.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < TIMEOUT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn shell(sandbox: &Sandbox, command: &str) -> ExecResult {
    sandbox
        .exec(ExecRequest::shell(command), |_| {})
        .await
        .unwrap()
}

/// How many processes in a sandbox have `mark` in their command line.
async fn running(sandbox: &Sandbox, mark: &str) -> usize {
    // The brackets keep the search from finding itself.
    let (first, rest) = mark.split_at(1);
    let count = format!("ps -o args | grep -c 'sleep [{first}]{rest}'");
    shell(sandbox, &count).await.output.trim().parse().unwrap()
}

/// Waits until there are none of them; killed processes take a moment to disappear.
async fn none_runs(sandbox: &Sandbox, mark: &str) {
    let begun = Instant::now();
    while running(sandbox, mark).await > 0 {
        assert!(begun.elapsed() < TIMEOUT, "sleep {mark} runs on");
    }
}

/// A host that dies suddenly: its runtime is stopped, and nothing of it is closed.
fn die<T: Send + 'static>(work: impl AsyncFnOnce() -> (Sandboxes, T) + Send + 'static) -> T {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (host, left) = runtime.block_on(work());
        runtime.shutdown_background();
        // Outside a runtime nothing can be cleaned up; the lock is released, as by a death.
        drop(host);
        left
    })
    .join()
    .unwrap()
}
