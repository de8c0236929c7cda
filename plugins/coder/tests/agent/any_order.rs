//! The agent under inputs in any order: hundreds of made-up sessions, each from a fixed seed.
//!
//! Always holds, and is checked behind every step: an open task waits for something, no model call
//! is made while a tool call has no answer, and no effect's name is used twice.

use crate::host::*;
use lucid_plugin::policy::{Command, Input, ToolRun};
use lucid_plugin::types::{ErrorKind, StopReason};

/// A small generator; the tests must be the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Default)]
struct Waits {
    model: Option<String>,
    tools: Vec<ToolRun>,
    open: bool,
}

impl Waits {
    /// `said`: the user said something in this step, which opens a task where none is open.
    fn take(&mut self, host: &Host, said: bool, commands: &[Command]) {
        self.open |= said;
        for command in commands {
            match command {
                Command::CallModel(call) => {
                    assert!(self.model.is_none() && self.tools.is_empty());
                    host.assert_answered();
                    // A user's message may have opened a task in the step that closed one.
                    self.open = true;
                    self.model = Some(call.effect.clone());
                }
                Command::RunTool(run) => self.tools.push(run.clone()),
                Command::Cancel(effect) => {
                    self.model.take_if(|m| m == effect);
                    self.tools.retain(|t| &t.effect != effect);
                }
                Command::Finish(_) => {
                    assert!(self.open || said, "finished twice");
                    assert!(self.model.is_none() && self.tools.is_empty());
                    host.assert_answered();
                    self.open = false;
                }
                _ => {}
            }
        }
        let waits = self.model.is_some() || !self.tools.is_empty();
        assert_eq!(self.open, waits, "{commands:?}");
    }
}

fn made_up_reply(host: &mut Host, dice: &mut Dice, effect: &str) -> Input {
    let mut content = Vec::new();
    if dice.below(2) == 0 {
        content.extend(text("Thinking aloud."));
    }
    for n in 0..dice.below(4) {
        let id = format!("c{}-{n}", host.step);
        let (name, arguments) = match dice.below(8) {
            0 => ("think", r#"{"thought":"t"}"#),
            1 => (
                "task_tracker",
                r#"{"tasks":[{"title":"a","status":"todo"}]}"#,
            ),
            2 => ("finish", r#"{"message":"m"}"#),
            3 => ("nothing", "{}"),
            4 => ("terminal", "{"),
            _ => ("terminal", r#"{"command":"ls"}"#),
        };
        content.push(tool_call(&id, name, arguments));
    }
    let stop = match dice.below(12) {
        0 => StopReason::MaxTokens,
        1 => StopReason::Refusal,
        2 => StopReason::Other,
        3 => StopReason::EndTurn,
        _ => StopReason::ToolUse,
    };
    host.reply_input(effect, content, stop)
}

fn next_inputs(host: &mut Host, waits: &mut Waits, dice: &mut Dice) -> Vec<Input> {
    let mut inputs = Vec::new();
    for _ in 0..=dice.below(2) {
        match dice.below(20) {
            0 => {
                inputs.push(Input::CancelRequested("stop".into()));
                return inputs;
            }
            1 | 2 => inputs.push(host.said_input("More.")),
            3 => inputs.push(Input::TimerFired("nobody's".into())),
            _ => {}
        }
        if let Some(effect) = waits.model.take() {
            inputs.push(match dice.below(16) {
                0 => Input::EffectLost(effect),
                1 => failure(effect, ErrorKind::ContextTooLong),
                2 => failure(effect, ErrorKind::Upstream),
                _ => made_up_reply(host, dice, &effect),
            });
        } else if !waits.tools.is_empty() {
            let run = waits.tools.remove(0);
            inputs.push(match dice.below(10) {
                0 => Input::EffectLost(run.effect),
                1 => failure(run.effect, ErrorKind::Internal),
                _ => {
                    let (output, exit) = (dice.below(3).to_string(), dice.below(2) as i32);
                    host.result_input(&run, &output, exit)
                }
            });
        }
    }
    inputs
}

fn failure(effect: String, kind: ErrorKind) -> Input {
    use lucid_plugin::{policy::Failure, types::Error};
    Input::EffectFailed(Failure {
        effect,
        error: Error::new(kind, "It failed."),
    })
}

#[test]
fn whatever_comes_the_agent_waits_for_something_and_leaves_no_call_unanswered() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let mut host = Host::new();
        let mut waits = Waits {
            open: true,
            ..Waits::default()
        };
        let commands = host.start("{}");
        waits.take(&host, false, &commands);
        for _ in 0..60 {
            if dice.below(40) == 0 {
                host.iterations_left = dice.below(3) as u32;
            }
            let inputs = next_inputs(&mut host, &mut waits, &mut dice);
            if inputs.is_empty() {
                continue;
            }
            let said = inputs.iter().any(|i| matches!(i, Input::UserMessage(_)));
            let commands = host.send(inputs);
            waits.take(&host, said, &commands);
        }
    }
}
