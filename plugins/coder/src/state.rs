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

/// The deployment's settings.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    /// Instructions to the model, after the system prompt.
    pub(crate) instructions: Option<String>,
    /// The output limit, if not the provider's own.
    pub(crate) max_output_tokens: Option<u32>,
    /// Options for the adapter, such as a temperature.
    pub(crate) params: serde_json::Map<String, serde_json::Value>,
    /// The working model, if not the session's.
    pub(crate) model: Option<String>,
    /// The model for summaries, if not the session's small one.
    pub(crate) summary_model: Option<String>,
    /// Whether work is pushed to a branch of its own if a repository was cloned.
    pub(crate) push: bool,
    /// Whether the user may be asked.
    pub(crate) ask: bool,
}

/// The JSON schema of [`Settings`].
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

/// The agent's state.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub(crate) system: String,
    pub(crate) settings: Settings,
    pub(crate) host_tools: Vec<HostTool>,
    /// The working model.
    pub(crate) model: Model,
    /// The model for summaries. `None` for the working model.
    pub(crate) small_model: Option<Model>,
    /// The branch for this session's work, if it is to be pushed.
    pub(crate) branch: Option<String>,
    pub(crate) conversation: Conversation,
    pub(crate) plan: Vec<PlanItem>,
    /// Whether a task is open.
    pub(crate) open: bool,
    pub(crate) task: Task,
    /// The outcome of a task that ends in the current step. Never stored.
    #[serde(skip)]
    pub(crate) over: Option<Outcome>,
}

/// A model and its sizes.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Model {
    /// Its name. Empty for the session's own.
    pub(crate) name: String,
    /// Its context size in tokens. 0 if unknown.
    pub(crate) context: u64,
    /// Its output limit in tokens. 0 if unknown.
    pub(crate) output: u64,
}

/// The state of the open task.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) waits: Waits,
    /// The pending tool runs.
    pub(crate) runs: Vec<Run>,
    /// Set when the model wants the task to end.
    pub(crate) ending: Option<Ending>,
    /// Set when the model, or the agent itself, wants to ask the user.
    pub(crate) question: Option<Question>,
    /// Git's view of the workspace, requested when the model wanted the task to end.
    pub(crate) worktree: Option<Worktree>,
    /// Whether there is a user message that no model call has shown the model yet.
    pub(crate) unread: bool,
    /// Whether the model said that its prompt is too long.
    pub(crate) too_long: bool,
    pub(crate) summariser: Summariser,
    /// The number of consecutive replies without effect.
    pub(crate) idle: u32,
    /// The number of consecutive turns of whose calls none could be run.
    pub(crate) malformed: u32,
    /// The number of consecutive refusals.
    pub(crate) refusals: u32,
    pub(crate) turn: Turn,
    pub(crate) circles: Circles,
    /// Whether a file was changed since the last command ran.
    pub(crate) unverified: bool,
    /// Whether something ran that may have changed the workspace.
    pub(crate) worked: bool,
    /// Whether the model was told once to verify its work.
    pub(crate) told_to_verify: bool,
    /// Whether the model was told once to commit and push its work.
    pub(crate) told_to_push: bool,
    pub(crate) spent: Spent,
}

/// What is pending besides the model's tool runs.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum Waits {
    #[default]
    Nothing,
    /// The model's next turn.
    Reply(String),
    /// A summary of the transcript up to `cut`, exclusive.
    Summary { effect: String, cut: u64 },
    /// Git's view of the workspace.
    Worktree(String),
    /// The user's answer. `call_id` is the call that asked, if the model did.
    Answer {
        effect: String,
        call_id: Option<String>,
    },
}

impl Waits {
    /// The pending effect.
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

/// A tool of the host, as the model sees it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HostTool {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) schema: String,
}

/// A pending tool run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) effect: String,
    pub(crate) call_id: String,
    /// The hash of the tool and its arguments.
    pub(crate) mark: u64,
    pub(crate) touches: Touches,
}

/// A tool run's effect on the workspace.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Touches {
    /// It only reads.
    #[default]
    Nothing,
    /// It changes a file.
    File,
    /// It runs a command, which may change anything, and may verify earlier changes.
    Anything,
}

/// The model's wish to end the task.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ending {
    /// The `finish` call. `None` if the model ended with a text.
    pub(crate) call_id: Option<String>,
    pub(crate) message: String,
    pub(crate) success: bool,
}

/// A question to the user.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    /// The call that asks. `None` if the agent itself does.
    pub(crate) call_id: Option<String>,
    pub(crate) text: String,
    pub(crate) options: Vec<String>,
}

/// The tool calls of one reply, taken together.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// The number of calls with a result.
    pub(crate) results: u32,
    /// The combined hash of all calls and results.
    pub(crate) mark: u64,
    /// Whether one of them failed.
    pub(crate) bad: bool,
    /// Whether one of them could be run.
    pub(crate) runnable: bool,
    /// The first of them, for display.
    pub(crate) shown: String,
}

impl State {
    /// Stores the models that this session works with.
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

    /// Stores the host's tools. An own tool takes precedence over one of the same name.
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

    /// Whether an open task has nothing pending.
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
