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

/// The state from one step to the next. The host keeps it, even over a crash.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The state of the loop of model and tools.
    turns: Turns,
    /// The first message of each prompt.
    system: String,
    /// The tools the model may call: the host's, and `remember`.
    tools: Vec<ToolDefinition>,
    /// The model's notes.
    notes: Vec<String>,
}

/// The deployment's settings, under `settings` in `lucid.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// The manner of speaking.
    manner: String,
}

/// Their JSON schema: the host validates settings against it.
const SETTINGS: &str = r#"{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "manner": { "type": "string", "description": "How to speak, such as: Be brief." }
  }
}"#;

impl Policy for MyAgent {
    type State = State;
    /// Increment it when a build cannot read the older state, and write `migrate` for that.
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

    /// Called once for each input.
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

    /// Called once after all inputs of a step: calls the model if it is its turn.
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

/// A tool of the agent's own: the host does not know it, so it is answered here, and shown.
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
