//! A host for the agent's tests: keeps a transcript like the real one, and passes each step's
//! snapshot to the next.
//!
//! # Invariants
//!
//! - Entries are numbered without gaps, and each input that adds to the transcript carries its
//!   entry's number.

use std::collections::BTreeSet;

use lucid_coder::Coder;
use lucid_plugin::NO_USAGE;
use lucid_plugin::policy::{
    self, Answer, Command, Context, Failure, Input, ModelCall, ModelOffer, ModelReply, Outcome,
    Part, Question, Snapshot, Start, ToolReply, ToolRun, UserMessage,
};
use lucid_plugin::types::{
    Content, Error, ErrorKind, Message, Role, StopReason, ToolCall, ToolDefinition, ToolResult,
    Usage,
};
use serde_json::json;

pub(crate) struct Host {
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) transcript: Vec<Message>,
    pub(crate) step: u64,
    pub(crate) iterations_left: u32,
    pub(crate) tokens_left: Option<u64>,
    pub(crate) cost_left: Option<u64>,
    pub(crate) millis_left: Option<u64>,
    /// How much the session's model reads; the small one reads as much.
    pub(crate) context_tokens: u64,
    pub(crate) repository: Option<&'static str>,
    pub(crate) effects: BTreeSet<String>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            snapshot: None,
            transcript: Vec::new(),
            step: 0,
            iterations_left: 100,
            tokens_left: None,
            cost_left: None,
            millis_left: None,
            context_tokens: 0,
            repository: None,
            effects: BTreeSet::new(),
        }
    }

    /// A session that has started, with the model call it began with.
    pub(crate) fn started() -> (Self, ModelCall) {
        let mut host = Self::new();
        let commands = host.start("{}");
        let call = model_call(&commands);
        (host, call)
    }

    pub(crate) fn start(&mut self, settings: &str) -> Vec<Command> {
        let start = self.start_input(settings);
        self.send(vec![start])
    }

    pub(crate) fn start_input(&mut self, settings: &str) -> Input {
        let tool = |name: &str| ToolDefinition::new(name, "Does it.", &json!({"type": "object"}));
        Input::Started(Start {
            task: "Fix the bug".into(),
            entry: self.add(Message::user("Fix the bug")),
            workspace: "/workspace".into(),
            repository: self.repository.map(str::to_owned),
            branch: self.repository.map(|_| "main".into()),
            model: self.offer("large"),
            small_model: self.offer("small"),
            models: vec!["large".into(), "small".into()],
            instructions: vec!["Use tabs.".into()],
            tools: vec![tool("terminal"), tool("file_editor")],
            settings: settings.into(),
        })
    }

    fn offer(&self, name: &str) -> ModelOffer {
        ModelOffer {
            name: name.into(),
            context_tokens: self.context_tokens,
            output_tokens: 0,
            images: false,
        }
    }

    pub(crate) fn send(&mut self, inputs: Vec<Input>) -> Vec<Command> {
        let ctx = Context {
            session: "0199f1aa-0000-7000-8000-0000deadbeef".into(),
            step: self.step,
            now_ms: 0,
            seed: 0,
            iterations_left: self.iterations_left,
            tokens_left: self.tokens_left,
            cost_left: self.cost_left,
            millis_left: self.millis_left,
        };
        self.step += 1;
        let before = self.snapshot.take();
        let done = policy::run::<Coder>(&ctx, before.clone(), inputs.clone()).unwrap();
        // Pure: the same arguments give the same transition.
        assert_eq!(done, policy::run::<Coder>(&ctx, before, inputs).unwrap());
        self.snapshot = Some(done.state);
        for command in &done.commands {
            match command {
                Command::Append(message) => self.transcript.push(message.clone()),
                Command::CallModel(call) => {
                    self.name_effect(&call.effect);
                    // What it does not hold now it does not hold later.
                    assert_valid(&self.prompt(call));
                }
                Command::RunTool(run) => self.name_effect(&run.effect),
                Command::Ask(question) => self.name_effect(&question.effect),
                _ => {}
            }
        }
        done.commands
    }

    fn name_effect(&mut self, effect: &str) {
        assert!(
            self.effects.insert(effect.into()),
            "{effect} was used before"
        );
    }

    pub(crate) fn add(&mut self, message: Message) -> u64 {
        self.transcript.push(message);
        self.transcript.len() as u64 - 1
    }

    /// The messages of a prompt, as its parts name them.
    pub(crate) fn prompt(&self, call: &ModelCall) -> Vec<Message> {
        let mut messages = Vec::new();
        let length = self.transcript.len();
        for part in &call.prompt {
            match part {
                Part::Inline(message) => messages.push(message.clone()),
                Part::History(span) => {
                    let first = usize::try_from(span.first).unwrap();
                    let end = span.last.map_or(length, |last| last as usize + 1);
                    assert!(first <= end && end <= length, "{span:?} of {length}");
                    messages.extend(self.transcript[first..end].iter().cloned());
                }
            }
        }
        messages
    }

    /// What the model says, as an input.
    pub(crate) fn reply_input(
        &mut self,
        effect: &str,
        content: Vec<Content>,
        stop: StopReason,
    ) -> Input {
        self.reply_with(effect, content, stop, NO_USAGE)
    }

    pub(crate) fn reply_with(
        &mut self,
        effect: &str,
        content: Vec<Content>,
        stop: StopReason,
        usage: Usage,
    ) -> Input {
        let message = Message {
            role: Role::Assistant,
            content,
        };
        let entry = self.add(message.clone());
        let effect = effect.into();
        Input::ModelReplied(ModelReply {
            effect,
            entry,
            message,
            stop,
            usage,
        })
    }

    pub(crate) fn model_says(
        &mut self,
        call: &ModelCall,
        content: Vec<Content>,
        stop: StopReason,
    ) -> Vec<Command> {
        let input = self.reply_input(&call.effect, content, stop);
        self.send(vec![input])
    }

    pub(crate) fn model_calls(
        &mut self,
        call: &ModelCall,
        calls: &[(&str, &str, &str)],
    ) -> Vec<Command> {
        let content = calls
            .iter()
            .map(|(id, name, arguments)| tool_call(id, name, arguments));
        self.model_says(call, content.collect(), StopReason::ToolUse)
    }

    pub(crate) fn result_input(&mut self, run: &ToolRun, text: &str, exit_code: i32) -> Input {
        let outcome = ToolResult {
            exit_code: Some(exit_code),
            ..ToolResult::ok(run.call.id.clone(), text)
        };
        let entry = self.add(Message::tool(outcome.clone()));
        Input::ToolReplied(ToolReply {
            effect: run.effect.clone(),
            entry,
            outcome,
        })
    }

    pub(crate) fn tool_gives(&mut self, run: &ToolRun, text: &str, exit_code: i32) -> Vec<Command> {
        let input = self.result_input(run, text, exit_code);
        self.send(vec![input])
    }

    pub(crate) fn said_input(&mut self, text: &str) -> Input {
        let entry = self.add(Message::user(text));
        Input::UserMessage(UserMessage {
            entry,
            content: vec![Content::Text(text.into())],
        })
    }

    pub(crate) fn user_says(&mut self, text: &str) -> Vec<Command> {
        let input = self.said_input(text);
        self.send(vec![input])
    }

    pub(crate) fn answers(&mut self, question: &Question, text: &str) -> Vec<Command> {
        let entry = self.add(Message::user(text));
        self.send(vec![Input::Answered(Answer {
            effect: question.effect.clone(),
            entry,
            text: text.into(),
        })])
    }

    pub(crate) fn fails(&mut self, effect: &str, kind: ErrorKind) -> Vec<Command> {
        let error = Error::new(kind, "It failed.");
        self.send(vec![Input::EffectFailed(Failure {
            effect: effect.into(),
            error,
        })])
    }

    /// Every tool call of the transcript has exactly one answer.
    pub(crate) fn assert_answered(&self) {
        assert_answered(&self.transcript);
    }
}

/// A prompt that any provider takes: the system message first and once, every call answered exactly
/// once and before the model's next turn, no answer without its call, and the last word not the
/// model's.
fn assert_valid(messages: &[Message]) {
    let (system, rest) = messages.split_first().unwrap();
    assert_eq!(system.role, Role::System);
    assert!(rest.iter().all(|message| message.role != Role::System));
    assert_answered(rest);
    let said = rest.iter().rfind(|message| !message.content.is_empty());
    assert_ne!(said.unwrap().role, Role::Assistant, "{rest:#?}");
}

fn assert_answered(messages: &[Message]) {
    let mut open: Vec<&str> = Vec::new();
    for message in messages {
        if message.role == Role::Assistant {
            assert!(open.is_empty(), "not answered in time: {open:?}");
        }
        for piece in &message.content {
            match piece {
                Content::ToolCall(call) => open.push(&call.id),
                Content::ToolResult(result) => {
                    let call = open.iter().position(|id| *id == result.call_id);
                    let call = call.unwrap_or_else(|| panic!("no call {}", result.call_id));
                    open.remove(call);
                }
                _ => {}
            }
        }
    }
    assert!(open.is_empty(), "no answer to {open:?}");
}

pub(crate) fn tool_call(id: &str, name: &str, arguments: &str) -> Content {
    Content::ToolCall(ToolCall {
        id: id.into(),
        name: name.into(),
        arguments: arguments.into(),
    })
}

pub(crate) fn text(text: &str) -> Vec<Content> {
    vec![Content::Text(text.into())]
}

/// The one model call among commands.
pub(crate) fn model_call(commands: &[Command]) -> ModelCall {
    let mut calls = commands.iter().filter_map(|c| match c {
        Command::CallModel(call) => Some(call.clone()),
        _ => None,
    });
    let call = calls
        .next()
        .unwrap_or_else(|| panic!("no model call: {commands:?}"));
    assert!(calls.next().is_none(), "two model calls: {commands:?}");
    call
}

/// The one question among commands.
pub(crate) fn question(commands: &[Command]) -> Question {
    let question = commands.iter().find_map(|c| match c {
        Command::Ask(question) => Some(question.clone()),
        _ => None,
    });
    question.unwrap_or_else(|| panic!("no question: {commands:?}"))
}

pub(crate) fn runs(commands: &[Command]) -> Vec<ToolRun> {
    commands
        .iter()
        .filter_map(|c| match c {
            Command::RunTool(run) => Some(run.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn outcome(commands: &[Command]) -> &Outcome {
    match commands.last() {
        Some(Command::Finish(outcome)) => outcome,
        _ => panic!("not finished: {commands:?}"),
    }
}

pub(crate) fn failed(commands: &[Command]) -> &Error {
    match outcome(commands) {
        Outcome::Failed(error) => error,
        other => panic!("not failed: {other:?}"),
    }
}

pub(crate) fn appended(commands: &[Command]) -> Vec<Message> {
    commands
        .iter()
        .filter_map(|c| match c {
            Command::Append(message) => Some(message.clone()),
            _ => None,
        })
        .collect()
}

/// The tool results among appended messages.
pub(crate) fn results(commands: &[Command]) -> Vec<ToolResult> {
    appended(commands)
        .into_iter()
        .flat_map(|m| m.content)
        .filter_map(|c| match c {
            Content::ToolResult(result) => Some(result),
            _ => None,
        })
        .collect()
}

/// The inline messages of a prompt.
pub(crate) fn inline(call: &ModelCall) -> Vec<&Message> {
    call.prompt
        .iter()
        .filter_map(|part| match part {
            Part::Inline(message) => Some(message),
            Part::History(_) => None,
        })
        .collect()
}
