//! The host's end of the socket to an exec server.
//!
//! The server runs among hostile code, so nothing it sends is trusted.
//!
//! # Invariants
//! - A frame out of turn, an empty frame, or more bytes than agreed end the connection.
//! - Text from the server is sanitized and truncated.
//! - When the connection ends, so does every command that waits on it.

mod hello;
mod reader;
mod spawn;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use lucid_exec::protocol::{Exit, Frame, FrameKind, MAX_COMMAND, Start};

pub(crate) use self::hello::{NetworkEnds, greet, read_hello};
pub use self::reader::read_frame;
use self::reader::{ReadEnd, read_frames};
use self::spawn::{collect_stderr, spawn};
use crate::error::{SandboxError, io_error};
use crate::proxy::SandboxInterface;

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
    /// The sandbox's ways to the network that nobody took yet.
    network: Mutex<NetworkEnds>,
}

impl Connection {
    /// Starts the process of a sandbox and waits until its server is ready.
    pub(super) async fn open(
        mut command: Command,
        patience: Duration,
        end_reason_lookup: Option<EndReasonLookup>,
    ) -> Result<(Self, Child), SandboxError> {
        let start = |cause: std::io::Error| match cause.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied => {
                SandboxError::Start(cause.to_string())
            }
            // The host is out of descriptors, processes or memory.
            _ => io_error("the sandbox's process cannot be started")(cause),
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
        let mut stream = UnixStream::from_std(ours).map_err(start)?;
        let greeted = greet(&mut stream, patience).await;
        let (reader, writer) = stream.into_split();
        if let Err(error) = greeted {
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
            return Err(SandboxError::Start(if stderr_text.is_empty() {
                error.to_string()
            } else {
                format!("{error}. It said: {stderr_text}")
            }));
        }
        let connection = Self::from_streams(reader, writer, end_reason_lookup)
            .with_process(process.id())
            .with_network(greeted?);
        Ok((connection, process))
    }

    /// Sets the process id of the other end.
    pub(super) fn with_process(mut self, process: Option<u32>) -> Self {
        self.process = process;
        self
    }

    /// Sets what came with the hello.
    pub(super) fn with_network(mut self, ends: NetworkEnds) -> Self {
        self.network = Mutex::new(ends);
        self
    }

    /// The listener that came with the hello, once.
    pub(super) fn take_proxy(&self) -> Option<TcpListener> {
        self.network.lock().listener.take()
    }

    /// The interface that came with the hello, once.
    pub(super) fn take_interface(&self) -> Option<SandboxInterface> {
        self.network.lock().interface.take()
    }

    /// Whether an interface came with the hello, and nobody took it yet.
    pub(super) fn has_interface(&self) -> bool {
        self.network.lock().interface.is_some()
    }

    /// Why no interface came though one was wanted.
    pub(super) fn no_interface(&self) -> Option<String> {
        self.network.lock().no_interface.clone()
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
            network: Mutex::default(),
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
