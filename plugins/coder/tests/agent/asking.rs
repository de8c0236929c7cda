//! Questions to the user.

use crate::host::*;
use lucid_plugin::policy::{Command, Input, Outcome};
use lucid_plugin::types::{ErrorKind, Message, Role};

const LS: &str = r#"{"command":"ls"}"#;
const WHICH: &str = r#"{"question":"Which of the two?","options":["red","blue"]}"#;

#[test]
fn a_question_is_put_when_the_other_calls_are_back_and_then_nothing_else_is_waited_for() {
    let (mut host, call) = Host::started();
    let calls = [("a", "ask_user", WHICH), ("b", "terminal", LS)];
    let tools = runs(&host.model_calls(&call, &calls));
    let commands = host.tool_gives(&tools[0], "x", 0);
    let asked = question(&commands);
    assert_eq!(asked.title, "Which of the two?\n- red\n- blue");
    assert_eq!(asked.detail, r#"{"options":["red","blue"]}"#);
    assert_eq!(commands.len(), 1);
}

#[test]
fn the_answer_reaches_the_model_as_the_users_words() {
    let (mut host, call) = Host::started();
    let asked = question(&host.model_calls(&call, &[("a", "ask_user", WHICH)]));
    let commands = host.answers(&asked, "red");
    assert_eq!(results(&commands)[0].call_id, "a");
    assert!(!results(&commands)[0].is_error);
    let prompt = host.prompt(&model_call(&commands));
    let said: Vec<&Message> = prompt.iter().filter(|m| m.role == Role::User).collect();
    assert_eq!(said.last().unwrap().joined_text(), "red");
}

#[test]
fn a_message_is_an_answer_too_and_closes_the_question() {
    let (mut host, call) = Host::started();
    let asked = question(&host.model_calls(&call, &[("a", "ask_user", WHICH)]));
    let commands = host.user_says("Never mind, stop asking.");
    assert_eq!(commands[0], Command::Cancel(asked.effect.clone()));
    model_call(&commands);
    assert!(host.fails(&asked.effect, ErrorKind::Cancelled).is_empty());
    host.assert_answered();
}

#[test]
fn a_message_that_came_before_the_question_is_read_first() {
    let (mut host, call) = Host::started();
    let asks = host.reply_input(
        &call.effect,
        vec![tool_call("a", "ask_user", WHICH)],
        lucid_plugin::types::StopReason::ToolUse,
    );
    let said = host.said_input("Take red.");
    let commands = host.send(vec![asks, said]);
    assert!(results(&commands)[0].text.contains("Not asked"));
    model_call(&commands);
}

#[test]
fn of_two_questions_in_one_turn_the_first_is_put() {
    let (mut host, call) = Host::started();
    let more = r#"{"question":"And how large?"}"#;
    let calls = [("a", "ask_user", WHICH), ("b", "ask_user", more)];
    let commands = host.model_calls(&call, &calls);
    assert!(question(&commands).title.starts_with("Which"));
    assert_eq!(results(&commands)[0].call_id, "b");
    assert!(
        results(&commands)[0]
            .text
            .contains("One question at a time")
    );
}

#[test]
fn a_task_does_not_end_while_a_question_is_open() {
    let (mut host, call) = Host::started();
    let done = r#"{"message":"Done."}"#;
    let calls = [("a", "finish", done), ("b", "ask_user", WHICH)];
    let commands = host.model_calls(&call, &calls);
    question(&commands);
    assert!(results(&commands)[0].text.contains("Not finished"));
}

#[test]
fn a_cancel_answers_the_call_that_asked() {
    let (mut host, call) = Host::started();
    let asked = question(&host.model_calls(&call, &[("a", "ask_user", WHICH)]));
    let commands = host.send(vec![Input::CancelRequested(String::new())]);
    assert_eq!(commands[0], Command::Cancel(asked.effect));
    assert_eq!(outcome(&commands), &Outcome::Cancelled);
    host.assert_answered();
}

#[test]
fn a_question_that_cannot_be_put_is_the_models_to_decide() {
    for lost in [false, true] {
        let (mut host, call) = Host::started();
        let asked = question(&host.model_calls(&call, &[("a", "ask_user", WHICH)]));
        let commands = match lost {
            true => host.send(vec![Input::EffectLost(asked.effect)]),
            false => host.fails(&asked.effect, ErrorKind::Unsupported),
        };
        assert!(results(&commands)[0].text.contains("Decide it yourself"));
        model_call(&commands);
    }
}

#[test]
fn an_agent_that_goes_in_circles_asks_once_and_then_gives_up() {
    let (mut host, mut call) = Host::started();
    let mut asked = None;
    for n in 1..=10 {
        let tools = runs(&host.model_calls(&call, &[(&format!("c{n}"), "terminal", LS)]));
        let commands = host.tool_gives(&tools[0], "same", 0);
        match n {
            5 => {
                let question = question(&commands);
                assert!(question.title.contains("terminal"), "{}", question.title);
                call = model_call(&host.answers(&question, "Look at the log."));
                asked = Some(question);
            }
            10 => assert_eq!(failed(&commands).code.as_deref(), Some("loop")),
            _ => call = model_call(&commands),
        }
    }
    assert!(asked.is_some());
    host.assert_answered();
}

#[test]
fn where_the_user_may_not_be_asked_there_is_no_such_tool() {
    let mut host = Host::new();
    let call = model_call(&host.start(r#"{"ask":false}"#));
    assert!(call.tools.iter().all(|tool| tool.name != "ask_user"));
    assert!(!inline(&call)[0].joined_text().contains("ask_user"));
    let commands = host.model_calls(&call, &[("a", "ask_user", WHICH)]);
    assert!(
        results(&commands)[0]
            .text
            .contains("There is no tool `ask_user`")
    );
    model_call(&commands);
}
