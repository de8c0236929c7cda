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

use super::error::{McpConnectError, STARTS, ServerFailure, ToolCallError};
use super::server::{McpServer, ServerTransport};
use super::stdio::{self, OutputAllowance};
use super::{listing, names, result};
use crate::manifest::AllowedTools;
use lucid_net::egress::EgressError;
use lucid_session::{Environment, EventDraft, ToolResultWithEvent};
use lucid_types::exec::ProcessEnd;
use lucid_types::sanitize::sanitize;
use lucid_types::sentence::sentence;
use lucid_types::wit::types::{ToolCall, ToolDefinition, ToolResult};

#[cfg(test)]
mod tests;

/// The maximum number of pages in a tool list.
const PAGES: usize = 32;
/// The maximum number of tools that are looked at.
const TOOLS: usize = 1024;
const MINUTE: Duration = Duration::from_secs(60);
/// How long a server may take to end before it is left to itself.
const END: Duration = Duration::from_secs(3);
/// How long to wait for the reason why a server is gone.
const REASON: Duration = Duration::from_millis(500);

/// The connection to one server, for one session.
pub(crate) struct McpClient {
    server: McpServer,
    environment: Option<Arc<dyn Environment>>,
    definitions: Vec<ToolDefinition>,
    /// The tools' own names, by the names models use.
    own_names: HashMap<String, String>,
    state: Mutex<ClientState>,
}

struct ClientState {
    /// `None` if the server is gone, or was closed.
    connected: Option<Connected>,
    starts: VecDeque<Instant>,
    closed: bool,
}

/// A server that completed the handshake.
struct Connected {
    running: RunningService<RoleClient, McpClientHandler>,
    /// For a program only.
    program: Option<(OutputAllowance, ProcessEnd)>,
}

/// The client side of the protocol, which offers no capabilities. A server's requests are refused,
/// as the protocol says.
struct McpClientHandler;

impl ClientHandler for McpClientHandler {
    fn get_info(&self) -> ClientConfig {
        let host = Implementation::new("lucid", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), host)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }
}

impl McpClient {
    /// Starts a server for a session and lists its tools.
    pub(crate) async fn open(
        server: McpServer,
        environment: Option<Arc<dyn Environment>>,
    ) -> Result<Self, McpConnectError> {
        let limit = server.start_time;
        let begun = async {
            let connected = connect(&server, environment.as_deref()).await?;
            match list(&server, &connected).await {
                Ok(listed) => Ok((connected, listed)),
                Err(error) => Err(McpConnectError::Failed(
                    connected.describe_failure(&error).await,
                )),
            }
        };
        let (connected, listed) = timeout(limit, Box::pin(begun))
            .await
            .map_err(|_| McpConnectError::TooSlow(limit))??;
        let (definitions, own) = listed;
        Ok(Self {
            server,
            environment,
            definitions,
            own_names: own,
            state: Mutex::new(ClientState {
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
                event: EventDraft::text(
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
            Err(error) => ToolResultWithEvent::failed(&call, sentence(error)),
        }
    }

    async fn try_call(
        &self,
        call: &ToolCall,
        limit: Option<Duration>,
    ) -> Result<(String, bool), ToolCallError> {
        let server = || self.server.name.clone();
        let own = self
            .own_names
            .get(&call.name)
            .ok_or_else(|| ToolCallError::NoTool {
                server: server(),
                tool: sanitize(&call.name, 100),
            })?;
        let arguments = match call.arguments.trim() {
            "" => Ok(serde_json::Map::new()),
            text => serde_json::from_str(text),
        };
        let arguments = arguments.map_err(|source| ToolCallError::Arguments {
            tool: call.name.clone(),
            source,
        })?;
        // A session's calls are sequential.
        let mut state = self.state.lock().await;
        let limit = limit.map_or(self.server.time, |limit| limit.min(self.server.time));
        let connected = self.connected(&mut state).await?;
        if let Some((allowance, _)) = &connected.program {
            allowance.reset();
        }
        let params = CallToolRequestParams::new(own.clone()).with_arguments(arguments);
        // When dropped, it notifies the server of the cancellation.
        let answered = timeout(limit, connected.running.call_tool_once(params)).await;
        match answered {
            Ok(Ok(CallToolResponse::Complete(result))) => Ok(result::text(result)),
            Ok(Ok(_)) => Err(ToolCallError::Asks(server())),
            Ok(Err(error)) => {
                let source = connected.describe_failure(&error).await;
                let server = server();
                if connected.is_gone() {
                    state.connected = None;
                    return Err(ToolCallError::Lost { server, source });
                }
                Err(ToolCallError::Failed { server, source })
            }
            Err(_) => Err(ToolCallError::TooSlow {
                server: server(),
                limit,
            }),
        }
    }

    /// The server, restarted if it is gone.
    async fn connected<'a>(
        &self,
        state: &'a mut ClientState,
    ) -> Result<&'a Connected, ToolCallError> {
        let server = || self.server.name.clone();
        if state.closed {
            return Err(ToolCallError::Closed(server()));
        }
        if state.connected.as_ref().is_some_and(Connected::is_gone) {
            state.connected = None;
        }
        if state.connected.is_none() {
            state.starts.retain(|start| start.elapsed() < MINUTE);
            if state.starts.len() >= STARTS {
                return Err(ToolCallError::Restarts(server()));
            }
            state.starts.push_back(Instant::now());
            let limit = self.server.start_time;
            let connecting = Box::pin(connect(&self.server, self.environment.as_deref()));
            let connected = timeout(limit, connecting)
                .await
                .unwrap_or(Err(McpConnectError::TooSlow(limit)));
            let connected = connected.map_err(|source| ToolCallError::Restart {
                server: server(),
                source,
            })?;
            return Ok(state.connected.insert(connected));
        }
        let there = state.connected.as_ref();
        there.ok_or_else(|| ToolCallError::Gone(server()))
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

    /// The cause of a failure.
    async fn describe_failure(&self, error: &ServiceError) -> ServerFailure {
        if let ServiceError::McpError(error) = error {
            return ServerFailure::said(&error.message);
        }
        match ended(&self.program).await {
            Some(failure) => failure,
            None => ServerFailure::said(&describe_error(error)),
        }
    }
}

/// The egress's message if it is to blame, else the client's.
fn describe_error(error: &(dyn std::error::Error + 'static)) -> String {
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
async fn ended(program: &Option<(OutputAllowance, ProcessEnd)>) -> Option<ServerFailure> {
    let (allowance, end) = program.as_ref()?;
    if allowance.is_exhausted() {
        return Some(ServerFailure::TooMuchOutput);
    }
    let begun = Instant::now();
    loop {
        if let Some(sentence) = end.sentence() {
            return Some(ServerFailure::Ended(sentence.to_owned()));
        }
        if begun.elapsed() > REASON {
            return None;
        }
        tokio::time::sleep(REASON / 50).await;
    }
}

/// Starts a server and completes the handshake.
async fn connect(
    server: &McpServer,
    environment: Option<&dyn Environment>,
) -> Result<Connected, McpConnectError> {
    match &server.transport {
        ServerTransport::Program { argv, env } => {
            let environment = environment.ok_or(McpConnectError::NoSandbox)?;
            let program = stdio::start(environment, argv, env).await?;
            let of = Some((program.allowance, program.end));
            match Box::pin(serve_client(McpClientHandler, program.transport)).await {
                Ok(running) => Ok(Connected {
                    running,
                    program: of,
                }),
                Err(error) => Err(handshake_error(&error, &of).await),
            }
        }
        ServerTransport::Http(http) => {
            let url = http.endpoint.base_url().as_str();
            let config = StreamableHttpClientTransportConfig::with_uri(url);
            let transport = StreamableHttpClientTransport::with_client((**http).clone(), config);
            match Box::pin(serve_client(McpClientHandler, transport)).await {
                Ok(running) => Ok(Connected {
                    running,
                    program: None,
                }),
                Err(error) => Err(handshake_error(&error, &None).await),
            }
        }
    }
}

/// Why the handshake failed. Only a server's own error message is repeated.
async fn handshake_error(
    error: &ClientInitializeError,
    program: &Option<(OutputAllowance, ProcessEnd)>,
) -> McpConnectError {
    if let ClientInitializeError::JsonRpcError(error) = error {
        return McpConnectError::Refused(ServerFailure::said(&error.message));
    }
    if let Some(failure) = ended(program).await {
        return failure.into();
    }
    match error {
        ClientInitializeError::TransportError { error, .. } => {
            ServerFailure::said(&describe_error(&*error.error)).into()
        }
        ClientInitializeError::ConnectionClosed(_) => McpConnectError::Closed,
        _ => McpConnectError::NoHandshake,
    }
}

type ToolsPage = (Vec<ToolDefinition>, HashMap<String, String>);

/// The tools that may be called, as the server lists them.
async fn list(server: &McpServer, connected: &Connected) -> Result<ToolsPage, ServiceError> {
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
    let own = names::own_names(&server.name, tools.iter().map(|tool| &*tool.name));
    let mut definitions = Vec::new();
    for tool in tools {
        let Some(name) = names::model_name(&server.name, &tool.name) else {
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
