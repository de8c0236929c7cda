//! The loop that most agents are: the model replies, the tools it calls are run, and the results go
//! back to it, until it calls none.
//!
//! # Invariants
//!
//! - While a task is open, [`Turns`] waits for one model call, for one answer of the user or for at
//!   least one tool run, or it is the model's turn, which [`Turns::settle`] starts.
//! - Every call of the model that was passed to [`Turns::run`] has exactly one result in the
//!   transcript, even if the host has none.
//! - A user message is never ignored: a task that ends in the step in which the user says more
//!   continues with that.
//! - An effect that the loop did not start is not its own, and is returned as [`Turn::Other`].
//!
//! ```
//! use lucid_plugin::policy::{Commands, Context, Descriptor, Input, Policy};
//! use lucid_plugin::turns::{Turn, Turns};
//! use lucid_plugin::types::{Error, ToolDefinition};
//!
//! struct Agent;
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize)]
//! struct State {
//!     turns: Turns,
//!     tools: Vec<ToolDefinition>,
//! }
//!
//! impl Policy for Agent {
//!     type State = State;
//!     const SCHEMA: u32 = 1;
//!
//!     fn describe() -> Descriptor {
//!         lucid_plugin::policy::describe::<Self>("agent", "0.1.0", "Does what it is told.")
//!     }
//!
//!     fn step(_: &Context, s: &mut State, input: Input, out: &mut Commands) -> Result<(), Error> {
//!         if let Input::Started(start) = &input {
//!             s.tools = start.tools.clone();
//!         }
//!         match s.turns.take(input, out) {
//!             Turn::Calls(calls) => calls.into_iter().for_each(|call| s.turns.run(call, out)),
//!             Turn::Answered(said) => s.turns.succeed(said.text),
//!             Turn::Failed(error) => s.turns.fail(error),
//!             Turn::Waits | Turn::Cancelled(_) | Turn::Other(_) => {}
//!         }
//!         Ok(())
//!     }
//!
//!     fn settle(_: &Context, s: &mut State, out: &mut Commands) -> Result<(), Error> {
//!         s.turns.settle("You are an agent.", &s.tools, out);
//!         Ok(())
//!     }
//! }
//! ```

use serde::{Deserialize, Serialize};

use crate::policy::{Commands, Input, ModelCall, Outcome, Part};
use crate::types::{
    Content, EffectId, Error, Message, StopReason, ToolCall, ToolDefinition, ToolResult, Usage,
};

/// The result of a tool run that the host lost.
const LOST: &str = "The host stopped while this ran: it may or may not have happened. Look at how \
                    things stand before you do it again.";
/// The result of a tool run that the user cancelled.
const CANCELLED: &str = "The user cancelled this before it ended.";

/// The message to a model that waits for tools but called none: it wrote the call as text.
const NO_CALL: &str = "No tool call arrived with your answer: what you may have written as one was taken \
                       for text. Call the tool again, with one of the names you were given and its \
                       arguments as one JSON object, or answer without.";
/// How often that is repeated in a row. Then the text counts as an answer.
const NO_CALLS: u32 = 3;

/// The state of the loop, a part of a policy's state. By default no task is open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Turns {
    /// Whether a task is open.
    open: bool,
    /// The entry that prompts begin with.
    first: u64,
    /// The pending model call.
    asked: Option<EffectId>,
    /// The pending tool runs.
    runs: Vec<Run>,
    /// The pending question.
    question: Option<EffectId>,
    /// Whether the user said something that the model has not read.
    unread: bool,
    /// How many replies in a row waited for tools and called none.
    #[serde(default)]
    uncalled: u32,
    /// The number of effects named so far.
    named: u64,
    /// The outcome of a task that ends with this step.
    #[serde(skip)]
    over: Option<Outcome>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Run {
    effect: EffectId,
    call: String,
}

/// The meaning of an input for the loop.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and what is boxed cannot be matched"
)]
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// Nothing to decide: it waits for more, or [`Turns::settle`] calls the model.
    Waits,
    /// The model calls tools. Pass each to [`Turns::run`], or to [`Turns::answer`] if it is the
    /// policy's own tool or is not to be run. A call that is ignored is reported to the model as
    /// not run.
    Calls(Vec<ToolCall>),
    /// The model replied without a call. Unless the task is ended now, with [`Turns::succeed`] or
    /// [`Turns::fail`], the model is called again.
    Answered(Said),
    /// The model could not be called: the provider failed permanently, or a budget is exhausted.
    /// Unless the task is ended now, the model is called again.
    Failed(Error),
    /// The user cancels the task. Pending runs are cancelled, and the task ends with this step.
    Cancelled(String),
    /// Not the loop's: an effect of the policy's own, a timer, a newer build.
    Other(Input),
}

/// A reply of the model without a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// All its text, possibly empty.
    pub text: String,
    /// Why it stopped. With [`StopReason::MaxTokens`] the text is truncated.
    pub stop: StopReason,
    /// Its token usage.
    pub usage: Usage,
}

impl Turns {
    /// Handles an input. Read [`Input::Started`] before, since it is handled here as well.
    pub fn take(&mut self, input: Input, out: &mut Commands) -> Turn {
        match input {
            Input::Started(start) => {
                *self = Self {
                    open: true,
                    first: start.entry,
                    ..Self::default()
                };
                Turn::Waits
            }
            Input::UserMessage(_) => {
                if let Some(question) = self.question.take() {
                    out.cancel(question);
                }
                self.user_spoke()
            }
            Input::Answered(answer) if self.question.as_ref() == Some(&answer.effect) => {
                self.question = None;
                self.user_spoke()
            }
            Input::ModelReplied(reply) if self.asked.as_ref() == Some(&reply.effect) => {
                self.asked = None;
                let text = reply.message.joined_text();
                let calls: Vec<ToolCall> = calls_of(reply.message).collect();
                if !calls.is_empty() {
                    self.uncalled = 0;
                    return Turn::Calls(calls);
                }
                if reply.stop == StopReason::ToolUse && self.uncalled < NO_CALLS {
                    self.uncalled += 1;
                    out.append(Message::user(NO_CALL));
                    return Turn::Waits;
                }
                self.uncalled = 0;
                // The model did not know yet what the user said meanwhile.
                if self.unread {
                    return Turn::Waits;
                }
                Turn::Answered(Said {
                    text,
                    stop: reply.stop,
                    usage: reply.usage,
                })
            }
            Input::ToolReplied(reply) if self.ran(&reply.effect).is_some() => Turn::Waits,
            Input::EffectFailed(failure) => {
                if self.asked.as_ref() == Some(&failure.effect) {
                    self.asked = None;
                    return Turn::Failed(failure.error);
                }
                if self.question.as_ref() == Some(&failure.effect) {
                    self.question = None;
                    return Turn::Waits;
                }
                match self.ran(&failure.effect) {
                    Some(call) => {
                        out.append_result(ToolResult::failed(call, failure.error.message));
                        Turn::Waits
                    }
                    None => Turn::Other(Input::EffectFailed(failure)),
                }
            }
            Input::EffectLost(effect) => {
                if self.asked.as_ref() == Some(&effect) {
                    // Only tokens were spent: it is called again.
                    self.asked = None;
                } else if self.question.as_ref() == Some(&effect) {
                    self.question = None;
                } else if let Some(call) = self.ran(&effect) {
                    out.append_result(ToolResult::failed(call, LOST));
                } else {
                    return Turn::Other(Input::EffectLost(effect));
                }
                Turn::Waits
            }
            Input::CancelRequested(text) => {
                if self.open {
                    self.give_up(out);
                    self.end(Outcome::Cancelled);
                }
                Turn::Cancelled(text)
            }
            other => Turn::Other(other),
        }
    }

    /// Runs a tool that the model called. Its result goes into the transcript.
    pub fn run(&mut self, call: ToolCall, out: &mut Commands) {
        let effect = self.name("tool");
        self.runs.push(Run {
            effect: effect.clone(),
            call: call.id.clone(),
        });
        out.run_tool(effect, call);
    }

    /// Answers a call that the host does not run: a tool of the policy's own, or a refusal.
    pub fn answer(&mut self, result: ToolResult, out: &mut Commands) {
        out.append_result(result);
    }

    /// Asks the user, and waits for the answer. It goes into the transcript, and the model's turn
    /// comes next.
    pub fn ask(&mut self, question: impl Into<String>, out: &mut Commands) {
        let effect = self.name("ask");
        self.question = Some(effect.clone());
        out.ask(effect, question);
    }

    /// Ends the task successfully, with a text for the user. If the user said something that the
    /// model has not read yet, the task continues with that instead.
    pub fn succeed(&mut self, text: impl Into<String>) {
        if !self.unread {
            self.end(Outcome::Succeeded(text.into()));
        }
    }

    /// Ends the task with an error.
    pub fn fail(&mut self, error: Error) {
        self.end(Outcome::Failed(error));
    }

    /// Whether a task is open. One that ends with this step is not.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether nothing is pending, so that the model is called next.
    pub fn is_models_turn(&self) -> bool {
        self.open && self.asked.is_none() && self.runs.is_empty() && self.question.is_none()
    }

    /// To be called once at the end of each step, in
    /// [`Policy::settle`](crate::policy::Policy::settle): ends the task if it is over, and calls
    /// the session's model if it is its turn, with this system message, the whole conversation, and
    /// these tools.
    pub fn settle(&mut self, system: &str, tools: &[ToolDefinition], out: &mut Commands) {
        self.settle_with(out, |effect, conversation| {
            let prompt = vec![Part::Inline(Message::system(system)), conversation];
            ModelCall::new(effect, prompt, tools.to_vec())
        });
    }

    /// As [`Self::settle`], for a call that is built by hand. `call` is given the name it must
    /// have, and the conversation so far.
    pub fn settle_with(
        &mut self,
        out: &mut Commands,
        call: impl FnOnce(EffectId, Part) -> ModelCall,
    ) {
        if self.is_models_turn() {
            let effect = self.name("model");
            let call = call(effect.clone(), Part::history_from(self.first));
            self.asked = Some(effect);
            self.unread = false;
            out.call_model(call);
        }
        if let Some(outcome) = self.over.take() {
            // For example a question asked in the same step.
            self.give_up(out);
            out.push(crate::policy::Command::Finish(outcome));
        }
    }

    fn user_spoke(&mut self) -> Turn {
        // A task that ended in this very step was open when the user spoke: it continues.
        self.over = None;
        self.open = true;
        self.unread = true;
        Turn::Waits
    }

    fn end(&mut self, outcome: Outcome) {
        self.open = false;
        self.over = Some(outcome);
    }

    /// Cancelled calls get a result here: the transcript holds no open call.
    fn give_up(&mut self, out: &mut Commands) {
        for effect in self.asked.take().into_iter().chain(self.question.take()) {
            out.cancel(effect);
        }
        for run in std::mem::take(&mut self.runs) {
            out.cancel(run.effect);
            out.append_result(ToolResult::failed(run.call, CANCELLED));
        }
    }

    fn ran(&mut self, effect: &str) -> Option<String> {
        let at = self.runs.iter().position(|run| run.effect == effect)?;
        Some(self.runs.remove(at).call)
    }

    /// No name is used twice, so that a late result of one effect is never taken for another's.
    fn name(&mut self, kind: &str) -> EffectId {
        self.named += 1;
        format!("{kind}-{}", self.named)
    }
}

fn calls_of(message: Message) -> impl Iterator<Item = ToolCall> {
    message.content.into_iter().filter_map(|piece| match piece {
        Content::ToolCall(call) => Some(call),
        _ => None,
    })
}
