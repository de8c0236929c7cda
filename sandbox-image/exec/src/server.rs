//! The server: reads frames from the host, runs commands, and takes everything along when it goes.
//!
//! What always holds: when the connection ends, for whatever reason, nothing below this process
//! lives on.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use lucid_exec::protocol::{Frame, Hello, Kind, Serve, Start, VERSION};
use rustix::process::{DumpableBehavior, getpid, set_child_subreaper, set_dumpable_behavior};

use crate::children::{self, Children};
use crate::command::{self, Note};
use crate::confine;

/// The most commands at a time.
const MAX_COMMANDS: usize = 64;

/// What the threads of the server share.
pub(crate) struct Server {
    out: Mutex<UnixStream>,
    pub(crate) children: Arc<Children>,
    running: Mutex<HashMap<u32, Sender<Note>>>,
}

impl Server {
    /// Sends a frame. A host that is gone is noticed by the reading side.
    pub(crate) fn send(&self, frame: &Frame) {
        let out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if frame.write_to(&*out).is_err() {
            let _ = out.shutdown(Shutdown::Both);
        }
    }

    fn start(self: &Arc<Self>, id: u32, payload: &[u8]) {
        let failed = |sentence: String| self.send(&Frame::new(Kind::Failed, id, sentence));
        let start: Start = match serde_json::from_slice(payload) {
            Ok(start) => start,
            Err(error) => return failed(format!("The command cannot be read: {error}.")),
        };
        let (notes, inbox) = mpsc::channel();
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if running.len() >= MAX_COMMANDS {
                drop(running);
                return failed(format!(
                    "{MAX_COMMANDS} commands run already: wait for one of them to end."
                ));
            }
            running.insert(id, notes.clone());
        }
        let server = Arc::clone(self);
        let thread = std::thread::Builder::new().spawn(move || {
            command::run(&server, id, start, &notes, &inbox);
            server.forget(id);
        });
        if let Err(error) = thread {
            self.forget(id);
            failed(format!(
                "The sandbox is full of processes ({error}): close the session."
            ));
        }
    }

    fn forget(&self, id: u32) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    fn kill(&self, id: u32) {
        if let Some(notes) = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
        {
            let _ = notes.send(Note::Kill);
        }
    }
}

/// Serves the host on standard input until it goes.
pub(crate) fn run(serve: &Serve) -> Result<(), String> {
    // Nothing that runs below may look into this process or take its socket.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| error.to_string())?;
    set_child_subreaper(Some(getpid())).map_err(|error| error.to_string())?;
    // Before any thread is there: a restriction holds for the calling thread and what it starts.
    confine::apply(serve)?;
    let stdin = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| error.to_string())?;
    let connection = UnixStream::from(stdin);
    let out = connection.try_clone().map_err(|error| error.to_string())?;
    let children =
        Children::watched().map_err(|error| format!("no thread could be started: {error}"))?;
    let server = Arc::new(Server {
        out: Mutex::new(out),
        children,
        running: Mutex::default(),
    });
    server.send(
        &Frame::json(Kind::Hello, 0, &Hello { version: VERSION })
            .map_err(|error| error.to_string())?,
    );
    let outcome = loop {
        match Frame::read_from(&connection) {
            Ok(Some(Frame {
                kind: Kind::Start,
                id,
                payload,
            })) => server.start(id, &payload),
            Ok(Some(Frame {
                kind: Kind::Kill,
                id,
                ..
            })) => server.kill(id),
            Ok(Some(frame)) => {
                break Err(format!(
                    "the host sent a {:?} frame, which is not its to send",
                    frame.kind
                ));
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(format!("the connection to the host broke: {error}")),
        }
    };
    children::kill_all_below();
    outcome
}
