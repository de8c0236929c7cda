//! The MCP servers of a deployment, as tool sources.
//!
//! `server` is a server's configuration, `client` a session's connection to one, `error` what can fail in it, `stdio` and `http` are the two
//! transports, `listing` reads the tools it lists, `names` makes names that model providers accept, `result`
//! converts results to text.
//!
//! # Invariants
//!
//! - A key is the one that the manifest names for that very server, and goes to the URL beside it.
//! - Each session has its own connection, and its own process.
//! - A server is not trusted. Its output is bounded in number, size and time before it is
//!   interpreted.
//! - A server receives only the calls of its own session and cannot make requests: sampling, roots
//!   and elicitation are refused.
//! - Only the tools that the deployment allows are offered, as the server listed them when the
//!   session began. A changed list is not followed, since an agent must not be given tools that
//!   nobody has seen.
//! - A call is never repeated.

pub(crate) mod client;
pub(crate) mod error;
pub(crate) mod http;
pub(crate) mod listing;
pub(crate) mod names;
pub(crate) mod result;
pub(crate) mod server;
pub(crate) mod stdio;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};

use self::server::{McpClient, McpHttp, McpServer, ServerTransport};
use super::{OpenToolSource, ToolSource, ToolSourceError};
use crate::config::{Config, ConfigError};
use crate::manifest::{Manifest, ManifestProblem, ManifestProblems, McpEntry, McpTransport};
use lucid_net::egress::{Egress, EgressError, EgressLimits, Endpoint, KeyInjection};
use lucid_session::{
    Environment, EventDraft, SEPARATOR, ToolOutput, ToolResultWithEvent, ToolsSpec,
};
use lucid_types::wit::types::{Error, ToolCall, ToolDefinition};

/// The default time limit of one call.
const CALL_TIME: Duration = Duration::from_secs(60);
/// The default time limit of a start.
const START_TIME: Duration = Duration::from_secs(20);
/// The maximum size of one response, in bytes.
const LARGEST_ANSWER: u64 = 4 << 20;
/// The longest that any request may take here. A call's own time limit ends it long before.
const LONGEST: Duration = Duration::from_secs(3600);

/// Servers, and warnings.
type ConfiguredServers = (Vec<Arc<dyn ToolSource>>, Vec<String>);

/// The servers that a manifest names, and warnings for the operator.
pub(crate) fn sources(
    manifest: &Manifest,
    config: &Config,
) -> Result<ConfiguredServers, ManifestProblems> {
    let (mut all, mut warnings, mut wrong) =
        (Vec::<Arc<dyn ToolSource>>::new(), Vec::new(), Vec::new());
    for (name, entry) in &manifest.mcp {
        match source(name, entry, config, &mut warnings) {
            Ok(source) => all.push(Arc::new(source)),
            Err(why) => wrong.push(ManifestProblem::at(
                manifest.path.as_deref(),
                entry.at,
                why.to_string(),
            )),
        }
    }
    ManifestProblems::unless_none(wrong)?;
    Ok((all, warnings))
}

/// An error that makes a server of the manifest unusable.
#[derive(Debug, thiserror::Error)]
enum McpServerError {
    /// The endpoint, or the placement of the key, is invalid.
    #[error("the MCP server `{name}` cannot be asked: {source}")]
    Egress { name: String, source: EgressError },
    /// The key is invalid.
    #[error(transparent)]
    Key(#[from] ConfigError),
}

fn source(
    name: &str,
    entry: &McpEntry,
    config: &Config,
    warnings: &mut Vec<String>,
) -> Result<McpToolSource, McpServerError> {
    let unusable = |source| McpServerError::Egress {
        name: name.to_owned(),
        source,
    };
    // Without positions, so that moving it within the file is not a change.
    let mut identity = format!(
        "{:?} {:?} {:?} {:?}",
        entry.tools, entry.time, entry.start_time, entry.policies
    );
    let way = match &entry.transport {
        McpTransport::Program { command, env } => {
            identity += &format!(" program {command:?} {env:?}");
            ServerTransport::Program {
                argv: command.clone(),
                env: env.clone(),
            }
        }
        McpTransport::Http {
            url,
            key,
            key_place,
        } => {
            let variable = key.as_ref().map(|key| key.value.as_str());
            let secret = variable.map(|variable| config.variables.key(variable));
            let secret = secret.transpose()?.flatten();
            if let (Some(variable), None) = (variable, &secret) {
                warnings.push(format!(
                    "{variable} is not set, so the MCP server `{name}` is asked without a key."
                ));
            }
            let digest = secret.as_ref().map(|key| Sha256::digest(key.expose()));
            identity += &format!(" url {} {key_place:?} {digest:?}", url.value);
            let environment = key_place.clone().unwrap_or(KeyInjection::Bearer);
            let endpoint = Endpoint::new(url.value.clone(), environment).map_err(unusable)?;
            let limits = EgressLimits {
                first_byte: LONGEST,
                idle: LONGEST,
                response: LARGEST_ANSWER,
                ..EgressLimits::default()
            };
            let egress = Egress::new(limits, [&endpoint]).map_err(unusable)?;
            ServerTransport::Http(Box::new(McpHttp {
                egress,
                endpoint,
                key: secret,
            }))
        }
    };
    Ok(McpToolSource {
        identity,
        policies: entry.policies.clone(),
        server: McpServer {
            name: name.to_owned(),
            transport: way,
            allowed: entry.tools.clone(),
            time: entry.time.unwrap_or(CALL_TIME),
            start_time: entry.start_time.unwrap_or(START_TIME),
        },
    })
}

/// One server, as a tool source.
struct McpToolSource {
    server: McpServer,
    identity: String,
    policies: Option<Vec<String>>,
}

impl ToolSource for McpToolSource {
    fn name(&self) -> &str {
        &self.server.name
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn serves(&self, policy: &str) -> bool {
        let named = self.policies.as_ref();
        named.is_none_or(|names| names.iter().any(|name| name == policy))
    }

    fn describe(&self, tool: &str, arguments: &str) -> EventDraft {
        let line = format!("{}{SEPARATOR}{tool} {arguments}", self.server.name);
        EventDraft::text("CmdRunAction", line)
    }

    fn open(
        &self,
        _: ToolsSpec,
        environment: Option<Arc<dyn Environment>>,
    ) -> BoxFuture<'static, Result<Arc<dyn OpenToolSource>, ToolSourceError>> {
        let server = self.server.clone();
        async move {
            let client = McpClient::open(server, environment).await?;
            Ok(Arc::new(OpenMcpServer(Arc::new(client))) as Arc<dyn OpenToolSource>)
        }
        .boxed()
    }
}

/// A session's open connection to one.
struct OpenMcpServer(Arc<McpClient>);

impl OpenToolSource for OpenMcpServer {
    fn definitions(&self) -> Vec<ToolDefinition> {
        self.0.definitions()
    }

    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        _: ToolOutput,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>> {
        let client = self.0.clone();
        let limit = timeout_ms.map(|ms| Duration::from_millis(ms.into()));
        async move { Ok(client.call(call, limit).await) }.boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.0.clone().close()
    }
}
