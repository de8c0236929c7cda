//! The agent's own tools: those that need no sandbox, because they only concern the agent.
//!
//! Always holds: an own tool is carried out within the step that the model called it in.

use lucid_plugin::policy::Commands;
use lucid_plugin::types::ToolDefinition;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::state::{Ending, State};

pub(crate) const THINK: &str = "think";
pub(crate) const TASK_TRACKER: &str = "task_tracker";
pub(crate) const FINISH: &str = "finish";

/// Their names.
pub(crate) const NAMES: [&str; 3] = [THINK, TASK_TRACKER, FINISH];

/// One entry of the agent's plan.
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

fn yes() -> bool {
    true
}

/// How the model is told of them.
pub(crate) fn definitions() -> [ToolDefinition; 3] {
    [
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
    ]
}

/// Carries out an own tool. `None`: the answer comes later, when the whole turn is known.
pub(crate) fn call(
    s: &mut State,
    name: &str,
    call_id: &str,
    arguments: &serde_json::Value,
    out: &mut Commands,
) -> Option<Result<String, String>> {
    let wrong =
        |e: serde_json::Error| Some(Err(format!("The arguments of {name} are wrong: {e}.")));
    match name {
        THINK => match Think::deserialize(arguments) {
            Ok(Think { thought }) => {
                let fields = json!({ "thought": thought });
                out.emit("ThinkAction", thought, &fields);
                Some(Ok("Noted.".into()))
            }
            Err(e) => wrong(e),
        },
        TASK_TRACKER => match TaskTracker::deserialize(arguments) {
            Ok(TaskTracker { tasks }) => {
                out.emit("ThinkAction", listed(&tasks), &json!({ "tasks": tasks }));
                s.plan = tasks;
                Some(Ok("The plan is kept.".into()))
            }
            Err(e) => wrong(e),
        },
        _ => match Finish::deserialize(arguments) {
            Ok(_) if s.ending.is_some() => Some(Ok("`finish` was called already.".into())),
            Ok(Finish { message, success }) => {
                s.ending = Some(Ending {
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
