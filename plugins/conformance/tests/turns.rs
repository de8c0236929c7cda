//! The SDK's loop, `lucid_plugin::turns`, played natively with `lucid_plugin::testing`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

use std::collections::BTreeMap;

use lucid_plugin::policy::{self, Command, Commands, Context, Descriptor, Input, Outcome, Policy};
use lucid_plugin::testing::Session;
use lucid_plugin::turns::{Turn, Turns};
use lucid_plugin::types::{Content, Error, ErrorKind, Message, ToolDefinition, ToolResult};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// The agent of the SDK's documentation, with one tool of its own and a question.
struct Agent;

#[derive(Default, Serialize, Deserialize)]
struct State {
    turns: Turns,
    tools: Vec<ToolDefinition>,
}

impl Policy for Agent {
    type State = State;
    const SCHEMA: u32 = 1;

    fn describe() -> Descriptor {
        policy::describe::<Self>("agent", "0.1.0", "Does what it is told.")
    }

    fn step(_: &Context, s: &mut State, input: Input, out: &mut Commands) -> Result<(), Error> {
        if let Input::Started(start) = &input {
            s.tools = start.tools.clone();
        }
        match s.turns.take(input, out) {
            Turn::Calls(calls) => {
                for call in calls {
                    match call.name.as_str() {
                        "note" => s.turns.answer(ToolResult::ok(call.id, "noted"), out),
                        "ask" => {
                            s.turns.answer(ToolResult::ok(call.id, "asked"), out);
                            s.turns.ask("Which one?", out);
                        }
                        "finish" => {
                            s.turns.answer(ToolResult::ok(call.id, "finished"), out);
                            s.turns.succeed("finished");
                        }
                        _ => s.turns.run(call, out),
                    }
                }
            }
            Turn::Answered(said) => s.turns.succeed(said.text),
            Turn::Failed(error) => s.turns.fail(error),
            Turn::Waits | Turn::Cancelled(_) | Turn::Other(_) => {}
        }
        Ok(())
    }

    fn settle(_: &Context, s: &mut State, out: &mut Commands) -> Result<(), Error> {
        s.turns.settle("You are an agent.", &s.tools, out);
        Ok(())
    }
}

fn started() -> Session<Agent> {
    Session::start("Fix the bug")
}

fn last_result(session: &Session<Agent>) -> ToolResult {
    let results = session.transcript.iter().flat_map(|m| &m.content);
    let mut last = results.filter_map(|content| match content {
        Content::ToolResult(result) => Some(result.clone()),
        _ => None,
    });
    last.next_back().expect("the transcript holds no result")
}

#[test]
fn a_model_calls_tools_reads_their_results_and_answers() {
    let mut session = started();
    assert_eq!(
        session.prompt(),
        [
            Message::system("You are an agent."),
            Message::user("Fix the bug")
        ]
    );
    assert_eq!(session.model_call().tools.len(), 2);
    session.model_calls(&[("terminal", "{}"), ("file_editor", "{}")]);
    assert_eq!(session.runs().len(), 2);
    assert!(session.tool_gives("first", 0).is_empty());
    session.tool_gives("second", 1);
    assert_eq!(session.prompt().len(), 5, "all of it is in the prompt");
    session.model_says("Done.");
    assert_eq!(session.ended(), "Done.");
    session.user_says("And now?");
    assert_eq!(
        session.prompt().len(),
        7,
        "the next task knows the one before"
    );
}

#[test]
fn what_the_user_says_meanwhile_is_read_before_the_task_ends() {
    let mut session = started();
    session.user_says("Use tabs.");
    assert!(session.model_says("Done.").iter().all(is_no_end));
    session.model_says("Done, with tabs.");
    assert_eq!(session.ended(), "Done, with tabs.");
}

#[test]
fn a_task_that_ends_in_the_step_in_which_the_user_speaks_goes_on() {
    let mut session = started();
    let call = session.model_call().effect.clone();
    let answer = Input::EffectFailed(policy::Failure {
        effect: call,
        error: Error::upstream("Gone."),
    });
    session.transcript.push(Message::user("Try again."));
    let said = Input::UserMessage(policy::UserMessage {
        entry: 1,
        content: vec![Content::Text("Try again.".into())],
    });
    let commands = session.send(vec![answer, said]);
    assert!(
        matches!(commands, [Command::CallModel(_)]),
        "the task was ended and the message passed over: {commands:?}"
    );
}

#[test]
fn a_lost_tool_run_is_told_to_the_model_and_not_run_again() {
    let mut session = started();
    session.model_calls(&[("terminal", "{}")]);
    let commands = session.restarts();
    assert!(
        !commands.iter().any(|c| matches!(c, Command::RunTool(_))),
        "it was run again: {commands:?}"
    );
    assert!(last_result(&session).text.contains("may or may not"));
    session.model_says("I looked: it happened.");
    session.ended();
}

#[test]
fn a_lost_model_call_is_made_again() {
    let mut session = started();
    let first = session.model_call().effect.clone();
    session.restarts();
    assert_ne!(session.model_call().effect, first, "under another name");
}

#[test]
fn a_cancelled_task_leaves_no_call_without_an_answer() {
    let mut session = started();
    session.model_calls(&[("terminal", "{}")]);
    let commands = session.cancel().to_vec();
    assert!(matches!(commands.first(), Some(Command::Cancel(_))));
    assert_eq!(
        commands.last(),
        Some(&Command::Finish(Outcome::Cancelled)),
        "{commands:?}"
    );
    assert_eq!(last_result(&session).call_id, "call-1");
    assert!(session.cancel().is_empty(), "it ended before");
}

#[test]
fn a_question_waits_for_the_user() {
    let mut session = started();
    session.model_calls(&[("ask", "{}")]);
    assert_eq!(session.questions()[0].title, "Which one?");
    session.user_answers("The second.");
    session.model_says("The second it is.");
    session.ended();
}

fn is_no_end(command: &Command) -> bool {
    !matches!(command, Command::Finish(_))
}

/// One thing that happens, where it can. Gives how many commands it led to.
fn play(session: &mut Session<Agent>, what: u8) -> usize {
    let waits = session.outcome().is_none() && session.runs().is_empty();
    let models = waits && session.questions().is_empty();
    let runs = !session.runs().is_empty();
    let commands = match what {
        0 => session.user_says("More."),
        1 => session.cancel(),
        2 => session.restarts(),
        3 if models => session.model_says("Done."),
        4 if models => session.model_calls(&[("terminal", "{}"), ("terminal", "")]),
        5 if models => session.model_calls(&[("note", "{}"), ("terminal", "{}")]),
        6 if models => session.model_calls(&[("ask", "{}"), ("finish", "{}")]),
        7 if models => session.model_calls(&[("ask", "{}"), ("terminal", "{}")]),
        8 if models => session.model_calls(&[("finish", "{}")]),
        9 if runs => session.tool_gives("out", 0),
        10 if runs => {
            let effect = session.runs()[0].effect.clone();
            session.fails(&effect, ErrorKind::Deadline, "Too long.")
        }
        11 if models => {
            let effect = session.model_call().effect.clone();
            session.fails(&effect, ErrorKind::Upstream, "Gone.")
        }
        12 if !session.questions().is_empty() => session.user_answers("This."),
        _ => session.fails(
            "nobody's",
            ErrorKind::Internal,
            "An effect that nobody knows.",
        ),
    };
    commands.len()
}

proptest! {
    #[test]
    fn an_open_task_always_waits_for_something_and_every_call_has_one_answer(
        events in vec(0..14_u8, 0..40)
    ) {
        let mut session = started();
        for what in events {
            play(&mut session, what);
            let open: State =
                serde_json::from_slice(&session.state.as_ref().unwrap().bytes).unwrap();
            prop_assert_eq!(open.turns.is_open(), session.outcome().is_none());
            prop_assert!(!open.turns.is_models_turn(), "it was not asked");
            if session.outcome().is_some() {
                prop_assert!(session.runs().is_empty() && session.questions().is_empty());
            } else if session.runs().is_empty() && session.questions().is_empty() {
                session.model_call();
            }
            let mut answers: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
            for piece in session.transcript.iter().flat_map(|message| &message.content) {
                match piece {
                    Content::ToolCall(call) => answers.entry(&call.id).or_default().0 += 1,
                    Content::ToolResult(result) => {
                        answers.entry(&result.call_id).or_default().1 += 1;
                    }
                    _ => {}
                }
            }
            let running = session.runs().len();
            let unanswered = answers.values().filter(|(_, given)| *given == 0).count();
            prop_assert!(answers.values().all(|(calls, given)| *calls == 1 && *given <= 1));
            prop_assert_eq!(unanswered, running);
        }
    }
}
