//! The agent's own tools, which need no sandbox because they only concern the agent.
//!
//! # Invariants
//!
//! - An own tool is carried out within the step in which the model called it. Two are answered
//!   later: `finish` when the whole turn is known, `ask_user` when the user has answered.

use lucid_plugin::policy::Commands;
use lucid_plugin::types::{ToolDefinition, ToolResult};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::state::{Ending, Question, State};

pub(crate) const THINK: &str = "think";
pub(crate) const TASK_TRACKER: &str = "task_tracker";
pub(crate) const FINISH: &str = "finish";

pub(crate) const ASK_USER: &str = "ask_user";

/// The names of the agent's own tools.
pub(crate) const NAMES: [&str; 4] = [THINK, TASK_TRACKER, ASK_USER, FINISH];

/// An item of the agent's plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanItem {
    title: String,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    #[default]
    Todo,
    InProgress,
    Done,
}

#[derive(Deserialize)]
struct Think {
    thought: String,
}

#[derive(Deserialize)]
struct TaskTracker {
    tasks: Vec<PlanItem>,
}

#[derive(Deserialize)]
struct Finish {
    message: String,
    #[serde(default = "yes")]
    success: bool,
}

#[derive(Deserialize)]
struct AskUser {
    question: String,
    #[serde(default)]
    options: Vec<String>,
}

fn yes() -> bool {
    true
}

/// Their definitions for the model. `ask_user` is included only if the user may be asked.
pub(crate) fn definitions(ask: bool) -> impl Iterator<Item = ToolDefinition> {
    let all = [
        ToolDefinition::new(
            THINK,
            "Write down a line of reasoning that is worth keeping: a diagnosis, a choice between \
             designs, what a surprising output means. It changes nothing in the workspace.",
            &json!({
                "type": "object",
                "properties": { "thought": { "type": "string" } },
                "required": ["thought"],
            }),
        ),
        ToolDefinition::new(
            TASK_TRACKER,
            "Keep a plan for work of more than a few steps. Every call gives the whole list, with \
             the state of each item; have one item in progress at a time, and mark it done as soon \
             as it is.",
            &json!({
                "type": "object",
                "properties": {
                    "tasks": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "title": { "type": "string" },
                                "status": { "type": "string", "enum": ["todo", "in_progress", "done"] },
                            },
                            "required": ["title", "status"],
                        },
                    },
                },
                "required": ["tasks"],
            }),
        ),
        ToolDefinition::new(
            ASK_USER,
            "Ask the user one question and wait for the answer, which may take long. Only for a \
             choice that is the user's: the task leaves it open, it changes the result, and nothing \
             in the workspace decides it. Say what you would do without an answer.",
            &json!({
                "type": "object",
                "properties": {
                    "question": { "type": "string" },
                    "options": {
                        "type": "array",
                        "items": { "type": "string" },
                        "description": "Answers to choose from, where there are some.",
                    },
                },
                "required": ["question"],
            }),
        ),
        ToolDefinition::new(
            FINISH,
            "End the task. Call it alone, once the work is verified, or once you are sure that it \
             cannot be done.",
            &json!({
                "type": "object",
                "properties": {
                    "message": {
                        "type": "string",
                        "description": "For the user: what was done, how it was verified, what is left.",
                    },
                    "success": {
                        "type": "boolean",
                        "description": "False if the task could not be done. True unless given.",
                    },
                },
                "required": ["message"],
            }),
        ),
    ];
    all.into_iter()
        .filter(move |tool| ask || tool.name != ASK_USER)
}

/// Runs an own tool. `None` if the result follows when the whole turn is known.
pub(crate) fn call(
    s: &mut State,
    name: &str,
    call_id: &str,
    arguments: &str,
    out: &mut Commands,
) -> Option<ToolResult> {
    let done = |text: &str| Some(ToolResult::ok(call_id, text));
    let refused = |text: &str| Some(ToolResult::failed(call_id, text));
    let wrong = |e: serde_json::Error| refused(&format!("The arguments of {name} are wrong: {e}."));
    match name {
        THINK => match read::<Think>(arguments) {
            Ok(Think { thought }) => {
                let fields = json!({ "thought": thought });
                out.emit("ThinkAction", thought, &fields);
                done("Noted.")
            }
            Err(e) => wrong(e),
        },
        TASK_TRACKER => match read::<TaskTracker>(arguments) {
            Ok(TaskTracker { tasks }) => {
                out.emit("ThinkAction", listed(&tasks), &json!({ "tasks": tasks }));
                s.plan = tasks;
                done("The plan is kept.")
            }
            Err(e) => wrong(e),
        },
        ASK_USER => match read::<AskUser>(arguments) {
            Ok(_) if s.task.question.is_some() => refused(
                "One question at a time: this one was not put. Ask it when the other is answered, \
                 if it is still open.",
            ),
            Ok(AskUser { question, .. }) if question.trim().is_empty() => {
                refused("The question is empty.")
            }
            Ok(AskUser { question, options }) => {
                s.task.question = Some(Question {
                    call_id: Some(call_id.into()),
                    text: question.trim().into(),
                    options,
                });
                None
            }
            Err(e) => wrong(e),
        },
        _ => match read::<Finish>(arguments) {
            Ok(_) if s.task.ending.is_some() => done("`finish` was called already."),
            Ok(Finish { message, success }) => {
                s.task.ending = Some(Ending {
                    call_id: Some(call_id.into()),
                    message,
                    success,
                });
                None
            }
            Err(e) => wrong(e),
        },
    }
}

/// Parsed like a snapshot: one JSON reader in the component, not two.
fn read<T: DeserializeOwned>(arguments: &str) -> Result<T, serde_json::Error> {
    serde_json::from_slice(arguments.as_bytes())
}

/// A plan as a list for people and models.
pub(crate) fn listed(plan: &[PlanItem]) -> String {
    if plan.is_empty() {
        return "The plan is empty.".into();
    }
    let mut list = String::from("Plan:");
    for item in plan {
        let mark = match item.status {
            Status::Todo => "[ ]",
            Status::InProgress => "[~]",
            Status::Done => "[x]",
        };
        list.push_str(&format!("\n{mark} {}", item.title));
    }
    list
}
