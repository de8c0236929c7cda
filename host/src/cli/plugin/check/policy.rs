//! The check of a policy: plays sessions to it as a host would, with a scripted model, tools and
//! user.
//!
//! # Invariants
//!
//! - Every step is run twice and must give the same bytes.
//! - Commands that a host would ignore or refuse are reported.
//! - A policy that loops is stopped after a fixed number of steps.

use std::collections::VecDeque;

use serde_json::{Map, Value};

use super::super::report::CheckReport;
use super::violation::{Violation, violation};
use lucid_types::plural;
use lucid_types::wit::policy::{
    Answer, Command, Context, Failure, Input, ModelCall, ModelOffer, ModelReply, Part, Snapshot,
    Start, ToolReply, ToolRun, UserMessage,
};
use lucid_types::wit::types::{
    Content, Custom, Error, ErrorKind, Message, Role, StopReason, ToolCall, ToolDefinition,
    ToolResult, Usage,
};
use lucid_wasm::PolicyPlugin;

/// The maximum number of steps. A task with a scripted model takes a dozen.
const MOST_STEPS: u32 = 200;

/// An event besides the regular course of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InjectedEvent {
    /// No event.
    Nothing,
    /// The user sends a message while the first effect is pending.
    Message,
    /// The host restarts while the first effect is pending.
    Restart,
    /// Each effect fails.
    Failures,
    /// The user cancels the task while the first effect is pending.
    Cancel,
    /// The model calls a nonexistent tool, with arguments that are not JSON.
    OddModel,
    /// An input unknown to this version, and results of effects that nobody started.
    Strange,
}

/// All events, and their names in a report.
const PLAYED: [(InjectedEvent, &str, &str); 7] = [
    (
        InjectedEvent::Nothing,
        "a task",
        "from the start to its end",
    ),
    (
        InjectedEvent::Message,
        "a message",
        "the user speaks in the middle of a task",
    ),
    (InjectedEvent::Restart, "a restart", "what was open is lost"),
    (InjectedEvent::Failures, "failures", "each effect fails"),
    (InjectedEvent::Cancel, "a cancel", "the user ends the task"),
    (
        InjectedEvent::OddModel,
        "odd model",
        "calls that cannot be run",
    ),
    (
        InjectedEvent::Strange,
        "strangers",
        "inputs that it does not know",
    ),
];

/// Plays all of them.
pub(super) async fn check(report: &mut CheckReport, policy: &PolicyPlugin, settings: &str) {
    for (event, name, what) in PLAYED {
        match Box::pin(play(policy, settings, event)).await {
            Ok(PlayedSession { steps, notes }) => {
                report.pass(
                    name,
                    &format!(
                        "{what}: {}, each the same when made again",
                        plural::count(steps, "step")
                    ),
                );
                for note in notes {
                    report.note(name, &note);
                }
            }
            Err(why) => report.fail(name, &why.to_string()),
        }
    }
}

/// The outcome of a session.
#[derive(Debug)]
pub(super) struct PlayedSession {
    pub(super) steps: u32,
    pub(super) notes: Vec<String>,
}

/// Plays one session. The error is a sentence.
pub(super) async fn play(
    policy: &PolicyPlugin,
    settings: &str,
    event: InjectedEvent,
) -> Result<PlayedSession, Violation> {
    let mut session = SimulatedSession::new(policy, event);
    let start = session.start(settings);
    session.step(vec![start]).await?;
    if !session.ended && session.open.is_empty() {
        return Err(violation!(
            "the task is open and it waits for nothing: it must call a model, run a tool, ask, set a timer or finish"
        ));
    }
    match event {
        InjectedEvent::Message => {
            let sent = session.user_says("Take care of the tests, too.");
            session.step(vec![sent]).await?;
        }
        InjectedEvent::Restart => {
            let lost = session
                .open
                .drain(..)
                .map(|open| Input::EffectLost(open.effect().to_owned()));
            let lost: Vec<Input> = lost.collect();
            if !lost.is_empty() {
                session.step(lost).await?;
            }
        }
        InjectedEvent::Cancel if !session.ended => {
            session
                .step(vec![Input::CancelRequested("Stop.".into())])
                .await?;
        }
        InjectedEvent::Strange => {
            let strange = Input::Other(Custom {
                kind: "acme.review".into(),
                body: "{}".into(),
            });
            let stranger = || "nobody-began-this".to_owned();
            session.step(vec![strange]).await?;
            session
                .step(vec![
                    Input::EffectLost(stranger()),
                    Input::TimerFired(stranger()),
                ])
                .await?;
        }
        _ => {}
    }
    session.run_to_end().await?;
    // A second task, started by a message.
    if session.ended {
        session.ended = false;
        let sent = session.user_says("And now?");
        session.step(vec![sent]).await?;
        session.run_to_end().await?;
    }
    Ok(PlayedSession {
        steps: session.steps,
        notes: session.notes,
    })
}

/// An effect that a policy waits for.
#[derive(Debug, Clone)]
enum OpenEffect {
    Model(ModelCall),
    Tool(ToolRun),
    Question(String),
    Timer(String),
    /// It was cancelled.
    Cancelled(String),
}

impl OpenEffect {
    fn effect(&self) -> &str {
        match self {
            Self::Model(call) => &call.effect,
            Self::Tool(run) => &run.effect,
            Self::Question(effect) | Self::Timer(effect) | Self::Cancelled(effect) => effect,
        }
    }
}

struct SimulatedSession<'a> {
    policy: &'a PolicyPlugin,
    event: InjectedEvent,
    context: Context,
    state: Option<Snapshot>,
    entries: u64,
    open: VecDeque<OpenEffect>,
    ended: bool,
    steps: u32,
    /// The number of answered model calls.
    answered: u32,
    notes: Vec<String>,
}

impl<'a> SimulatedSession<'a> {
    fn new(policy: &'a PolicyPlugin, event: InjectedEvent) -> Self {
        Self {
            policy,
            event,
            context: Context {
                session: "0199f1aa-0000-7000-8000-0000deadbeef".into(),
                step: 0,
                now_ms: 1_790_000_000_000,
                seed: 7,
                iterations_left: 50,
                tokens_left: Some(1_000_000),
                cost_left: None,
                millis_left: Some(1_800_000),
            },
            state: None,
            entries: 0,
            open: VecDeque::new(),
            ended: false,
            steps: 0,
            answered: 0,
            notes: Vec::new(),
        }
    }

    fn start(&mut self, settings: &str) -> Input {
        let tool = |name: &str, schema: &str| ToolDefinition {
            name: name.into(),
            description: "Does what its name says.".into(),
            input_schema: schema.into(),
        };
        let offer = |name: &str| ModelOffer {
            name: name.into(),
            context_tokens: 200_000,
            output_tokens: 8_000,
            images: true,
        };
        Input::Started(Start {
            task: "Fix the bug".into(),
            entry: self.entry(),
            workspace: "/workspace".into(),
            repository: None,
            branch: None,
            model: offer("large"),
            small_model: offer("small"),
            models: vec!["large".into(), "small".into()],
            instructions: vec!["Use tabs.".into()],
            tools: vec![
                tool(
                    "terminal",
                    r#"{"type":"object","properties":{"command":{"type":"string"}},"required":["command"]}"#,
                ),
                tool("file_editor", r#"{"type":"object"}"#),
            ],
            settings: settings.into(),
        })
    }

    fn entry(&mut self) -> u64 {
        self.entries += 1;
        self.entries - 1
    }

    fn user_says(&mut self, text: &str) -> Input {
        Input::UserMessage(UserMessage {
            entry: self.entry(),
            content: vec![Content::Text(text.into())],
        })
    }

    /// Provides the results that the policy waits for, until the task is over.
    async fn run_to_end(&mut self) -> Result<(), Violation> {
        while let Some(open) = self.open.pop_front() {
            let given_up = matches!(open, OpenEffect::Cancelled(_));
            if self.ended && !given_up {
                continue;
            }
            if self.steps >= MOST_STEPS {
                self.notes.push(format!(
                    "it was still at work after {MOST_STEPS} steps with a model that had nothing more to say"
                ));
                self.ended = true;
                self.open.clear();
                return Ok(());
            }
            let input = self.result_of(open);
            self.step(vec![input]).await?;
        }
        if !self.ended {
            return Err(violation!(
                "after {} the task is open and it waits for nothing, so the session would hang",
                plural::count(self.steps, "step")
            ));
        }
        Ok(())
    }

    /// The result of an effect.
    fn result_of(&mut self, open: OpenEffect) -> Input {
        let failed = |effect: String, kind, message: &str| {
            Input::EffectFailed(Failure {
                effect,
                error: Error::new(kind, message),
            })
        };
        if let OpenEffect::Cancelled(effect) = open {
            return failed(effect, ErrorKind::Cancelled, "It was given up.");
        }
        if self.event == InjectedEvent::Failures {
            return failed(open.effect().to_owned(), ErrorKind::Upstream, "It failed.");
        }
        match open {
            OpenEffect::Model(call) => self.model_replies(&call),
            OpenEffect::Tool(run) => Input::ToolReplied(ToolReply {
                effect: run.effect,
                entry: self.entry(),
                outcome: ToolResult {
                    call_id: run.call.id,
                    is_error: false,
                    text: "ok".into(),
                    exit_code: Some(0),
                    blobs: Vec::new(),
                },
            }),
            OpenEffect::Question(effect) => Input::Answered(Answer {
                effect,
                entry: self.entry(),
                text: "Yes.".into(),
            }),
            OpenEffect::Timer(effect) | OpenEffect::Cancelled(effect) => Input::TimerFired(effect),
        }
    }

    /// The model calls a tool once, if it may, and is done then.
    fn model_replies(&mut self, call: &ModelCall) -> Input {
        self.answered += 1;
        let tool = call.tools.first().filter(|_| self.answered == 1);
        let called = |name: &str, arguments: &str| {
            Content::ToolCall(ToolCall {
                id: format!("call-{}", self.answered),
                name: name.into(),
                arguments: arguments.into(),
            })
        };
        let (content, stop) = match tool {
            Some(_) if self.event == InjectedEvent::OddModel => {
                (vec![called("no-such-tool", "{\"a\":")], StopReason::ToolUse)
            }
            Some(tool) => (
                vec![called(&tool.name, r#"{"command":"true"}"#)],
                StopReason::ToolUse,
            ),
            None => (vec![Content::Text("Done.".into())], StopReason::EndTurn),
        };
        Input::ModelReplied(ModelReply {
            effect: call.effect.clone(),
            entry: self.entry(),
            message: Message {
                role: Role::Assistant,
                content,
            },
            stop,
            usage: Usage {
                input_tokens: 100,
                output_tokens: 10,
                cache_read_tokens: 0,
                cache_write_tokens: 0,
            },
        })
    }

    /// Runs one step twice.
    async fn step(&mut self, inputs: Vec<Input>) -> Result<(), Violation> {
        let at = self.context.step;
        let before = self.state.as_ref();
        let done = self.policy.step(&self.context, before, &inputs).await;
        let again = self.policy.step(&self.context, before, &inputs).await;
        let wrong = |what: Violation| what.within(format!("step {at} ({})", names(&inputs)));
        let (done, again) = match (done.result, again.result) {
            (Ok(done), Ok(again)) => (done, again),
            (Err(error), _) | (Ok(_), Err(error)) => return Err(wrong(error.into())),
        };
        if done != again {
            return Err(wrong(violation!(
                "the same arguments gave something else the second time; a step must depend on nothing but its arguments, not on a hash map's order"
            )));
        }
        let writes = self.policy.descriptor().schema;
        if done.state.schema != writes {
            return Err(wrong(violation!(
                "it wrote a state of schema {}, and describes itself as writing {writes}",
                done.state.schema
            )));
        }
        self.state = Some(done.state);
        self.steps += 1;
        self.context.step += 1;
        self.context.now_ms += 1_000;
        self.context.seed = self.context.seed.rotate_left(7) ^ at;
        for command in done.commands {
            self.carry_out(command).map_err(wrong)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, command: Command) -> Result<(), Violation> {
        match command {
            Command::CallModel(call) => {
                self.check_call(&call)?;
                self.start_effect(OpenEffect::Model(call))?;
            }
            Command::RunTool(run) => self.start_effect(OpenEffect::Tool(run))?,
            Command::Ask(question) => {
                object("the detail of a question", &question.detail)?;
                self.start_effect(OpenEffect::Question(question.effect))?;
            }
            Command::SetTimer(timer) => self.start_effect(OpenEffect::Timer(timer.effect))?,
            Command::Cancel(effect) => {
                for open in &mut self.open {
                    if open.effect() == effect {
                        *open = OpenEffect::Cancelled(effect.clone());
                    }
                }
            }
            Command::Append(_) => {
                self.entry();
            }
            Command::Emit(event) => {
                if event.event_type.trim().is_empty() {
                    return Err(violation!("it shows an event without a type"));
                }
                object("the fields of an event", &event.fields)?;
            }
            Command::Finish(_) => {
                if std::mem::replace(&mut self.ended, true) {
                    self.notes.push("it finished a task that was over".into());
                }
            }
            Command::Other(custom) => self.notes.push(format!(
                "it gives a command `{}` that this host passes over",
                custom.kind
            )),
        }
        Ok(())
    }

    fn start_effect(&mut self, open: OpenEffect) -> Result<(), Violation> {
        let effect = open.effect();
        if effect.is_empty() {
            return Err(violation!("it begins an effect without a name"));
        }
        if self.open.iter().any(|other| other.effect() == effect) {
            return Err(violation!(
                "it gives the name `{effect}` to two effects that are open at once"
            ));
        }
        self.open.push_back(open);
        Ok(())
    }

    fn check_call(&mut self, call: &ModelCall) -> Result<(), Violation> {
        object("the params of a model call", &call.params)?;
        if !self.policy.descriptor().calls_models {
            return Err(violation!(
                "it calls a model, and describes itself as one that calls none: a session with it would have no key"
            ));
        }
        if !["", "large", "small"].contains(&call.model.as_str()) {
            return Err(violation!(
                "it calls the model `{}`, which it was not offered",
                call.model
            ));
        }
        if call.prompt.is_empty() {
            return Err(violation!("it asks a model nothing"));
        }
        for part in &call.prompt {
            if let Part::History(span) = part {
                let last = span.last.unwrap_or(self.entries.saturating_sub(1));
                if last >= self.entries || span.first > last {
                    return Err(violation!(
                        "its prompt names the entries {} to {last} of a transcript that has {}",
                        span.first,
                        self.entries
                    ));
                }
            }
        }
        for tool in &call.tools {
            object(
                &format!("the schema of the tool `{}`", tool.name),
                &tool.input_schema,
            )?;
        }
        Ok(())
    }
}

fn object(what: &str, json: &str) -> Result<(), Violation> {
    match serde_json::from_str::<Map<String, Value>>(json) {
        Ok(_) => Ok(()),
        Err(source) => Err(Violation::Json {
            what: what.to_owned(),
            source,
        }),
    }
}

/// The inputs' names, for a sentence.
fn names(inputs: &[Input]) -> String {
    let name = |input: &Input| match input {
        Input::Started(_) => "started",
        Input::UserMessage(_) => "user-message",
        Input::Answered(_) => "answered",
        Input::ModelReplied(_) => "model-replied",
        Input::ToolReplied(_) => "tool-replied",
        Input::EffectFailed(_) => "effect-failed",
        Input::EffectLost(_) => "effect-lost",
        Input::TimerFired(_) => "timer-fired",
        Input::CancelRequested(_) => "cancel-requested",
        Input::Upgraded(_) => "upgraded",
        Input::Other(_) => "other",
    };
    inputs.iter().map(name).collect::<Vec<_>>().join(", ")
}
