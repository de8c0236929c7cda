//! Conditions between the model's `finish` and the end of a task.

use crate::host::*;
use lucid_plugin::policy::{Command, Input, ModelCall, Outcome};
use lucid_plugin::types::{ErrorKind, StopReason};

const DONE: &str = r#"{"message":"Fixed."}"#;
const EDIT: &str = r#"{"command":"str_replace","path":"a.py","old_str":"-","new_str":"+"}"#;
const VIEW: &str = r#"{"command":"view","path":"a.py"}"#;
const TEST: &str = r#"{"command":"make test"}"#;
const PUSHED: &str = "branch lucid/fix-the-bug-adbeef\ncommit abc1234\n\
                      upstream origin/lucid/fix-the-bug-adbeef\nunpushed 0\n";
const LEFT: &str = "branch main\ncommit abc1234\nupstream origin/main\nunpushed 0\n M a.py\n";

fn in_repository(settings: &str) -> (Host, ModelCall) {
    let mut host = Host::new();
    host.repository = Some("https://example.org/a/b");
    let call = model_call(&host.start(settings));
    (host, call)
}

/// The model makes a call, and it goes well.
fn does(host: &mut Host, call: &ModelCall, tool: &str, arguments: &str) -> ModelCall {
    let id = format!("c{}", host.step);
    let tools = runs(&host.model_calls(call, &[(&id, tool, arguments)]));
    model_call(&host.tool_gives(&tools[0], &id, 0))
}

/// The model calls `finish`.
fn finishes(host: &mut Host, call: &ModelCall) -> Vec<Command> {
    let id = format!("f{}", host.step);
    host.model_calls(call, &[(&id, "finish", DONE)])
}

#[test]
fn edits_with_no_command_behind_them_are_to_be_verified_first_and_that_is_said_once() {
    let (mut host, call) = Host::started();
    let call = does(&mut host, &call, "terminal", TEST);
    let call = does(&mut host, &call, "file_editor", EDIT);
    let commands = finishes(&mut host, &call);
    assert!(results(&commands)[0].text.contains("Verify the change"));
    let commands = finishes(&mut host, &model_call(&commands));
    assert_eq!(outcome(&commands), &Outcome::Succeeded("Fixed.".into()));
    host.assert_answered();
}

#[test]
fn verified_edits_views_and_giving_up_end_at_once() {
    let (mut host, call) = Host::started();
    let call = does(&mut host, &call, "file_editor", EDIT);
    let call = does(&mut host, &call, "terminal", TEST);
    let call = does(&mut host, &call, "file_editor", VIEW);
    outcome(&finishes(&mut host, &call));

    let (mut host, call) = Host::started();
    let call = does(&mut host, &call, "file_editor", EDIT);
    let gave_up = r#"{"message":"No.","success":false}"#;
    failed(&host.model_calls(&call, &[("f", "finish", gave_up)]));
}

#[test]
fn an_end_in_plain_text_is_held_to_the_same() {
    let (mut host, call) = Host::started();
    let call = does(&mut host, &call, "file_editor", EDIT);
    let commands = host.model_says(&call, text("Done."), StopReason::EndTurn);
    assert!(
        appended(&commands)[0]
            .joined_text()
            .contains("Verify the change")
    );
    let call = model_call(&commands);
    let commands = host.model_says(&call, text("Done."), StopReason::EndTurn);
    assert_eq!(outcome(&commands), &Outcome::Succeeded("Done.".into()));
}

#[test]
fn with_one_model_call_left_nobody_is_sent_back() {
    let (mut host, call) = Host::started();
    let call = does(&mut host, &call, "file_editor", EDIT);
    host.iterations_left = 1;
    outcome(&finishes(&mut host, &call));
}

#[test]
fn in_a_clone_the_model_is_told_of_its_branch_and_elsewhere_not_to_commit() {
    let (_, call) = in_repository("{}");
    let told = inline(&call)[0].joined_text();
    assert!(
        told.contains("git push -u origin lucid/fix-the-bug-adbeef"),
        "{told}"
    );
    for (host, call) in [Host::started(), in_repository(r#"{"push":false}"#)] {
        let told = inline(&call)[0].joined_text();
        assert!(
            !told.contains("lucid/") && told.contains("Do not commit"),
            "{told}"
        );
        drop(host);
    }
}

#[test]
fn work_that_is_not_committed_is_named_once_and_what_became_of_it_is_said_at_the_end() {
    let (mut host, call) = in_repository("{}");
    let call = does(&mut host, &call, "terminal", TEST);
    let look = runs(&finishes(&mut host, &call)).remove(0);
    assert_eq!(look.call.name, "terminal");
    let commands = host.tool_gives(&look, LEFT, 0);
    let told = &results(&commands)[0].text;
    assert!(told.contains("Not committed: a.py") && told.contains("lucid/fix-the-bug-adbeef"));
    let call = model_call(&commands);
    let look = runs(&finishes(&mut host, &call)).remove(0);
    let Outcome::Succeeded(said) = outcome(&host.tool_gives(&look, LEFT, 0)).clone() else {
        panic!("not succeeded")
    };
    assert_eq!(said, "Fixed.\n\nNot committed: a.py.");
}

#[test]
fn what_git_says_stands_in_no_prompt() {
    let (mut host, call) = in_repository("{}");
    let call = does(&mut host, &call, "terminal", TEST);
    let look = runs(&finishes(&mut host, &call)).remove(0);
    let next = model_call(&host.tool_gives(&look, LEFT, 0));
    let prompt = host.prompt(&next);
    assert!(!format!("{prompt:?}").contains("upstream origin/main"));
}

#[test]
fn pushed_work_ends_the_task_and_the_last_message_names_the_branch() {
    let (mut host, call) = in_repository("{}");
    let call = does(&mut host, &call, "terminal", TEST);
    let look = runs(&finishes(&mut host, &call)).remove(0);
    let commands = host.tool_gives(&look, PUSHED, 0);
    let said = "Fixed.\n\nThe work is on the branch `lucid/fix-the-bug-adbeef` (abc1234).";
    assert_eq!(outcome(&commands), &Outcome::Succeeded(said.into()));
}

#[test]
fn a_look_that_fails_is_lost_or_finds_no_repository_stands_in_nobodys_way() {
    for how in ["fails", "lost", "bad", "none"] {
        let (mut host, call) = in_repository("{}");
        let call = does(&mut host, &call, "terminal", TEST);
        let look = runs(&finishes(&mut host, &call)).remove(0);
        let commands = match how {
            "fails" => host.fails(&look.effect, ErrorKind::Internal),
            "lost" => host.send(vec![Input::EffectLost(look.effect)]),
            "bad" => host.tool_gives(&look, LEFT, 1),
            _ => host.tool_gives(&look, "", 0),
        };
        assert_eq!(
            outcome(&commands),
            &Outcome::Succeeded("Fixed.".into()),
            "{how}"
        );
    }
}

#[test]
fn nobody_looks_where_nothing_was_done_or_nothing_is_to_be_pushed() {
    let (mut host, call) = in_repository("{}");
    let call = does(&mut host, &call, "file_editor", VIEW);
    outcome(&finishes(&mut host, &call));
    let (mut host, call) = in_repository(r#"{"push":false}"#);
    let call = does(&mut host, &call, "terminal", TEST);
    outcome(&finishes(&mut host, &call));
}

#[test]
fn a_message_while_git_is_asked_keeps_the_task_open() {
    let (mut host, call) = in_repository("{}");
    let call = does(&mut host, &call, "terminal", TEST);
    let look = runs(&finishes(&mut host, &call)).remove(0);
    assert!(host.user_says("One more thing.").is_empty());
    let commands = host.tool_gives(&look, PUSHED, 0);
    assert!(
        results(&commands)[0]
            .text
            .contains("the user said something")
    );
    model_call(&commands);
}
