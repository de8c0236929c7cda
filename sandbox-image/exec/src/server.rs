//! The server: reads frames from the host, runs commands, and ends everything it started when it
//! goes.
//!
//! # Invariants
//! - A server with one host for its whole life leaves nothing below it alive when that connection
//!   ends, for whatever reason.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use lucid_exec::protocol::{
    Frame, FrameKind, Hello, HostInterface, MAX_COMMAND, Serve, Start, VERSION,
};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{
    DumpableBehavior, getpid, set_child_subreaper, set_dumpable_behavior, setsid,
};

use crate::children::{self, Children};
use crate::command::{self, Note};
use crate::confine::{self, ConfineError};
use crate::interface::{self, HandedInterface};
use crate::live::Live;
use crate::network;
use crate::pressure::Pressure;
use crate::proxy::ProxyListener;
use crate::root::{self, RootError};

/// Maximum number of commands at a time.
const MAX_COMMANDS: usize = 64;
/// How long to wait for the killed commands of a lost host: longer than a command itself waits for
/// a group that will not die.
const END: Duration = Duration::from_secs(5);

/// Why the process cannot serve any host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// It gets no root of its own.
    #[error(transparent)]
    Root(#[from] RootError),
    /// It cannot protect itself from what it runs, or not adopt orphans.
    #[error(transparent)]
    Process(Errno),
    /// It cannot limit or confine itself.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// It gets no network namespace of its own.
    #[error("the sandbox gets no network namespace for its interface: {0}")]
    Network(#[source] io::Error),
    /// It keeps rights that only making the interface takes.
    #[error("the rights over the network do not go away: {0}")]
    Rights(#[source] Errno),
    /// No proxy can be listened for.
    #[error("the port of the proxy cannot be listened at: {0}")]
    Proxy(#[source] io::Error),
    /// The thread that reaps does not start.
    #[error("no thread could be started: {0}")]
    Thread(#[source] io::Error),
}

/// Why the conversation with a host ended before the host ended it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// The hello cannot be written.
    #[error(transparent)]
    Hello(io::Error),
    /// A grant of output has no length.
    #[error("the host granted something that is no number")]
    Grant,
    /// Frames of this kind go the other way.
    #[error("the host sent a {0:?} frame, which is not its to send")]
    Unexpected(FrameKind),
    /// A command began before the previous one was complete.
    #[error("the host sent two commands in each other")]
    Nested,
    /// A command is too long.
    #[error("the host sent a command of more than {MAX_COMMAND} bytes")]
    TooLong,
    /// Nothing can be read from the host, or no frame.
    #[error("the connection to the host broke: {0}")]
    Connection(#[source] io::Error),
}

/// Why a server ended that has one host for its whole life.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// It did not begin to serve.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The descriptors of the host cannot be used.
    #[error(transparent)]
    Descriptor(io::Error),
    /// The conversation failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The state that outlives a connection.
pub(crate) struct Common {
    children: Arc<Children>,
    pressure: Pressure,
    /// Absent if the host is no proxy, or if it cannot be reached as one here.
    proxy: Option<ProxyListener>,
    /// Absent if none is wanted.
    interface: Option<HandedInterface>,
    /// How many files a command may have open.
    open_files: u64,
}

/// Drops this process's privileges, and starts reaping.
pub(crate) fn prepare(serve: &Serve) -> Result<Common, PrepareError> {
    // Commands must not read from, write to or be stopped by the terminal that the host was started
    // from. Fails if this process leads a session already, which then has no terminal.
    let detached = setsid().is_ok();
    // Before anything else: a process that is not dumpable may not map its users.
    let wanted = serve.interface.as_ref();
    let interface = match serve.confine.as_ref().and_then(|it| it.root.as_ref()) {
        Some(root) => root::enter(root, wanted, detached)?,
        None => wanted.map(make_interface).transpose()?,
    };
    // Nothing that runs below may inspect this process or take its socket.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(PrepareError::Process)?;
    set_child_subreaper(Some(getpid())).map_err(PrepareError::Process)?;
    confine::leave_session_keyring();
    // Before confinement, which may forbid to listen.
    let proxy = serve.proxy.map(ProxyListener::bind).transpose();
    let proxy = proxy.map_err(PrepareError::Proxy)?;
    // Before any thread exists: a restriction applies to the calling thread and what it starts.
    let reaches_proxy = confine::apply(serve, proxy.as_ref())?;
    let children = Children::watched().map_err(PrepareError::Thread)?;
    Ok(Common {
        children,
        pressure: Pressure::find(),
        proxy: proxy.filter(|_| reaches_proxy),
        interface,
        open_files: serve.limits.open_files,
    })
}

/// Makes the interface to the host, and gives up every right that this took, whether or not it could be
/// made.
fn make_interface(wanted: &HostInterface) -> Result<HandedInterface, PrepareError> {
    if wanted.own_namespace {
        network::enter_own_namespace().map_err(PrepareError::Network)?;
    }
    let made = interface::hand_over();
    interface::give_up_rights(wanted.user).map_err(PrepareError::Rights)?;
    Ok(made)
}

/// Sends bytes over a socket, and descriptors with the first of them.
fn send_with(host: &UnixStream, descriptors: &[BorrowedFd<'_>], bytes: &[u8]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let first = [IoSlice::new(&bytes[..1])];
    sendmsg(host, &first, &mut control, SendFlags::NOSIGNAL)?;
    io::Write::write_all(&mut &*host, &bytes[1..])
}

/// The channel to the host.
pub(crate) enum Out {
    Socket(UnixStream),
    Pipe(File),
}

/// A running command, as the host's frames reach it.
struct Running {
    notes: Sender<Note>,
    live: Option<Arc<Live>>,
}

/// The state shared by the threads that serve one host.
pub(crate) struct Server {
    out: Mutex<Out>,
    common: Arc<Common>,
    running: Mutex<HashMap<u32, Running>>,
    none_runs: Condvar,
}

impl Server {
    pub(crate) fn new(out: Out, common: Arc<Common>) -> Self {
        Self {
            out: Mutex::new(out),
            common,
            running: Mutex::default(),
            none_runs: Condvar::new(),
        }
    }

    pub(crate) fn children(&self) -> &Children {
        &self.common.children
    }

    pub(crate) fn pressure(&self) -> &Pressure {
        &self.common.pressure
    }

    /// Sends a frame. That the host is gone is noticed by the reading side.
    pub(crate) fn send(&self, frame: &Frame) {
        let out = self.out.lock();
        match &*out {
            Out::Socket(socket) => {
                if frame.write_to(socket).is_err() {
                    let _ = socket.shutdown(Shutdown::Both);
                }
            }
            Out::Pipe(pipe) => {
                if frame.write_to(pipe).is_err() {
                    // The other pipe cannot be closed from here, and without this one it is
                    // useless.
                    children::kill_all_below();
                    std::process::exit(1);
                }
            }
        }
    }

    /// Sends the first frame, and with it the listener of the proxy and the interface, where descriptors
    /// can be passed.
    fn greet(&self) -> io::Result<()> {
        let Common {
            proxy, interface, ..
        } = &*self.common;
        let hello = Hello {
            version: VERSION,
            no_interface: interface
                .as_ref()
                .and_then(|made| made.as_ref().err())
                .map(ToString::to_string),
        };
        let hello = Frame::json(FrameKind::Hello, 0, &hello)?;
        let proxy = proxy.iter().map(ProxyListener::descriptor);
        let interface = interface.iter().flatten().map(AsFd::as_fd);
        let descriptors: Vec<_> = proxy.chain(interface).collect();
        match &*self.out.lock() {
            Out::Socket(socket) => match send_with(socket, &descriptors, &hello.encode()) {
                // Other processes of this user have as many under way as this one may send. A sandbox whose
                // commands run is worth more than its network.
                Err(error) if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => {
                    send_with(socket, &[], &hello.encode())
                }
                sent => sent,
            },
            Out::Pipe(pipe) => hello.write_to(pipe),
        }?;
        confine::limit_open_files(self.common.open_files).map_err(io::Error::other)
    }

    /// The variables of commands that come from the server itself.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let proxy = self.common.proxy.as_ref();
        proxy.map(ProxyListener::environment).unwrap_or_default()
    }

    fn start(self: &Arc<Self>, id: u32, payload: &[u8]) {
        let failed = |sentence: String| self.send(&Frame::new(FrameKind::Failed, id, sentence));
        let start: Start = match serde_json::from_slice(payload) {
            Ok(start) => start,
            Err(error) => return failed(format!("The command cannot be read: {error}.")),
        };
        let (notes, inbox) = mpsc::channel();
        let live = start.live.then(|| Live::new(start.output_head));
        {
            let mut running = self.running.lock();
            if running.len() >= MAX_COMMANDS {
                drop(running);
                return failed(format!(
                    "{MAX_COMMANDS} commands run already: wait for one of them to end."
                ));
            }
            let entry = Running {
                notes: notes.clone(),
                live: live.as_ref().map(|(live, _)| Arc::clone(live)),
            };
            running.insert(id, entry);
        }
        let server = Arc::clone(self);
        let thread = std::thread::Builder::new().spawn(move || {
            command::run(&server, id, start, live, (&notes, &inbox));
            server.forget(id);
        });
        if let Err(error) = thread {
            self.forget(id);
            let sentence =
                format!("The sandbox is full of processes ({error}): close the session.");
            self.send(&Frame::new(FrameKind::Full, id, sentence));
        }
    }

    fn forget(&self, id: u32) {
        let mut running = self.running.lock();
        running.remove(&id);
        if running.is_empty() {
            self.none_runs.notify_all();
        }
    }

    fn kill(&self, id: u32) {
        if let Some(running) = self.running.lock().get(&id) {
            let _ = running.notes.send(Note::Kill);
        }
    }

    fn live(&self, id: u32) -> Option<Arc<Live>> {
        let running = self.running.lock();
        running.get(&id)?.live.clone()
    }

    /// Forwards a command's input. Input for a command that is over is dropped.
    fn feed(&self, id: u32, bytes: Vec<u8>) {
        if let Some(live) = self.live(id)
            && !live.feed(bytes)
        {
            self.kill(id);
        }
    }

    fn grant(&self, id: u32, payload: &[u8]) -> Result<(), HostError> {
        let bytes = payload.try_into().map_err(|_| HostError::Grant)?;
        if let Some(live) = self.live(id) {
            live.grant(u32::from_be_bytes(bytes) as usize);
        }
        Ok(())
    }

    /// Sends the hello and follows the host's frames until it disconnects.
    pub(crate) fn serve(self: &Arc<Self>, mut host: impl Read) -> Result<(), HostError> {
        self.greet().map_err(HostError::Hello)?;
        let mut parts = Parts::default();
        loop {
            match Frame::read_from(&mut host) {
                Ok(Some(Frame {
                    kind: FrameKind::Start,
                    id,
                    payload,
                })) => self.start(id, &parts.whole(id, payload)?),
                Ok(Some(Frame {
                    kind: FrameKind::Part,
                    id,
                    payload,
                })) => parts.add(id, payload)?,
                Ok(Some(Frame {
                    kind: FrameKind::Kill,
                    id,
                    ..
                })) => self.kill(id),
                Ok(Some(Frame {
                    kind: FrameKind::Input,
                    id,
                    payload,
                })) => self.feed(id, payload),
                Ok(Some(Frame {
                    kind: FrameKind::More,
                    id,
                    payload,
                })) => self.grant(id, &payload)?,
                Ok(Some(frame)) => return Err(HostError::Unexpected(frame.kind)),
                Ok(None) => return Ok(()),
                Err(error) => return Err(HostError::Connection(error)),
            }
        }
    }

    /// Kills the commands that still run, and waits until they are gone.
    pub(crate) fn end_commands(&self) {
        let mut running = self.running.lock();
        for running in running.values() {
            let _ = running.notes.send(Note::Kill);
        }
        self.none_runs
            .wait_while_for(&mut running, |running| !running.is_empty(), END);
    }
}

/// The parts received so far of a command that spans more than one frame.
#[derive(Default)]
struct Parts {
    id: Option<u32>,
    bytes: Vec<u8>,
}

impl Parts {
    fn add(&mut self, id: u32, payload: Vec<u8>) -> Result<(), HostError> {
        if self.id.is_some_and(|first| first != id) {
            return Err(HostError::Nested);
        }
        if self.bytes.len() + payload.len() > MAX_COMMAND {
            return Err(HostError::TooLong);
        }
        self.id = Some(id);
        self.bytes.extend(payload);
        Ok(())
    }

    /// Completes the command with its last part.
    fn whole(&mut self, id: u32, payload: Vec<u8>) -> Result<Vec<u8>, HostError> {
        self.add(id, payload)?;
        self.id = None;
        Ok(std::mem::take(&mut self.bytes))
    }
}

/// Serves the host on standard input until it goes.
pub(crate) fn run(serve: &Serve) -> Result<(), ServeError> {
    let common = Arc::new(prepare(serve)?);
    let stdin = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(ServeError::Descriptor)?;
    let host = UnixStream::from(stdin);
    let out = host.try_clone().map_err(ServeError::Descriptor)?;
    let outcome = Arc::new(Server::new(Out::Socket(out), common)).serve(&host);
    children::kill_all_below();
    Ok(outcome?)
}

/// Serves the host on standard input and output until it goes.
pub(crate) fn run_on_pipes(serve: &Serve) -> Result<(), ServeError> {
    let common = Arc::new(prepare(serve)?);
    let out = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(ServeError::Descriptor)?;
    let out = Out::Pipe(File::from(out));
    let outcome = Arc::new(Server::new(out, common)).serve(io::stdin().lock());
    children::kill_all_below();
    Ok(outcome?)
}
