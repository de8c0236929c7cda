//! The main process of a container: it looks for its host, serves it, and looks for the next one.
//!
//! # Invariants
//! - Commands of a lost host are ended before another is served, since nobody waits for them any
//!   more, while what they left in the background lives on.
//! - Without any host for as long as it was told to wait, the process ends, and its container with
//!   it.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lucid_exec::protocol::Serve;

use crate::server::{Out, Server, prepare};

/// The pause between two attempts to find a host: the socket does not exist where nobody listens,
/// so there is nothing to wait on. Doubles up to the second figure.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// Serves one host after another at a socket.
pub(crate) fn run(socket: &Path, serve: &Serve) -> Result<(), String> {
    let common = Arc::new(prepare(serve)?);
    let patience = serve.patience_seconds.map(Duration::from_secs);
    loop {
        let host = find(socket, patience)?;
        let out = host.try_clone().map_err(|error| error.to_string())?;
        let server = Arc::new(Server::new(Out::Socket(out), Arc::clone(&common)));
        if let Err(sentence) = server.serve(&host) {
            eprintln!("lucid-exec: {sentence}");
        }
        let _ = host.shutdown(std::net::Shutdown::Both);
        server.end_commands();
    }
}

fn find(socket: &Path, patience: Option<Duration>) -> Result<UnixStream, String> {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match UnixStream::connect(socket) {
            Ok(host) => return Ok(host),
            Err(error) => error,
        };
        if patience.is_some_and(|patience| begun.elapsed() >= patience) {
            return Err(format!(
                "no host was found at {} any more: {error}",
                socket.display()
            ));
        }
        sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
