//! Sessions of older builds.

use crate::host::*;
use lucid_coder::Coder;
use lucid_plugin::policy::{self, Input, Part, Snapshot, Span};

/// What the build with schema 1 wrote: a task is open and waits for one of two tools.
const FIRST: &str = r#"{"system":"You are Lucid.","settings":{"instructions":null,
    "max_output_tokens":900,"params":{"temperature":0}},"host_tools":[{"name":"terminal",
    "description":"Runs.","schema":"{}"}],"users":[0,4],"replies":[1,5],"whole_from":null,
    "plan":[{"title":"Read","status":"done"}],"open":true,"asking":null,
    "runs":[{"effect":"t7-1","call_id":"b","mark":12345678901234567890}],"ending":null,
    "unread":false,"answered_in_text":false,"idle":0,
    "turn":{"results":1,"mark":99,"bad":false},"last_turn":17,"repeats":2}"#;

fn migrated(old: &str) -> Snapshot {
    let old = Snapshot {
        schema: 1,
        bytes: old.as_bytes().to_vec(),
    };
    policy::migrate::<Coder>(old).unwrap()
}

#[test]
fn a_session_of_schema_1_goes_on() {
    let new = migrated(FIRST);
    assert_eq!(new.schema, 2);
    let mut host = Host::new();
    host.snapshot = Some(new);
    host.step = 8;
    let said = |host: &mut Host, text: &str| {
        let input = host.said_input(text);
        drop(input);
    };
    // The transcript as it was: the task, two turns, a message between them.
    said(&mut host, "Fix the bug");
    host.reply_input(
        "m0",
        vec![tool_call("x", "terminal", "{}")],
        lucid_plugin::types::StopReason::ToolUse,
    );
    host.add(lucid_plugin::types::Message::tool(
        lucid_plugin::types::ToolResult::ok("x", ""),
    ));
    host.reply_input("m3", vec![], lucid_plugin::types::StopReason::ToolUse);
    said(&mut host, "More");
    let calls = vec![
        tool_call("a", "terminal", "{}"),
        tool_call("b", "terminal", "{}"),
    ];
    host.reply_input("m6", calls, lucid_plugin::types::StopReason::ToolUse);
    host.add(lucid_plugin::types::Message::tool(
        lucid_plugin::types::ToolResult::ok("a", ""),
    ));

    let commands = host.send(vec![Input::EffectLost("t7-1".into())]);
    assert_eq!(results(&commands)[0].call_id, "b");
    let call = model_call(&commands);
    assert_eq!(call.max_output_tokens, Some(900));
    assert_eq!(call.params, r#"{"temperature":0}"#);
    assert_eq!(inline(&call)[0].joined_text(), "You are Lucid.");
    let whole = Part::History(Span {
        first: 0,
        last: None,
    });
    assert_eq!(call.prompt[1], whole);
    // It was told not to push, so nobody looks whether it did.
    let tools = runs(&host.model_calls(&call, &[("c", "terminal", "{}")]));
    let call = model_call(&host.tool_gives(&tools[0], "", 0));
    outcome(&host.model_calls(&call, &[("d", "finish", r#"{"message":"Done."}"#)]));
}

#[test]
fn a_session_of_schema_1_that_waits_for_its_model_takes_the_answer() {
    let asking = FIRST
        .replace(r#""asking":null"#, r#""asking":"m9""#)
        .replace(
            r#"{"effect":"t7-1","call_id":"b","mark":12345678901234567890}"#,
            "",
        )
        .replace(r#""whole_from":null"#, r#""whole_from":5"#);
    let mut host = Host::new();
    host.snapshot = Some(migrated(&asking));
    host.step = 10;
    for _ in 0..8 {
        host.said_input("-");
    }
    let answer = host.reply_input(
        "m9",
        text("All done."),
        lucid_plugin::types::StopReason::EndTurn,
    );
    outcome(&host.send(vec![answer]));
}

#[test]
fn a_state_that_is_none_is_an_error_that_says_so() {
    let broken = Snapshot {
        schema: 1,
        bytes: b"{}".to_vec(),
    };
    let error = policy::migrate::<Coder>(broken).unwrap_err();
    assert!(error.message.contains("schema 1"), "{}", error.message);
    let newer = Snapshot {
        schema: 3,
        bytes: b"{}".to_vec(),
    };
    policy::migrate::<Coder>(newer).unwrap_err();
}
