//! The inputs of a round: turns what arrived into policy inputs, transcript entries and frames.
//!
//! # Invariants
//! - Pure, like all of `round`.
//! - A message about an effect that is not open changes only the totals: what a model call cost is
//!   charged whether or not anybody waits for its answer.

use serde_json::json;

use super::{CHANGE, RoundBuilder};
use crate::message::{ActorMessage, Started};
use crate::ports::{AvailableModels, CallCost, ModelAnswer, OpenedPullRequest, PullRequestError};
use crate::stream::frames::{self, EventDraft, MODEL_NOTICE};
use lucid_types::ids::EffectId;
use lucid_types::log::{ChatLine, EffectKind, ModelCallRow, UsageTotals};
use lucid_types::wit::policy::{Answer, Failure, Input, ModelReply, Start, ToolReply, UserMessage};
use lucid_types::wit::types::{Content, Custom, Error, ErrorKind, Message, Role, ToolResult};

/// The kind of the input that says that the session's files are gone; its body has `text`, a sentence for the
/// model, and `repository`, whether one is cloned again.
pub(crate) const WORKSPACE_LOST: &str = "lucid.workspace-lost";

impl RoundBuilder<'_> {
    /// Takes one message from the mailbox.
    pub(crate) fn apply(&mut self, message: ActorMessage) {
        match message {
            ActorMessage::Started(started) => self.started(started),
            ActorMessage::Message(number, text) => {
                self.mark_processed(number);
                self.message(text);
            }
            ActorMessage::CallCost(effect, cost) => self.add_cost(&effect, cost),
            ActorMessage::Model(effect, result) => {
                let open = self.close_effect(&effect, Some(EffectKind::Model));
                match result {
                    Ok(answer) if open => self.model(effect, answer),
                    Ok(answer) => self.add_cost(&effect, answer.cost),
                    Err(failure) => {
                        if let Some(cost) = failure.cost {
                            self.add_cost(&effect, *cost);
                        }
                        if open {
                            self.failed(effect, failure.error);
                        }
                    }
                }
            }
            ActorMessage::ModelNotice(effect, text) => {
                if self.open.get(&effect) == Some(&EffectKind::Model) {
                    self.event(EventDraft::text(MODEL_NOTICE, text));
                }
            }
            ActorMessage::Tool(effect, result, tree) => {
                if self.close_effect(&effect, Some(EffectKind::Tool)) {
                    match result {
                        Ok(done) => {
                            let done = *done;
                            self.event(done.event);
                            for notice in done.notices {
                                self.event(notice);
                            }
                            let entry = self.entry(&tool_message(&done.result));
                            self.inputs.push(Input::ToolReplied(ToolReply {
                                effect: effect.into(),
                                entry,
                                outcome: done.result,
                            }));
                        }
                        Err(error) => self.failed(effect, error),
                    }
                    if let Some(tree) = &tree {
                        self.tree(tree);
                    }
                }
            }
            ActorMessage::Announcement(effect, event, confirm) => {
                self.announce(&effect, *event, confirm)
            }
            ActorMessage::Tree(tree) => self.tree(&tree),
            ActorMessage::Pushed(branch) => self.pushed = Some(Some(branch)),
            ActorMessage::PullRequest(result) => {
                if self.close_effect(&CHANGE.into(), Some(EffectKind::Change)) {
                    self.event(change_event(result));
                }
            }
            ActorMessage::Notice(text) => {
                self.event(EventDraft::text("AgentErrorObservation", text))
            }
            ActorMessage::WorkspaceLost => {
                let (text, input) = workspace_lost(self.context.repository.is_some());
                self.event(EventDraft::text("AgentErrorObservation", text));
                self.inputs.push(input);
            }
            ActorMessage::Timer(effect) => {
                if self.close_effect(&effect, Some(EffectKind::Timer)) {
                    self.inputs.push(Input::TimerFired(effect.into()));
                }
            }
            ActorMessage::Lost(effect) => {
                let explanation = match self.open.get(&effect) {
                    Some(EffectKind::Model) => {
                        "The server was restarted while the model answered, and the answer was lost."
                    }
                    _ => {
                        "The server was restarted while this ran. It may or may not have happened, and was not run again."
                    }
                };
                if self.close_effect(&effect, None) {
                    self.event(EventDraft::text("AgentErrorObservation", explanation));
                    self.inputs.push(Input::EffectLost(effect.into()));
                }
            }
            ActorMessage::Failed(effect, error) => {
                if self.close_effect(&effect, None) {
                    self.failed(effect, error);
                }
            }
        }
    }

    fn started(&mut self, started: Started) {
        let context = self.context;
        let (status, message) = if context.mock {
            ("mock_mode", "Running the mock agent: no model is called.")
        } else {
            ("ready", "The session is ready.")
        };
        self.frame(frames::status(status, message, Some(context.session)));
        self.open_task(context.task);
        if let Some(tree) = &started.tree {
            self.tree(tree);
        }
        let available_models = context.available_models.cloned();
        let available_models =
            available_models.unwrap_or_else(|| AvailableModels::only(context.model));
        self.inputs.push(Input::Started(Start {
            task: context.task.to_owned(),
            entry: 0,
            workspace: started.workspace,
            repository: context.repository.map(str::to_owned),
            branch: context.branch.map(str::to_owned),
            model: available_models.model,
            small_model: available_models.small,
            models: available_models.names,
            instructions: started.instructions,
            tools: started.tools,
            settings: context.settings.to_owned(),
        }));
    }

    fn message(&mut self, text: String) {
        self.counters.steps_alone = 0;
        self.report_orphans();
        let message = user_message(&text);
        let question = self
            .open
            .iter()
            .find(|(_, kind)| **kind == EffectKind::Ask)
            .map(|(id, _)| id.clone());
        if question.is_none() && !self.counters.task_open {
            self.open_task(&text);
        }
        let entry = self.entry(&message);
        match question {
            Some(effect) => {
                self.close_effect(&effect, None);
                self.inputs.push(Input::Answered(Answer {
                    effect: effect.into(),
                    entry,
                    text: text.clone(),
                }));
            }
            None => self.inputs.push(Input::UserMessage(UserMessage {
                entry,
                content: message.content,
            })),
        }
        self.lines.push(ChatLine {
            role: "user",
            content: text,
            event_type: "FollowUp".to_owned(),
            metadata: None,
        });
    }

    /// Adds what a model call cost to the totals, and reports it.
    pub(crate) fn add_cost(&mut self, effect: &EffectId, cost: CallCost) {
        let used = UsageTotals {
            calls: 1,
            input_tokens: cost.usage.input_tokens,
            output_tokens: cost.usage.output_tokens,
            cache_read_tokens: cost.usage.cache_read_tokens,
            cache_write_tokens: cost.usage.cache_write_tokens,
            cost: cost.cost.unwrap_or(0),
        };
        self.counters.tokens = self.counters.tokens.saturating_add(used.tokens());
        self.counters.totals.add(&used);
        let call = ModelCallRow {
            effect: effect.clone(),
            provider: cost.provider,
            model: cost.model,
            used,
            priced: cost.cost.is_some(),
            tries: cost.tries,
        };
        self.frame(frames::usage(&call, &self.counters));
        self.calls.push(call);
    }

    fn model(&mut self, effect: EffectId, answer: ModelAnswer) {
        let entry = self.entry(&answer.message);
        let (mut text, mut thought) = (String::new(), String::new());
        for content in &answer.message.content {
            match content {
                Content::Text(piece) => text.push_str(piece),
                Content::Thinking(piece) => thought.push_str(&piece.text),
                _ => {}
            }
        }
        let event_type = if answer.aside || text.trim().is_empty() {
            "ThinkAction"
        } else {
            "AgentMessageAction"
        };
        if text.trim().is_empty() {
            text.clone_from(&thought);
        }
        if !text.trim().is_empty() {
            let thought = Some(thought).filter(|thought| !thought.is_empty());
            self.event(EventDraft {
                thought,
                ..EventDraft::text(event_type, text)
            });
        }
        self.add_cost(&effect, answer.cost);
        self.inputs.push(Input::ModelReplied(ModelReply {
            effect: effect.into(),
            entry,
            message: answer.message,
            stop: answer.stop,
            usage: answer.usage,
        }));
    }

    fn failed(&mut self, effect: EffectId, error: Error) {
        if error.kind != ErrorKind::Cancelled {
            self.event(EventDraft::text(
                "AgentErrorObservation",
                error.message.clone(),
            ));
        }
        self.inputs.push(Input::EffectFailed(Failure {
            effect: effect.into(),
            error,
        }));
    }
}

pub(super) fn user_message(text: &str) -> Message {
    Message {
        role: Role::User,
        content: vec![Content::Text(text.to_owned())],
    }
}

fn tool_message(result: &ToolResult) -> Message {
    Message {
        role: Role::Tool,
        content: vec![Content::ToolResult(result.clone())],
    }
}

/// The event that shows the outcome of opening a pull request.
pub(crate) fn change_event(result: Result<OpenedPullRequest, PullRequestError>) -> EventDraft {
    match result {
        Ok(change) => {
            let opened = if change.existed {
                "The change is open already"
            } else {
                "Opened a change"
            };
            let OpenedPullRequest {
                number, title, url, ..
            } = change;
            // Clients that do not know a type show it in the chat if its name contains `Message`.
            EventDraft {
                url: Some(url.clone()),
                ..EventDraft::text(
                    "ChangeMessage",
                    format!("{opened}: #{number} {title}\n{url}"),
                )
            }
        }
        Err(error) => EventDraft::text(
            "AgentErrorObservation",
            format!("The change could not be opened: {error}"),
        ),
    }
}

/// What is told of it: to people, and to the policy.
pub(crate) fn workspace_lost(repository: bool) -> (String, Input) {
    let next = if repository {
        "The repository is cloned again before the next command; what was not pushed is lost."
    } else {
        "The work goes on in an empty one."
    };
    let text =
        format!("The session's workspace, with all files in it, is gone from the server. {next}");
    let body = json!({ "text": text, "repository": repository }).to_string();
    let input = Input::Other(Custom {
        kind: WORKSPACE_LOST.to_owned(),
        body,
    });
    (text, input)
}
