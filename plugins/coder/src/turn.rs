//! One turn of the model: its reply, the tools it called, and what follows from their results.
//!
//! Always holds: every tool call of a reply is either run by the host or answered here, once; and
//! how the task goes on is decided only when all answers of the turn are there.

use lucid_plugin::policy::{Commands, Context, ModelReply};
use lucid_plugin::types::{Content, Error, ErrorKind, Message, StopReason, ToolCall, ToolResult};
use serde_json::Value;

use crate::repeats::{self, GIVE_UP_AT, TELL_AT};
use crate::state::{Ending, Run, State, Turn};
use crate::{close, own};

/// So many answers in a row that bring nothing, and the task is given up.
const IDLE_LIMIT: u32 = 3;

pub(crate) const CANCELLED: &str = "The user cancelled this before it ended.";

/// The model answered.
pub(crate) fn model_replied(ctx: &Context, s: &mut State, reply: ModelReply, out: &mut Commands) {
    let text = reply.message.joined_text();
    let calls: Vec<ToolCall> = reply
        .message
        .content
        .into_iter()
        .filter_map(|piece| match piece {
            Content::ToolCall(call) => Some(call),
            _ => None,
        })
        .collect();
    s.replies.push(reply.entry);

    if s.asking.as_ref() != Some(&reply.effect) {
        // It was faster than our `cancel`. It is in the transcript, so its calls need an answer.
        answer_all(&calls, CANCELLED, out);
        return;
    }
    s.asking = None;
    s.turn = Turn::default();
    s.answered_in_text = calls.is_empty();

    if reply.stop == StopReason::Refusal {
        answer_all(&calls, "Not run: the answer was refused.", out);
        let why = if text.trim().is_empty() {
            "The model declined to answer."
        } else {
            text.trim()
        };
        let error = Error::new(ErrorKind::Refused, why);
        return close(s, |out| out.fail(error), out);
    }
    if calls.is_empty() {
        return answered_in_text(s, &text, reply.stop, out);
    }
    s.idle = 0;
    for (n, call) in calls.into_iter().enumerate() {
        take_call(ctx, s, n, call, reply.stop, out);
    }
}

/// A reply without tool calls: the end of the task, or nothing to go by.
fn answered_in_text(s: &mut State, text: &str, stop: StopReason, out: &mut Commands) {
    let text = text.trim();
    let note = match stop {
        StopReason::MaxTokens => {
            "Your answer reached the output limit and was cut off. Go on from where it stopped. \
             Take smaller steps: write long files in several parts."
        }
        StopReason::ToolUse => {
            "No tool call arrived with your answer. Call the tool again, or call `finish`."
        }
        _ if text.is_empty() => {
            "Your answer was empty. Go on with the task by calling a tool, or call `finish` if it \
             is done."
        }
        _ => {
            s.ending = Some(Ending {
                call_id: None,
                message: text.into(),
                success: true,
            });
            return;
        }
    };
    s.idle += 1;
    if s.idle >= IDLE_LIMIT {
        let what = match stop {
            StopReason::MaxTokens => "reached the output limit",
            _ => "held nothing to go on with",
        };
        let error = Error::upstream(format!(
            "The model's answer {what} {IDLE_LIMIT} times in a row."
        ));
        return close(s, |out| out.fail(error), out);
    }
    s.answered_in_text = false;
    out.append(Message::user(note));
}

/// One tool call: run by the host, or answered at once.
fn take_call(
    ctx: &Context,
    s: &mut State,
    n: usize,
    mut call: ToolCall,
    stop: StopReason,
    out: &mut Commands,
) {
    let mark = repeats::of_call(&call.name, &call.arguments);
    let own = own::NAMES.contains(&call.name.as_str());
    if !own && !s.host_tools.iter().any(|tool| tool.name == call.name) {
        let known: Vec<&str> = s
            .host_tools
            .iter()
            .map(|t| t.name.as_str())
            .chain(own::NAMES)
            .collect();
        let text = format!(
            "There is no tool `{}`. There are: {}.",
            call.name,
            known.join(", ")
        );
        return answer(s, mark, ToolResult::failed(call.id, text), out);
    }
    let arguments = match read_arguments(&call.arguments) {
        Ok(arguments) => arguments,
        Err(why) => {
            let cut = match stop {
                StopReason::MaxTokens => {
                    " Your answer was cut off at the output limit: send less at once."
                }
                _ => "",
            };
            let text = format!(
                "The arguments of {} are not one JSON object ({why}). It was not run; call it \
                 again with one.{cut}",
                call.name
            );
            return answer(s, mark, ToolResult::failed(call.id, text), out);
        }
    };
    if own {
        match own::call(s, &call.name, &call.id, &arguments, out) {
            None => {}
            Some(Ok(text)) => answer(s, mark, ToolResult::ok(call.id, text), out),
            Some(Err(text)) => answer(s, mark, ToolResult::failed(call.id, text), out),
        }
        return;
    }
    let effect = format!("t{}-{n}", ctx.step);
    s.runs.push(Run {
        effect: effect.clone(),
        call_id: call.id.clone(),
        mark,
    });
    call.arguments = arguments.to_string();
    out.run_tool(effect, call);
}

/// A tool's arguments as an object. Nothing at all means none; some models wrap them in a string.
fn read_arguments(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let mut value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if let Value::String(inner) = &value {
        value = serde_json::from_str(inner).map_err(|e| e.to_string())?;
    }
    if value.is_object() {
        Ok(value)
    } else {
        Err("it is something else".into())
    }
}

/// The host ran a tool; its result is in the transcript.
pub(crate) fn tool_replied(s: &mut State, effect: &str, result: &ToolResult) {
    if let Some(run) = take_run(s, effect) {
        count(s, run.mark, result);
    }
}

/// The host has no result for a tool run, so the transcript gets one from here.
pub(crate) fn host_gave_no_result(s: &mut State, effect: &str, text: String, out: &mut Commands) {
    if let Some(run) = take_run(s, effect) {
        answer(s, run.mark, ToolResult::failed(run.call_id, text), out);
    }
}

fn take_run(s: &mut State, effect: &str) -> Option<Run> {
    let at = s.runs.iter().position(|run| run.effect == effect)?;
    Some(s.runs.remove(at))
}

fn answer(s: &mut State, mark: u64, result: ToolResult, out: &mut Commands) {
    count(s, mark, &result);
    out.append_result(result);
}

fn answer_all(calls: &[ToolCall], text: &str, out: &mut Commands) {
    for call in calls {
        out.append_result(ToolResult::failed(call.id.clone(), text));
    }
}

/// Takes a result into the turn. Marks are added up: the order that results come in is no change.
fn count(s: &mut State, mark: u64, result: &ToolResult) {
    s.turn.results += 1;
    s.turn.mark = s.turn.mark.wrapping_add(repeats::with_result(mark, result));
    s.turn.bad |= result.is_bad();
}

/// All answers of the turn are there: ends the task, or leaves it open for the next model call.
pub(crate) fn settle(s: &mut State, out: &mut Commands) {
    if let Some(ending) = s.ending.take() {
        end(s, ending, out);
    } else if s.turn.results > 0 {
        look_for_circles(s, out);
    }
    s.turn = Turn::default();
}

/// The model wants to end the task. That holds unless it could not know all that concerns it.
fn end(s: &mut State, ending: Ending, out: &mut Commands) {
    let objection = if s.unread {
        Some("Not finished: the user said something meanwhile. Read it first.")
    } else if s.turn.bad {
        Some(
            "Not finished: a tool you called along with `finish` failed. Look at its result first.",
        )
    } else {
        None
    };
    match (ending.call_id, objection) {
        (Some(id), Some(why)) => return out.append_result(ToolResult::failed(id, why)),
        (Some(id), None) => out.append_result(ToolResult::ok(id, "Finished.")),
        (None, Some(_)) => return,
        (None, None) => {}
    }
    let message = ending.message;
    if ending.success {
        close(s, |out| out.succeed(message), out);
    } else {
        let error = Error::new(ErrorKind::Unsupported, message).with_code("gave_up");
        close(s, |out| out.fail(error), out);
    }
}

fn look_for_circles(s: &mut State, out: &mut Commands) {
    s.repeats = if s.turn.mark == s.last_turn {
        s.repeats + 1
    } else {
        1
    };
    s.last_turn = s.turn.mark;
    if s.repeats >= GIVE_UP_AT {
        let text = format!(
            "The model repeated the same call with the same result {GIVE_UP_AT} times in a row."
        );
        let error = Error::upstream(text).with_code("loop");
        close(s, |out| out.fail(error), out);
    } else if s.repeats == TELL_AT {
        out.append(Message::user(format!(
            "You have made the same call {TELL_AT} times in a row, and its result did not change. \
             It will not change next time either. Take a different way: look at the cause, or \
             read something you have not read yet."
        )));
    }
}
