//! The transport between the host and the exec server in a container.
//!
//! The container connects to the host, never the other way round: the host listens on a socket of
//! its own, in a folder the container cannot write to, accepts one connection and then stops
//! listening. Where a socket does not pass between host and container, the same frames go through
//! one attached `docker exec`.
//!
//! Commands run as the same user as the exec server, so once a container has run some, one of them
//! may connect before it does; process ids tell the two apart. Only a host that itself runs in a
//! container cannot see those ids. An impostor can then answer its own session's commands as it
//! likes, within the bounds of [`super::super::connection`], and no other session's.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use futures::{StreamExt, TryStreamExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::io::StreamReader;

use super::container_spec::{ContainerTemplate, EXEC, ServerPlace};
use super::engine::DockerEngine;
use crate::connection::{Connection, EndReasonLookup, NetworkEnds, greet, read_hello};
use crate::error::{SandboxError, io_error};
use crate::runtime_dir::give_to;
use crate::workspace::sandbox_user;

/// How much of an attached stream is read at a time, in bytes.
const BUFFER: usize = 64 << 10;

/// The host's socket for one container. Removed when dropped.
pub(super) struct ContainerSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Whether processes other than the exec server may connect, and if so, how it is told from them.
    untrusted_peers: Option<ServerPlace>,
}

impl ContainerSocket {
    /// Listens in the folder that the container sees.
    pub(super) fn bind(lucid: &Path) -> Result<Self, SandboxError> {
        let path = lucid.join("exec.sock");
        let failed = || io_error(format!("the socket {} cannot be made", path.display()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(failed())?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed())?;
        give_to(&path, sandbox_user())?;
        Ok(Self {
            listener,
            path,
            untrusted_peers: None,
        })
    }

    /// For a container that has run commands: one of them may connect instead of its exec server.
    pub(super) fn with_untrusted_peers(mut self, server: ServerPlace) -> Self {
        self.untrusted_peers = Some(server);
        self
    }

    /// Waits for the container's exec server, without a timeout.
    pub(super) async fn accept(
        self,
        patience: Duration,
        end_reason_lookup: EndReasonLookup,
    ) -> Result<Connection, SandboxError> {
        let mut logged = false;
        let stream = loop {
            let (stream, _) = self
                .listener
                .accept()
                .await
                .map_err(io_error("no connection of a container could be taken"))?;
            let is_a_commands = |server| is_a_commands(&stream, server);
            if !self.untrusted_peers.is_some_and(is_a_commands) {
                break stream;
            }
            if !std::mem::replace(&mut logged, true) {
                tracing::warn!(socket = %self.path.display(), "a command in a container connects as if it were the exec server");
            }
        };
        let has_untrusted_peers = self.untrusted_peers.is_some();
        // From here on nobody else in the container is listened to.
        drop(self);
        let mut stream = stream;
        let process = peer_of(&stream);
        // A descriptor of a command's could block whoever uses it, so none is taken from a peer that may
        // be one.
        let ends = if has_untrusted_peers && process.is_none() {
            read_hello(&mut stream, patience).await?;
            NetworkEnds::default()
        } else {
            greet(&mut stream, patience).await?
        };
        let (reader, writer) = stream.into_split();
        Ok(
            Connection::from_streams(reader, writer, Some(end_reason_lookup))
                .with_process(process)
                .with_network(ends),
        )
    }
}

impl Drop for ContainerSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether this is certainly not a container's exec server.
fn is_a_commands(stream: &UnixStream, server: ServerPlace) -> bool {
    // Nothing is known of a process that has no id here.
    let Some(peer) = peer_of(stream) else {
        return false;
    };
    let is_first = |process: &str| of_process(process, "NSpid:").as_deref() == Some("1");
    let peer = peer.to_string();
    match server {
        ServerPlace::First => !is_first(&peer),
        ServerPlace::ChildOfFirst => {
            let parent = of_process(&peer, "PPid:");
            !parent.is_some_and(|parent| is_first(&parent))
        }
    }
}

/// The id of the process at the other end, if it has one here.
fn peer_of(stream: &UnixStream) -> Option<u32> {
    let peer = stream.peer_cred().ok()?.pid()?;
    u32::try_from(peer).ok().filter(|peer| *peer > 0)
}

/// A field of a process's status in /proc, the last word of that line: of several process ids, the
/// one in the innermost namespace.
fn of_process(pid: &str, what: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what))?;
    line.split_whitespace().next_back().map(str::to_owned)
}

/// Starts an exec server beside the main process, and connects to it over its standard streams.
pub(super) async fn attach(
    engine: &DockerEngine,
    id: &str,
    template: &ContainerTemplate,
    patience: Duration,
    end_reason_lookup: EndReasonLookup,
) -> Result<Connection, SandboxError> {
    let serve = serde_json::to_string(&template.serve())
        .map_err(|error| SandboxError::Start(error.to_string()))?;
    let config = ExecConfig {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(vec![EXEC.to_owned(), "--serve-pipes".to_owned(), serve]),
        user: Some(template.user().to_owned()),
        working_dir: Some(template.workspace_mount.clone()),
        ..ExecConfig::default()
    };
    let api = engine.api();
    let made = engine
        .run("make an exec", api.create_exec(id, config))
        .await?;
    let options = StartExecOptions {
        output_capacity: Some(BUFFER),
        ..StartExecOptions::default()
    };
    let started = engine
        .run("start an exec", api.start_exec(&made.id, Some(options)))
        .await?;
    let StartExecResults::Attached { output, input } = started else {
        return Err(SandboxError::Start(
            "the Docker engine did not attach to its exec server".to_owned(),
        ));
    };
    let bytes = output
        .map_err(std::io::Error::other)
        .try_filter_map(|part| async move {
            Ok(match part {
                LogOutput::StdOut { message } => Some(message),
                LogOutput::StdErr { message } => {
                    let message = String::from_utf8_lossy(&message).into_owned();
                    tracing::debug!(message, "an exec server in a container complains");
                    None
                }
                LogOutput::StdIn { .. } | LogOutput::Console { .. } => None,
            })
        })
        .boxed();
    let mut reader = StreamReader::new(bytes);
    read_hello(&mut reader, patience).await?;
    Ok(Connection::from_streams(
        reader,
        input,
        Some(end_reason_lookup),
    ))
}
