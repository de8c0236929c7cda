//! The mock's script, step by step, with and without a sandbox.
//!
//! The tests pass each step's snapshot to the next, as the host does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

use lucid_mock::Mock;
use lucid_plugin::policy::{
    self, Command, Context, Failure, Input, ModelOffer, Outcome, Policy, Snapshot, Start,
    ToolReply, UserMessage,
};
use lucid_plugin::types::{Content, Error, ErrorKind, ToolDefinition, ToolResult};
use serde_json::{Value, json};

/// A session with the mock, as far as the mock can tell.
#[derive(Default)]
struct Session {
    snapshot: Option<Snapshot>,
    step: u64,
}

impl Session {
    fn send(&mut self, input: Input) -> Vec<Command> {
        let ctx = Context {
            session: "s".into(),
            step: self.step,
            now_ms: 0,
            seed: 0,
            iterations_left: 0,
            tokens_left: None,
            cost_left: None,
            millis_left: None,
        };
        self.step += 1;
        let done = policy::run::<Mock>(&ctx, self.snapshot.take(), vec![input]).unwrap();
        self.snapshot = Some(done.state);
        done.commands
    }

    fn start(&mut self, live: bool, settings: &str) -> Vec<Command> {
        let tool = |name: &str| ToolDefinition::new(name, "", &json!({}));
        self.send(Input::Started(Start {
            task: "Say hello".into(),
            entry: 0,
            workspace: "/workspace".into(),
            repository: None,
            branch: None,
            model: ModelOffer::named(""),
            small_model: ModelOffer::named(""),
            models: vec![],
            instructions: vec![],
            tools: if live {
                vec![tool("terminal"), tool("file_editor")]
            } else {
                vec![]
            },
            settings: settings.into(),
        }))
    }

    fn say(&mut self, text: &str) -> Vec<Command> {
        let content = vec![Content::Text(text.into())];
        self.send(Input::UserMessage(UserMessage { entry: 9, content }))
    }

    fn reply(&mut self, effect: &str, outcome: ToolResult) -> Vec<Command> {
        self.send(Input::ToolReplied(ToolReply {
            effect: effect.into(),
            entry: 5,
            outcome,
        }))
    }
}

fn exit(code: i32, text: &str) -> ToolResult {
    ToolResult {
        exit_code: Some(code),
        ..ToolResult::ok("c", text)
    }
}

fn timer(command: &Command) -> (String, u64) {
    match command {
        Command::SetTimer(t) => (t.effect.clone(), t.delay_ms),
        other => panic!("no timer: {other:?}"),
    }
}

fn tool(command: &Command) -> (String, String, Value) {
    match command {
        Command::RunTool(run) => (
            run.effect.clone(),
            run.call.name.clone(),
            serde_json::from_str(&run.call.arguments).unwrap(),
        ),
        other => panic!("no tool run: {other:?}"),
    }
}

fn event(command: &Command) -> (&str, &str, Value) {
    match command {
        Command::Emit(e) => (
            &e.event_type,
            &e.content,
            serde_json::from_str(&e.fields).unwrap(),
        ),
        other => panic!("no event: {other:?}"),
    }
}

fn succeeded(commands: &[Command]) -> &str {
    match commands.last() {
        Some(Command::Finish(Outcome::Succeeded(text))) => text,
        other => panic!("not succeeded: {other:?}"),
    }
}

fn failed(commands: &[Command]) -> &Error {
    match commands.last() {
        Some(Command::Finish(Outcome::Failed(error))) => error,
        other => panic!("not failed: {other:?}"),
    }
}

const NOW: &str = r#"{"delay_ms":0}"#;

#[test]
fn the_live_script_thinks_then_runs_three_tools_with_pauses_between() {
    let mut s = Session::default();
    let first = s.start(true, "");
    let (kind, content, fields) = event(&first[0]);
    assert_eq!(
        (kind, content),
        ("ThinkAction", "Analyzing task: \"Say hello\"")
    );
    assert!(fields["thought"].is_string());
    let (effect, delay) = timer(&first[1]);
    assert_eq!(delay, 1_500);

    let expected = [
        (
            "terminal",
            json!({"command": "mkdir -p /workspace && cd /workspace"}),
        ),
        (
            "file_editor",
            json!({
                "command": "create",
                "path": "/workspace/hello.py",
                "file_text": "print(\"Hello, World!\")",
            }),
        ),
        ("terminal", json!({"command": "python /workspace/hello.py"})),
    ];
    let mut wait = effect;
    for (at, (name, arguments)) in expected.iter().enumerate() {
        let run = s.send(Input::TimerFired(wait.clone()));
        assert_eq!(run.len(), 1);
        let (effect, tool_name, given) = tool(&run[0]);
        assert_eq!((tool_name.as_str(), &given), (*name, arguments));
        let next = s.reply(&effect, exit(0, "Hello, World!"));
        if at < 2 {
            wait = timer(&next[0]).0;
        } else {
            assert_eq!(next.len(), 1);
            assert!(succeeded(&next).starts_with("[MOCK]"));
        }
    }
}

#[test]
fn without_a_delay_the_live_script_sets_no_timer() {
    let mut s = Session::default();
    let mut commands = s.start(true, NOW);
    for _ in 0..3 {
        let (effect, ..) = tool(commands.last().unwrap());
        commands = s.reply(&effect, exit(0, ""));
    }
    assert!(succeeded(&commands).starts_with("[MOCK]"));
}

const TOLD: [&str; 7] = [
    "ThinkAction",
    "CmdRunAction",
    "CmdOutputObservation",
    "FileWriteAction",
    "FileWriteObservation",
    "CmdRunAction",
    "CmdOutputObservation",
];

#[test]
fn without_tools_or_delay_the_whole_script_is_told_in_one_step() {
    let commands = Session::default().start(false, NOW);
    let events: Vec<_> = commands[..commands.len() - 1].iter().map(event).collect();
    assert_eq!(events.iter().map(|e| e.0).collect::<Vec<_>>(), TOLD);
    assert_eq!(
        events[1].2["command"],
        "mkdir -p /workspace && cd /workspace"
    );
    assert_eq!(events[2].2["exitCode"], 0);
    assert_eq!(events[3].1, "print(\"Hello, World!\")");
    assert_eq!(events[3].2["path"], "/workspace/hello.py");
    assert_eq!(events[5].1, "python /workspace/hello.py");
    assert_eq!(events[6].1, "Hello, World!");
    assert!(succeeded(&commands).starts_with("[MOCK]"));
}

#[test]
fn without_tools_every_event_waits_for_its_own_timer() {
    let mut s = Session::default();
    let mut commands = s.start(false, r#"{"delay_ms":20}"#);
    let mut seen = vec![event(&commands[0]).0.to_string()];
    while let Some(Command::SetTimer(t)) = commands.last() {
        assert_eq!(t.delay_ms, 20);
        commands = s.send(Input::TimerFired(t.effect.clone()));
        seen.push(event(&commands[0]).0.to_string());
    }
    assert_eq!(seen, TOLD);
    assert!(succeeded(&commands).starts_with("[MOCK]"));
}

#[test]
fn a_long_task_is_cut_to_a_hundred_characters() {
    let mut s = Session::default();
    let commands = s.send(Input::Started(Start {
        task: "ü".repeat(300),
        entry: 0,
        workspace: "/workspace".into(),
        repository: None,
        branch: None,
        model: ModelOffer::named(""),
        small_model: ModelOffer::named(""),
        models: vec![],
        instructions: vec![],
        tools: vec![],
        settings: NOW.into(),
    }));
    assert_eq!(
        event(&commands[0]).1,
        format!("Analyzing task: \"{}…\"", "ü".repeat(100))
    );
}

#[test]
fn a_follow_up_after_the_script_is_repeated_and_finished() {
    let mut s = Session::default();
    s.start(false, NOW);
    let commands = s.say("and now?");
    let (kind, content, _) = event(&commands[0]);
    assert_eq!(kind, "MockResponse");
    assert!(content.contains("and now?"));
    assert!(succeeded(&commands).starts_with("[MOCK]"));
}

#[test]
fn a_follow_up_during_the_script_waits_for_its_end() {
    let mut s = Session::default();
    let mut commands = s.start(true, NOW);
    assert!(s.say("one").is_empty());
    assert!(s.say("two").is_empty());
    for _ in 0..3 {
        let (effect, ..) = tool(commands.last().unwrap());
        commands = s.reply(&effect, exit(0, ""));
    }
    assert_eq!(event(&commands[0]).1, "[MOCK] Received: one");
    assert_eq!(event(&commands[1]).1, "[MOCK] Received: two");
    assert_eq!(commands.len(), 3);
    succeeded(&commands);
}

#[test]
fn a_last_command_that_fails_is_explained() {
    let mut s = Session::default();
    let mut commands = s.start(true, NOW);
    for result in [
        exit(0, ""),
        ToolResult::ok("c", ""),
        exit(127, "python: not found"),
    ] {
        let (effect, ..) = tool(commands.last().unwrap());
        commands = s.reply(&effect, result);
    }
    let error = failed(&commands);
    assert_eq!(
        error.message,
        "[MOCK] Running hello.py failed: exit code 127: python: not found"
    );
    // The next task starts with a clean slate.
    succeeded(&s.say("again"));
}

#[test]
fn a_folder_that_fails_does_not_stop_the_script_but_is_told_at_its_end() {
    let mut s = Session::default();
    let mut commands = s.start(true, NOW);
    for result in [
        exit(1, "read-only"),
        ToolResult::ok("c", ""),
        exit(0, "Hello, World!"),
    ] {
        let (effect, ..) = tool(commands.last().unwrap());
        commands = s.reply(&effect, result);
    }
    assert!(
        failed(&commands)
            .message
            .contains("Making the folder failed")
    );
}

#[test]
fn a_file_that_cannot_be_written_ends_the_script() {
    let mut s = Session::default();
    let commands = s.start(true, NOW);
    let commands = s.reply(&tool(commands.last().unwrap()).0, exit(0, ""));
    let (effect, ..) = tool(&commands[0]);
    let error = Error::new(ErrorKind::Internal, "The sandbox is gone.");
    let commands = s.send(Input::EffectFailed(Failure { effect, error }));
    assert!(failed(&commands).message.contains("The sandbox is gone."));
}

#[test]
fn a_lost_tool_is_run_again_since_each_does_the_same_however_often_it_runs() {
    let mut s = Session::default();
    let mut commands = s.start(true, NOW);
    for name in ["terminal", "file_editor", "terminal"] {
        let (lost, first, arguments) = tool(commands.last().unwrap());
        assert_eq!(first, name);
        let again = s.send(Input::EffectLost(lost.clone()));
        let (effect, ..) = tool(&again[0]);
        assert_eq!(tool(&again[0]), (effect.clone(), first, arguments));
        assert_ne!(effect, lost);
        assert!(s.reply(&lost, exit(0, "")).is_empty(), "it came too late");
        commands = s.reply(&effect, exit(0, "Hello, World!"));
    }
    succeeded(&commands);
}

#[test]
fn a_lost_timer_only_means_to_go_on() {
    let mut s = Session::default();
    let commands = s.start(true, "{}");
    let (lost, _) = timer(&commands[1]);
    assert_eq!(tool(&s.send(Input::EffectLost(lost))[0]).1, "terminal");
}

#[test]
fn what_it_does_not_wait_for_is_passed_over() {
    let mut s = Session::default();
    s.start(true, "{}");
    assert!(s.send(Input::TimerFired("other".into())).is_empty());
    assert!(s.reply("other", exit(0, "")).is_empty());
}

#[test]
fn a_cancel_gives_up_what_runs_and_closes_the_task_once() {
    let mut s = Session::default();
    let commands = s.start(true, "{}");
    let (effect, _) = timer(&commands[1]);
    let commands = s.send(Input::CancelRequested("stop".into()));
    assert_eq!(
        commands,
        [
            Command::Cancel(effect.clone()),
            Command::Finish(Outcome::Cancelled)
        ]
    );
    assert!(s.send(Input::TimerFired(effect)).is_empty());
    assert!(s.send(Input::CancelRequested("stop".into())).is_empty());
    succeeded(&s.say("hello again"));
}

#[test]
fn a_cancel_while_a_tool_runs_gives_that_up_and_its_result_changes_nothing() {
    let mut s = Session::default();
    let commands = s.start(true, r#"{"delay_ms":0}"#);
    let running = commands.iter().find_map(|command| match command {
        Command::RunTool(run) => Some(run.effect.clone()),
        _ => None,
    });
    let running = running.unwrap();
    assert_eq!(
        s.send(Input::CancelRequested("stop".into())),
        [
            Command::Cancel(running.clone()),
            Command::Finish(Outcome::Cancelled)
        ]
    );
    assert!(s.reply(&running, exit(0, "")).is_empty());
}

#[test]
fn settings_that_cannot_be_read_fall_back_to_the_usual_delay() {
    let commands = Session::default().start(true, "nonsense");
    assert_eq!(timer(&commands[1]).1, 1_500);
}

#[test]
fn it_says_that_it_needs_neither_model_nor_sandbox() {
    let d = Mock::describe();
    assert_eq!(d.name, "mock");
    assert!(!d.calls_models && !d.needs_sandbox);
}
