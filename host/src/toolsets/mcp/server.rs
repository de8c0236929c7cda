//! Owns the client of MCP servers: programs in a session's sandbox, or servers on the network.
//!
//! What always holds: a server is not trusted. What it says is bounded in number, size and time before
//! anything is made of it; it is given nothing but the calls of its own session, and asks nothing back:
//! sampling, roots and elicitation are refused. Of its tools those that the deployment allows are told of,
//! as it listed them when the session began; that its list changed is not followed, since an agent must
//! not be handed what nobody has seen. A call is never made twice.
//!
//! `client` is a session's hold of one server, `stdio` and `http` are the two ways to one, `names` makes
//! names that model providers take, `content` makes texts of results.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::manifest::AllowedTools;

pub(crate) use super::client::Client;
pub(crate) use super::http::Http;

/// The most bytes that a server may say from one call to the next, its answer included. The same holds for
/// its start.
pub(crate) const MOST_SAID: usize = 4 << 20;

/// A server, as the deployment names it.
#[derive(Clone)]
pub(crate) struct Server {
    /// What its tools' names begin with.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) way: Way,
    /// Which of its tools are told of.
    pub(crate) allowed: AllowedTools,
    /// What one call may take.
    pub(crate) time: Duration,
    /// What its start may take.
    pub(crate) start_time: Duration,
}

/// The way to a server.
#[derive(Clone)]
pub(crate) enum Way {
    /// A program in the session's sandbox, which speaks on its standard input and output.
    Program {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Added to its environment. Nothing secret: the agent can read it.
        env: BTreeMap<String, String>,
    },
    /// Streamable HTTP, at exactly the endpoint's URL.
    Http(Box<Http>),
}
