//! Tools for agents: one searches the session's files, one fetches a ticket from a server.
//!
//! A call is turned into actions, a [`Command`] in the session's sandbox or an [`HttpRequest`] to
//! the deployment's server, and then into the text the model reads. The host carries the actions
//! out, shows them and adds the key. So there is no clock, no file and no network here, and the
//! same arguments always give the same result.

use lucid_plugin::cut;
use lucid_plugin::tools::{self, Answer, Command, Descriptor, Next, Tools, segment};
use lucid_plugin::types::{Error, HttpRequest, ToolCall, ToolDefinition};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The tools.
pub struct MyAgent;

/// The deployment's settings, under `settings` in `lucid.toml`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The word that marks a line with remaining work.
    word: String,
}

impl Default for Settings {
    fn default() -> Self {
        let word = "TODO".into();
        Self { word }
    }
}

/// Their JSON schema: the host validates settings against it.
const SETTINGS: &str = r#"{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "word": { "type": "string", "minLength": 1, "description": "What marks a line with work that is left." }
  }
}"#;

/// A call's state while it waits. The host keeps it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Waits {
    /// Waiting for `grep`.
    ForLines,
    /// Waiting for the server.
    ForTicket {
        /// The number of requests so far, from 1.
        times: u32,
    },
}

/// The arguments of `open_work`.
#[derive(Debug, Deserialize)]
struct Where {
    #[serde(default)]
    folder: Option<String>,
}

/// The arguments of `ticket`.
#[derive(Debug, Deserialize)]
struct Which {
    id: String,
}

impl Tools for MyAgent {
    type Settings = Settings;
    type State = Waits;

    fn describe() -> Descriptor {
        Descriptor {
            settings_schema: Some(SETTINGS.into()),
            ..tools::describe(
                "my-agent",
                env!("CARGO_PKG_VERSION"),
                "Finds work that is left, and tickets.",
            )
        }
    }

    /// The tools as models see them, under the names `my-agent__open_work` and `my-agent__ticket`.
    fn definitions(settings: &Settings) -> Result<Vec<ToolDefinition>, Error> {
        Ok(vec![
            ToolDefinition::new(
                "open_work",
                format!("Lists the lines of the session's files that are marked {}.", settings.word),
                &json!({
                    "type": "object",
                    "properties": {
                        "folder": { "type": "string", "description": "Where to look; everywhere without it." }
                    }
                }),
            ),
            ToolDefinition::new(
                "ticket",
                "Shows a ticket.",
                &json!({
                    "type": "object",
                    "properties": { "id": { "type": "string", "description": "Such as T-7." } },
                    "required": ["id"]
                }),
            ),
        ])
    }

    /// Starts a call.
    fn call(settings: &Settings, call: &ToolCall) -> Result<Next<Waits>, Error> {
        match call.name.as_str() {
            "open_work" => {
                let wanted: Where = call.parsed()?;
                let folder = wanted.folder.unwrap_or_else(|| ".".into());
                // No shell reads this, so whatever a model writes is an argument and never a
                // command.
                let grep = Command::argv(["grep", "-rnIF", "-e", &settings.word, "--", &folder]);
                Ok(Next::Run(grep.timeout_ms(30_000), Waits::ForLines))
            }
            "ticket" => {
                let wanted: Which = call.parsed()?;
                let request = HttpRequest::get(format!("/tickets/{}", segment(&wanted.id)?));
                Ok(Next::Send(request, Waits::ForTicket { times: 1 }))
            }
            _ => Err(call.unknown()),
        }
    }

    /// Continues a call after its action was carried out, or failed.
    fn resume(
        _: &Settings,
        call: &ToolCall,
        waits: Waits,
        answer: Answer,
    ) -> Result<Next<Waits>, Error> {
        match (waits, answer) {
            (Waits::ForLines, Answer::Ran(output)) if output.is_success() => {
                Ok(Next::done(cut(&output.text, 10_000)))
            }
            // grep's exit code for no match.
            (Waits::ForLines, Answer::Ran(output)) if output.exit_code == 1 => {
                Ok(Next::done("There are none."))
            }
            (Waits::ForLines, Answer::Ran(output)) => {
                Ok(Next::failed(format!("grep failed: {}", cut(&output.text, 500))))
            }
            (Waits::ForTicket { times }, Answer::Responded(busy)) if busy.status == 503 && times < 3 => {
                let wanted: Which = call.parsed()?;
                let request = HttpRequest::get(format!("/tickets/{}", segment(&wanted.id)?));
                Ok(Next::Send(request, Waits::ForTicket { times: times + 1 }))
            }
            (Waits::ForTicket { .. }, Answer::Responded(found)) if found.is_success() => {
                let ticket = found.json()?;
                let title = ticket["title"].as_str().unwrap_or("without a title");
                let text = ticket["text"].as_str().unwrap_or_default();
                Ok(Next::done(format!("{title}\n\n{}", cut(text, 10_000))))
            }
            (Waits::ForTicket { .. }, Answer::Responded(missing)) if missing.status == 404 => {
                Ok(Next::failed("There is no such ticket."))
            }
            (Waits::ForTicket { .. }, Answer::Responded(other)) => {
                Ok(Next::failed(format!("The server answered with status {}.", other.status)))
            }
            // No sandbox, no server: the host says why.
            (_, Answer::Failed(error)) => Err(error),
            (_, other) => Err(Error::internal(format!("That was not waited for: {other:?}"))),
        }
    }
}

lucid_plugin::export_tools!(MyAgent);
