//! The prompt of a model call: the selected parts of the transcript, and the notes around them.
//!
//! # Invariants
//!
//! - The system prompt does not change within a session, and notes come after the transcript, so
//!   that as much as possible of a provider's prompt cache is used.

use lucid_plugin::policy::{Context, ModelCall, Part};
use lucid_plugin::types::{Message, ToolDefinition};

use crate::budget;
use crate::own;
use crate::state::State;

/// The next model call.
pub(crate) fn call(ctx: &Context, s: &State, effect: &str) -> ModelCall {
    ModelCall {
        model: s.model.name.clone(),
        max_output_tokens: s.settings.max_output_tokens,
        params: serde_json::Value::Object(s.settings.params.clone()).to_string(),
        ..ModelCall::new(effect, parts(ctx, s), tools(s))
    }
}

fn parts(ctx: &Context, s: &State) -> Vec<Part> {
    let mut parts = vec![Part::Inline(Message::system(&s.system))];
    if s.conversation.whole_from.is_some() {
        parts.extend(s.conversation.earlier_words());
        parts.push(Part::Inline(Message::user(condensed(s))));
    }
    parts.extend(s.conversation.latest());
    if let Some(note) = budget::wrap_up(s.task.spent.calls_left(ctx)) {
        parts.push(Part::Inline(Message::user(note)));
    }
    parts
}

/// The text that replaces the part of the conversation that is not in the prompt verbatim.
pub(crate) fn condensed(s: &State) -> String {
    let mut text = String::new();
    if let Some(summary) = &s.conversation.summary {
        text.push_str(
            "[The conversation became too long. These are your own notes of its earlier part; they \
             are not the user's words.]\n<notes>\n",
        );
        // A summary may contain anybody's text, which must not be able to close the block.
        text.push_str(&summary.replace("</notes", "<\\/notes"));
        text.push_str("\n</notes>");
    }
    if s.conversation.left_out {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(
            "[Earlier work was left out here because the conversation became too long. Look at \
             the workspace again instead of relying on memory.]",
        );
    }
    if !s.plan.is_empty() {
        text.push('\n');
        text.push_str(&own::listed(&s.plan));
    }
    text
}

/// The tools that the model may call.
pub(crate) fn tools(s: &State) -> Vec<ToolDefinition> {
    let host = s.host_tools.iter().map(|tool| ToolDefinition {
        name: tool.name.clone(),
        description: tool.description.clone(),
        input_schema: tool.schema.clone(),
    });
    host.chain(own::definitions(s.settings.ask)).collect()
}

/// The size of a prompt besides the transcript, in bytes.
pub(crate) fn fixed_bytes(s: &State) -> u64 {
    let tools = tools(s);
    let tools = tools
        .iter()
        .map(|tool| tool.name.len() + tool.description.len() + tool.input_schema.len());
    (s.system.len() + tools.sum::<usize>()) as u64
}
