//! One command: its process group, its input and output, its timeout.
//!
//! # Invariants
//! - The command is over when its main process is, whoever else still holds the pipe.
//! - A timeout or a kill ends the whole group.
//! - Exactly one `Exit`, `Failed` or `Full` is sent. After `Full` nothing was run: the threads that
//!   a command needs are started before it is.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use lucid_exec::output::Capped;
use lucid_exec::protocol::{Exit, Frame, FrameKind, Start};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, WaitStatus, kill_process_group};

use crate::children::outcome;
use crate::live::{LAST_WORDS, Live, PendingInput};
use crate::pressure::CommandPressure;
use crate::server::Server;

/// How long a group has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_millis(200);
/// How long a killed process may take to disappear.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// How long data already in the pipe is read after the main process ended.
const DRAIN: Duration = Duration::from_millis(200);

/// A notification to a command's thread.
pub(crate) enum Note {
    /// The main process ended.
    Ended(WaitStatus),
    /// The host wants the command killed.
    Kill,
}

/// Runs a command to its end and reports it.
pub(crate) fn run(
    server: &Arc<Server>,
    id: u32,
    start: Start,
    live: Option<(Arc<Live>, PendingInput)>,
    (notes, inbox): (&Sender<Note>, &Receiver<Note>),
) {
    // Nobody is told of what happens while a program stays open.
    let running = live.is_none().then(|| server.pressure().begin());
    match try_run(server, id, start, live, (notes, inbox)) {
        Ok((mut exit, tail)) => {
            let hits = running.as_ref().map(CommandPressure::hits);
            let hits = hits.unwrap_or_default();
            exit.memory_kills = hits.memory_kills;
            exit.refused_processes = hits.refused_processes;
            for frame in Frame::split(FrameKind::Tail, id, &tail) {
                server.send(&frame);
            }
            if let Ok(frame) = Frame::json(FrameKind::Exit, id, &exit) {
                server.send(&frame);
            }
        }
        Err(refusal) => server.send(&Frame::new(refusal.kind, id, refusal.sentence)),
    }
}

/// The reason why a command was not run: `Failed` if the command is at fault, `Full` if the sandbox
/// is.
struct Refusal {
    kind: FrameKind,
    sentence: String,
}

impl From<String> for Refusal {
    fn from(sentence: String) -> Self {
        Self {
            kind: FrameKind::Failed,
            sentence,
        }
    }
}

fn try_run(
    server: &Arc<Server>,
    id: u32,
    start: Start,
    live: Option<(Arc<Live>, PendingInput)>,
    (notes, inbox): (&Sender<Note>, &Receiver<Note>),
) -> Result<(Exit, Vec<u8>), Refusal> {
    let Some((program, arguments)) = start.argv.split_first() else {
        return Err("The command is empty.".to_owned().into());
    };
    if let Some(cwd) = &start.cwd
        && !std::path::Path::new(cwd).is_dir()
    {
        return Err(format!("The folder {cwd} does not exist in the sandbox.").into());
    }
    let script = start.script.as_deref().map(script).transpose()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args(script.iter().flat_map(read_script))
        .envs(server.environment())
        .envs(&start.env)
        .process_group(0)
        .stdin(Stdio::null());
    if let Some(cwd) = &start.cwd {
        command.current_dir(cwd);
    }
    let (live, input) = live.unzip();
    if let Some(input) = input {
        let (reads, output) = io::pipe().map_err(no_pipe)?;
        command.stdin(reads);
        feed(move || input.write_to(output))?;
    } else if let Some(text) = start.stdin {
        let (reads, mut output) = io::pipe().map_err(no_pipe)?;
        command.stdin(reads);
        feed(move || drop(output.write_all(text.as_bytes())))?;
    }
    let (reader, writer) = io::pipe().map_err(no_pipe)?;
    let pumps = if live.is_some() {
        let (errors, complaints) = io::pipe().map_err(no_pipe)?;
        command.stdout(writer).stderr(complaints);
        // All of standard output is sent, as it is granted; of standard error the end is kept.
        let capped = Capped::new(usize::MAX, 0);
        let printed = Output {
            id,
            reader,
            capped,
            live,
        };
        let (reader, capped) = (errors, Capped::new(0, start.output_tail));
        let complained = Output {
            id,
            reader,
            capped,
            live: None,
        };
        vec![pump(server, printed)?, pump(server, complained)?]
    } else {
        let also = writer.try_clone().map_err(no_pipe)?;
        command.stdout(writer).stderr(also);
        let capped = Capped::new(start.output_head, start.output_tail);
        vec![pump(
            server,
            Output {
                id,
                reader,
                capped,
                live,
            },
        )?]
    };
    let begun = Instant::now();
    let pid = server
        .children()
        .spawn(&mut command, script.as_ref(), notes)
        .map_err(|error| refusal(program, &error))?;
    // The command holds the pipe's write ends: ours must be dropped, or the pipe would never end.
    drop(command);
    // A time beyond the clock's range means no timeout.
    let deadline = start
        .timeout_ms
        .and_then(|timeout| begun.checked_add(Duration::from_millis(timeout)));
    Ok(attend(pid, pumps, deadline, inbox))
}

/// An anonymous file that holds a command line.
fn script(text: &str) -> Result<OwnedFd, Refusal> {
    let failed = |error: io::Error| format!("The command could not be kept: {error}.");
    let name = "command";
    // Kernels before 6.3 know no non-executable memfd, and some later ones accept no other.
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, MemfdFlags::CLOEXEC))
        .map_err(|error| failed(error.into()))?;
    let mut file = File::from(file);
    file.write_all(text.as_bytes()).map_err(failed)?;
    Ok(file.into())
}

/// The arguments that make a shell run a command line from a file as it would run it from an
/// argument.
fn read_script(file: &OwnedFd) -> [String; 2] {
    let number = file.as_raw_fd();
    [
        "-c".to_owned(),
        format!(r#"eval "$(cat /proc/self/fd/{number})""#),
    ]
}

/// A command's output, and how much of it is kept.
struct Output {
    id: u32,
    reader: PipeReader,
    capped: Capped,
    /// Set if the output is read only as the host grants it.
    live: Option<Arc<Live>>,
}

/// Writes a command's input from a thread of its own, since the command may read late, or never.
fn feed(write: impl FnOnce() + Send + 'static) -> Result<(), Refusal> {
    let thread = std::thread::Builder::new().spawn(write);
    thread.map_err(no_thread).map(drop)
}

/// The thread that forwards a command's output.
struct Pump {
    /// Closed when the command is over.
    wake: Option<PipeWriter>,
    live: Option<Arc<Live>>,
    /// The kept end of the output, and how many bytes were omitted before it.
    kept: Receiver<(Vec<u8>, u64)>,
}

impl Pump {
    /// Signals that the command is over.
    fn end(&mut self) {
        self.wake = None;
        if let Some(live) = &self.live {
            live.end();
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts forwarding output.
fn pump(server: &Arc<Server>, output: Output) -> Result<Pump, Refusal> {
    let (ended, wake) = io::pipe().map_err(no_pipe)?;
    let (done, kept) = std::sync::mpsc::channel();
    let (server, live) = (Arc::clone(server), output.live.clone());
    std::thread::Builder::new()
        .spawn(move || read_output(&server, output, &ended, &done))
        .map_err(no_thread)?;
    let wake = Some(wake);
    Ok(Pump { wake, live, kept })
}

/// Waits for a command to end, and kills its group at the deadline or when the host asks for it.
fn attend(
    pid: Pid,
    mut pumps: Vec<Pump>,
    deadline: Option<Instant>,
    inbox: &Receiver<Note>,
) -> (Exit, Vec<u8>) {
    let mut exit = Exit::default();
    let mut status = match wait_until(inbox, deadline) {
        Ok(Note::Ended(status)) => Some(status),
        Ok(Note::Kill) => {
            exit.killed = true;
            None
        }
        Err(_) => {
            exit.timed_out = true;
            None
        }
    };
    if status.is_none() {
        let _ = kill_process_group(pid, Signal::TERM);
        status = wait_ended(inbox, GRACE);
        // Also if the main process ended on SIGTERM: others of its group may not have.
        let _ = kill_process_group(pid, Signal::KILL);
        if status.is_none() {
            status = wait_ended(inbox, LAST_WAIT);
        }
    }
    let mut tail = Vec::new();
    for pump in &mut pumps {
        pump.end();
        // One of them keeps an end: the only pump, or the one of standard error.
        (tail, exit.omitted) = pump.kept.recv_timeout(LAST_WAIT).unwrap_or_default();
    }
    (exit.code, exit.signal) = status.map_or((None, Some(9)), outcome);
    (exit, tail)
}

fn wait_until(inbox: &Receiver<Note>, deadline: Option<Instant>) -> Result<Note, RecvTimeoutError> {
    match deadline {
        None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(deadline) => inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())),
    }
}

fn wait_ended(inbox: &Receiver<Note>, patience: Duration) -> Option<WaitStatus> {
    let deadline = Some(Instant::now() + patience);
    loop {
        match wait_until(inbox, deadline) {
            Ok(Note::Ended(status)) => return Some(status),
            Ok(Note::Kill) => {}
            Err(_) => return None,
        }
    }
}

/// Reads until the pipe ends, or the command does and the pipe is empty. Then reports what was
/// kept, and from there on only drains the pipe, so that a background process can go on writing.
fn read_output(server: &Server, output: Output, ended: &PipeReader, done: &Sender<(Vec<u8>, u64)>) {
    let Output {
        id,
        mut reader,
        mut capped,
        live,
    } = output;
    let mut buffer = vec![0; 64 * 1024];
    let mut drain_until: Option<Instant> = None;
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        let granted = match &live {
            None => buffer.len(),
            Some(live) => match live.wait() {
                Some(left) => left.min(buffer.len()),
                // The command is over, and nobody wants what it still wrote.
                None => break,
            },
        };
        let mut ready = [
            PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
        ];
        let draining = drain_until.is_some();
        let watched = if draining {
            &mut ready[..1]
        } else {
            &mut ready[..]
        };
        if let Err(error) = poll(watched, draining.then_some(&now)) {
            if error == rustix::io::Errno::INTR {
                continue;
            }
            break;
        }
        let readable = !ready[0].revents().is_empty();
        if !draining && !ready[1].revents().is_empty() {
            let patience = if live.is_some() { LAST_WORDS } else { DRAIN };
            drain_until = Some(Instant::now() + patience);
        }
        if readable {
            match reader.read(&mut buffer[..granted]) {
                Ok(0) => break,
                Ok(count) => {
                    let shown = capped.push(&buffer[..count]);
                    if !shown.is_empty() {
                        server.send(&Frame::new(FrameKind::Output, id, shown));
                    }
                    if let Some(live) = &live {
                        live.spend(count);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if drain_until.is_some_and(|until| (draining && !readable) || Instant::now() >= until) {
            break;
        }
    }
    let _ = done.send(capped.finish());
    while matches!(reader.read(&mut buffer), Ok(count) if count > 0) {}
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "map_err hands the error over"
)]
fn no_pipe(error: io::Error) -> Refusal {
    format!("No pipe could be made: {error}.").into()
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "map_err hands the error over"
)]
fn no_thread(error: io::Error) -> Refusal {
    Refusal {
        kind: FrameKind::Full,
        sentence: format!(
            "The sandbox has no room for another thread: {error}. End what runs in it."
        ),
    }
}

fn refusal(program: &str, error: &io::Error) -> Refusal {
    let sentence = match error.kind() {
        io::ErrorKind::NotFound => format!("There is no program {program} in the sandbox."),
        io::ErrorKind::PermissionDenied => {
            format!("{program} cannot be run in the sandbox: permission denied.")
        }
        io::ErrorKind::ArgumentListTooLong => format!(
            "{program} cannot be run: Linux takes arguments and variables of at most 128 KiB each, and 2 MiB in all. Give it more through standard input or a file."
        ),
        io::ErrorKind::WouldBlock => {
            return Refusal {
                kind: FrameKind::Full,
                sentence: "The sandbox is full of processes: end what runs in the background, or close the session.".to_owned(),
            };
        }
        _ => format!("{program} could not be started: {error}."),
    };
    sentence.into()
}
