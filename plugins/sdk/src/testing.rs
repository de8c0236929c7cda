//! Native test harnesses: a host that plays a session with a policy, one that carries out a tool
//! call, a decoder of recorded responses for an adapter, and a server for a git provider plugin.
//!
//! What the real host requires of a policy is asserted here. Each step is run twice and must give
//! the same result, its state is serialised and restored, no effect has the name of one that is
//! open, a prompt refers to entries that exist, and an event has a JSON object for its fields.
//! Entries are numbered as the host numbers them.
//!
//! ```no_run
//! # fn test<MyAgent: lucid_plugin::policy::Policy>() {
//! use lucid_plugin::testing::Session;
//!
//! let mut session = Session::<MyAgent>::start("Fix the bug");
//! session.model_calls(&[("terminal", r#"{"command": "make test"}"#)]);
//! session.tool_gives("all passed", 0);
//! session.model_says("It is fixed.");
//! assert_eq!(session.ended(), "It is fixed.");
//! # }
//! ```

mod calls;

use std::marker::PhantomData;

use serde_json::json;

use crate::NO_USAGE;
use crate::bindings::git::exports::lucid::git::provider as git_wit;
use crate::git;
use crate::llm::{Adapter, Completion, CompletionRequest, Decoder, Delta, Frame, Sse};
use crate::policy::{
    self, Answer, Command, Context, Event, Failure, Input, ModelCall, ModelOffer, ModelReply,
    Outcome, Part, Policy, Question, Snapshot, Start, Timer, ToolReply, ToolRun, UserMessage,
};
use crate::types::{
    Content, Error, ErrorKind, Header, HttpRequest, HttpResponse, Message, Role, StopReason,
    ToolCall, ToolDefinition, ToolResult,
};

pub use calls::{Call, definitions};

/// A session with a policy, driven by a test.
pub struct Session<P> {
    /// The context of the next step. The session counts the steps.
    pub context: Context,
    /// The transcript. An entry's number is its index.
    pub transcript: Vec<Message>,
    /// The policy's state.
    pub state: Option<Snapshot>,
    commands: Vec<Command>,
    shown: Vec<Event>,
    models: Vec<ModelCall>,
    runs: Vec<ToolRun>,
    questions: Vec<Question>,
    timers: Vec<Timer>,
    ended: Option<Outcome>,
    calls: usize,
    policy: PhantomData<P>,
}

impl<P: Policy> Session<P> {
    /// A session with this task, two tools (`terminal` and `file_editor`) and no settings.
    #[track_caller]
    pub fn start(task: &str) -> Self {
        Self::start_with(task, |_| {})
    }

    /// As [`Self::start`], with the start input modified by `change`: other settings, tools,
    /// models.
    #[track_caller]
    pub fn start_with(task: &str, change: impl FnOnce(&mut Start)) -> Self {
        let mut session = Self {
            context: Context {
                session: "0199f1aa-0000-7000-8000-0000deadbeef".into(),
                step: 0,
                now_ms: 1_790_000_000_000,
                seed: 1,
                iterations_left: 50,
                tokens_left: None,
                cost_left: None,
                millis_left: None,
            },
            transcript: Vec::new(),
            state: None,
            commands: Vec::new(),
            shown: Vec::new(),
            models: Vec::new(),
            runs: Vec::new(),
            questions: Vec::new(),
            timers: Vec::new(),
            ended: None,
            calls: 0,
            policy: PhantomData,
        };
        let tool = |name: &str| ToolDefinition::new(name, "Does it.", &json!({"type": "object"}));
        let mut start = Start {
            task: task.into(),
            entry: session.enter(Message::user(task)),
            workspace: "/workspace".into(),
            repository: None,
            branch: None,
            model: ModelOffer::named("large"),
            small_model: ModelOffer::named("small"),
            models: vec!["large".into(), "small".into()],
            instructions: Vec::new(),
            tools: vec![tool("terminal"), tool("file_editor")],
            settings: "{}".into(),
        };
        change(&mut start);
        session.send(vec![Input::Started(start)]);
        session
    }

    /// Runs one step with these inputs, for cases that the methods below do not cover, such as
    /// several inputs at once.
    #[track_caller]
    pub fn send(&mut self, inputs: Vec<Input>) -> &[Command] {
        let before = self.state.take();
        let step = |inputs| policy::run::<P>(&self.context, before.clone(), inputs);
        let done = step(inputs.clone()).unwrap_or_else(|e| panic!("the step failed: {e:?}"));
        let again = step(inputs);
        assert!(
            again.as_ref() == Ok(&done),
            "the same step gave something else: it must depend on nothing but its arguments\n{done:?}\n{again:?}"
        );
        self.context.step += 1;
        self.context.now_ms += 1_000;
        self.context.seed = self.context.seed.wrapping_mul(6_364_136_223_846_793_005) + 1;
        self.state = Some(done.state);
        for command in &done.commands {
            self.carry_out(command);
        }
        self.commands = done.commands;
        &self.commands
    }

    /// The commands of the last step.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// All events that the policy showed.
    pub fn shown(&self) -> &[Event] {
        &self.shown
    }

    /// The pending model call.
    #[track_caller]
    pub fn model_call(&self) -> &ModelCall {
        let none = || panic!("no model call is waited for, but {}", self.waits());
        self.models.first().unwrap_or_else(none)
    }

    /// The messages in the prompt of the pending model call.
    #[track_caller]
    pub fn prompt(&self) -> Vec<Message> {
        self.messages(&self.model_call().prompt)
    }

    /// The pending tool runs.
    pub fn runs(&self) -> &[ToolRun] {
        &self.runs
    }

    /// The pending questions.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// The outcome of the last task. `None` while one is open.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.ended.as_ref()
    }

    /// The final text of a task that succeeded.
    #[track_caller]
    pub fn ended(&self) -> &str {
        match &self.ended {
            Some(Outcome::Succeeded(text)) => text,
            Some(other) => panic!("the task ended with {other:?}"),
            None => panic!("the task is still open: {}", self.waits()),
        }
    }

    /// The model replies with text.
    #[track_caller]
    pub fn model_says(&mut self, text: &str) -> &[Command] {
        self.model_replies(vec![Content::Text(text.into())], StopReason::EndTurn)
    }

    /// The model calls tools, by name and arguments.
    #[track_caller]
    pub fn model_calls(&mut self, calls: &[(&str, &str)]) -> &[Command] {
        let mut content = Vec::new();
        for (name, arguments) in calls {
            self.calls += 1;
            content.push(Content::ToolCall(ToolCall {
                id: format!("call-{}", self.calls),
                name: (*name).into(),
                arguments: (*arguments).into(),
            }));
        }
        self.model_replies(content, StopReason::ToolUse)
    }

    /// The model replies.
    #[track_caller]
    pub fn model_replies(&mut self, content: Vec<Content>, stop: StopReason) -> &[Command] {
        let effect = self.model_call().effect.clone();
        self.models.remove(0);
        let message = Message {
            role: Role::Assistant,
            content,
        };
        let entry = self.enter(message.clone());
        self.send(vec![Input::ModelReplied(ModelReply {
            effect,
            entry,
            message,
            stop,
            usage: NO_USAGE,
        })])
    }

    /// The first pending tool run ends with this output.
    #[track_caller]
    pub fn tool_gives(&mut self, text: &str, exit_code: i32) -> &[Command] {
        assert!(!self.runs.is_empty(), "no tool runs, but {}", self.waits());
        let run = self.runs.remove(0);
        let outcome = ToolResult {
            exit_code: Some(exit_code),
            ..ToolResult::ok(run.call.id, text)
        };
        let entry = self.enter(Message::tool(outcome.clone()));
        self.send(vec![Input::ToolReplied(ToolReply {
            effect: run.effect,
            entry,
            outcome,
        })])
    }

    /// The user sends a message.
    #[track_caller]
    pub fn user_says(&mut self, text: &str) -> &[Command] {
        let entry = self.enter(Message::user(text));
        self.ended = None;
        self.send(vec![Input::UserMessage(UserMessage {
            entry,
            content: vec![Content::Text(text.into())],
        })])
    }

    /// The user answers the first pending question.
    #[track_caller]
    pub fn user_answers(&mut self, text: &str) -> &[Command] {
        assert!(
            !self.questions.is_empty(),
            "nothing was asked, but {}",
            self.waits()
        );
        let effect = self.questions.remove(0).effect;
        let entry = self.enter(Message::user(text));
        self.send(vec![Input::Answered(Answer {
            effect,
            entry,
            text: text.into(),
        })])
    }

    /// The first pending timer fires.
    #[track_caller]
    pub fn timer_fires(&mut self) -> &[Command] {
        assert!(
            !self.timers.is_empty(),
            "no timer is set, but {}",
            self.waits()
        );
        let timer = self.timers.remove(0);
        self.context.now_ms += timer.delay_ms;
        self.send(vec![Input::TimerFired(timer.effect)])
    }

    /// The user cancels the task.
    #[track_caller]
    pub fn cancel(&mut self) -> &[Command] {
        self.send(vec![Input::CancelRequested(String::new())])
    }

    /// A pending effect fails.
    #[track_caller]
    pub fn fails(&mut self, effect: &str, kind: ErrorKind, message: &str) -> &[Command] {
        self.forget(effect);
        self.send(vec![Input::EffectFailed(Failure {
            effect: effect.into(),
            error: Error::new(kind, message),
        })])
    }

    /// The host restarts: the results of all pending model calls and tool runs are lost.
    #[track_caller]
    pub fn restarts(&mut self) -> &[Command] {
        let models = self.models.drain(..).map(|call| call.effect);
        let runs = self.runs.drain(..).map(|run| run.effect);
        let lost = models.chain(runs).map(Input::EffectLost).collect();
        self.send(lost)
    }

    fn enter(&mut self, message: Message) -> u64 {
        self.transcript.push(message);
        self.transcript.len() as u64 - 1
    }

    #[track_caller]
    fn carry_out(&mut self, command: &Command) {
        match command {
            Command::CallModel(call) => {
                self.opens(&call.effect);
                let said = self.messages(&call.prompt);
                assert!(!said.is_empty(), "a model is asked nothing: {call:?}");
                object("the params of a model call", &call.params);
                self.models.push(call.clone());
            }
            Command::RunTool(run) => {
                self.opens(&run.effect);
                self.runs.push(run.clone());
            }
            Command::Ask(question) => {
                self.opens(&question.effect);
                object("the detail of a question", &question.detail);
                self.questions.push(question.clone());
            }
            Command::SetTimer(timer) => {
                self.opens(&timer.effect);
                self.timers.push(timer.clone());
            }
            Command::Cancel(effect) => self.forget(effect),
            Command::Append(message) => self.transcript.push(message.clone()),
            Command::Emit(event) => {
                object("the fields of an event", &event.fields);
                self.shown.push(event.clone());
            }
            Command::Finish(outcome) => self.ended = Some(outcome.clone()),
            Command::Other(_) => {}
        }
    }

    fn opens(&self, effect: &str) {
        let open = self.open().any(|open| open == effect);
        assert!(!open, "the effect `{effect}` is open, and is named again");
    }

    fn open(&self) -> impl Iterator<Item = &str> {
        let models = self.models.iter().map(|call| call.effect.as_str());
        let runs = self.runs.iter().map(|run| run.effect.as_str());
        let questions = self.questions.iter().map(|asked| asked.effect.as_str());
        let timers = self.timers.iter().map(|timer| timer.effect.as_str());
        models.chain(runs).chain(questions).chain(timers)
    }

    fn forget(&mut self, effect: &str) {
        self.models.retain(|call| call.effect != effect);
        self.runs.retain(|run| run.effect != effect);
        self.questions.retain(|asked| asked.effect != effect);
        self.timers.retain(|timer| timer.effect != effect);
    }

    fn waits(&self) -> String {
        let open: Vec<_> = self.open().collect();
        match (open.is_empty(), &self.ended) {
            (false, _) => format!("{} is open", open.join(", ")),
            (true, Some(outcome)) => format!("the task has ended: {outcome:?}"),
            (true, None) => "the policy waits for nothing at all".into(),
        }
    }

    #[track_caller]
    fn messages(&self, prompt: &[Part]) -> Vec<Message> {
        let mut messages = Vec::new();
        for part in prompt {
            match part {
                Part::Inline(message) => messages.push(message.clone()),
                Part::History(span) => {
                    let length = self.transcript.len() as u64;
                    let last = span.last.map_or(length, |last| last + 1);
                    assert!(
                        span.first <= last && last <= length,
                        "a prompt names the entries {span:?} of {length}"
                    );
                    let range = usize::try_from(span.first).unwrap_or(usize::MAX)
                        ..usize::try_from(last).unwrap_or(usize::MAX);
                    messages.extend(self.transcript[range].iter().cloned());
                }
            }
        }
        messages
    }
}

#[track_caller]
fn object(what: &str, json: &str) {
    let read = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json);
    assert!(read.is_ok(), "{what} must be a JSON object, and are {json}");
}

/// A request for an adapter's default model.
pub fn request<A: Adapter>(messages: Vec<Message>) -> CompletionRequest {
    CompletionRequest {
        model: A::describe().default_model,
        messages,
        tools: Vec::new(),
        max_output_tokens: None,
        params: "{}".into(),
        streaming: true,
    }
}

/// Decodes frames with an adapter's decoder.
pub fn decode<A: Adapter>(frames: Vec<Frame>) -> Result<(Completion, Vec<Delta>), Error> {
    let mut decoder = A::Decoder::new(A::describe().default_model);
    let mut deltas = Vec::new();
    for frame in frames {
        decoder.push(frame, &mut deltas)?;
    }
    Ok((decoder.finish()?, deltas))
}

/// Splits a recorded `text/event-stream` into events. For a whole body use `vec![Frame::Body(…)]`.
pub fn events(body: &str) -> Vec<Frame> {
    let body = body.replace("\r\n", "\n");
    let blocks = body.split("\n\n").map(|block| {
        let field = |name: &str| {
            let values = block.lines().filter_map(|line| {
                let value = line.strip_prefix(name)?.strip_prefix(':')?;
                Some(value.strip_prefix(' ').unwrap_or(value))
            });
            let values: Vec<&str> = values.collect();
            (!values.is_empty()).then(|| values.join("\n"))
        };
        Some(Frame::Sse(Sse {
            event: field("event"),
            data: field("data")?,
            id: field("id"),
        }))
    });
    blocks.flatten().collect()
}

/// An operation of a git provider plugin, with the server played by the test. Each step is run
/// twice and must give the same result.
pub struct Exchange<P> {
    operation: git::Operation,
    settings: String,
    state: Option<Vec<u8>>,
    asked: Option<HttpRequest>,
    ended: Option<Result<git::Reply, Error>>,
    provider: PhantomData<P>,
}

impl<P: git::Provider> Exchange<P> {
    /// Starts an operation, with no settings.
    #[track_caller]
    pub fn begin(operation: git::Operation) -> Self {
        let mut exchange = Self {
            operation,
            settings: "{}".into(),
            state: None,
            asked: None,
            ended: None,
            provider: PhantomData,
        };
        exchange.step(None);
        exchange
    }

    /// The pending request.
    #[track_caller]
    pub fn asked(&self) -> &HttpRequest {
        match &self.asked {
            Some(asked) => asked,
            None => panic!("nothing was asked: {:?}", self.ended),
        }
    }

    /// A value of the pending request's query.
    #[track_caller]
    pub fn query(&self, name: &str) -> Option<&str> {
        let mut query = self.asked().query.iter();
        query
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The pending request's body.
    #[track_caller]
    #[expect(clippy::expect_used, reason = "a test ends where something fails")]
    pub fn body(&self) -> serde_json::Value {
        serde_json::from_slice(&self.asked().body).expect("the body is JSON")
    }

    /// The server responds. Returns the exchange, so that responses can be chained.
    #[track_caller]
    pub fn answers(mut self, status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        self.asked();
        let headers = headers.iter();
        self.step(Some(&HttpResponse {
            status,
            headers: headers
                .map(|(name, value)| Header {
                    name: (*name).into(),
                    value: (*value).into(),
                })
                .collect(),
            body: body.into(),
        }));
        self
    }

    /// The operation's result.
    #[track_caller]
    pub fn ended(self) -> Result<git::Reply, Error> {
        match self.ended {
            Some(ended) => ended,
            None => panic!("it is not over: it asks {:?}", self.asked),
        }
    }

    #[track_caller]
    fn step(&mut self, answer: Option<&HttpResponse>) {
        let state = self.state.as_deref();
        let once = || git::step::<P>(&self.settings, &self.operation, state, answer.cloned());
        let (next, again) = (once(), once());
        assert_eq!(next, again, "a step that is made again must give the same");
        self.asked = None;
        match next {
            Ok(git_wit::Next::Send(sending)) => {
                (self.asked, self.state) = (Some(sending.request), Some(sending.state));
            }
            Ok(git_wit::Next::Done(reply)) => self.ended = Some(Ok(reply)),
            Err(error) => self.ended = Some(Err(error)),
        }
    }
}
