//! The host's end of the socket to an exec server.
//!
//! The server runs among hostile code, so nothing it sends is trusted.
//!
//! # Invariants
//! - A frame out of turn, an empty frame, or more bytes than agreed end the connection.
//! - Text from the server is sanitized and truncated.
//! - When the connection ends, so does every command that waits on it.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::Stdio;
use std::sync::{Arc, OnceLock, mpsc as std_mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use lucid_exec::protocol::{
    Exit, Frame, FrameKind, HEADER, Header, Hello, MAX_COMMAND, Start, VERSION,
};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::error::{SandboxError, io_error};
use lucid_types::sanitize::sanitize;
use lucid_types::sentence::full_stop;

#[cfg(test)]
mod tests;

/// The longest message from a sandbox, in characters: the model and the log read it.
const SENTENCE: usize = 500;
/// How often to retry starting a program that is still open for writing, and the pause between
/// tries.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// An event for a command's waiter.
pub(super) enum CommandEvent {
    Output(Vec<u8>),
    Tail(Vec<u8>),
    Exit(Exit),
    Failed(String),
    Full(String),
}

/// Asked why a sandbox ended, once its connection is lost. Resolves to a sentence, if a reason is
/// known.
pub(super) type EndReasonLookup = BoxFuture<'static, Option<String>>;

struct Waiter {
    events: mpsc::UnboundedSender<CommandEvent>,
    /// How many bytes the server may still send: only what was asked for, which bounds the channel
    /// too.
    head_left: usize,
    tail_left: usize,
}

struct State {
    last_id: u32,
    waiters: HashMap<u32, Waiter>,
    /// The reason for the connection's end, once it has ended.
    end_reason: watch::Sender<Option<String>>,
}

/// An open connection.
pub(super) struct Connection {
    state: Arc<Mutex<State>>,
    frames: mpsc::UnboundedSender<Vec<u8>>,
    /// The two tasks that hold the ends of the connection; aborting them closes it.
    tasks: [AbortHandle; 2],
    /// The process id of the other end, if it has one here.
    process: Option<u32>,
}

/// Why a sandbox's exec server is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetError {
    /// It is of another build.
    #[error("its exec server speaks another version")]
    Version,
    /// It sent something else first.
    #[error("its exec server did not say hello")]
    NoHello,
    /// It closed the connection.
    #[error("it ended at once")]
    Ended(#[source] std::io::Error),
    /// It sent nothing in time.
    #[error("it was not ready after {} seconds", .0.as_secs())]
    NotReady(Duration),
}

impl From<GreetError> for SandboxError {
    fn from(error: GreetError) -> Self {
        Self::Start(full_stop(error))
    }
}

/// Reads the first frame.
pub(super) async fn read_hello(
    reader: &mut (impl AsyncRead + Unpin),
    patience: Duration,
) -> Result<(), GreetError> {
    match tokio::time::timeout(patience, read_frame(reader)).await {
        Ok(Ok(Frame {
            kind: FrameKind::Hello,
            payload,
            ..
        })) => match serde_json::from_slice::<Hello>(&payload) {
            Ok(hello) if hello.version == VERSION => Ok(()),
            _ => Err(GreetError::Version),
        },
        Ok(Ok(_)) => Err(GreetError::NoHello),
        Ok(Err(cause)) => Err(GreetError::Ended(cause)),
        Err(_) => Err(GreetError::NotReady(patience)),
    }
}

impl Connection {
    /// Starts the process of a sandbox and waits until its server is ready.
    pub(super) async fn open(
        mut command: Command,
        patience: Duration,
    ) -> Result<(Self, Child), SandboxError> {
        let start = |cause: std::io::Error| match cause.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied => {
                SandboxError::Start(cause.to_string())
            }
            // The host is out of descriptors, processes or memory.
            _ => io_error("The sandbox's process cannot be started")(cause),
        };
        let (ours, theirs) = StdStream::pair().map_err(start)?;
        ours.set_nonblocking(true).map_err(start)?;
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = spawn(command).await.map_err(start)?;
        let complaint = Arc::new(Mutex::new(String::new()));
        let listening = process
            .stderr
            .take()
            .map(|stderr| tokio::spawn(collect_stderr(stderr, Arc::clone(&complaint))));
        let (mut reader, writer) = UnixStream::from_std(ours).map_err(start)?.into_split();
        if let Err(error) = read_hello(&mut reader, patience).await {
            drop((reader, writer));
            if tokio::time::timeout(Duration::from_secs(2), process.wait())
                .await
                .is_err()
            {
                let _ = process.kill().await;
            }
            if let Some(listening) = listening {
                let _ = tokio::time::timeout(Duration::from_secs(1), listening).await;
            }
            let stderr_text = complaint.lock().trim().to_owned();
            let problem = full_stop(error);
            return Err(SandboxError::Start(if stderr_text.is_empty() {
                problem
            } else {
                format!("{problem} It said: {stderr_text}")
            }));
        }
        let connection = Self::from_streams(reader, writer, None).with_process(process.id());
        Ok((connection, process))
    }

    /// Sets the process id of the other end.
    pub(super) fn with_process(mut self, process: Option<u32>) -> Self {
        self.process = process;
        self
    }

    /// The process id of the other end, as long as it certainly still belongs to that process.
    pub(super) fn process(&self) -> Option<u32> {
        self.process.filter(|_| self.is_alive())
    }

    /// Takes over a connection whose server has sent its hello.
    pub(super) fn from_streams(
        reader: impl AsyncRead + Unpin + Send + 'static,
        writer: impl AsyncWrite + Unpin + Send + 'static,
        end_reason_lookup: Option<EndReasonLookup>,
    ) -> Self {
        let (frames, queue) = mpsc::unbounded_channel();
        let state = Arc::new(Mutex::new(State {
            last_id: 0,
            waiters: HashMap::new(),
            end_reason: watch::Sender::new(None),
        }));
        let writing = tokio::spawn(write_frames(writer, queue));
        let shared = Arc::clone(&state);
        let reading = tokio::spawn(async move {
            let lost = read_frames(reader, &shared).await;
            let known = match (&lost, end_reason_lookup) {
                (ReadEnd::Ended, Some(end_reason_lookup)) => end_reason_lookup.await,
                _ => None,
            };
            end(&shared, &known.unwrap_or_else(|| lost.sentence()));
        });
        Self {
            state,
            frames,
            tasks: [reading.abort_handle(), writing.abort_handle()],
            process: None,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.state.lock().end_reason.borrow().is_none()
    }

    /// Waits until the connection is over, and returns the reason.
    pub(super) fn ended(&self) -> impl Future<Output = String> + Send + 'static {
        let mut gone = self.state.lock().end_reason.subscribe();
        async move {
            // The sender lives as long as the connection, so without it there is no reason to give.
            match gone.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => "Its connection ended.".to_owned(),
            }
        }
    }

    /// The error that says why the sandbox is gone.
    pub(super) fn gone(&self) -> SandboxError {
        SandboxError::Gone(
            self.state
                .lock()
                .end_reason
                .borrow()
                .clone()
                .unwrap_or_else(|| "Its connection ended.".to_owned()),
        )
    }

    /// Closes the connection; the first reason given stays.
    pub(super) fn close_with_reason(&self, sentence: &str) {
        end(&self.state, sentence);
        for task in &self.tasks {
            task.abort();
        }
    }

    /// Sends a command.
    pub(super) fn start(&self, start: &Start) -> Result<RunningCommand, SandboxError> {
        let (sender, events) = mpsc::unbounded_channel();
        let mut state = self.state.lock();
        if state.end_reason.borrow().is_some() {
            drop(state);
            return Err(self.gone());
        }
        state.last_id = state.last_id.wrapping_add(1);
        let id = state.last_id;
        let frames = Frame::of_command(id, start).map_err(|_| {
            SandboxError::Refused(format!(
                "The command and its input are more than the {} MiB that can be run; write them to files first.",
                MAX_COMMAND >> 20
            ))
        })?;
        state.waiters.insert(
            id,
            Waiter {
                events: sender,
                head_left: start.output_head,
                tail_left: start.output_tail,
            },
        );
        drop(state);
        // In one piece: no other command may come between its frames.
        let _ = self.frames.send(frames);
        Ok(RunningCommand {
            state: Arc::clone(&self.state),
            frames: self.frames.clone(),
            id,
            events,
            ended: false,
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close_with_reason("It was closed.");
    }
}

fn end(state: &Mutex<State>, sentence: &str) {
    let mut state = state.lock();
    state.end_reason.send_if_modified(|gone| {
        let first = gone.is_none();
        gone.get_or_insert_with(|| sentence.to_owned());
        first
    });
    state.waiters.clear();
}

/// A command that was sent. It is killed if this is dropped before its end.
pub(super) struct RunningCommand {
    state: Arc<Mutex<State>>,
    frames: mpsc::UnboundedSender<Vec<u8>>,
    id: u32,
    events: mpsc::UnboundedReceiver<CommandEvent>,
    ended: bool,
}

impl RunningCommand {
    /// The next event; `None` when the sandbox is gone.
    pub(super) async fn next(&mut self) -> Option<CommandEvent> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// The same as a poll function.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<CommandEvent>> {
        let event = std::task::ready!(self.events.poll_recv(context));
        self.ended = matches!(
            event,
            None | Some(CommandEvent::Exit(_) | CommandEvent::Failed(_) | CommandEvent::Full(_))
        );
        Poll::Ready(event)
    }

    /// Grants a command that stays open `bytes` more of output.
    pub(super) fn grant_output(&self, bytes: u32) {
        // Counted before it is sent: output in response must not look like more than was granted.
        if let Some(waiter) = self.state.lock().waiters.get_mut(&self.id) {
            waiter.head_left += bytes as usize;
        }
        let frame = Frame::new(FrameKind::More, self.id, bytes.to_be_bytes());
        let _ = self.frames.send(frame.encode());
    }

    /// The standard input of a command that stays open.
    pub(super) fn input(&self) -> CommandInput {
        CommandInput {
            frames: self.frames.clone(),
            id: self.id,
        }
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self
                .frames
                .send(Frame::new(FrameKind::Kill, self.id, Vec::new()).encode());
        }
    }
}

/// The standard input of a command that stays open.
pub(super) struct CommandInput {
    frames: mpsc::UnboundedSender<Vec<u8>>,
    id: u32,
}

impl CommandInput {
    /// Sends bytes. Fails if the sandbox is gone.
    pub(super) fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        Frame::split(FrameKind::Input, self.id, bytes).try_for_each(|frame| self.send(&frame))
    }

    /// Closes the standard input.
    pub(super) fn end(&self) -> std::io::Result<()> {
        self.send(&Frame::new(FrameKind::Input, self.id, Vec::new()))
    }

    fn send(&self, frame: &Frame) -> std::io::Result<()> {
        let gone = |_| std::io::Error::from(ErrorKind::BrokenPipe);
        self.frames.send(frame.encode()).map_err(gone)
    }
}

/// Reads one frame, whose length is checked before anything is allocated for it.
pub async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Frame> {
    let mut header = [0; HEADER];
    reader.read_exact(&mut header).await?;
    let Header { kind, id, length } =
        Header::parse(header).map_err(|bad| std::io::Error::new(ErrorKind::InvalidData, bad))?;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    Ok(Frame { kind, id, payload })
}

/// The reason why reading stopped.
enum ReadEnd {
    /// The other side is gone.
    Ended,
    /// The other side violated the protocol. A sentence.
    Broke(String),
}

impl ReadEnd {
    fn sentence(self) -> String {
        match self {
            Self::Ended => "It ended on its own: it was killed, or ran out of memory.".to_owned(),
            Self::Broke(sentence) => sentence,
        }
    }
}

/// Dispatches frames to the commands that wait for them, until the connection ends.
async fn read_frames(mut reader: impl AsyncRead + Unpin, state: &Mutex<State>) -> ReadEnd {
    let broke = |sentence: &str| ReadEnd::Broke(sentence.to_owned());
    loop {
        let frame = match read_frame(&mut reader).await {
            Ok(frame) => frame,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return ReadEnd::Broke(format!("{error}."));
            }
            Err(_) => return ReadEnd::Ended,
        };
        let Frame { kind, id, payload } = frame;
        let mut state = state.lock();
        let Some(waiter) = state.waiters.get_mut(&id) else {
            return broke("Its exec server spoke of a command that was never sent.");
        };
        let (event, last) = match kind {
            // Empty frames use up none of the agreed bytes, so there could be any number of them.
            FrameKind::Output | FrameKind::Tail if payload.is_empty() => {
                return broke("Its exec server sent output without a byte in it.");
            }
            FrameKind::Output if payload.len() <= waiter.head_left => {
                waiter.head_left -= payload.len();
                (CommandEvent::Output(payload), false)
            }
            FrameKind::Tail if payload.len() <= waiter.tail_left => {
                waiter.tail_left -= payload.len();
                (CommandEvent::Tail(payload), false)
            }
            FrameKind::Exit => match serde_json::from_slice(&payload) {
                Ok(exit) => (CommandEvent::Exit(exit), true),
                Err(error) => {
                    // The error repeats the input that it failed on.
                    let error = sanitize(&error.to_string(), SENTENCE);
                    return ReadEnd::Broke(format!(
                        "Its exec server reported an end that cannot be read: {error}."
                    ));
                }
            },
            FrameKind::Failed => (CommandEvent::Failed(sentence(&payload)), true),
            FrameKind::Full => (CommandEvent::Full(sentence(&payload)), true),
            FrameKind::Output | FrameKind::Tail => {
                return broke("Its exec server sent more output than it was asked for.");
            }
            other => {
                return ReadEnd::Broke(format!(
                    "Its exec server sent a {other:?} frame out of turn."
                ));
            }
        };
        // A waiter that is gone was dropped: its command is being killed.
        let _ = waiter.events.send(event);
        if last {
            state.waiters.remove(&id);
        }
    }
}

/// A message from a sandbox, sanitized for other readers.
fn sentence(payload: &[u8]) -> String {
    sanitize(&String::from_utf8_lossy(payload), SENTENCE)
}

async fn write_frames(
    mut writer: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
) {
    while let Some(frame) = queue.recv().await {
        if writer.write_all(&frame).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

/// Keeps the beginning of the standard error of a sandbox's own processes, and drains the rest.
async fn collect_stderr(mut stderr: tokio::process::ChildStderr, collected: Arc<Mutex<String>>) {
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        let mut collected = collected.lock();
        if collected.len() < 4096 {
            collected.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Starts a process. A program written a moment ago may still be open for writing in a child of
/// another thread that has not called exec yet.
fn start(command: &mut Command) -> std::io::Result<Child> {
    let busy = |error: &std::io::Error| error.kind() == ErrorKind::ExecutableFileBusy;
    for _ in 0..BUSY_TRIES {
        match command.spawn() {
            Err(error) if busy(&error) => std::thread::sleep(BUSY_PAUSE),
            started => return started,
        }
    }
    command.spawn()
}

/// Starts a process from a thread that never ends. The kernel sends the signal that `bwrap
/// --die-with-parent` asks for when the starting *thread* ends, and the runtime's threads may.
async fn spawn(mut command: Command) -> std::io::Result<Child> {
    static STARTER: OnceLock<Option<std_mpsc::Sender<Job>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, jobs) = std_mpsc::channel::<Job>();
        let run = move || jobs.into_iter().for_each(|job| job());
        std::thread::Builder::new()
            .name("sandbox-starter".into())
            .spawn(run)
            .ok()
            .map(|_| sender)
    });
    let lost = || std::io::Error::other("the thread that starts sandboxes is gone");
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let job: Job = Box::new(move || {
        let _runtime = runtime.enter();
        let _ = sender.send(start(&mut command));
    });
    starter
        .as_ref()
        .ok_or_else(lost)?
        .send(job)
        .map_err(|_| lost())?;
    receiver.await.map_err(|_| lost())?
}
