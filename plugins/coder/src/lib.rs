//! The default agent: it asks a model, runs the tools the model calls, and goes on until the task
//! is done, given up, or out of budget.
//!
//! Always holds, at the end of every step of an open task: it waits for exactly one model call or
//! for at least one tool run, never both and never nothing. Every tool call a model made has an
//! answer in the transcript before the next model call, so the transcript is always one that a
//! provider accepts. An effect that is not waited for changes nothing.

mod own;
mod prompt;
mod repeats;
mod state;
mod turn;

use lucid_plugin::policy::{
    self, Answer, Commands, Context, Descriptor, Failure, Input, Policy, Start, UserMessage,
};
use lucid_plugin::types::{Error, ErrorKind, ToolResult};

pub use state::State;

/// The agent.
pub struct Coder;

impl Policy for Coder {
    type State = State;
    const SCHEMA: u32 = 1;

    fn describe() -> Descriptor {
        Descriptor {
            calls_models: true,
            needs_sandbox: true,
            ..policy::describe::<Self>(
                "coder",
                env!("CARGO_PKG_VERSION"),
                "Reads, edits and runs things in a workspace until a task is done.",
            )
        }
    }

    fn step(ctx: &Context, s: &mut State, input: Input, out: &mut Commands) -> Result<(), Error> {
        match input {
            Input::Started(start) => begin(s, start)?,
            Input::UserMessage(UserMessage { entry, .. })
            | Input::Answered(Answer { entry, .. }) => {
                user_spoke(s, entry);
            }
            Input::ModelReplied(reply) => turn::model_replied(ctx, s, reply, out),
            Input::ToolReplied(reply) => turn::tool_replied(s, &reply.effect, &reply.outcome),
            Input::EffectFailed(failure) => effect_failed(s, failure, out),
            Input::EffectLost(effect) => effect_lost(s, &effect, out),
            Input::CancelRequested(_) => cancel(s, out),
            Input::TimerFired(_) | Input::Upgraded(_) | Input::Other(_) => {}
        }
        Ok(())
    }

    fn settle(ctx: &Context, s: &mut State, out: &mut Commands) -> Result<(), Error> {
        if !s.open || s.asking.is_some() || !s.runs.is_empty() {
            return Ok(());
        }
        turn::settle(s, out);
        if s.open {
            ask(ctx, s, out);
        }
        Ok(())
    }
}

fn begin(s: &mut State, start: Start) -> Result<(), Error> {
    let settings = start.parsed_settings()?;
    *s = State {
        system: prompt::system(&start, &settings),
        settings,
        users: vec![start.entry],
        ..State::default()
    };
    s.take_host_tools(start.tools);
    s.open_task();
    Ok(())
}

fn user_spoke(s: &mut State, entry: u64) {
    s.users.push(entry);
    if s.open {
        // In the transcript already; only an end of the task must not pass over it.
        s.unread = true;
    } else {
        s.open_task();
    }
}

/// Asks the model for the next turn, unless a budget is used up.
fn ask(ctx: &Context, s: &mut State, out: &mut Commands) {
    if let Some(error) = prompt::used_up(ctx) {
        return close(s, |out| out.fail(error), out);
    }
    let effect = format!("m{}", ctx.step);
    out.call_model(prompt::call(ctx, s, &effect));
    s.asking = Some(effect);
    s.unread = false;
    s.answered_in_text = false;
}

/// Ends the task in the given way.
fn close(s: &mut State, how: impl FnOnce(&mut Commands), out: &mut Commands) {
    s.close_task();
    how(out);
}

fn effect_failed(s: &mut State, failure: Failure, out: &mut Commands) {
    if s.asking.as_ref() == Some(&failure.effect) {
        s.asking = None;
        // The host has tried again where that helps. A prompt that is too long can be made shorter.
        if failure.error.kind != ErrorKind::ContextTooLong || !s.leave_out_half() {
            close(s, |out| out.fail(failure.error), out);
        }
    } else {
        let text = format!("The tool could not be run: {}", failure.error.message);
        turn::host_gave_no_result(s, &failure.effect, text, out);
    }
}

fn effect_lost(s: &mut State, effect: &str, out: &mut Commands) {
    if s.asking.as_deref() == Some(effect) {
        // Nothing of the answer was seen, so asking once more repeats nothing.
        s.asking = None;
    } else {
        let text = "The host restarted while this ran. It may or may not have happened: check \
                    the state of the workspace before you repeat it.";
        turn::host_gave_no_result(s, effect, text.into(), out);
    }
}

fn cancel(s: &mut State, out: &mut Commands) {
    if !s.open {
        return;
    }
    if let Some(effect) = s.asking.take() {
        out.cancel(effect);
    }
    let call_of_finish = s.ending.take().and_then(|ending| ending.call_id);
    let runs = std::mem::take(&mut s.runs);
    for run in &runs {
        out.cancel(run.effect.clone());
    }
    for call_id in runs
        .into_iter()
        .map(|run| run.call_id)
        .chain(call_of_finish)
    {
        out.append_result(ToolResult::failed(call_id, turn::CANCELLED));
    }
    close(s, Commands::cancelled, out);
}

lucid_plugin::export_policy!(Coder);
