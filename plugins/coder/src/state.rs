//! What the agent remembers from step to step.
//!
//! Always holds: only what later steps need; the conversation itself is the host's. A closed task
//! waits for nothing.

use lucid_plugin::types::ToolDefinition;
use serde::{Deserialize, Serialize};

use crate::own::{self, PlanItem};

/// What a deployment may set.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    /// Said to the model behind the system prompt.
    pub(crate) instructions: Option<String>,
    /// Where the provider's own limit is not wanted.
    pub(crate) max_output_tokens: Option<u32>,
    /// For the adapter, such as a temperature.
    pub(crate) params: serde_json::Map<String, serde_json::Value>,
}

/// The agent's memory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub(crate) system: String,
    pub(crate) settings: Settings,
    pub(crate) host_tools: Vec<HostTool>,
    /// Entries of what the user said.
    pub(crate) users: Vec<u64>,
    /// Entries of the model's replies, as far as they are still in the prompt.
    pub(crate) replies: Vec<u64>,
    /// From here on the prompt holds everything; before it, only what the user said.
    pub(crate) whole_from: Option<u64>,
    pub(crate) plan: Vec<PlanItem>,

    /// A task is open.
    pub(crate) open: bool,
    /// The model call that is waited for.
    pub(crate) asking: Option<String>,
    /// The tool runs that are waited for.
    pub(crate) runs: Vec<Run>,
    /// The model wants the task to end.
    pub(crate) ending: Option<Ending>,
    /// The user said something that no model call has shown the model yet.
    pub(crate) unread: bool,
    /// The last reply was text alone, and is the transcript's last word.
    pub(crate) answered_in_text: bool,
    /// Answers in a row that brought nothing.
    pub(crate) idle: u32,
    pub(crate) turn: Turn,
    /// Mark of the last turn, and how often in a row it came.
    pub(crate) last_turn: u64,
    pub(crate) repeats: u32,
}

/// A tool of the host, as the model is told of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HostTool {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) schema: String,
}

/// A tool run that is waited for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) effect: String,
    pub(crate) call_id: String,
    /// Mark of the tool and its arguments.
    pub(crate) mark: u64,
}

/// How the model wants the task to end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ending {
    /// The `finish` call; none where a text was the end.
    pub(crate) call_id: Option<String>,
    pub(crate) message: String,
    pub(crate) success: bool,
}

/// The tool calls of one reply, taken together.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// How many have their result.
    pub(crate) results: u32,
    /// Mark of all calls and results.
    pub(crate) mark: u64,
    /// One of them ended badly.
    pub(crate) bad: bool,
}

impl State {
    /// Keeps the host's tools. Where one has the name of an own tool, the own one holds.
    pub(crate) fn take_host_tools(&mut self, tools: Vec<ToolDefinition>) {
        self.host_tools = tools
            .into_iter()
            .filter(|tool| !own::NAMES.contains(&tool.name.as_str()))
            .map(|tool| HostTool {
                name: tool.name,
                description: tool.description,
                schema: tool.input_schema,
            })
            .collect();
    }

    pub(crate) fn open_task(&mut self) {
        self.close_task();
        self.open = true;
    }

    pub(crate) fn close_task(&mut self) {
        self.open = false;
        self.asking = None;
        self.runs.clear();
        self.ending = None;
        self.unread = false;
        self.answered_in_text = false;
        self.idle = 0;
        self.turn = Turn::default();
        self.last_turn = 0;
        self.repeats = 0;
    }

    /// Leaves the older half of the replies out of the prompt. False where nothing worth it is left.
    ///
    /// The cut is at a reply: what stands behind a reply up to the next one belongs to it, so no
    /// tool result loses its call.
    pub(crate) fn leave_out_half(&mut self) -> bool {
        if self.replies.len() < 2 {
            return false;
        }
        self.replies.drain(..self.replies.len() / 2);
        self.whole_from = self.replies.first().copied();
        true
    }
}
