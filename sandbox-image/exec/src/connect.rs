//! The main process of a container: it looks for its host, serves it, and looks for the next one.
//!
//! # Invariants
//! - Commands of a lost host are ended before another is served, since nobody waits for them any
//!   more, while what they left in the background lives on.
//! - Without any host for as long as it was told to wait, the process ends, and its container with
//!   it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lucid_exec::protocol::Serve;

use crate::server::{Out, PrepareError, Server, prepare};

/// The pause between two attempts to find a host: the socket does not exist where nobody listens,
/// so there is nothing to wait on. Doubles up to the second figure.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// Why no further host is served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectHostError {
    /// None can be served.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// No host listened for as long as this process waits.
    #[error("no host was found at {} any more: {cause}", .socket.display())]
    NotFound {
        socket: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// The connection's descriptor cannot be duplicated.
    #[error(transparent)]
    Descriptor(io::Error),
}

/// Serves one host after another at a socket.
pub(crate) fn run(socket: &Path, serve: &Serve) -> Result<(), ConnectHostError> {
    let common = Arc::new(prepare(serve)?);
    let patience = serve.patience_seconds.map(Duration::from_secs);
    loop {
        let host = find(socket, patience)?;
        let out = host.try_clone().map_err(ConnectHostError::Descriptor)?;
        let server = Arc::new(Server::new(Out::Socket(out), Arc::clone(&common)));
        if let Err(error) = server.serve(&host) {
            eprintln!("lucid-exec: {error}");
        }
        let _ = host.shutdown(std::net::Shutdown::Both);
        server.end_commands();
    }
}

fn find(socket: &Path, patience: Option<Duration>) -> Result<UnixStream, ConnectHostError> {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let cause = match UnixStream::connect(socket) {
            Ok(host) => return Ok(host),
            Err(cause) => cause,
        };
        if patience.is_some_and(|patience| begun.elapsed() >= patience) {
            return Err(ConnectHostError::NotFound {
                socket: socket.to_owned(),
                cause,
            });
        }
        sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
