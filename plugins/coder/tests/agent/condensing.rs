//! Long conversations: what is summarised, by which model, and what is kept verbatim.

use crate::host::*;
use lucid_plugin::NO_USAGE;
use lucid_plugin::policy::{Command, Input, ModelCall, ToolReply};
use lucid_plugin::types::{BlobRef, ErrorKind, Message, Role, StopReason, ToolResult, Usage};

/// Lets the model run a command whose output is this long, in bytes.
fn turn(host: &mut Host, call: &ModelCall, bytes: usize) -> Vec<Command> {
    let n = host.step;
    let command = format!(r#"{{"command":"echo {n}"}}"#);
    let tools = runs(&host.model_calls(call, &[(&format!("c{n}"), "terminal", &command)]));
    let output = format!("{n}:{}", "x".repeat(bytes));
    host.tool_gives(&tools[0], &output, 0)
}

fn with_context(tokens: u64) -> (Host, ModelCall) {
    let mut host = Host::new();
    host.context_tokens = tokens;
    let call = model_call(&host.start("{}"));
    (host, call)
}

/// Turns until the model is asked for a summary; that call.
fn until_summary(host: &mut Host, mut call: ModelCall, bytes: usize) -> ModelCall {
    for _ in 0..100 {
        call = model_call(&turn(host, &call, bytes));
        if !call.model.is_empty() {
            return call;
        }
    }
    panic!("no summary was asked for")
}

fn all_text(host: &Host, call: &ModelCall) -> String {
    format!("{:?}", host.prompt(call))
}

#[test]
fn near_the_models_limit_the_older_part_is_summarised_by_the_small_model() {
    let (mut host, call) = with_context(20_000);
    let summary = until_summary(&mut host, call, 4000);
    assert_eq!(summary.model, "small");
    assert!(all_text(&host, &summary).contains("Write the notes now"));
    let last = host.step - 2;
    let first = "\"1:xxx";
    assert!(all_text(&host, &summary).contains(first));
    let next = host.model_says(
        &summary,
        text("Task: fix it. Done: looked."),
        StopReason::EndTurn,
    );
    let next = model_call(&next);
    assert_eq!(next.model, "");
    let told = all_text(&host, &next);
    // The task, the notes and the latest turn are there; what was summarised is not.
    let prompt = host.prompt(&next);
    assert_eq!(prompt[1], Message::user("Fix the bug"));
    assert!(
        prompt[2]
            .joined_text()
            .contains("Task: fix it. Done: looked.")
    );
    assert_eq!(prompt[2].role, Role::User);
    assert_eq!(told.matches("Task: fix it. Done: looked.").count(), 1);
    assert!(
        told.contains(&format!("{last}:xxx")),
        "the latest turn is gone"
    );
    assert!(!told.contains(first));
    assert!(told.len() < 40_000, "{}", told.len());
}

#[test]
fn several_rounds_of_condensing_hand_their_notes_on_and_keep_the_task() {
    let (mut host, mut call) = with_context(20_000);
    let mut before = None;
    for round in 0..5 {
        let summary = until_summary(&mut host, call, 3000);
        if let Some(before) = before.replace(format!("Notes {round}.")) {
            assert!(all_text(&host, &summary).contains(&before), "{round}");
        }
        let notes = text(&format!("Notes {round}."));
        call = model_call(&host.model_says(&summary, notes, StopReason::EndTurn));
        let prompt = host.prompt(&call);
        assert_eq!(prompt[1], Message::user("Fix the bug"), "{round}");
        assert!(prompt[2].joined_text().contains(&format!("Notes {round}.")));
    }
}

#[test]
fn what_the_provider_counts_holds_where_it_counts() {
    let (mut host, call) = with_context(100_000);
    let first = turn(&mut host, &call, 10);
    let call = model_call(&first);
    let usage = Usage {
        input_tokens: 1000,
        cache_read_tokens: 89_000,
        output_tokens: 100,
        ..NO_USAGE
    };
    let content = vec![tool_call("z", "think", r#"{"thought":"t"}"#)];
    let reply = host.reply_with(&call.effect, content, StopReason::ToolUse, usage);
    let summary = model_call(&host.send(vec![reply]));
    assert_eq!(summary.model, "small");
}

#[test]
fn an_answers_own_usage_counts_however_much_its_retries_took() {
    // The host gives the answer's own usage; what broken tries took is only in the budget.
    let (mut host, mut call) = with_context(100_000);
    for (n, left) in [900_000, 600_000, 300_000].into_iter().enumerate() {
        host.tokens_left = Some(left);
        let usage = Usage {
            input_tokens: 10_000,
            output_tokens: 100,
            ..NO_USAGE
        };
        let thought = format!(r#"{{"thought":"{n}"}}"#);
        let content = vec![tool_call(&n.to_string(), "think", &thought)];
        let reply = host.reply_with(&call.effect, content, StopReason::ToolUse, usage);
        call = model_call(&host.send(vec![reply]));
        assert_eq!(call.model, "", "it is condensed at 10100 of 100000 tokens");
    }
    let usage = Usage {
        input_tokens: 90_000,
        ..NO_USAGE
    };
    let content = vec![tool_call("z", "think", r#"{"thought":"t"}"#)];
    let reply = host.reply_with(&call.effect, content, StopReason::ToolUse, usage);
    assert_eq!(model_call(&host.send(vec![reply])).model, "small");
}

#[test]
fn pictures_that_were_viewed_weigh_in_before_the_provider_counts_them() {
    let picture = |n: u64| BlobRef {
        digest: format!("sha256:{n}"),
        media_type: "image/png".into(),
        size: 100,
    };
    for seen in [false, true] {
        let (mut host, call) = with_context(40_000);
        let mut call = model_call(&turn(&mut host, &call, 10));
        for round in 0..2 {
            assert_eq!(call.model, "", "condensed before round {round}");
            let calls: Vec<_> = (0..6).map(|n| format!("v{round}{n}")).collect();
            let view = r#"{"command":"view","path":"a.png"}"#;
            let calls: Vec<_> = calls
                .iter()
                .map(|id| (id.as_str(), "file_editor", view))
                .collect();
            let views = runs(&host.model_calls(&call, &calls));
            let mut inputs = Vec::new();
            for (run, n) in views.iter().zip(0..) {
                let outcome = ToolResult {
                    blobs: seen.then(|| picture(n)).into_iter().collect(),
                    ..ToolResult::ok(run.call.id.clone(), format!("Picture {round}:"))
                };
                inputs.push(Input::ToolReplied(ToolReply {
                    effect: run.effect.clone(),
                    entry: host.add(Message::tool(outcome.clone())),
                    outcome,
                }));
            }
            call = model_call(&host.send(inputs));
        }
        let expected = if seen { "small" } else { "" };
        assert_eq!(call.model, expected, "pictures seen: {seen}");
    }
}

#[test]
fn where_nobody_knows_the_limit_nothing_is_condensed_until_the_provider_says_so() {
    let (mut host, mut call) = Host::started();
    for _ in 0..40 {
        call = model_call(&turn(&mut host, &call, 30_000));
        assert_eq!(call.model, "");
    }
    let summary = model_call(&host.fails(&call.effect, ErrorKind::ContextTooLong));
    assert_eq!(summary.model, "small");
    let next = host.model_says(&summary, text("Notes."), StopReason::EndTurn);
    assert!(all_text(&host, &model_call(&next)).contains("Notes."));
}

#[test]
fn a_small_model_that_fails_is_replaced_by_the_sessions_own_and_then_by_leaving_out() {
    for (small, large, kept) in [
        (vec![], text("Notes."), true),
        (vec![tool_call("a", "terminal", "{}")], text("Notes."), true),
        (text("Notes."), vec![], true),
        (vec![], vec![], false),
    ] {
        let (mut host, call) = with_context(20_000);
        let mut call = until_summary(&mut host, call, 4000);
        for content in [small, large] {
            if call.model == "small" || all_text(&host, &call).contains("Write the notes now") {
                call = model_call(&host.model_says(&call, content, StopReason::EndTurn));
            }
        }
        let told = all_text(&host, &call);
        assert_eq!(told.contains("Notes."), kept, "{told}");
        assert_eq!(told.contains("left out here"), !kept);
    }
}

#[test]
fn a_refused_or_lost_summary_is_made_by_somebody() {
    let (mut host, call) = with_context(20_000);
    let call = until_summary(&mut host, call, 4000);
    let again = model_call(&host.send(vec![Input::EffectLost(call.effect)]));
    assert_eq!(again.model, "small");
    let refused = host.model_says(&again, text("I will not."), StopReason::Refusal);
    let own = model_call(&refused);
    assert_eq!(own.model, "");
    let call = model_call(&host.fails(&own.effect, ErrorKind::ContextTooLong));
    let told = all_text(&host, &call);
    assert!(
        told.contains("left out here") && !told.contains("I will not."),
        "{told}"
    );
}

#[test]
fn one_turn_that_is_too_long_by_itself_is_left_out_and_the_task_goes_on() {
    let (mut host, call) = Host::started();
    let call = model_call(&turn(&mut host, &call, 200_000));
    let mut call = model_call(&host.fails(&call.effect, ErrorKind::ContextTooLong));
    // Neither model reads it.
    for _ in 0..2 {
        call = model_call(&host.fails(&call.effect, ErrorKind::ContextTooLong));
    }
    let told = all_text(&host, &call);
    assert!(!told.contains("xxx") && told.contains("Fix the bug"));
    // What comes now is in the prompt again.
    let call = model_call(&turn(&mut host, &call, 5));
    assert!(all_text(&host, &call).contains("xxxxx"));
}

#[test]
fn a_task_that_is_too_long_itself_ends_with_a_sentence() {
    let (mut host, call) = Host::started();
    let commands = host.fails(&call.effect, ErrorKind::ContextTooLong);
    let error = failed(&commands);
    assert_eq!(error.kind, ErrorKind::ContextTooLong);
    assert!(error.message.contains("fewer words"), "{}", error.message);
}

#[test]
fn a_message_while_the_summary_is_written_is_in_the_next_prompt() {
    let (mut host, call) = with_context(20_000);
    let summary = until_summary(&mut host, call, 4000);
    assert!(host.user_says("Use tabs, please.").is_empty());
    let next = host.model_says(&summary, text("Notes."), StopReason::EndTurn);
    assert!(all_text(&host, &model_call(&next)).contains("Use tabs, please."));
}

#[test]
fn a_summary_that_comes_after_a_cancel_is_in_no_prompt() {
    let (mut host, call) = with_context(20_000);
    let summary = until_summary(&mut host, call, 4000);
    host.send(vec![Input::CancelRequested(String::new())]);
    let late = host.model_says(&summary, text("Late notes."), StopReason::EndTurn);
    assert!(late.is_empty());
    let again = model_call(&host.user_says("Go on."));
    assert!(!all_text(&host, &again).contains("Late notes."));
}

#[test]
fn the_last_model_calls_of_a_budget_are_not_spent_on_summaries() {
    let (mut host, mut call) = with_context(20_000);
    host.iterations_left = 2;
    for _ in 0..20 {
        call = model_call(&turn(&mut host, &call, 4000));
        assert_eq!(call.model, "");
    }
    assert!(all_text(&host, &call).contains("left out here"));
}

#[test]
fn a_deployment_may_name_the_models_that_work_and_summarise() {
    let mut host = Host::new();
    host.context_tokens = 20_000;
    let call = model_call(&host.start(r#"{"model":"large","summary_model":"tiny"}"#));
    assert_eq!(call.model, "large");
    let mut call = call;
    let summary = loop {
        call = model_call(&turn(&mut host, &call, 4000));
        if call.model != "large" {
            break call;
        }
    };
    assert_eq!(summary.model, "tiny");
}
