//! The agent's state from step to step.
//!
//! # Invariants
//!
//! - The state holds only what later steps need. The conversation itself is the host's.
//! - Everything about one task is in [`Task`], and a closed task leaves nothing of it behind.

use lucid_plugin::policy::{ModelOffer, Outcome, Start};
use lucid_plugin::types::ToolDefinition;
use serde::{Deserialize, Serialize};

use crate::budget::Spent;
use crate::circles::Circles;
use crate::condense::Summariser;
use crate::conversation::Conversation;
use crate::own::{self, PlanItem};
use crate::worktree::Worktree;

/// What a deployment may set.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    /// Said to the model behind the system prompt.
    pub(crate) instructions: Option<String>,
    /// Where the provider's own limit is not wanted.
    pub(crate) max_output_tokens: Option<u32>,
    /// For the adapter, such as a temperature.
    pub(crate) params: serde_json::Map<String, serde_json::Value>,
    /// Which model works, where it is not the session's.
    pub(crate) model: Option<String>,
    /// Which model writes summaries, where it is not the session's small one.
    pub(crate) summary_model: Option<String>,
    /// Whether work goes to a branch of its own where a repository was cloned.
    pub(crate) push: bool,
    /// Whether the user may be asked.
    pub(crate) ask: bool,
}

/// What [`Settings`] takes, for whoever writes them.
pub(crate) const SETTINGS: &str = r#"{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "instructions": {
      "type": ["string", "null"],
      "description": "Said to the model behind the system prompt."
    },
    "max_output_tokens": {
      "type": ["integer", "null"],
      "minimum": 1,
      "maximum": 4294967295,
      "description": "The longest answer, where the provider's own limit is not wanted."
    },
    "params": {
      "type": "object",
      "description": "For the model's adapter: temperature, top_p, stop, thinking."
    },
    "model": {
      "type": ["string", "null"],
      "description": "Which model works, where it is not the session's."
    },
    "summary_model": {
      "type": ["string", "null"],
      "description": "Which model writes summaries, where it is not the session's small one."
    },
    "push": {
      "type": "boolean",
      "default": true,
      "description": "Whether work goes to a branch of its own where a repository was cloned."
    },
    "ask": {
      "type": "boolean",
      "default": true,
      "description": "Whether the user may be asked."
    }
  }
}"#;

impl Default for Settings {
    fn default() -> Self {
        Self {
            instructions: None,
            max_output_tokens: None,
            params: serde_json::Map::new(),
            model: None,
            summary_model: None,
            push: true,
            ask: true,
        }
    }
}

/// The agent's memory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub(crate) system: String,
    pub(crate) settings: Settings,
    pub(crate) host_tools: Vec<HostTool>,
    /// The model that works.
    pub(crate) model: Model,
    /// The model that writes summaries; none where that is the one that works.
    pub(crate) small_model: Option<Model>,
    /// The branch for this session's work, where it is to be pushed.
    pub(crate) branch: Option<String>,
    pub(crate) conversation: Conversation,
    pub(crate) plan: Vec<PlanItem>,
    /// A task is open.
    pub(crate) open: bool,
    pub(crate) task: Task,
    /// How the task ended in the step that is made; never kept.
    #[serde(skip)]
    pub(crate) over: Option<Outcome>,
}

/// A model and its sizes.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Model {
    /// Empty for the session's own.
    pub(crate) name: String,
    /// How much it reads, in tokens; 0 where nobody knows.
    pub(crate) context: u64,
    /// How much it writes, in tokens; 0 where nobody knows.
    pub(crate) output: u64,
}

/// What concerns the open task alone.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) waits: Waits,
    /// The tool runs that are waited for.
    pub(crate) runs: Vec<Run>,
    /// The model wants the task to end.
    pub(crate) ending: Option<Ending>,
    /// The model, or the agent itself, wants to ask the user.
    pub(crate) question: Option<Question>,
    /// What git says of the workspace, asked when the model wanted the task to end.
    pub(crate) worktree: Option<Worktree>,
    /// The user said something that no model call has shown the model yet.
    pub(crate) unread: bool,
    /// The model said that its prompt is too long.
    pub(crate) too_long: bool,
    pub(crate) summariser: Summariser,
    /// Answers in a row that brought nothing.
    pub(crate) idle: u32,
    /// Turns in a row of whose calls none could be run.
    pub(crate) malformed: u32,
    /// Refusals in a row.
    pub(crate) refusals: u32,
    pub(crate) turn: Turn,
    pub(crate) circles: Circles,
    /// A file was changed since the last command ran.
    pub(crate) unverified: bool,
    /// Something ran that may have changed the workspace.
    pub(crate) worked: bool,
    /// The model was told once to verify its work.
    pub(crate) told_to_verify: bool,
    /// The model was told once to commit and push its work.
    pub(crate) told_to_push: bool,
    pub(crate) spent: Spent,
}

/// What is waited for besides tool runs of the model.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum Waits {
    #[default]
    Nothing,
    /// The model's next turn.
    Reply(String),
    /// A summary of the transcript up to `cut`, which is not part of it.
    Summary { effect: String, cut: u64 },
    /// What git says of the workspace.
    Worktree(String),
    /// The user's answer; `call_id` is the call that asked, where it was the model.
    Answer {
        effect: String,
        call_id: Option<String>,
    },
}

impl Waits {
    /// The effect that is waited for.
    pub(crate) fn effect(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Reply(effect)
            | Self::Worktree(effect)
            | Self::Summary { effect, .. }
            | Self::Answer { effect, .. } => Some(effect),
        }
    }
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
    pub(crate) touches: Touches,
}

/// What a tool run does to the workspace.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Touches {
    /// It only reads.
    #[default]
    Nothing,
    /// It changes a file.
    File,
    /// It runs a command: that may change anything, and may verify what was changed.
    Anything,
}

/// How the model wants the task to end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ending {
    /// The `finish` call; none where a text was the end.
    pub(crate) call_id: Option<String>,
    pub(crate) message: String,
    pub(crate) success: bool,
}

/// A question that is to be put to the user.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    /// The call that asks; none where the agent itself does.
    pub(crate) call_id: Option<String>,
    pub(crate) text: String,
    pub(crate) options: Vec<String>,
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
    /// One of them could be run.
    pub(crate) runnable: bool,
    /// The first of them, for people.
    pub(crate) shown: String,
}

impl State {
    /// Keeps the models that this session works with.
    pub(crate) fn take_models(&mut self, start: &Start) {
        let offers = [&start.model, &start.small_model];
        let named = |name: &str| {
            let known = offers.iter().find(|offer| offer.name == name);
            known.map_or_else(
                || Model {
                    name: name.into(),
                    ..Model::default()
                },
                |offer| of_offer(offer),
            )
        };
        self.model = match self.settings.model.as_deref() {
            Some(name) => named(name),
            None => Model {
                name: String::new(),
                ..of_offer(&start.model)
            },
        };
        let works = self.settings.model.as_deref().unwrap_or(&start.model.name);
        let small = self.settings.summary_model.as_deref();
        let small = small.unwrap_or(&start.small_model.name);
        self.small_model = (!small.is_empty() && small != works).then(|| named(small));
    }

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

    pub(crate) fn has_host_tool(&self, name: &str) -> bool {
        self.host_tools.iter().any(|tool| tool.name == name)
    }

    pub(crate) fn open_task(&mut self) {
        self.task = Task::default();
        self.open = true;
    }

    pub(crate) fn close_task(&mut self) {
        self.task = Task::default();
        self.open = false;
    }

    /// Whether an open task has nothing under way.
    pub(crate) fn is_due(&self) -> bool {
        self.open && self.task.waits == Waits::Nothing && self.task.runs.is_empty()
    }
}

fn of_offer(offer: &ModelOffer) -> Model {
    Model {
        name: offer.name.clone(),
        context: offer.context_tokens,
        output: offer.output_tokens,
    }
}
