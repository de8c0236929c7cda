//! The check of a tool component: the tools it offers, and calls of each one as models make them,
//! valid and invalid, with a scripted sandbox and server.
//!
//! # Invariants
//!
//! - Every step is run twice and must give the same result.
//! - No command is run and no request is sent.
//! - Anything a host would refuse to carry out is reported.

use serde_json::{Map, Value, json};

use super::super::report::CheckReport;
use super::violation::{Violation, violation};
use crate::toolsets::component::call::{LARGEST_STATE, MOST_STEPS, check as check_action};
use lucid_net::egress::refusal_of;
use lucid_types::plural;
use lucid_types::wit::tools::{Action, Answer, Output, Progress};
use lucid_types::wit::types::{Error, ErrorKind, Header, HttpResponse, ToolCall, ToolDefinition};
use lucid_wasm::{CallError, ToolsPlugin};

/// How the environment responds to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SimulatedEnvironment {
    /// Commands print something and succeed, servers respond with a small object.
    Kind,
    /// Commands fail, servers refuse.
    Unkind,
    /// Nothing can be carried out.
    Gone,
    /// Responses are not text, or are large.
    Odd,
}

/// All of them, and their names in a report.
const WORLDS: [(SimulatedEnvironment, &str, &str); 4] = [
    (
        SimulatedEnvironment::Kind,
        "calls",
        "each tool, where all goes well",
    ),
    (
        SimulatedEnvironment::Unkind,
        "refusals",
        "commands fail, and servers refuse",
    ),
    (
        SimulatedEnvironment::Gone,
        "failures",
        "nothing can be carried out",
    ),
    (
        SimulatedEnvironment::Odd,
        "oddities",
        "bytes that are no text, and many of them",
    ),
];

/// Runs all checks.
pub(super) async fn check(report: &mut CheckReport, plugin: &ToolsPlugin, settings: &str) {
    let tools = match plugin.definitions(settings).await.result {
        Ok(tools) => tools,
        Err(error) => return report.fail("tools", &error.to_string()),
    };
    if tools.is_empty() {
        report.note("tools", "there are none with these settings");
    } else {
        let names: Vec<&str> = tools.iter().map(|tool| &*tool.name).collect();
        report.pass("tools", &names.join(", "));
    }
    for (world, name, what) in WORLDS {
        let mut tried = CallResults::default();
        let mut wrong = None;
        for tool in &tools {
            let arguments = example(tool);
            if let Err(why) =
                play(plugin, settings, &tool.name, &arguments, world, &mut tried).await
            {
                wrong = Some(format!("{}: {why}", tool.name));
                break;
            }
        }
        match wrong {
            Some(why) => report.fail(name, &why),
            None => report.pass(name, &format!("{what}: {}", tried.sentence())),
        }
    }
    report.result("arguments", arguments(plugin, settings, &tools).await);
}

/// The outcome of some calls.
#[derive(Debug, Default)]
pub(super) struct CallResults {
    steps: usize,
    commands: usize,
    requests: usize,
    errors: usize,
}

impl CallResults {
    fn sentence(&self) -> String {
        let Self {
            steps,
            commands,
            requests,
            errors,
        } = self;
        format!(
            "{}, each the same when made again; {}, {}, {errors} ended with an error for the model",
            plural::count(*steps, "step"),
            plural::count(*commands, "command"),
            plural::count(*requests, "request")
        )
    }
}

/// Arguments from models that did not read the schema.
async fn arguments(
    plugin: &ToolsPlugin,
    settings: &str,
    tools: &[ToolDefinition],
) -> Result<String, Violation> {
    let long = json!({ "x": "x".repeat(100_000) }).to_string();
    let names = tools.iter().map(|tool| &*tool.name).chain(["no-such-tool"]);
    let mut tried = CallResults::default();
    for name in names {
        for arguments in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            r#"{"unknown": [1, {"a": null}]}"#,
            &long,
        ] {
            let played = play(
                plugin,
                settings,
                name,
                arguments,
                SimulatedEnvironment::Kind,
                &mut tried,
            )
            .await;
            let excerpt: String = arguments.chars().take(40).collect();
            played.map_err(|why| why.within(format!("{name} with the arguments `{excerpt}`")))?;
        }
    }
    Ok(format!(
        "what is no object or none that a schema allows breaks nothing: {}",
        tried.sentence()
    ))
}

/// Runs one call to completion. The error is a sentence.
pub(super) async fn play(
    plugin: &ToolsPlugin,
    settings: &str,
    tool: &str,
    arguments: &str,
    world: SimulatedEnvironment,
    tried: &mut CallResults,
) -> Result<(), Violation> {
    let call = ToolCall {
        id: "call-1".to_owned(),
        name: tool.to_owned(),
        arguments: arguments.to_owned(),
    };
    let mut progress: Option<Progress> = None;
    for _ in 0..MOST_STEPS {
        let done = plugin.step(settings, &call, progress.as_ref()).await.result;
        let again = plugin.step(settings, &call, progress.as_ref()).await.result;
        if done != again {
            return Err(violation!(
                "the same arguments gave something else the second time; a step must depend on nothing but its arguments, not on a hash map's order"
            ));
        }
        tried.steps += 1;
        let turn = match done {
            Ok(turn) => turn,
            Err(CallError::Plugin { .. }) => {
                tried.errors += 1;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        check_action(&turn.action)?;
        match &turn.action {
            Action::Run(_) => tried.commands += 1,
            Action::Send(request) => {
                tried.requests += 1;
                let place = plugin.descriptor().key.clone().into();
                if let Some(why) = refusal_of(request, &place, false) {
                    return Err(why.into());
                }
            }
            Action::Done(reply) => {
                tried.errors += usize::from(reply.is_error);
                return Ok(());
            }
        }
        if turn.state.len() > LARGEST_STATE {
            return Err(violation!(
                "it keeps {} bytes from one step to the next, and {LARGEST_STATE} are allowed",
                turn.state.len()
            ));
        }
        progress = Some(Progress {
            state: turn.state,
            answer: answer(&turn.action, world),
        });
    }
    Err(violation!("it was not done after {MOST_STEPS} steps"))
}

fn answer(action: &Action, world: SimulatedEnvironment) -> Answer {
    if world == SimulatedEnvironment::Gone {
        return Answer::Failed(Error::new(ErrorKind::Unsupported, "It cannot be done."));
    }
    if let Action::Run(_) = action {
        let text = match world {
            SimulatedEnvironment::Odd => "\u{fffd}\u{0}".repeat(40_000),
            SimulatedEnvironment::Kind
            | SimulatedEnvironment::Unkind
            | SimulatedEnvironment::Gone => "one\ntwo\n".to_owned(),
        };
        return Answer::Ran(Output {
            exit_code: if world == SimulatedEnvironment::Unkind {
                1
            } else {
                0
            },
            timed_out: false,
            text,
            left_out: if world == SimulatedEnvironment::Odd {
                1 << 20
            } else {
                0
            },
        });
    }
    let (status, body) = match world {
        SimulatedEnvironment::Unkind => (503, b"{\"error\": \"busy\"}".to_vec()),
        SimulatedEnvironment::Odd => (200, vec![0xff; 1 << 20]),
        SimulatedEnvironment::Kind | SimulatedEnvironment::Gone => {
            (200, b"{\"id\": 1, \"items\": []}".to_vec())
        }
    };
    let headers = vec![Header {
        name: "content-type".to_owned(),
        value: "application/json".to_owned(),
    }];
    Answer::Responded(HttpResponse {
        status,
        headers,
        body,
    })
}

/// Arguments that a schema allows, as far as its properties are typed.
fn example(tool: &ToolDefinition) -> String {
    let schema: Value = serde_json::from_str(&tool.input_schema).unwrap_or_default();
    let properties = schema["properties"].as_object().cloned();
    let fields = properties.unwrap_or_default();
    let fields = fields.iter().map(|(name, of)| (name.clone(), value_of(of)));
    Value::Object(fields.collect::<Map<_, _>>()).to_string()
}

fn value_of(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
        return first.clone();
    }
    match schema["type"].as_str().unwrap_or_default() {
        "string" => json!("example"),
        "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(1)),
        "boolean" => json!(true),
        "array" => json!([]),
        "object" => json!({}),
        _ => Value::Null,
    }
}
