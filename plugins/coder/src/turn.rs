//! One turn of the model: its reply, the tools it called, and how the task continues after their
//! results.
//!
//! # Invariants
//!
//! - Every tool call of a reply is either run by the host or answered here, exactly once.
//! - How the task continues is decided only when all results of the turn are in.

use std::fmt;

use lucid_plugin::cut;
use lucid_plugin::policy::{Commands, Context, ModelReply, Outcome};
use lucid_plugin::types::{Content, Error, ErrorKind, Message, StopReason, ToolCall, ToolResult};
use serde_json::Value;

use crate::circles::{Found, STUCK_AT, TELL_AT};
use crate::state::{Ending, Question, Run, State, Touches, Turn, Waits};
use crate::{close, ending, marks, own, question};

/// The number of consecutive replies without effect after which the task is given up.
const IDLE_LIMIT: u32 = 3;
/// The number of consecutive turns without a runnable call after which the task is given up.
const MALFORMED_LIMIT: u32 = 5;
/// How much of a call is displayed, in characters.
const SHOWN: usize = 200;

pub(crate) const CANCELLED: &str = "The user cancelled this before it ended.";

/// Handles the model's next turn.
pub(crate) fn model_replied(ctx: &Context, s: &mut State, reply: ModelReply, out: &mut Commands) {
    s.conversation
        .turn(reply.entry, &reply.message, &reply.usage);
    s.task.waits = Waits::Nothing;
    s.task.turn = Turn::default();
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

    if reply.stop == StopReason::Refusal {
        for call in calls {
            let text = "Not run: the answer was refused.";
            out.append_result(ToolResult::failed(call.id, text));
        }
        return refused(s, &text, out);
    }
    if calls.is_empty() {
        return answered_in_text(s, &text, reply.stop, out);
    }
    s.task.idle = 0;
    s.task.refusals = 0;
    s.task.turn.shown = shown(&calls[0]);
    for (n, call) in calls.into_iter().enumerate() {
        take_call(ctx, s, n, call, reply.stop, out);
    }
}

fn shown(call: &ToolCall) -> String {
    cut(&format!("{} {}", call.name, call.arguments), SHOWN)
}

/// Handles a refusal by the model, or by a filter before it. It is called once more.
pub(crate) fn refused(s: &mut State, why: &str, out: &mut Commands) {
    s.task.refusals += 1;
    if s.task.refusals == 1 {
        return out.append(Message::user(
            "[Your last answer was declined before it was complete. If a part of the task is \
             something that you will not do, leave that part out and say so; go on with the rest. \
             If nothing is left, call `finish` with success false and say why.]",
        ));
    }
    let text = match why.trim() {
        "" => "The model declined to work on this task, also when it was asked again.".into(),
        why => format!("The model declined to work on this task: {why}"),
    };
    close(s, Outcome::Failed(Error::new(ErrorKind::Refused, text)));
}

/// Handles a reply without tool calls: the end of the task, or an unusable reply.
fn answered_in_text(s: &mut State, text: &str, stop: StopReason, out: &mut Commands) {
    let text = text.trim();
    let note = match stop {
        StopReason::MaxTokens => {
            "Your answer reached the output limit and was cut off. Go on from where it stopped. \
             Take smaller steps: write long files in several parts."
        }
        StopReason::ToolUse => {
            "No tool call arrived with your answer: what you may have written as one was taken for \
             text. Call the tool again, with one of the names you were given and its arguments as one \
             JSON object, or call `finish`."
        }
        StopReason::Other => {
            "Your answer broke off before it was whole. Go on from where it stopped, by calling a \
             tool, or call `finish` if the task is done."
        }
        _ if text.is_empty() => {
            "Your answer was empty. Go on with the task by calling a tool, or call `finish` if it \
             is done."
        }
        _ => {
            s.task.ending = Some(Ending {
                call_id: None,
                message: text.into(),
                success: true,
            });
            return;
        }
    };
    s.task.idle += 1;
    if s.task.idle >= IDLE_LIMIT {
        let what = match stop {
            StopReason::MaxTokens => "reached the output limit",
            StopReason::Other => "broke off",
            _ => "held nothing to go on with",
        };
        let error = Error::upstream(format!(
            "The model's answer {what} {IDLE_LIMIT} times in a row."
        ));
        return close(s, Outcome::Failed(error));
    }
    out.append(Message::user(note));
}

/// Handles one tool call: run by the host, or answered at once.
fn take_call(
    ctx: &Context,
    s: &mut State,
    n: usize,
    mut call: ToolCall,
    stop: StopReason,
    out: &mut Commands,
) {
    let mark = marks::of_call(&call.name, &call.arguments);
    let own =
        own::NAMES.contains(&call.name.as_str()) && (s.settings.ask || call.name != own::ASK_USER);
    if !own && !s.has_host_tool(&call.name) {
        let text = format!("There is no tool `{}`. There are: {}.", call.name, known(s));
        return answer(s, mark, ToolResult::failed(call.id, text), out);
    }
    let arguments = match read_arguments(&call.arguments, stop) {
        Ok(arguments) => arguments,
        Err(why) => {
            let then = match stop {
                StopReason::MaxTokens => {
                    " Your answer was cut off at the output limit: send less at once, and write \
                     long files in several parts."
                }
                StopReason::Other => " Your answer broke off before it was whole.",
                _ => "",
            };
            let text = format!(
                "The arguments of {} are not one JSON object ({why}). It was not run; call it \
                 again with one.{then}",
                call.name
            );
            return answer(s, mark, ToolResult::failed(call.id, text), out);
        }
    };
    if own {
        match own::call(s, &call.name, &call.id, &arguments.to_string(), out) {
            None => s.task.turn.runnable = true,
            Some(result) => {
                s.task.turn.runnable |= !result.is_error;
                answer(s, mark, result, out);
            }
        }
        return;
    }
    s.task.turn.runnable = true;
    let effect = format!("t{}-{n}", ctx.step);
    s.task.runs.push(Run {
        effect: effect.clone(),
        call_id: call.id.clone(),
        mark,
        touches: touches(&call.name, &arguments),
    });
    call.arguments = arguments.to_string();
    out.run_tool(effect, call);
}

fn known(s: &State) -> String {
    let host = s.host_tools.iter().map(|tool| tool.name.clone());
    let own = own::definitions(s.settings.ask).map(|tool| tool.name);
    host.chain(own).collect::<Vec<_>>().join(", ")
}

/// Why a tool's arguments are no object.
enum ArgumentsError {
    /// The answer ended before them.
    Missing,
    /// They are no JSON.
    Json(serde_json::Error),
    /// They are other JSON.
    NotAnObject,
}

impl fmt::Display for ArgumentsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("they are missing"),
            Self::Json(error) => fmt::Display::fmt(error, f),
            Self::NotAnObject => f.write_str("it is something else"),
        }
    }
}

/// A tool's arguments as an object. An empty text means none, and some models wrap them in a
/// string.
fn read_arguments(text: &str, stop: StopReason) -> Result<Value, ArgumentsError> {
    if text.trim().is_empty() {
        if matches!(stop, StopReason::MaxTokens | StopReason::Other) {
            return Err(ArgumentsError::Missing);
        }
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let read = |text: &str| serde_json::from_slice(text.as_bytes()).map_err(ArgumentsError::Json);
    let mut value: Value = read(text)?;
    if let Value::String(inner) = &value {
        value = read(inner)?;
    }
    if value.is_object() {
        Ok(value)
    } else {
        Err(ArgumentsError::NotAnObject)
    }
}

fn touches(tool: &str, arguments: &Value) -> Touches {
    match (tool, arguments.get("command").and_then(Value::as_str)) {
        ("file_editor", Some("view")) => Touches::Nothing,
        ("file_editor", _) => Touches::File,
        _ => Touches::Anything,
    }
}

/// Handles the result of a tool run, which is in the transcript. Returns false if it is not
/// pending.
pub(crate) fn tool_replied(s: &mut State, effect: &str, result: &ToolResult) -> bool {
    let Some(run) = take_run(s, effect) else {
        return false;
    };
    match run.touches {
        Touches::Nothing => {}
        Touches::File if result.is_error => {}
        Touches::File => {
            s.task.worked = true;
            s.task.unverified = true;
        }
        Touches::Anything => {
            s.task.worked = true;
            // A refused command verifies nothing.
            s.task.unverified &= result.is_error && result.exit_code.is_none();
        }
    }
    count(s, run.mark, result);
    true
}

/// Handles a tool run without a result from the host, so the transcript gets one from here.
pub(crate) fn host_gave_no_result(s: &mut State, effect: &str, text: String, out: &mut Commands) {
    if let Some(run) = take_run(s, effect) {
        s.task.worked |= run.touches != Touches::Nothing;
        answer(s, run.mark, ToolResult::failed(run.call_id, text), out);
    }
}

fn take_run(s: &mut State, effect: &str) -> Option<Run> {
    let at = s.task.runs.iter().position(|run| run.effect == effect)?;
    Some(s.task.runs.remove(at))
}

fn answer(s: &mut State, mark: u64, result: ToolResult, out: &mut Commands) {
    count(s, mark, &result);
    out.append_result(result);
}

/// Adds a result to the turn. Hashes are summed, so the order of results makes no difference.
fn count(s: &mut State, mark: u64, result: &ToolResult) {
    s.task.turn.results += 1;
    let mark = marks::with_result(mark, result);
    s.task.turn.mark = s.task.turn.mark.wrapping_add(mark);
    s.task.turn.bad |= result.is_bad();
}

/// Handles the end of a turn with all results: ends the task, asks the user, or leaves it open for
/// the next model call.
pub(crate) fn settle(ctx: &Context, s: &mut State, out: &mut Commands) {
    let ended = s.task.ending.take();
    if let Some(asked) = s.task.question.take() {
        if let Some(id) = ended.and_then(|ending| ending.call_id) {
            let why = "Not finished: you asked the user something along with it.";
            out.append_result(ToolResult::failed(id, why));
        }
        question::put(ctx, s, asked, out);
    } else if let Some(ended) = ended {
        ending::settle(ctx, s, ended, out);
    } else if s.task.turn.results > 0 {
        look_for_circles(ctx, s, out);
    }
    s.task.turn = Turn::default();
}

fn look_for_circles(ctx: &Context, s: &mut State, out: &mut Commands) {
    let runnable = s.task.turn.runnable;
    s.task.malformed = if runnable { 0 } else { s.task.malformed + 1 };
    if s.task.malformed >= MALFORMED_LIMIT {
        let text = format!(
            "The model wrote tool calls that could not be run {MALFORMED_LIMIT} times in a row."
        );
        let error = Error::upstream(text).with_code("malformed");
        return close(s, Outcome::Failed(error));
    }
    let what = |length: usize, shown: &str| match length {
        1 => format!("the same call (`{shown}`)"),
        more => format!("the same {more} turns (the last one began with `{shown}`)"),
    };
    let shown = std::mem::take(&mut s.task.turn.shown);
    match s.task.circles.turn(s.task.turn.mark) {
        Found::Nothing => {}
        Found::Circle(length) => out.append(Message::user(format!(
            "[You have made {} {TELL_AT} times in a row, and the result did not change. It will \
             not change next time either. Take a different way: look at the cause, or read \
             something you have not read yet.]",
            what(length, &shown)
        ))),
        Found::Stuck(length) => stuck(ctx, s, &what(length, &shown), out),
    }
}

/// Handles a model that does not leave a circle: the user is asked once, then the task is given up.
fn stuck(ctx: &Context, s: &mut State, what: &str, out: &mut Commands) {
    if s.settings.ask && !std::mem::replace(&mut s.task.circles.asked, true) {
        let text = format!(
            "I do not get further: I made {what} {STUCK_AT} times in a row with the same result. \
             What shall I try, or shall I stop here?"
        );
        let asked = Question {
            call_id: None,
            text,
            options: Vec::new(),
        };
        return question::put(ctx, s, asked, out);
    }
    let text = format!(
        "The model got stuck: it made {what} {STUCK_AT} times in a row with the same result. What \
         was done so far is in the workspace."
    );
    let error = Error::upstream(text).with_code("loop");
    close(s, Outcome::Failed(error));
}
