//! An agent: it calls a model, runs the tools that the model calls, and ends when it calls none.
//!
//! It decides and never acts. All it knows arrives as [`Input`]s and all it wants leaves as
//! [`Commands`]. The host logs both, and only then carries them out. So there is no clock, no file
//! and no network here, and the same inputs always give the same commands.

use lucid_plugin::cut;
use lucid_plugin::policy::{self, Commands, Context, Descriptor, Input, Policy, Start};
use lucid_plugin::turns::{Turn, Turns};
use lucid_plugin::types::{Error, Message, StopReason, ToolCall, ToolDefinition, ToolResult};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The agent.
pub struct MyAgent;

/// What it remembers from one step to the next. The host keeps it, also over a crash.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Where the loop of model and tools stands.
    turns: Turns,
    /// The first message of each prompt.
    system: String,
    /// What the model may call: the host's tools, and `remember`.
    tools: Vec<ToolDefinition>,
    /// What the model noted.
    notes: Vec<String>,
}

/// What a deployment may set, under `settings` in `lucid.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// How to speak.
    manner: String,
}

/// The same for whoever writes them: the host checks settings against this.
const SETTINGS: &str = r#"{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "manner": { "type": "string", "description": "How to speak, such as: Be brief." }
  }
}"#;

impl Policy for MyAgent {
    type State = State;
    /// Count it up when a build cannot read the older state, and write `migrate` for that.
    const SCHEMA: u32 = 1;

    fn describe() -> Descriptor {
        Descriptor {
            calls_models: true,
            settings_schema: Some(SETTINGS.into()),
            ..policy::describe::<Self>(
                "my-agent",
                env!("CARGO_PKG_VERSION"),
                "Works on a task with the host's tools.",
            )
        }
    }

    /// Once for each thing that happened.
    fn step(_: &Context, s: &mut State, input: Input, out: &mut Commands) -> Result<(), Error> {
        if let Input::Started(start) = &input {
            begin(s, start)?;
        }
        match s.turns.take(input, out) {
            Turn::Calls(calls) => {
                for call in calls {
                    if call.name == "remember" {
                        remember(s, &call, out);
                    } else {
                        s.turns.run(call, out);
                    }
                }
            }
            Turn::Answered(said) if said.stop == StopReason::MaxTokens => {
                out.append(Message::user("Your answer was cut off. Go on from there."));
            }
            Turn::Answered(said) => s.turns.succeed(said.text),
            Turn::Failed(error) => s.turns.fail(error),
            Turn::Waits | Turn::Cancelled(_) | Turn::Other(_) => {}
        }
        Ok(())
    }

    /// Once behind all that happened: the model is asked where it is its turn.
    fn settle(_: &Context, s: &mut State, out: &mut Commands) -> Result<(), Error> {
        let mut system = s.system.clone();
        for note in &s.notes {
            system.push_str("\nYou noted: ");
            system.push_str(note);
        }
        s.turns.settle(&system, &s.tools, out);
        Ok(())
    }
}

fn begin(s: &mut State, start: &Start) -> Result<(), Error> {
    let settings: Settings = start.parsed_settings()?;
    s.system = format!(
        "You work on a task in the folder {}. {}\n{}",
        start.workspace,
        settings.manner,
        start.instructions.join("\n"),
    );
    s.tools = start.tools.clone();
    s.tools.push(ToolDefinition::new(
        "remember",
        "Notes something that you will need later.",
        &json!({
            "type": "object",
            "properties": { "note": { "type": "string" } },
            "required": ["note"],
        }),
    ));
    Ok(())
}

/// A tool of the agent's own: the host does not hear of it, so it is answered here, and shown.
fn remember(s: &mut State, call: &ToolCall, out: &mut Commands) {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
    let result = match arguments["note"].as_str() {
        Some(note) => {
            s.notes.push(cut(note, 200));
            out.emit("ThinkAction", note, &json!({ "thought": note }));
            ToolResult::ok(&call.id, "Noted.")
        }
        None => ToolResult::failed(&call.id, "Give a `note`, a text."),
    };
    s.turns.answer(result, out);
}

lucid_plugin::export_policy!(MyAgent);
