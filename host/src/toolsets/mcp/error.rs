//! What can fail between a session and an MCP server.
//!
//! # Invariants
//!
//! - A server's own message is sanitized and cut before it is repeated.

use std::time::Duration;

use super::server::MAX_OUTPUT;
use lucid_types::exec::ExecError;
use lucid_types::plural;
use lucid_types::sanitize::sanitize;
use lucid_types::sentence::full_stop;

/// How often a server may be started in a minute, including the first time.
pub(super) const STARTS: usize = 4;
/// The maximum length of a server's error message, in characters.
const MAX_SHOWN: usize = 500;

/// What is known of the reason why a server failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerFailure {
    /// Its program exceeded the limit on its output.
    #[error(
        "it said more than the {MAX_OUTPUT} bytes that are taken from one call to the next, and was ended"
    )]
    TooMuchOutput,
    /// How its program ended.
    #[error("{0}")]
    Ended(String),
    /// What it said itself, or the transport to it.
    #[error("{0}")]
    Message(String),
    /// It failed without a message.
    #[error("it does not say why")]
    Silent,
}

impl ServerFailure {
    /// The failure with this message of the server's own.
    pub(super) fn said(text: &str) -> Self {
        let text = sanitize(text, MAX_SHOWN);
        match text.trim() {
            "" => Self::Silent,
            text => Self::Message(text.to_owned()),
        }
    }
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum McpConnectError {
    /// It took too long.
    #[error("it was not ready within {}", plural::count(.0.as_secs(), "second"))]
    TooSlow(Duration),
    /// It is a program, and the session has no sandbox.
    #[error("it is a program that runs in the session's sandbox, and there is none here")]
    NoSandbox,
    /// The sandbox did not start its program.
    #[error(transparent)]
    Spawn(#[from] ExecError),
    /// It said no.
    #[error("it refused the handshake: {0}")]
    Refused(ServerFailure),
    /// It ended the connection.
    #[error("it ended the connection")]
    Closed,
    /// It answered with something else.
    #[error("it does not speak the protocol: what it answered is no answer to the handshake")]
    NoHandshake,
    /// It failed in the handshake, or when it was to list its tools.
    #[error(transparent)]
    Failed(#[from] ServerFailure),
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolCallError {
    /// There is no such tool, or it may not be called.
    #[error("the server {server} has no tool {tool:?} that may be called here")]
    NoTool {
        /// The server's name.
        server: String,
        /// The tool's name, sanitized.
        tool: String,
    },
    /// The model's arguments are none.
    #[error("the arguments of {tool} are no JSON object: {source}")]
    Arguments {
        /// The tool's name.
        tool: String,
        /// What is wrong with them.
        source: serde_json::Error,
    },
    /// The server wants to ask something of the user first.
    #[error(
        "the server {0} wants to ask something before it answers, which no one here replies to"
    )]
    Asks(String),
    /// The server died during the call.
    #[error(
        "the server {server} was lost under the call: {} What was asked may or may not have happened",
        full_stop(.source)
    )]
    Lost {
        /// The server's name.
        server: String,
        /// The reason.
        source: ServerFailure,
    },
    /// The server answered with an error.
    #[error("the server {server} failed: {source}")]
    Failed {
        /// The server's name.
        server: String,
        /// The reason.
        source: ServerFailure,
    },
    /// The server took too long.
    #[error(
        "the server {server} did not answer within {}, and was told to give it up",
        plural::count(.limit.as_secs_f64(), "second")
    )]
    TooSlow {
        /// The server's name.
        server: String,
        /// The time limit.
        limit: Duration,
    },
    /// The session has ended.
    #[error("the server {0} was ended with the session")]
    Closed(String),
    /// The server ended again and again.
    #[error(
        "the server {0} ended {STARTS} times within a minute, and is not started again for a while"
    )]
    Restarts(String),
    /// The server is gone, and starting it again failed.
    #[error("the server {server} is gone and cannot be started again: {source}")]
    Restart {
        /// The server's name.
        server: String,
        /// The reason.
        source: McpConnectError,
    },
    /// The server is gone.
    #[error("the server {0} is gone")]
    Gone(String),
}
