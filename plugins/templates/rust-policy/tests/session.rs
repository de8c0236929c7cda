//! Sessions played without a host and without a model.

use lucid_plugin::policy::Outcome;
use lucid_plugin::testing::Session;
use lucid_plugin::types::ErrorKind;
use my_agent::MyAgent;

#[test]
fn the_tools_that_the_model_calls_are_run_and_its_answer_ends_the_task() {
    let mut session = Session::<MyAgent>::start("Fix the bug");
    session.model_calls(&[("terminal", r#"{"command": "make test"}"#)]);
    assert_eq!(session.runs()[0].call.name, "terminal");
    session.tool_gives("1 failed", 1);
    session.model_says("The test is wrong, not the code.");
    assert_eq!(session.ended(), "The test is wrong, not the code.");
}

#[test]
fn what_it_noted_is_in_every_later_prompt() {
    let mut session = Session::<MyAgent>::start("Fix the bug");
    session.model_calls(&[("remember", r#"{"note": "tabs, no spaces"}"#)]);
    let system = session.prompt()[0].joined_text();
    assert!(system.contains("tabs, no spaces"), "{system}");
}

#[test]
fn what_was_lost_in_a_crash_is_not_run_again() {
    let mut session = Session::<MyAgent>::start("Fix the bug");
    session.model_calls(&[("terminal", r#"{"command": "make install"}"#)]);
    session.restarts();
    assert!(session.runs().is_empty(), "it was run a second time");
    session.model_says("I looked: it is installed.");
    session.ended();
}

#[test]
fn a_provider_that_fails_for_good_ends_the_task() {
    let mut session = Session::<MyAgent>::start("Fix the bug");
    let call = session.model_call().effect.clone();
    session.fails(&call, ErrorKind::Unauthenticated, "No such key.");
    assert!(matches!(session.outcome(), Some(Outcome::Failed(_))));
}
