//! Asks the user, and takes the answer.
//!
//! # Invariants
//!
//! - At most one question is open, and while it is, nothing else is waited for.
//! - The user's next message is the answer, and is a user message in the transcript.

use lucid_plugin::policy::{Command, Commands, Context, Question as Ask};
use lucid_plugin::types::ToolResult;
use serde_json::json;

use crate::state::{Question, State, Waits};

const ANSWERED: &str = "The user answered. The answer is their next message.";

/// Asks a question, unless there is an unread user message.
pub(crate) fn put(ctx: &Context, s: &mut State, question: Question, out: &mut Commands) {
    if s.task.unread {
        let why = "Not asked: the user said something meanwhile. Read it first, and ask again only \
                   if the question is still open.";
        return refused(question.call_id, why, out);
    }
    let effect = format!("q{}", ctx.step);
    let mut title = question.text;
    for option in &question.options {
        title.push_str(&format!("\n- {option}"));
    }
    out.push(Command::Ask(Ask {
        effect: effect.clone(),
        title,
        detail: json!({ "options": question.options }).to_string(),
    }));
    s.task.waits = Waits::Answer {
        effect,
        call_id: question.call_id,
    };
}

/// Handles a user message while a question is open.
pub(crate) fn answered(s: &mut State, out: &mut Commands) {
    if let Waits::Answer { call_id, .. } = std::mem::take(&mut s.task.waits) {
        s.task.circles.forget();
        if let Some(id) = call_id {
            out.append_result(ToolResult::ok(id, ANSWERED));
        }
    }
}

/// Handles the host's failure to ask the question.
pub(crate) fn failed(call_id: Option<String>, why: &str, out: &mut Commands) {
    let text = format!(
        "The user could not be asked: {why} Decide it yourself, and say at the end how you did."
    );
    refused(call_id, &text, out);
}

fn refused(call_id: Option<String>, why: &str, out: &mut Commands) {
    if let Some(id) = call_id {
        out.append_result(ToolResult::failed(id, why));
    }
}
