//! The default agent: it calls a model, runs the tools the model calls, and continues until the
//! task is done, given up, or out of budget.
//!
//! # Invariants
//!
//! - At the end of every step of an open task, the agent waits for exactly one model call, one
//!   inspection of the workspace or one answer of the user, or for at least one of the model's tool
//!   runs, never two of these and never nothing.
//! - Every tool call in a prompt has exactly one result there, so a provider always accepts the
//!   prompt.
//! - An effect that is not waited for changes nothing, and its transcript entries are in no prompt.

mod budget;
mod circles;
mod condense;
mod conversation;
mod ending;
mod marks;
mod migrate;
mod own;
mod prompt;
mod question;
mod state;
mod system;
mod turn;
mod worktree;

use lucid_plugin::policy::{
    self, Answer, Command, Commands, Context, Descriptor, Failure, Input, ModelReply, Outcome,
    Policy, Start, ToolReply, UserMessage,
};
use lucid_plugin::types::{Content, Error, ErrorKind, Message, ToolResult};

use crate::condense::Need;
use crate::conversation::{size_of_content, size_of_result};
use crate::state::Waits;

pub use state::State;

/// The default agent.
pub struct Coder;

impl Policy for Coder {
    type State = State;
    const SCHEMA: u32 = 2;
    const OLDEST_SCHEMA: u32 = 1;

    fn describe() -> Descriptor {
        Descriptor {
            calls_models: true,
            needs_sandbox: true,
            settings_schema: Some(state::SETTINGS.into()),
            ..policy::describe::<Self>(
                "coder",
                env!("CARGO_PKG_VERSION"),
                "Reads, edits and runs things in a workspace until a task is done.",
            )
        }
    }

    fn step(ctx: &Context, s: &mut State, input: Input, out: &mut Commands) -> Result<(), Error> {
        match input {
            Input::Started(start) => begin(ctx, s, start)?,
            Input::UserMessage(UserMessage { entry, content }) => {
                user_spoke(s, None, entry, &content, out);
            }
            Input::Answered(Answer {
                effect,
                entry,
                text,
            }) => {
                user_spoke(s, Some(&effect), entry, &[Content::Text(text)], out);
            }
            Input::ModelReplied(reply) => model_replied(ctx, s, reply, out),
            Input::ToolReplied(reply) => tool_replied(s, &reply),
            Input::EffectFailed(failure) => effect_failed(s, failure, out),
            Input::EffectLost(effect) => effect_lost(s, &effect, out),
            Input::CancelRequested(_) => cancel(s, out),
            Input::Other(custom) if custom.kind == "lucid.workspace-lost" => {
                workspace_lost(&custom.body, out);
            }
            Input::TimerFired(_) | Input::Upgraded(_) | Input::Other(_) => {}
        }
        Ok(())
    }

    fn settle(ctx: &Context, s: &mut State, out: &mut Commands) -> Result<(), Error> {
        let counted = out.as_slice().len();
        s.conversation.appended(out.as_slice());
        if s.is_due() {
            turn::settle(ctx, s, out);
        }
        s.conversation.appended(&out.as_slice()[counted..]);
        if s.is_due() {
            ask(ctx, s, out);
        }
        if let Some(outcome) = s.over.take() {
            out.push(Command::Finish(outcome));
        }
        Ok(())
    }

    fn migrate(_: u32, old: serde_json::Value) -> Result<State, Error> {
        migrate::from_first(old)
    }
}

fn begin(ctx: &Context, s: &mut State, mut start: Start) -> Result<(), Error> {
    let settings: state::Settings = start.parsed_settings()?;
    let pushes = settings.push && start.repository.is_some();
    let branch = pushes.then(|| worktree::branch(&start.task, &ctx.session));
    let clone = system::take_clone(&mut start.tools);
    *s = State {
        system: system::prompt(&start, &settings, branch.as_deref(), clone.as_deref()),
        settings,
        branch,
        ..State::default()
    };
    s.take_models(&start);
    s.conversation.user(start.entry, start.task.len() as u64);
    s.take_host_tools(start.tools);
    s.open_task();
    Ok(())
}

/// Handles a user message. `answers` is the question that the host closed with it.
fn user_spoke(
    s: &mut State,
    answers: Option<&str>,
    entry: u64,
    content: &[Content],
    out: &mut Commands,
) {
    let bytes = content.iter().map(size_of_content).sum();
    s.conversation.user(entry, bytes);
    if !s.open {
        // A task that ended in this very step was open when the user spoke: it continues.
        s.over = None;
        return s.open_task();
    }
    if let Waits::Answer { effect, .. } = &s.task.waits {
        // The host passes the user's message as the answer. A separate message counts as one too.
        if answers != Some(effect) {
            out.cancel(effect.clone());
        }
        question::answered(s, out);
    }
    // Already in the transcript: an end of the task just must not ignore it.
    s.task.unread = true;
}

fn model_replied(ctx: &Context, s: &mut State, reply: ModelReply, out: &mut Commands) {
    match &s.task.waits {
        Waits::Reply(effect) if *effect == reply.effect => turn::model_replied(ctx, s, reply, out),
        Waits::Summary { effect, cut } if *effect == reply.effect => {
            let cut = *cut;
            s.task.waits = Waits::Nothing;
            condense::replied(s, cut, &reply);
        }
        // It was faster than our `cancel`. Nothing answers its calls, so no prompt may contain it.
        _ => s.conversation.skip(reply.entry),
    }
}

fn tool_replied(s: &mut State, reply: &ToolReply) {
    if s.task.waits == Waits::Worktree(reply.effect.clone()) {
        s.conversation.skip(reply.entry);
        ending::looked(s, Some(&reply.outcome));
    } else if turn::tool_replied(s, &reply.effect, &reply.outcome) {
        s.conversation
            .came(reply.entry, size_of_result(&reply.outcome));
    } else {
        // Its call has a result already.
        s.conversation.skip(reply.entry);
    }
}

/// Handles the host's report that the session's files are lost.
fn workspace_lost(body: &str, out: &mut Commands) {
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let text = body["text"].as_str().unwrap_or("The workspace is gone.");
    out.append(Message::user(format!("[{text}]")));
}

/// Calls the model for the next turn, or for a summary, unless a budget is exhausted.
fn ask(ctx: &Context, s: &mut State, out: &mut Commands) {
    if let Some(error) = budget::used_up(ctx) {
        return close(s, Outcome::Failed(error));
    }
    let effect = format!("s{}", ctx.step);
    match condense::need(ctx, s, &effect) {
        Need::Nothing => {
            let effect = format!("m{}", ctx.step);
            out.call_model(prompt::call(ctx, s, &effect));
            s.task.waits = Waits::Reply(effect);
            s.task.spent.note(ctx);
            s.task.unread = false;
        }
        Need::Summary { call, cut } => {
            out.call_model(call);
            s.task.waits = Waits::Summary { effect, cut };
        }
        Need::Hopeless(error) => close(s, Outcome::Failed(error)),
    }
}

/// Ends the task, unless the user says more within this step: then it continues with that.
fn close(s: &mut State, outcome: Outcome) {
    s.close_task();
    s.over = Some(outcome);
}

fn effect_failed(s: &mut State, failure: Failure, out: &mut Commands) {
    let Failure { effect, error } = failure;
    if s.task.waits.effect() != Some(&effect) {
        let text = format!("The tool could not be run: {}", error.message);
        return turn::host_gave_no_result(s, &effect, text, out);
    }
    match std::mem::take(&mut s.task.waits) {
        // The host has retried where that helps. A prompt that is too long can be shortened.
        Waits::Reply(_) => match error.kind {
            ErrorKind::ContextTooLong => s.task.too_long = true,
            ErrorKind::Refused => turn::refused(s, &error.message, out),
            _ => close(s, Outcome::Failed(error)),
        },
        Waits::Summary { cut, .. } => condense::failed(s, cut),
        Waits::Worktree(_) => ending::looked(s, None),
        Waits::Answer { call_id, .. } => question::failed(call_id, &error.message, out),
        Waits::Nothing => {}
    }
}

fn effect_lost(s: &mut State, effect: &str, out: &mut Commands) {
    if s.task.waits.effect() != Some(effect) {
        let text = "The host restarted while this ran. It may or may not have happened: check \
                    the state of the workspace before you repeat it.";
        return turn::host_gave_no_result(s, effect, text.into(), out);
    }
    match std::mem::take(&mut s.task.waits) {
        // Nothing of the reply was seen, so another call repeats nothing.
        Waits::Nothing | Waits::Reply(_) | Waits::Summary { .. } => {}
        Waits::Worktree(_) => ending::looked(s, None),
        Waits::Answer { call_id, .. } => {
            question::failed(call_id, "the host restarted meanwhile.", out);
        }
    }
}

fn cancel(s: &mut State, out: &mut Commands) {
    if !s.open {
        return;
    }
    if let Some(effect) = s.task.waits.effect() {
        out.cancel(effect);
    }
    let task = std::mem::take(&mut s.task);
    for run in &task.runs {
        out.cancel(run.effect.clone());
    }
    let asked = match task.waits {
        Waits::Answer { call_id, .. } => call_id,
        _ => None,
    };
    let finish = task.ending.and_then(|ending| ending.call_id);
    let question = task.question.and_then(|question| question.call_id);
    let runs = task.runs.into_iter().map(|run| run.call_id);
    for call_id in runs.chain(finish).chain(question).chain(asked) {
        out.append_result(ToolResult::failed(call_id, turn::CANCELLED));
    }
    close(s, Outcome::Cancelled);
}

lucid_plugin::export_policy!(Coder);
