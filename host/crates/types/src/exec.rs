//! A command in a session's sandbox: what is to run, and what came of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A command to run.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// What to run.
    pub program: ExecProgram,
    /// The working directory; the workspace if there is none.
    pub cwd: Option<String>,
    /// Variables beside those of the sandbox's environment.
    pub env: BTreeMap<String, String>,
    /// The time after which the process group is killed. Ignored for a program that stays open.
    pub timeout: Duration,
    /// The standard input. Ignored for a program that stays open.
    pub stdin: Option<String>,
    /// How many of the first bytes of the output are kept.
    pub head: usize,
    /// How many of the last bytes of the output are kept.
    pub tail: usize,
}

/// What an [`ExecRequest`] runs.
#[derive(Debug, Clone)]
pub enum ExecProgram {
    /// A command line for the sandbox's shell.
    Shell(String),
    /// A program and its arguments.
    Argv(Vec<String>),
}

impl ExecRequest {
    fn new(program: ExecProgram) -> Self {
        let timeout = Duration::from_secs(120);
        Self {
            program,
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
        Self::new(ExecProgram::Shell(command.into()))
    }

    /// A program and its arguments, without a shell.
    #[must_use]
    pub fn argv<I: IntoIterator<Item = S>, S: Into<String>>(argv: I) -> Self {
        Self::new(ExecProgram::Argv(
            argv.into_iter().map(Into::into).collect(),
        ))
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
    pub fn keep_output(mut self, head: usize, tail: usize) -> Self {
        (self.head, self.tail) = (head, tail);
        self
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

/// Why a command did not run to its end. Each is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The sandbox works, but this command could not be started in it.
    #[error("{0}")]
    Refused(String),
    /// There is no sandbox, or it failed.
    #[error("{0}")]
    Sandbox(#[source] Box<dyn Error + Send + Sync>),
}

/// A running program that stays open. It is killed when its output is dropped.
pub struct Process {
    /// Its standard input.
    pub input: ProcessInput,
    /// Its standard output.
    pub output: ProcessOutput,
    /// Its end.
    pub end: ProcessEnd,
}

/// A program's standard input. Writing never waits: a program that reads too slowly is killed.
pub struct ProcessInput(Pin<Box<dyn AsyncWrite + Send>>);

impl ProcessInput {
    /// An input that is written to this stream.
    pub fn new(stream: impl AsyncWrite + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

impl AsyncWrite for ProcessInput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(context)
    }
}

/// A program's standard output.
pub struct ProcessOutput(Pin<Box<dyn AsyncRead + Send>>);

impl ProcessOutput {
    /// An output that is read from this stream.
    pub fn new(stream: impl AsyncRead + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

impl AsyncRead for ProcessOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(context, buffer)
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// How a program ended. Clones share the result.
#[derive(Debug, Clone, Default)]
pub struct ProcessEnd(Arc<OnceLock<String>>);

impl ProcessEnd {
    /// A sentence, once the program's output has ended.
    #[must_use]
    pub fn sentence(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// Records how the program ended. The first sentence stays.
    pub fn set(&self, sentence: String) {
        let _ = self.0.set(sentence);
    }
}
