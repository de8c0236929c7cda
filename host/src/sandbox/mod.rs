//! Boxes that hostile code runs in: which kind this machine can have, starting one for a session,
//! running commands in it, and taking everything away at the end.
//!
//! What always holds: a kind is used only after a box of it really ran here; a box sees one
//! session's workspace and no other; commands get an environment made from nothing; and when a box
//! is closed, or the host dies, no process of it lives on. Bubblewrap gives namespaces, Landlock
//! confines files and sockets of ordinary processes, and with `None` nothing is run at all.

mod bubblewrap;
mod connection;
mod exec;
mod landlock;
mod runtime;
mod system;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lucid_exec::protocol::{Limits, Serve};

use connection::Connection;
pub(crate) use connection::read_frame;
pub use exec::{ExecRequest, ExecResult};
use runtime::{Runtime, SessionDir};

/// How long a box may take to be ready.
const START: Duration = Duration::from_secs(10);
/// How long a box may take to end once it was told to.
const END: Duration = Duration::from_secs(8);
const NAMESPACE_END: Duration = Duration::from_secs(2);

/// What keeps a session's commands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Namespaces made by `bwrap`.
    Bubblewrap,
    /// The kernel's Landlock with a system call filter and resource limits.
    Landlock,
    /// No box: nothing is run.
    None,
}

impl Kind {
    /// Whether commands of one box see nothing of another box's processes. Landlock boxes have one
    /// user id and one `/proc`: in it stand the command lines of all of them.
    fn keeps_users_apart(self) -> bool {
        match self {
            Self::Bubblewrap => true,
            Self::Landlock | Self::None => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Bubblewrap => "bubblewrap",
            Self::Landlock => "landlock",
            Self::None => "none",
        })
    }
}

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The best kind that works here, for one user; without any, sessions are refused.
    #[default]
    Auto,
    /// The best kind that also keeps several users apart, which Landlock does not; without any,
    /// sessions are refused.
    AutoForMany,
    /// Bubblewrap or nothing.
    Bubblewrap,
    /// Landlock or nothing.
    Landlock,
    /// No box. Sessions whose policy can do without one still run.
    None,
}

/// What a box may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Nothing outside the box.
    #[default]
    None,
    /// What the host reaches.
    Host,
}

/// What all boxes have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The host's own folder for programs, sockets and temporary folders of boxes.
    pub run_dir: PathBuf,
    /// How much memory a command may use, and the base for the size of temporary file systems.
    pub memory_bytes: u64,
    /// What boxes may reach.
    pub network: Network,
    /// Where commands see the workspace, in kinds that can place it.
    pub workspace_mount: String,
}

/// Whether a kind works on this machine.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The kind that was tried.
    pub kind: Kind,
    /// Why it does not work; `None` where it does.
    pub problem: Option<String>,
}

/// Why a box cannot be had or used. Each is a sentence for the operator or the user.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The machine cannot do what was asked for.
    #[error("No sandbox of the kind asked for works on this machine. {0}")]
    Unavailable(String),
    /// A box could not be started.
    #[error("The sandbox could not be started: {0}")]
    Start(String),
    /// The box is no more: it was closed, or it died.
    #[error("The sandbox is gone: {0}")]
    Gone(String),
    /// The box is well, but this command could not be started in it.
    #[error("{0}")]
    Refused(String),
    /// The host's own files.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        cause: std::io::Error,
    },
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> SandboxError {
    let what = what.into();
    move |cause| SandboxError::Io { what, cause }
}

/// One box to start.
#[derive(Debug, Clone, Copy)]
pub struct Spec<'a> {
    /// The session's id; its runtime folder is named after it.
    pub session: &'a str,
    /// The session's workspace on the host.
    pub workspace: &'a Path,
    /// The repository that git in the box reaches through the host's gateway.
    pub repository: Option<&'a str>,
}

struct Shared {
    kind: Kind,
    /// Why sessions are refused, where they are.
    refusal: Option<String>,
    findings: Vec<Finding>,
    settings: Settings,
    runtime: Runtime,
    bubblewrap: Option<bubblewrap::Program>,
}

/// The boxes this machine can have.
#[derive(Clone)]
pub struct Sandboxes(Arc<Shared>);

impl Sandboxes {
    /// Installs the exec server and finds the kind to use by really trying a box of it.
    ///
    /// The automatic choices always give something: where nothing works, [`Sandboxes::refusal`] says
    /// why and every start is refused. An explicit choice that does not work is an error.
    pub async fn detect(
        choice: Choice,
        settings: Settings,
        exec: &'static [u8],
    ) -> Result<Self, SandboxError> {
        let runtime = Runtime::install(&settings.run_dir, exec)?;
        let mut shared = Shared {
            kind: Kind::None,
            refusal: None,
            findings: Vec::new(),
            settings,
            runtime,
            bubblewrap: None,
        };
        let kinds: &[Kind] = match choice {
            Choice::Auto | Choice::AutoForMany => &[Kind::Bubblewrap, Kind::Landlock],
            Choice::Bubblewrap => &[Kind::Bubblewrap],
            Choice::Landlock => &[Kind::Landlock],
            Choice::None => &[],
        };
        for kind in kinds {
            let tried = Self::attempt(&mut shared, *kind).await;
            shared.findings.push(Finding {
                kind: *kind,
                problem: tried.err(),
            });
        }
        (shared.kind, shared.refusal) = pick(choice, &shared.findings)?;
        Ok(Self(Arc::new(shared)))
    }

    async fn attempt(shared: &mut Shared, kind: Kind) -> Result<(), String> {
        if kind == Kind::Bubblewrap {
            shared.bubblewrap = Some(bubblewrap::Program::find().await?);
        }
        let workspace = shared
            .runtime
            .probe_workspace()
            .map_err(|error| error.to_string())?;
        let spec = Spec {
            session: "probe",
            workspace: &workspace,
            repository: None,
        };
        let outcome = async {
            let sandbox = Sandbox::start(shared, kind, spec).await?;
            let ran = sandbox.exec(ExecRequest::argv(["/bin/true"]), |_| {}).await;
            sandbox.close().await;
            ran
        };
        let outcome = Box::pin(outcome).await;
        let _ = crate::workspace::erase(&workspace);
        match outcome {
            Ok(result) if result.exit_code == 0 => Ok(()),
            Ok(result) => Err(format!(
                "a first command ended with code {}: {}",
                result.exit_code, result.output
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The kind that new boxes have.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Why no box can be had here, where none can.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.0.refusal.as_deref()
    }

    /// What was tried, and why what failed did.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.0.findings
    }

    /// What all boxes have in common.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Starts a box for a session.
    pub async fn start(&self, spec: Spec<'_>) -> Result<Sandbox, SandboxError> {
        if let Some(reasons) = &self.0.refusal {
            return Err(SandboxError::Unavailable(reasons.clone()));
        }
        Box::pin(Sandbox::start(&self.0, self.0.kind, spec)).await
    }
}

/// A running box. Clones are handles of the same one; the last that goes takes the box along.
#[derive(Clone)]
pub struct Sandbox(Arc<Inner>);

struct Inner {
    kind: Kind,
    workspace: String,
    shell: &'static str,
    /// Shared with the task that removes it.
    dir: Arc<SessionDir>,
    connection: Connection,
    process: Mutex<Option<tokio::process::Child>>,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Sandbox")
            .field("kind", &self.0.kind)
            .field("workspace", &self.0.workspace)
            .finish()
    }
}

impl Sandbox {
    async fn start(shared: &Shared, kind: Kind, spec: Spec<'_>) -> Result<Self, SandboxError> {
        runtime::check_reachable(spec.workspace)?;
        runtime::give_to_box_user(spec.workspace)?;
        let dir = shared.runtime.session(spec.session)?;
        let settings = &shared.settings;
        let serve = Serve {
            limits: Limits {
                processes: 512,
                // A user namespace counts for itself; elsewhere other sessions have the same user.
                shared_user: kind != Kind::Bubblewrap,
                open_files: 4096,
                file_bytes: 8 << 30,
                data_bytes: Some(settings.memory_bytes),
            },
            confine: None,
        };
        let (command, workspace) = match (kind, &shared.bubblewrap) {
            (Kind::Bubblewrap, Some(program)) => (
                program.command(settings, &dir, &shared.runtime, spec, &serve)?,
                settings.workspace_mount.clone(),
            ),
            (Kind::Bubblewrap, None) => {
                return Err(SandboxError::Start("bwrap was not found.".to_owned()));
            }
            (Kind::None, _) => {
                return Err(SandboxError::Start(
                    "there is no kind of box here.".to_owned(),
                ));
            }
            (Kind::Landlock, _) => {
                let command = landlock::command(settings, &dir, spec, serve)?;
                (command, spec.workspace.to_string_lossy().into_owned())
            }
        };
        let (connection, process) = Connection::open(command, START).await?;
        let shell = if Path::new("/bin/bash").exists() {
            "bash"
        } else {
            "sh"
        };
        Ok(Self(Arc::new(Inner {
            kind,
            workspace,
            shell,
            dir: Arc::new(dir),
            connection,
            process: Mutex::new(Some(process)),
        })))
    }

    /// The workspace's folder as commands see it.
    #[must_use]
    pub fn workspace_path(&self) -> &str {
        &self.0.workspace
    }

    /// What keeps this box's commands in.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The folder on the host in which this session's git gateway listens.
    #[must_use]
    pub fn runtime_dir(&self) -> &Path {
        self.0.dir.path()
    }

    /// Whether the box still answers.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.connection.is_alive()
    }

    /// Runs a command to its end. `on_output` sees what it writes as it comes, up to the request's
    /// head. Dropping the future kills the command and its process group.
    pub async fn exec(
        &self,
        request: ExecRequest,
        on_output: impl FnMut(&[u8]) + Send,
    ) -> Result<ExecResult, SandboxError> {
        let start = request.into_start(self.0.shell, &self.0.workspace);
        exec::run(&self.0.connection, start, on_output).await
    }

    /// Ends the box: every process in it is killed and its folder removed. Twice is once.
    pub async fn close(&self) {
        self.0.connection.shut("It was closed.");
        let process = self
            .0
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(process) = process {
            see_out(process, self.0.kind).await;
        }
        let dir = Arc::clone(&self.0.dir);
        // An error means that the host itself is ending, and the folder went with the closure.
        let _ = tokio::task::spawn_blocking(move || dir.remove()).await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.connection.shut("It was closed.");
        let process = self
            .process
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let (Some(process), Ok(runtime)) = (process, tokio::runtime::Handle::try_current()) {
            let (dir, kind) = (Arc::clone(&self.dir), self.kind);
            runtime.spawn(async move {
                see_out(process, kind).await;
                // The last to hold the folder removes it: not before the box's processes are gone.
                let _ = tokio::task::spawn_blocking(move || drop(dir)).await;
            });
        }
    }
}

/// Waits for a box whose connection was shut, and kills it where hostile code keeps it from ending.
/// Waiting comes first: bwrap then reaps what is its own, and leaves no zombie to whoever is init.
async fn see_out(mut process: tokio::process::Child, kind: Kind) {
    // With its first process a process namespace dies as a whole; the supervisor of the other
    // kinds needs its time to find what is below it, and cannot be kept from it.
    let patience = if kind == Kind::Bubblewrap {
        NAMESPACE_END
    } else {
        END
    };
    if tokio::time::timeout(patience, process.wait())
        .await
        .is_err()
    {
        let _ = process.kill().await;
    }
}

/// Of what was tried, in order of preference, the kind to use, and why sessions are refused where none
/// is.
fn pick(choice: Choice, findings: &[Finding]) -> Result<(Kind, Option<String>), SandboxError> {
    let mut working = findings.iter().filter(|finding| finding.problem.is_none());
    let reasons = || {
        let reasons: Vec<String> = findings
            .iter()
            .filter_map(|finding| Some(format!("{}: {}", finding.kind, finding.problem.as_ref()?)))
            .collect();
        reasons.join(" ")
    };
    let refused = |sentence| Ok((Kind::None, Some(sentence)));
    match (choice, working.next()) {
        (Choice::AutoForMany, Some(first)) if !first.kind.keeps_users_apart() => {
            let kind = first.kind;
            refused(format!(
                "{} {kind} works, but its sandboxes see the command lines of each other's processes, so it is not used by itself where several users are served: install bubblewrap (`apt-get install bubblewrap`), or set SANDBOX_BACKEND={kind} to accept that.",
                reasons()
            ))
        }
        (_, Some(first)) => Ok((first.kind, None)),
        (Choice::None, None) => {
            refused("SANDBOX_BACKEND is none: this deployment runs no commands.".to_owned())
        }
        (Choice::Auto | Choice::AutoForMany, None) => refused(reasons()),
        (Choice::Bubblewrap | Choice::Landlock, None) => Err(SandboxError::Unavailable(reasons())),
    }
}

/// What every command finds in its environment.
fn environment(
    bin: &str,
    home: &str,
    temporary: &str,
    socket: &str,
    spec: Spec<'_>,
) -> BTreeMap<String, String> {
    let shell = if Path::new("/bin/bash").exists() {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    let path = format!("{bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut environment: BTreeMap<String, String> = [
        ("PATH", path.as_str()),
        ("HOME", home),
        ("TMPDIR", temporary),
        ("USER", "agent"),
        ("LOGNAME", "agent"),
        ("SHELL", shell),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("PAGER", "cat"),
        ("GIT_PAGER", "cat"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("LUCID_GIT_SOCKET", socket),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    if let Some(repository) = spec.repository {
        let repository = repository.trim_end_matches('/');
        let repository = repository.strip_suffix(".git").unwrap_or(repository);
        let entries = [
            (
                format!("url.lucid::{repository}.insteadOf"),
                repository.to_owned(),
            ),
            ("protocol.lucid.allow".to_owned(), "always".to_owned()),
            ("protocol.version".to_owned(), "2".to_owned()),
        ];
        environment.insert("GIT_CONFIG_COUNT".to_owned(), entries.len().to_string());
        for (number, (key, value)) in entries.into_iter().enumerate() {
            environment.insert(format!("GIT_CONFIG_KEY_{number}"), key);
            environment.insert(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
    }
    environment
}
