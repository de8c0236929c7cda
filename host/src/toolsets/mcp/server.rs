//! The configuration of an MCP server: a program in a session's sandbox, or a server on the
//! network.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::manifest::AllowedTools;

pub(crate) use super::client::McpClient;
pub(crate) use super::http::McpHttp;

/// The maximum output of a server between two calls, including its response, in bytes. The same
/// limit applies to its start.
pub(crate) const MAX_OUTPUT: usize = 4 << 20;

/// A server, as the deployment configures it.
#[derive(Clone)]
pub(crate) struct McpServer {
    /// The prefix of its tools' names.
    pub(crate) name: String,
    /// The transport.
    pub(crate) transport: ServerTransport,
    /// The tools that are offered.
    pub(crate) allowed: AllowedTools,
    /// The time limit of one call.
    pub(crate) time: Duration,
    /// The time limit of its start.
    pub(crate) start_time: Duration,
}

/// The transport to a server.
#[derive(Clone)]
pub(crate) enum ServerTransport {
    /// A program in the session's sandbox, which communicates over its standard input and output.
    Program {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Variables added to its environment. Not secret: the agent can read them.
        env: BTreeMap<String, String>,
    },
    /// Streamable HTTP, at exactly the endpoint's URL.
    Http(Box<McpHttp>),
}
