//! One command in a sandbox, as the rest of the host sees it.
//!
//! # Invariants
//! - A command that was started is waited for or killed, even if the future that started it is
//!   dropped.
//! - Its output is bounded here too, whatever the sandbox sends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lucid_exec::protocol::{Exit, Start};

use super::SandboxError;
use super::connection::{Connection, Event};
use lucid_types::plural;
use lucid_types::unicode::lossy;

/// How much longer than its timeout a command may take before the sandbox counts as dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// A command to run.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    what: What,
    cwd: Option<String>,
    env: BTreeMap<String, String>,
    timeout: Duration,
    stdin: Option<String>,
    head: usize,
    tail: usize,
}

/// The longest argument of a program, in bytes; Linux limits it to 128 KiB.
const LONGEST_ARGUMENT: usize = 120_000;

/// How many bytes a program that stays open may write before they are read.
const WINDOW: usize = 256 << 10;

#[derive(Debug, Clone)]
enum What {
    Shell(String),
    Program(Vec<String>),
}

impl ExecRequest {
    fn new(what: What) -> Self {
        let timeout = Duration::from_secs(120);
        Self {
            what,
            cwd: None,
            env: BTreeMap::new(),
            timeout,
            stdin: None,
            head: 64 << 10,
            tail: 64 << 10,
        }
    }

    /// A command line for the sandbox's shell.
    #[must_use]
    pub fn shell(command: impl Into<String>) -> Self {
        Self::new(What::Shell(command.into()))
    }

    /// A program and its arguments, without a shell.
    #[must_use]
    pub fn argv<I: IntoIterator<Item = S>, S: Into<String>>(argv: I) -> Self {
        Self::new(What::Program(argv.into_iter().map(Into::into).collect()))
    }

    /// Sets the working directory; the default is the workspace.
    #[must_use]
    pub fn cwd(mut self, cwd: impl Into<String>) -> Self {
        self.cwd = Some(cwd.into());
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets the time after which the process group is killed; the default is 120 seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the standard input; empty by default.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// Sets how many of the first and of the last bytes of the output are kept.
    #[must_use]
    pub fn keep(mut self, head: usize, tail: usize) -> Self {
        (self.head, self.tail) = (head, tail);
        self
    }

    pub(super) fn into_start(
        mut self,
        shell: &str,
        workspace: &str,
        environment: &BTreeMap<String, String>,
    ) -> Start {
        for (name, value) in environment {
            self.env
                .entry(name.clone())
                .or_insert_with(|| value.clone());
        }
        let (argv, script) = match self.what {
            What::Shell(command) if command.len() > LONGEST_ARGUMENT => {
                (vec![shell.to_owned()], Some(command))
            }
            What::Shell(command) => (vec![shell.to_owned(), "-c".to_owned(), command], None),
            What::Program(argv) => (argv, None),
        };
        Start {
            argv,
            script,
            cwd: Some(self.cwd.unwrap_or_else(|| workspace.to_owned())),
            env: self.env,
            timeout_ms: Some(u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)),
            stdin: self.stdin,
            output_head: self.head,
            output_tail: self.tail,
            live: false,
        }
    }

    /// The same for a program that stays open: it has no timeout, and its output is granted piece
    /// by piece.
    pub(super) fn into_live(
        self,
        shell: &str,
        workspace: &str,
        environment: &BTreeMap<String, String>,
    ) -> Start {
        Start {
            timeout_ms: None,
            stdin: None,
            output_head: WINDOW,
            live: true,
            ..self.into_start(shell, workspace, environment)
        }
    }
}

/// How a command ended and its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// The exit code, or 128 plus the signal's number if a signal ended it.
    pub exit_code: i32,
    /// Whether the timeout killed it.
    pub timed_out: bool,
    /// Standard output and error, interleaved in order; a sentence stands for what was omitted.
    pub output: String,
    /// The output in bytes: its beginning, and its end after what was omitted.
    pub bytes: (Vec<u8>, Vec<u8>),
    /// Number of omitted bytes.
    pub omitted: u64,
    /// How long it ran.
    pub duration: Duration,
    /// A limit of the sandbox that was hit while it ran, or since the previous command ended. The
    /// output then ends with a sentence about it.
    pub limit: Option<LimitHit>,
}

/// A limit of a sandbox that was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitHit {
    /// The kernel killed a process, since the sandbox's memory was used up.
    Memory,
    /// The kernel refused a new process, since the sandbox has as many as it may.
    Processes,
}

impl LimitHit {
    fn of(exit: &Exit) -> Option<Self> {
        if exit.memory_kills > 0 {
            Some(Self::Memory)
        } else {
            (exit.refused_processes > 0).then_some(Self::Processes)
        }
    }

    /// The sentence that explains it.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Memory => "[The sandbox reached its memory limit: the kernel ended a process.]",
            Self::Processes => {
                "[The sandbox reached its limit of processes: the kernel refused to start one.]"
            }
        }
    }
}

pub(super) async fn run(
    connection: &Connection,
    start: &Start,
    mut on_output: impl FnMut(&[u8]) + Send,
) -> Result<ExecResult, SandboxError> {
    let begun = Instant::now();
    let limit =
        Duration::from_millis(start.timeout_ms.unwrap_or(u64::MAX / 4)).saturating_add(PATIENCE);
    // Kills the command when it is dropped before the end.
    let mut command = connection.start(start)?;
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let Ok(event) = tokio::time::timeout(left, command.next()).await else {
            connection.shut("It no longer answers.");
            return Err(connection.gone());
        };
        match event {
            Some(Event::Output(bytes)) => {
                on_output(&bytes);
                head.extend_from_slice(&bytes);
            }
            Some(Event::Tail(bytes)) => tail.extend_from_slice(&bytes),
            Some(Event::Exit(exit)) => {
                let exit_code = exit
                    .code
                    // The sandbox sent the number, so it may be any.
                    .or(exit.signal.map(|signal| 128_i32.saturating_add(signal)))
                    .unwrap_or(-1);
                let mut output = joined(&head, &tail, exit.omitted);
                let limit = LimitHit::of(&exit);
                if let Some(limit) = limit {
                    if !output.is_empty() && !output.ends_with('\n') {
                        output.push('\n');
                    }
                    output.push_str(limit.sentence());
                }
                let (timed_out, omitted) = (exit.timed_out, exit.omitted);
                return Ok(ExecResult {
                    exit_code,
                    timed_out,
                    output,
                    bytes: (head, tail),
                    omitted,
                    duration: begun.elapsed(),
                    limit,
                });
            }
            Some(Event::Failed(sentence)) => return Err(SandboxError::Refused(sentence)),
            Some(Event::Full(sentence)) => return Err(SandboxError::Full(sentence)),
            None => return Err(connection.gone()),
        }
    }
}

fn joined(head: &[u8], tail: &[u8], omitted: u64) -> String {
    if omitted == 0 {
        // Decoded in one piece: a character may lie across the seam.
        return lossy(&[head, tail].concat()).into_owned();
    }
    let (head, tail) = (lossy(head), lossy(tail));
    format!(
        "{head}\n[… {} left out …]\n{tail}",
        plural::count(omitted, "byte")
    )
}
