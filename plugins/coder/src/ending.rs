//! The end of a task: what prevents it, and the final message.
//!
//! # Invariants
//!
//! - The model is sent back once for each reason that it could not know or forgot, never again for
//!   the same one, and not when the budget has no room for it.
//! - A task that was given up ends.

use lucid_plugin::policy::{Commands, Context, Outcome};
use lucid_plugin::types::{Error, ErrorKind, Message, ToolCall, ToolResult};
use serde_json::json;

use crate::close;
use crate::state::{Ending, State, Waits};
use crate::worktree::{LOOK, Worktree};

pub(crate) const TERMINAL: &str = "terminal";
/// The number of model calls that must be left to send the model back: one to act, one to finish.
const ROOM: u64 = 2;

/// Handles the model's wish to end the task, once everything it called along with that is answered.
pub(crate) fn settle(ctx: &Context, s: &mut State, ending: Ending, out: &mut Commands) {
    let looked = s.task.worktree.take();
    if s.task.unread && ending.call_id.is_none() {
        // Otherwise the prompt would end with the model's own text, and the user's message, which
        // arrived while it was written, precedes that.
        return out.append(Message::user(
            "[While you wrote your last answer the user sent another message; it stands above \
             that answer. Go on with it.]",
        ));
    }
    if let Some(why) = objection(ctx, s, &ending, looked.as_ref()) {
        return send_back(ending, &why, out);
    }
    if looked.is_none() && ending.success && looks(s) {
        s.task.ending = Some(ending);
        return look(ctx, s, out);
    }
    end(s, ending, looked.as_ref(), out);
}

fn objection(
    ctx: &Context,
    s: &mut State,
    ending: &Ending,
    looked: Option<&Worktree>,
) -> Option<String> {
    if s.task.unread {
        return Some("Not finished: the user said something meanwhile. Read it first.".into());
    }
    if s.task.turn.bad {
        return Some(
            "Not finished: a tool you called along with `finish` failed. Look at its result first."
                .into(),
        );
    }
    if !ending.success || s.task.spent.calls_left(ctx) < ROOM {
        return None;
    }
    let terminal = s.has_host_tool(TERMINAL);
    if s.task.unverified && terminal && !std::mem::replace(&mut s.task.told_to_verify, true) {
        return Some(
            "Not finished yet: you changed files and have run nothing since. Verify the change \
             first: run the tests that cover it, or build or run what you changed, and read the \
             output. Then call `finish`. If there is nothing that could be run, call it at once."
                .into(),
        );
    }
    if s.task.told_to_push {
        return None;
    }
    let objection = looked?.objection(s.branch.as_deref()?)?;
    s.task.told_to_push = true;
    Some(objection)
}

fn send_back(ending: Ending, why: &str, out: &mut Commands) {
    match ending.call_id {
        Some(id) => out.append_result(ToolResult::failed(id, why)),
        // The text is the model's last message. Without a note it would also be the end of the
        // prompt.
        None => out.append(Message::user(format!("[{why}]"))),
    }
}

/// Whether git is asked for the state of the work.
fn looks(s: &State) -> bool {
    s.branch.is_some() && s.task.worked && s.has_host_tool(TERMINAL)
}

fn look(ctx: &Context, s: &mut State, out: &mut Commands) {
    let effect = format!("w{}", ctx.step);
    let call = ToolCall {
        id: format!("lucid-{effect}"),
        name: TERMINAL.into(),
        arguments: json!({ "command": LOOK, "timeout": 60 }).to_string(),
    };
    out.run_tool(effect.clone(), call);
    s.task.waits = Waits::Worktree(effect);
}

/// Handles git's answer, or its failure.
pub(crate) fn looked(s: &mut State, result: Option<&ToolResult>) {
    s.task.waits = Waits::Nothing;
    let read = result.filter(|result| !result.is_bad());
    let read = read.map(|result| Worktree::read(&result.text));
    s.task.worktree = Some(read.unwrap_or_default());
}

fn end(s: &mut State, ending: Ending, looked: Option<&Worktree>, out: &mut Commands) {
    let called = ending.call_id.is_some();
    if let Some(id) = ending.call_id {
        out.append_result(ToolResult::ok(id, "Finished."));
    }
    let mut message = ending.message;
    if !ending.success {
        let error = Error::new(ErrorKind::Unsupported, message).with_code("gave_up");
        return close(s, Outcome::Failed(error));
    }
    let said = s.branch.as_deref().zip(looked);
    if let Some(said) = said.and_then(|(own, looked)| looked.said(&message, own)) {
        message.push_str("\n\n");
        message.push_str(&said);
    }
    if called {
        // A reply's text is streamed to the user, but the text within the call is not.
        out.emit("AgentMessageAction", message.as_str(), &json!({}));
    }
    close(s, Outcome::Succeeded(message));
}
