//! The test harness for policies and adapters: it fails where a host would refuse, and says why.

use std::cell::Cell;

use lucid_plugin::llm::{Frame, Sse};
use lucid_plugin::policy::{self, Commands, Context, Descriptor, Input, ModelCall, Part, Policy};
use lucid_plugin::testing::{Session, events};
use lucid_plugin::types::{Error, ErrorKind};
use serde_json::json;

/// Does what its task names.
struct Odd;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

impl Policy for Odd {
    type State = ();
    const SCHEMA: u32 = 1;

    fn describe() -> Descriptor {
        policy::describe::<Self>("odd", "0.1.0", "Does what its task names.")
    }

    fn step(_: &Context, (): &mut (), input: Input, out: &mut Commands) -> Result<(), Error> {
        let Input::Started(start) = input else {
            return Ok(());
        };
        match start.task.as_str() {
            "impure" => out.succeed(COUNT.replace(COUNT.get() + 1).to_string()),
            "twice" => {
                out.set_timer("t", 1);
                out.set_timer("t", 2);
            }
            "beyond" => {
                let call = ModelCall::new("m", vec![Part::history(0, 7)], Vec::new());
                out.call_model(call);
            }
            "list" => out.emit("ThinkAction", "", &json!([])),
            "error" => return Err(Error::invalid("as asked")),
            _ => out.succeed(start.task),
        }
        Ok(())
    }
}

#[test]
fn a_good_policy_is_played() {
    assert_eq!(Session::<Odd>::start("good").ended(), "good");
}

#[test]
#[should_panic = "the same step gave something else"]
fn a_step_that_depends_on_more_than_its_arguments_fails() {
    Session::<Odd>::start("impure");
}

#[test]
#[should_panic = "is open, and is named again"]
fn two_open_effects_of_one_name_fail() {
    Session::<Odd>::start("twice");
}

#[test]
#[should_panic = "of 1"]
fn a_prompt_that_names_an_entry_that_is_not_there_fails() {
    Session::<Odd>::start("beyond");
}

#[test]
#[should_panic = "must be a JSON object"]
fn an_event_whose_fields_are_no_object_fails() {
    Session::<Odd>::start("list");
}

#[test]
#[should_panic = "as asked"]
fn an_error_in_a_step_fails() {
    Session::<Odd>::start("error");
}

#[test]
#[should_panic = "the task has ended"]
fn an_answer_that_nobody_waits_for_fails() {
    Session::<Odd>::start("good").model_says("Hello.");
}

fn event(event: Option<&str>, data: &str) -> Sse {
    Sse {
        event: event.map(str::to_owned),
        data: data.into(),
        id: None,
    }
}

#[test]
fn a_recorded_stream_is_cut_into_its_events() {
    let body = ": ping\r\n\r\nevent: a\r\ndata: {\"x\":\r\ndata: 1}\r\n\r\ndata:[DONE]\n\n";
    let expected = [event(Some("a"), "{\"x\":\n1}"), event(None, "[DONE]")];
    assert_eq!(events(body), expected.map(Frame::Sse));
}

#[test]
fn an_events_json_is_read_and_what_says_nothing_is_none() {
    assert_eq!(
        event(None, "{\"x\":1}").json().unwrap(),
        Some(json!({"x": 1}))
    );
    for nothing in ["", "  ", "[DONE]"] {
        assert_eq!(event(None, nothing).json().unwrap(), None, "`{nothing}`");
    }
    assert_eq!(
        event(None, "{").json().unwrap_err().kind,
        ErrorKind::Upstream
    );
}
