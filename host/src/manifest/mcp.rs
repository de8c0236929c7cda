//! `[mcp.NAME]`: MCP servers whose tools sessions get.
//!
//! # Invariants
//!
//! - The tools that may be called are listed for each server, since what a server lists can change
//!   at any time.
//! - A key is in an environment variable, not in the manifest, and is named beside the URL it is
//!   for.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::de::DeTable;
use url::Url;

use super::fields::{ManifestReader, SpannedKey, SpannedValue, field};
use super::model::Located;
use super::plugins::{address, key_place, policies, stated_key};
use super::problem::SourcePosition;
use lucid_net::egress::KeyInjection;

pub(super) const MCP: &[&str] = &[
    "command",
    "env",
    "url",
    "key",
    "key_place",
    "tools",
    "time",
    "start_time",
    "policies",
];

/// The range of the time limits of a call and of a start, in seconds.
pub(super) const TIME: [f64; 2] = [1.0, 3600.0];
pub(super) const START_TIME: [f64; 2] = [0.1, 60.0];
/// The maximum length of an argument, a value, or a tool's name, in characters.
const LONGEST: usize = 32 << 10;

/// An MCP server.
#[derive(Debug, Clone, PartialEq)]
pub struct McpEntry {
    /// The position of its table.
    pub at: SourcePosition,
    /// How it is reached.
    pub transport: McpTransport,
    /// `tools`.
    pub tools: AllowedTools,
    /// `time`: the time limit of one call.
    pub time: Option<Duration>,
    /// `start_time`: the time limit of its start.
    pub start_time: Option<Duration>,
    /// `policies`: the policies whose sessions have the tools. `None` for all.
    pub policies: Option<Vec<String>>,
}

/// How an MCP server is reached.
#[derive(Debug, Clone, PartialEq)]
pub enum McpTransport {
    /// A program in each session's sandbox.
    Program {
        /// `command`: the program and its arguments.
        command: Vec<String>,
        /// `env`.
        env: BTreeMap<String, String>,
    },
    /// A server on the network.
    Http {
        /// `url`.
        url: Located<Url>,
        /// `key`: the variable that holds the key.
        key: Option<Located<String>>,
        /// `key_place`. The default is a bearer token.
        key_place: Option<KeyInjection>,
    },
}

/// The tools of a server that may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedTools {
    /// `["*"]`: all tools that it lists when a session begins.
    All,
    /// Tools by the server's own names.
    These(Vec<String>),
}

impl AllowedTools {
    /// Whether a tool may be called.
    pub fn has(&self, tool: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.iter().any(|name| name == tool),
        }
    }
}

/// Reads one entry.
pub(super) fn server(
    reader: &mut ManifestReader<'_>,
    key: &SpannedKey<'_>,
    item: &SpannedValue<'_>,
    root: &DeTable<'_>,
) -> Option<McpEntry> {
    let of = format!("mcp.{}", key.get_ref());
    let table = reader.table(item, &of, MCP)?;
    let at = reader.at(&key.span());
    let way = way(reader, table, &of, at);
    let tools = tools(reader, table, &of, at);
    let mut seconds = |name: &str, [least, most]: [f64; 2]| {
        let (_, item) = field(table, name)?;
        reader.seconds(item, &format!("{of}.{name}"), least, most)
    };
    let (time, start_time) = (seconds("time", TIME), seconds("start_time", START_TIME));
    let policies = policies(reader, table, &of, root);
    Some(McpEntry {
        at,
        transport: way?,
        tools: tools?,
        time,
        start_time,
        policies,
    })
}

fn way(
    reader: &mut ManifestReader<'_>,
    table: &DeTable<'_>,
    of: &str,
    at: SourcePosition,
) -> Option<McpTransport> {
    let useless = |reader: &mut ManifestReader<'_>, names: &[&str], with: &str| {
        for name in names {
            if let Some((key, _)) = field(table, name) {
                let what = format!("`{of}.{name}` is of no use without `{with}`: leave it out");
                reader.report(&key.span(), what);
            }
        }
    };
    match (field(table, "command"), field(table, "url")) {
        (Some((_, item)), None) => {
            useless(reader, &["key", "key_place"], "url");
            let what = "a text of 1 to 32768 characters";
            let plain = |text: &str| is_plain(text) && !text.is_empty();
            let command = reader.texts(item, &format!("{of}.command"), what, plain);
            let env = field(table, "env").map(|(_, item)| env(reader, item, of));
            Some(McpTransport::Program {
                command: command?,
                env: env.unwrap_or_default(),
            })
        }
        (None, Some((_, item))) => {
            useless(reader, &["env"], "command");
            let url = address(reader, item, &format!("{of}.url"));
            let key = field(table, "key").map(|(_, item)| stated_key(reader, item, of));
            if key.is_none() {
                useless(reader, &["key_place"], "key");
            }
            let place = field(table, "key_place").and_then(|(_, item)| key_place(reader, item, of));
            Some(McpTransport::Http {
                url: url?,
                key: key.flatten(),
                key_place: place,
            })
        }
        (Some(_), Some(_)) => {
            let what = format!("`{of}` has a `command` and a `url`: a server is one of both");
            reader.report_at(at, what);
            None
        }
        (None, None) => {
            let what = format!(
                "`{of}` has neither `command`, for a program in the session's sandbox, nor `url`, for a server on the network"
            );
            reader.report_at(at, what);
            None
        }
    }
}

fn is_plain(text: &str) -> bool {
    text.chars().count() <= LONGEST && !text.contains('\0')
}

fn env(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    of: &str,
) -> BTreeMap<String, String> {
    let of = format!("{of}.env");
    let mut all = BTreeMap::new();
    let Some(table) = reader.any_table(item, &of) else {
        return all;
    };
    let is_name = |name: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let first = name.bytes().next();
        first.is_some_and(|byte| !byte.is_ascii_digit())
            && name.len() <= 255
            && name.bytes().all(plain)
    };
    for (key, item) in table {
        let name = key.get_ref().as_ref();
        if !is_name(name) {
            let what = format!("a name in `{of}` must be one of a variable: letters, digits and _");
            reader.report(&key.span(), what);
            continue;
        }
        let what = "a text of at most 32768 characters";
        if let Some(text) = reader.text_matching(item, &format!("{of}.{name}"), what, is_plain) {
            all.insert(name.to_owned(), text.value.to_owned());
        }
    }
    all
}

fn tools(
    reader: &mut ManifestReader<'_>,
    table: &DeTable<'_>,
    of: &str,
    at: SourcePosition,
) -> Option<AllowedTools> {
    let Some((_, item)) = field(table, "tools") else {
        let what = format!(
            "`{of}` has no `tools`: name those that agents may call, or say `tools = [\"*\"]` for all that the server lists, whatever that will be"
        );
        reader.report_at(at, what);
        return None;
    };
    let of = format!("{of}.tools");
    let what = "a tool's name as the server has it, or \"*\" alone";
    let named = |text: &str| !text.is_empty() && is_plain(text);
    let names = reader.texts(item, &of, what, named)?;
    if !names.iter().any(|name| name == "*") {
        return Some(AllowedTools::These(names));
    }
    if names.len() > 1 {
        let what = format!("`{of}` has \"*\" beside others: it stands for all of them");
        reader.report(&item.span(), what);
        return None;
    }
    Some(AllowedTools::All)
}
