//! The agent under inputs in any order: whatever models, tools, users and a stopping host may do.
//!
//! # Invariants
//!
//! Checked after every step:
//!
//! - An open task waits for exactly one thing, or for tool runs alone.
//! - A provider accepts every prompt (see `host`).
//! - No effect's name is used twice.
//! - A task ends once.

use lucid_plugin::policy::{Answer, Command, Failure, Input, ToolReply, ToolRun};
use lucid_plugin::types::{Content, Error, ErrorKind, Message, StopReason, ToolResult, Usage};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use crate::host::*;

/// What may happen. A number chooses among what there is.
#[derive(Debug, Clone)]
enum Act {
    /// The model that is asked answers.
    Reply(Vec<Piece>, Stop, u64),
    /// The model call, tool run or question fails.
    Fail(usize, Kind),
    /// The host stopped meanwhile.
    Lose(usize),
    /// A tool gives its result: its text, its exit code, whether it is an error.
    Result(usize, u8, i32, bool),
    Say(usize),
    Cancel,
    Timer,
    /// Something that was cancelled comes nevertheless.
    Late(usize, bool),
    /// The budget from here on.
    Budget(u32, Option<u64>),
}

#[derive(Debug, Clone)]
enum Piece {
    Text(&'static str),
    /// Identifier, tool, arguments.
    Call(Option<&'static str>, &'static str, &'static str),
}

#[derive(Debug, Clone, Copy)]
enum Stop {
    End,
    Tools,
    Length,
    Refusal,
    Other,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    TooLong,
    Refused,
    Upstream,
    Forbidden,
}

fn piece() -> impl Strategy<Value = Piece> {
    let id = prop_oneof![
        4 => Just(None),
        1 => prop::sample::select(vec![Some(""), Some("a"), Some("b")]),
    ];
    let call = prop::sample::select(vec![
        ("terminal", r#"{"command":"ls"}"#),
        ("terminal", r#"{"command":"make test"}"#),
        ("terminal", "{"),
        ("terminal", "[1]"),
        ("terminal", ""),
        ("file_editor", r#"{"command":"view","path":"a"}"#),
        (
            "file_editor",
            r#"{"command":"create","path":"a","file_text":""}"#,
        ),
        ("think", r#"{"thought":"t"}"#),
        ("think", "{}"),
        (
            "task_tracker",
            r#"{"tasks":[{"title":"a","status":"todo"}]}"#,
        ),
        (
            "ask_user",
            r#"{"question":"Which one?","options":["a","b"]}"#,
        ),
        ("ask_user", r#"{"question":" "}"#),
        ("finish", r#"{"message":"m"}"#),
        ("finish", r#"{"message":"m","success":false}"#),
        ("nothing", "{}"),
        ("", "null"),
    ]);
    prop_oneof![
        1 => prop::sample::select(vec!["", " ", "Thinking aloud."]).prop_map(Piece::Text),
        4 => (id, call).prop_map(|(id, (tool, arguments))| Piece::Call(id, tool, arguments)),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let stop = prop_oneof![
        3 => Just(Stop::End),
        8 => Just(Stop::Tools),
        1 => Just(Stop::Length),
        1 => Just(Stop::Refusal),
        1 => Just(Stop::Other),
    ];
    let kind = prop_oneof![
        3 => Just(Kind::TooLong),
        1 => Just(Kind::Refused),
        1 => Just(Kind::Upstream),
        1 => Just(Kind::Forbidden),
    ];
    prop_oneof![
        14 => (vec(piece(), 0..4), stop, 0..3000u64).prop_map(|(p, s, n)| Act::Reply(p, s, n)),
        2 => (0..4usize, kind).prop_map(|(n, kind)| Act::Fail(n, kind)),
        1 => (0..4usize).prop_map(Act::Lose),
        14 => (0..4usize, 0..4u8, 0..2i32, prop::bool::weighted(0.1))
            .prop_map(|(n, text, exit, bad)| Act::Result(n, text, exit, bad)),
        3 => (1..4000usize).prop_map(Act::Say),
        1 => Just(Act::Cancel),
        1 => Just(Act::Timer),
        2 => (0..4usize, any::<bool>()).prop_map(|(n, fast)| Act::Late(n, fast)),
        1 => (0..6u32, prop::option::of(0..4000u64)).prop_map(|(n, t)| Act::Budget(n, t)),
    ]
}

#[derive(Debug, Clone)]
enum Awaited {
    Model(String),
    Tool(ToolRun),
    Answer(String),
}

impl Awaited {
    fn effect(&self) -> &str {
        match self {
            Self::Model(effect) | Self::Answer(effect) => effect,
            Self::Tool(run) => &run.effect,
        }
    }
}

struct World {
    host: Host,
    awaited: Vec<Awaited>,
    /// Cancelled, and no word of it came since.
    given_up: Vec<Awaited>,
    open: bool,
}

impl World {
    fn take(&mut self, inputs: Vec<Input>) {
        if inputs.is_empty() {
            return;
        }
        // What the user says opens a task where none is open.
        self.open |= inputs
            .iter()
            .any(|input| matches!(input, Input::Started(_) | Input::UserMessage(_)));
        let commands = self.host.send(inputs);
        for command in &commands {
            match command {
                Command::CallModel(call) => {
                    assert!(self.awaited.is_empty(), "{:?}", self.awaited);
                    self.awaited.push(Awaited::Model(call.effect.clone()));
                    assert!(self.open);
                }
                Command::RunTool(run) => {
                    self.awaited.push(Awaited::Tool(run.clone()));
                }
                Command::Ask(question) => {
                    assert!(self.awaited.is_empty(), "{:?}", self.awaited);
                    self.awaited.push(Awaited::Answer(question.effect.clone()));
                }
                Command::Cancel(effect) => {
                    let (given_up, rest) = std::mem::take(&mut self.awaited)
                        .into_iter()
                        .partition::<Vec<_>, _>(|awaited| awaited.effect() == effect);
                    self.awaited = rest;
                    self.given_up.extend(given_up);
                }
                Command::Finish(_) => {
                    assert!(self.open, "finished twice: {commands:?}");
                    assert!(self.awaited.is_empty(), "{:?}", self.awaited);
                    self.open = false;
                }
                _ => {}
            }
        }
        assert_eq!(self.open, !self.awaited.is_empty(), "{commands:?}");
        let tools = |awaited: &Awaited| matches!(awaited, Awaited::Tool(_));
        assert!(self.awaited.len() < 2 || self.awaited.iter().all(tools));
    }

    /// What an act brings, while `inputs` of the same step wait already.
    fn input(&mut self, act: &Act) -> Option<Input> {
        match act {
            Act::Reply(pieces, stop, tokens) => {
                let at = self.position(|awaited| matches!(awaited, Awaited::Model(_)))?;
                let effect = self.awaited.remove(at).effect().to_owned();
                Some(self.reply(&effect, pieces, *stop, *tokens))
            }
            Act::Fail(n, kind) => {
                let failed = self.pick(*n)?;
                let kind = match kind {
                    Kind::TooLong => ErrorKind::ContextTooLong,
                    Kind::Refused => ErrorKind::Refused,
                    Kind::Upstream => ErrorKind::Upstream,
                    Kind::Forbidden => ErrorKind::Forbidden,
                };
                Some(failure(failed.effect(), kind))
            }
            Act::Lose(n) => Some(Input::EffectLost(self.pick(*n)?.effect().into())),
            Act::Result(n, text, exit, bad) => {
                let tools: Vec<usize> = (0..self.awaited.len())
                    .filter(|at| matches!(self.awaited[*at], Awaited::Tool(_)))
                    .collect();
                let at = *tools.get(n % tools.len().max(1))?;
                match self.awaited.remove(at) {
                    Awaited::Tool(run) => Some(self.result(&run, *text, *exit, *bad)),
                    _ => None,
                }
            }
            Act::Say(length) => {
                let text = "x".repeat(*length);
                match self.position(|awaited| matches!(awaited, Awaited::Answer(_))) {
                    // As the host does it; what is a message nevertheless is in `behaviour`.
                    Some(at) => {
                        let effect = self.awaited.remove(at).effect().to_owned();
                        let entry = self.host.add(Message::user(&text));
                        Some(Input::Answered(Answer {
                            effect,
                            entry,
                            text,
                        }))
                    }
                    None => Some(self.host.said_input(&text)),
                }
            }
            Act::Cancel => Some(Input::CancelRequested("stop".into())),
            Act::Timer => Some(Input::TimerFired("nobody's".into())),
            Act::Late(n, fast) => {
                if self.given_up.is_empty() {
                    return None;
                }
                let late = self.given_up.remove(n % self.given_up.len());
                Some(match &late {
                    Awaited::Model(effect) if *fast => {
                        let call = Piece::Call(None, "terminal", "{}");
                        self.reply(effect, &[Piece::Text("Late."), call], Stop::Tools, 10)
                    }
                    Awaited::Tool(run) if *fast => self.result(run, 0, 0, false),
                    _ => failure(late.effect(), ErrorKind::Cancelled),
                })
            }
            Act::Budget(iterations, tokens) => {
                self.host.iterations_left = if *iterations == 5 { 100 } else { *iterations };
                self.host.tokens_left = *tokens;
                None
            }
        }
    }

    fn position(&self, fits: impl Fn(&Awaited) -> bool) -> Option<usize> {
        self.awaited.iter().position(fits)
    }

    fn pick(&mut self, n: usize) -> Option<Awaited> {
        (!self.awaited.is_empty()).then(|| self.awaited.remove(n % self.awaited.len()))
    }

    fn reply(&mut self, effect: &str, pieces: &[Piece], stop: Stop, tokens: u64) -> Input {
        let entry = self.host.transcript.len();
        let content = pieces.iter().enumerate().map(|(n, piece)| match piece {
            Piece::Text(text) => Content::Text((*text).into()),
            Piece::Call(id, tool, arguments) => {
                let own = format!("c{entry}-{n}");
                tool_call(id.unwrap_or(&own), tool, arguments)
            }
        });
        let content = content.collect();
        let stop = match stop {
            Stop::End => StopReason::EndTurn,
            Stop::Tools => StopReason::ToolUse,
            Stop::Length => StopReason::MaxTokens,
            Stop::Refusal => StopReason::Refusal,
            Stop::Other => StopReason::Other,
        };
        let usage = Usage {
            input_tokens: tokens,
            output_tokens: 0,
            cache_read_tokens: 0,
            cache_write_tokens: 0,
        };
        self.host.reply_with(effect, content, stop, usage)
    }

    fn result(&mut self, run: &ToolRun, text: u8, exit: i32, bad: bool) -> Input {
        let outcome = ToolResult {
            exit_code: (!bad).then_some(exit),
            is_error: bad,
            ..ToolResult::ok(run.call.id.clone(), result_text(text))
        };
        let entry = self.host.add(Message::tool(outcome.clone()));
        Input::ToolReplied(ToolReply {
            effect: run.effect.clone(),
            entry,
            outcome,
        })
    }
}

fn result_text(n: u8) -> String {
    match n {
        0 => String::new(),
        1 => "same".into(),
        2 => "branch main\ncommit a\nupstream origin/main\nunpushed 1\n?? b\n".into(),
        _ => "x".repeat(4000),
    }
}

fn failure(effect: &str, kind: ErrorKind) -> Input {
    Input::EffectFailed(Failure {
        effect: effect.into(),
        error: Error::new(kind, "It failed."),
    })
}

proptest! {
    #![proptest_config(Config {
        cases: 500,
        rng_seed: RngSeed::Fixed(4),
        failure_persistence: None,
        ..Config::default()
    })]

    #[test]
    fn whatever_comes_the_agent_waits_for_one_thing_and_every_prompt_is_valid(
        context_tokens in prop::sample::select(vec![0, 3000, 8000, 100_000]),
        repository in any::<bool>(),
        ask in any::<bool>(),
        steps in vec(vec(act(), 1..4), 1..60),
    ) {
        let mut host = Host::new();
        host.context_tokens = context_tokens;
        host.repository = repository.then_some("https://example.org/a/b");
        let settings = format!(r#"{{"ask":{ask}}}"#);
        let start = host.start_input(&settings);
        let mut world = World { host, awaited: Vec::new(), given_up: Vec::new(), open: true };
        world.take(vec![start]);
        for acts in &steps {
            let inputs = acts.iter().filter_map(|act| world.input(act)).collect();
            world.take(inputs);
        }
    }
}
