//! A session's connection to one MCP server: start, tools, calls and end.
//!
//! # Invariants
//!
//! - A server that died is restarted by the next call, a few times a minute at most. The call
//!   during which it was lost is not repeated.
//! - The server is notified of a cancelled call.
//! - The server ends with the client.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientCapabilities, ClientConfig, Implementation,
    PaginatedRequestParams, ProtocolVersion,
};
use rmcp::service::{ClientInitializeError, RunningService, ServiceError};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransport, StreamableHttpClientTransportConfig, StreamableHttpError,
};
use rmcp::{ClientHandler, RoleClient, serve_client};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::server::{MOST_SAID, Server, Way};
use super::stdio::{self, Allowance};
use super::{listing, names, result};
use crate::manifest::AllowedTools;
use crate::session::{Environment, EventDraft, ToolResultWithEvent};
use lucid_net::egress::EgressError;
use lucid_types::exec::ProcessEnd;
use lucid_types::plural;
use lucid_types::sanitize::clean;
use lucid_types::wit::types::{ToolCall, ToolDefinition, ToolResult};

#[cfg(test)]
mod tests;

/// The maximum number of pages in a tool list.
const PAGES: usize = 32;
/// The maximum number of tools that are looked at.
const TOOLS: usize = 1024;
/// How often a server may be started in a minute, including the first time.
const STARTS: usize = 4;
const MINUTE: Duration = Duration::from_secs(60);
/// How long a server may take to end before it is left to itself.
const END: Duration = Duration::from_secs(3);
/// How long to wait for the reason why a server is gone.
const REASON: Duration = Duration::from_millis(500);
/// The maximum length of a server's error message, in characters.
const SHOWN: usize = 500;

/// The connection to one server, for one session.
pub(crate) struct Client {
    server: Server,
    place: Option<Arc<dyn Environment>>,
    definitions: Vec<ToolDefinition>,
    /// The tools' own names, by the names models use.
    own: HashMap<String, String>,
    state: Mutex<State>,
}

struct State {
    /// `None` if the server is gone, or was closed.
    connected: Option<Connected>,
    starts: VecDeque<Instant>,
    closed: bool,
}

/// A server that completed the handshake.
struct Connected {
    running: RunningService<RoleClient, Host>,
    /// For a program only.
    program: Option<(Allowance, ProcessEnd)>,
}

/// The client side of the protocol, which offers no capabilities. A server's requests are refused,
/// as the protocol says.
struct Host;

impl ClientHandler for Host {
    fn get_info(&self) -> ClientConfig {
        let host = Implementation::new("lucid", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), host)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }
}

impl Client {
    /// Starts a server for a session and lists its tools. The error is a sentence.
    pub(crate) async fn open(
        server: Server,
        place: Option<Arc<dyn Environment>>,
    ) -> Result<Self, String> {
        let limit = server.start_time;
        let begun = async {
            let connected = connect(&server, place.as_deref()).await?;
            match list(&server, &connected).await {
                Ok(listed) => Ok((connected, listed)),
                Err(error) => Err(connected.why(&error).await),
            }
        };
        let (connected, listed) = timeout(limit, Box::pin(begun))
            .await
            .map_err(|_| not_ready(limit))??;
        let (definitions, own) = listed;
        Ok(Self {
            server,
            place,
            definitions,
            own,
            state: Mutex::new(State {
                connected: Some(connected),
                starts: VecDeque::from([Instant::now()]),
                closed: false,
            }),
        })
    }

    /// Its tools, under names without the server's.
    pub(crate) fn definitions(&self) -> Vec<ToolDefinition> {
        self.definitions.clone()
    }

    /// Calls a tool. A failure is its result.
    pub(crate) async fn call(
        &self,
        call: ToolCall,
        limit: Option<Duration>,
    ) -> ToolResultWithEvent {
        match self.try_call(&call, limit).await {
            Ok((text, is_error)) => ToolResultWithEvent {
                shown: EventDraft::text(
                    if is_error {
                        "AgentErrorObservation"
                    } else {
                        "CmdOutputObservation"
                    },
                    &text,
                ),
                result: ToolResult {
                    call_id: call.id,
                    is_error,
                    text,
                    exit_code: None,
                    blobs: Vec::new(),
                },
                notices: Vec::new(),
            },
            Err(sentence) => ToolResultWithEvent::failed(&call, sentence),
        }
    }

    async fn try_call(
        &self,
        call: &ToolCall,
        limit: Option<Duration>,
    ) -> Result<(String, bool), String> {
        let name = &self.server.name;
        let own = self.own.get(&call.name).ok_or_else(|| {
            let tool = clean(&call.name, 100);
            format!("The server {name} has no tool {tool:?} that may be called here.")
        })?;
        let arguments = match call.arguments.trim() {
            "" => Ok(serde_json::Map::new()),
            text => serde_json::from_str(text),
        };
        let arguments = arguments.map_err(|error| {
            format!(
                "The arguments of {} are no JSON object: {error}.",
                call.name
            )
        })?;
        // A session's calls are sequential.
        let mut state = self.state.lock().await;
        let limit = limit.map_or(self.server.time, |limit| limit.min(self.server.time));
        let connected = self.connected(&mut state).await?;
        if let Some((allowance, _)) = &connected.program {
            allowance.renew();
        }
        let params = CallToolRequestParams::new(own.clone()).with_arguments(arguments);
        // When dropped, it notifies the server of the cancellation.
        let answered = timeout(limit, connected.running.call_tool_once(params)).await;
        match answered {
            Ok(Ok(CallToolResponse::Complete(result))) => Ok(result::text(result)),
            Ok(Ok(_)) => Err(format!(
                "The server {name} wants to ask something before it answers, which no one here replies to."
            )),
            Ok(Err(error)) => {
                let why = connected.why(&error).await;
                if connected.is_gone() {
                    state.connected = None;
                    return Err(format!(
                        "The server {name} was lost under the call: {why} What was asked may or may not have happened."
                    ));
                }
                Err(format!("The server {name} failed: {why}"))
            }
            Err(_) => Err(format!(
                "The server {name} did not answer within {}, and was told to give it up.",
                plural::count(limit.as_secs_f64(), "second")
            )),
        }
    }

    /// The server, restarted if it is gone.
    async fn connected<'a>(&self, state: &'a mut State) -> Result<&'a Connected, String> {
        let name = &self.server.name;
        if state.closed {
            return Err(format!("The server {name} was ended with the session."));
        }
        if state.connected.as_ref().is_some_and(Connected::is_gone) {
            state.connected = None;
        }
        if state.connected.is_none() {
            state.starts.retain(|start| start.elapsed() < MINUTE);
            if state.starts.len() >= STARTS {
                return Err(format!(
                    "The server {name} ended {STARTS} times within a minute, and is not started again for a while."
                ));
            }
            state.starts.push_back(Instant::now());
            let limit = self.server.start_time;
            let connecting = Box::pin(connect(&self.server, self.place.as_deref()));
            let connected = timeout(limit, connecting)
                .await
                .unwrap_or_else(|_| Err(not_ready(limit)));
            let connected = connected.map_err(|why| {
                format!("The server {name} is gone and cannot be started again: {why}")
            })?;
            return Ok(state.connected.insert(connected));
        }
        let there = state.connected.as_ref();
        there.ok_or_else(|| format!("The server {name} is gone."))
    }

    /// Closes the server. Idempotent.
    pub(crate) fn close(self: Arc<Self>) -> BoxFuture<'static, ()> {
        async move {
            let mut state = self.state.lock().await;
            state.closed = true;
            if let Some(mut connected) = state.connected.take() {
                // If it does not end in time, dropping it ends it.
                let _ = connected.running.close_with_timeout(END).await;
            }
        }
        .boxed()
    }
}

impl Connected {
    /// Whether no request can be sent any more.
    fn is_gone(&self) -> bool {
        self.running.is_closed() || self.running.peer().is_transport_closed()
    }

    /// The cause of a failure, in a sentence.
    async fn why(&self, error: &ServiceError) -> String {
        if let ServiceError::McpError(error) = error {
            return said(&error.message);
        }
        if let Some(sentence) = ended(&self.program).await {
            return sentence;
        }
        said(&words(error))
    }
}

fn not_ready(limit: Duration) -> String {
    format!(
        "it was not ready within {}.",
        plural::count(limit.as_secs(), "second")
    )
}

/// The egress's message if it is to blame, else the client's.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(cause) = next {
        match cause.downcast_ref::<StreamableHttpError<EgressError>>() {
            Some(StreamableHttpError::Client(error)) => return error.to_string(),
            Some(StreamableHttpError::UnexpectedServerResponse(what)) => return what.to_string(),
            Some(other) => return other.to_string(),
            None => next = cause.source(),
        }
    }
    error.to_string()
}

/// How a program ended, if it did. Its output may end a moment earlier.
async fn ended(program: &Option<(Allowance, ProcessEnd)>) -> Option<String> {
    let (allowance, end) = program.as_ref()?;
    if allowance.is_used_up() {
        return Some(format!(
            "It said more than the {MOST_SAID} bytes that are taken from one call to the next, and was ended."
        ));
    }
    let begun = Instant::now();
    loop {
        if let Some(sentence) = end.sentence() {
            return Some(sentence.to_owned());
        }
        if begun.elapsed() > REASON {
            return None;
        }
        tokio::time::sleep(REASON / 50).await;
    }
}

/// A server's message, as a sentence.
fn said(text: &str) -> String {
    let text = clean(text, SHOWN);
    match text.trim() {
        "" => "It does not say why.".to_owned(),
        text if text.ends_with(['.', '!', '?', '…']) => text.to_owned(),
        text => format!("{text}."),
    }
}

/// Starts a server and completes the handshake.
async fn connect(server: &Server, place: Option<&dyn Environment>) -> Result<Connected, String> {
    match &server.way {
        Way::Program { argv, env } => {
            let place = place.ok_or(
                "it is a program that runs in the session's sandbox, and there is none here.",
            )?;
            let program = stdio::start(place, argv, env).await?;
            let of = Some((program.allowance, program.end));
            match Box::pin(serve_client(Host, program.transport)).await {
                Ok(running) => Ok(Connected {
                    running,
                    program: of,
                }),
                Err(error) => Err(unstarted(&error, &of).await),
            }
        }
        Way::Http(http) => {
            let url = http.endpoint.base_url().as_str();
            let config = StreamableHttpClientTransportConfig::with_uri(url);
            let transport = StreamableHttpClientTransport::with_client((**http).clone(), config);
            match Box::pin(serve_client(Host, transport)).await {
                Ok(running) => Ok(Connected {
                    running,
                    program: None,
                }),
                Err(error) => Err(unstarted(&error, &None).await),
            }
        }
    }
}

/// Why the handshake failed. Only a server's own error message is repeated.
async fn unstarted(
    error: &ClientInitializeError,
    program: &Option<(Allowance, ProcessEnd)>,
) -> String {
    if let ClientInitializeError::JsonRpcError(error) = error {
        return format!("it refused the handshake: {}", said(&error.message));
    }
    if let Some(sentence) = ended(program).await {
        return sentence;
    }
    match error {
        ClientInitializeError::TransportError { error, .. } => said(&words(&*error.error)),
        ClientInitializeError::ConnectionClosed(_) => "it ended the connection.".to_owned(),
        _ => "it does not speak the protocol: what it answered is no answer to the handshake."
            .to_owned(),
    }
}

type Listed = (Vec<ToolDefinition>, HashMap<String, String>);

/// The tools that may be called, as the server lists them.
async fn list(server: &Server, connected: &Connected) -> Result<Listed, ServiceError> {
    let (mut tools, mut cursor) = (Vec::new(), None);
    for _ in 0..PAGES {
        let page = cursor.map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
        let listed = listing::page(&connected.running, page).await?;
        tools.extend(listed.tools);
        cursor = listed.next_cursor;
        if cursor.is_none() || tools.len() > TOOLS {
            break;
        }
    }
    tools.truncate(TOOLS);
    tools.retain(|tool| server.allowed.has(&tool.name));
    if let AllowedTools::These(names) = &server.allowed {
        for name in names
            .iter()
            .filter(|name| !tools.iter().any(|tool| tool.name == **name))
        {
            tracing::warn!(
                server = server.name,
                tool = name,
                "an MCP server does not list a tool that the manifest allows"
            );
        }
    }
    let own = names::told_of(&server.name, tools.iter().map(|tool| &*tool.name));
    let mut definitions = Vec::new();
    for tool in tools {
        let Some(name) = names::told(&server.name, &tool.name) else {
            continue;
        };
        // Of two tools with the same name the first is kept.
        let first = own.get(&name).is_some_and(|own| *own == *tool.name);
        let again = definitions
            .iter()
            .any(|other: &ToolDefinition| other.name == name);
        if first && !again {
            let description = result::tidy(tool.description.as_deref().unwrap_or_default());
            let input_schema = serde_json::Value::Object((*tool.input_schema).clone());
            definitions.push(ToolDefinition {
                name,
                description,
                input_schema: input_schema.to_string(),
            });
        }
    }
    Ok((definitions, own))
}
