//! The mock agent: a fixed script for frontend development.
//!
//! It calls no model. Each of its tools does the same however often it runs, so one that was lost
//! is run again.
//!
//! # Invariants
//!
//! - The script's events come in the wire contract's order, whether a sandbox really runs them or
//!   the mock emits them itself.
//! - Every opened task is finished, and every follow-up gets exactly one `MockResponse`.

mod script;

use lucid_plugin::joined_text;
use lucid_plugin::policy::{self, Commands, Context, Descriptor, Input, Policy, Start};
use lucid_plugin::types::{Error, ErrorKind, ToolCall};
use lucid_plugin::{Level, log};
use serde::{Deserialize, Serialize};
use serde_json::json;

use script::Scene;

/// The mock agent.
pub struct Mock;

/// The deployment's settings.
#[derive(Deserialize)]
#[serde(default)]
struct Settings {
    /// The delay between two events, in milliseconds.
    delay_ms: u64,
}

/// The JSON schema of [`Settings`].
const SETTINGS: &str = r#"{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "delay_ms": {
      "type": "integer",
      "minimum": 0,
      "default": 1500,
      "description": "Milliseconds between two events."
    }
  }
}"#;

impl Default for Settings {
    fn default() -> Self {
        Self { delay_ms: 1_500 }
    }
}

/// The state of the script.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    workspace: String,
    delay_ms: u64,
    /// Whether there is a terminal, so that commands are run instead of emitted.
    live: bool,
    /// The index of the next scene.
    next: usize,
    /// Whether a task is open.
    open: bool,
    /// The pending timer or tool run.
    waiting: Option<Waiting>,
    /// Follow-ups that arrived while the script ran.
    queue: Vec<String>,
    /// The first failure.
    trouble: Option<Trouble>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Waiting {
    Timer(String),
    Tool(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Trouble {
    /// Whether it is of the host or plugin (`internal`), rather than of a command (`upstream`).
    internal: bool,
    text: String,
}

impl Policy for Mock {
    type State = State;
    const SCHEMA: u32 = 1;

    fn describe() -> Descriptor {
        Descriptor {
            settings_schema: Some(SETTINGS.into()),
            ..policy::describe::<Self>(
                "mock",
                env!("CARGO_PKG_VERSION"),
                "Plays a fixed script, so that a frontend can be developed without a model.",
            )
        }
    }

    fn step(ctx: &Context, s: &mut State, input: Input, out: &mut Commands) -> Result<(), Error> {
        match input {
            Input::Started(start) => begin(ctx, s, &start, out),
            Input::UserMessage(message) => follow_up(s, joined_text(&message.content), out),
            Input::Answered(answer) => follow_up(s, answer.text, out),
            Input::TimerFired(effect) => {
                if s.waits_for(&effect) {
                    play(ctx, s, out);
                }
            }
            Input::ToolReplied(reply) => {
                if s.waits_for(&reply.effect) {
                    let bad = reply.outcome.is_bad();
                    tool_ended(
                        ctx,
                        s,
                        bad.then(|| script::complaint(&reply.outcome)),
                        false,
                        out,
                    );
                }
            }
            Input::EffectFailed(failure) => {
                effect_ended(ctx, s, &failure.effect, failure.error.message, out);
            }
            Input::EffectLost(effect) => {
                if s.waits_for(&effect) {
                    again(ctx, s, out);
                }
            }
            Input::CancelRequested(_) => cancel(s, out),
            Input::ModelReplied(_) | Input::Upgraded(_) | Input::Other(_) => {}
        }
        Ok(())
    }
}

impl State {
    fn waits_for(&self, effect: &str) -> bool {
        match &self.waiting {
            Some(Waiting::Timer(name) | Waiting::Tool(name)) => name == effect,
            None => false,
        }
    }
}

fn begin(ctx: &Context, s: &mut State, start: &Start, out: &mut Commands) {
    let settings: Settings = start.parsed_settings().unwrap_or_else(|error| {
        log(Level::Warn, &error.message);
        Settings::default()
    });
    *s = State {
        workspace: start.workspace.trim_end_matches('/').to_string(),
        delay_ms: settings.delay_ms,
        live: start.offers("terminal"),
        open: true,
        ..State::default()
    };
    let thought = "I play a fixed script: a folder, a file, and a run of it.";
    out.emit(
        "ThinkAction",
        format!(
            "Analyzing task: \"{}\"",
            lucid_plugin::cut(&start.task, 100)
        ),
        &json!({ "thought": thought }),
    );
    pause(ctx, s, out);
}

/// Waits before the next scene, or plays it at once without a delay.
fn pause(ctx: &Context, s: &mut State, out: &mut Commands) {
    if s.delay_ms == 0 {
        return play(ctx, s, out);
    }
    let effect = format!("w{}", ctx.step);
    out.set_timer(effect.clone(), s.delay_ms);
    s.waiting = Some(Waiting::Timer(effect));
}

fn play(ctx: &Context, s: &mut State, out: &mut Commands) {
    s.waiting = None;
    let at = s.next;
    s.next += 1;
    if s.live {
        match script::live(&s.workspace, at) {
            None => finish(s, out),
            Some((name, arguments)) => {
                let effect = format!("t{}", ctx.step);
                let call = ToolCall {
                    id: effect.clone(),
                    name: name.into(),
                    arguments: arguments.to_string(),
                };
                out.run_tool(effect.clone(), call);
                s.waiting = Some(Waiting::Tool(effect));
            }
        }
    } else {
        let Scene {
            event_type,
            content,
            fields,
            last,
        } = script::told(&s.workspace, at);
        out.emit(event_type, content, &fields);
        if last {
            finish(s, out);
        } else {
            pause(ctx, s, out);
        }
    }
}

/// Continues after the host restarted during an effect. Creating the folder, writing the file and
/// running it may all happen twice.
fn again(ctx: &Context, s: &mut State, out: &mut Commands) {
    if let Some(Waiting::Tool(_)) = s.waiting {
        s.next = s.next.saturating_sub(1);
    }
    play(ctx, s, out);
}

/// Handles the end of a tool run. `complaint` says what failed.
fn tool_ended(
    ctx: &Context,
    s: &mut State,
    complaint: Option<String>,
    internal: bool,
    out: &mut Commands,
) {
    s.waiting = None;
    let step = script::LIVE_STEPS[s.next.saturating_sub(1).min(2)];
    if let Some(why) = complaint {
        let text = format!("{step} failed: {why}");
        s.trouble.get_or_insert(Trouble { internal, text });
        // A folder that could not be created may exist. Without the file there is nothing to run.
        if s.next >= 2 {
            return finish(s, out);
        }
    }
    if s.next >= script::LIVE_STEPS.len() {
        finish(s, out);
    } else {
        pause(ctx, s, out);
    }
}

/// Handles an effect that ended without a result: for a tool that is a failure, for a timer it only
/// means to continue.
fn effect_ended(ctx: &Context, s: &mut State, effect: &str, why: String, out: &mut Commands) {
    if !s.waits_for(effect) {
        return;
    }
    match s.waiting.take() {
        Some(Waiting::Tool(_)) => tool_ended(ctx, s, Some(why), true, out),
        _ => play(ctx, s, out),
    }
}

fn finish(s: &mut State, out: &mut Commands) {
    for text in std::mem::take(&mut s.queue) {
        respond(&text, out);
    }
    s.open = false;
    s.waiting = None;
    match s.trouble.take() {
        None => out.succeed("[MOCK] The script is done: hello.py was written and run."),
        Some(Trouble { internal, text }) => {
            let kind = if internal {
                ErrorKind::Internal
            } else {
                ErrorKind::Upstream
            };
            out.fail(Error::new(kind, format!("[MOCK] {text}")));
        }
    }
}

fn follow_up(s: &mut State, text: String, out: &mut Commands) {
    if s.open {
        s.queue.push(text);
        return;
    }
    respond(&text, out);
    out.succeed("[MOCK] Follow-up received.");
}

fn respond(text: &str, out: &mut Commands) {
    out.emit(
        "MockResponse",
        format!("[MOCK] Received: {text}"),
        &json!({}),
    );
}

fn cancel(s: &mut State, out: &mut Commands) {
    if !s.open {
        return;
    }
    if let Some(Waiting::Timer(effect) | Waiting::Tool(effect)) = s.waiting.take() {
        out.cancel(effect);
    }
    s.open = false;
    s.queue.clear();
    s.trouble = None;
    out.cancelled();
}

lucid_plugin::export_policy!(Mock);
