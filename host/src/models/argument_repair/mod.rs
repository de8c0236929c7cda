//! Repairs tool calls that a model wrote slightly wrong, before anything else sees them: the call
//! that is logged, shown and run is one and the same.
//!
//! # Invariants
//!
//! - A call that fits its tool's schema is not changed by a single byte.
//! - A repair only rewrites what the model wrote in another form. An ambiguous call stays as it is,
//!   and whoever runs it tells the model what is wrong.

mod fit;
mod json;
#[cfg(test)]
mod tests;

pub(super) use json::first as first_value;
use serde_json::Value;

use lucid_types::wit::types::{Content, Message, StopReason, ToolCall, ToolDefinition};

/// Prefixes that models put before a tool's name, from the formats they were trained on.
const NAMESPACES: &[&str] = &[
    "functions",
    "function",
    "tools",
    "tool",
    "default_api",
    "namespace",
];

/// Repairs the calls of a response to a request that offered these tools.
pub(super) fn repair(message: &mut Message, tools: &[ToolDefinition], stop: StopReason) {
    let cut_off = matches!(stop, StopReason::MaxTokens | StopReason::Other);
    for content in &mut message.content {
        if let Content::ToolCall(call) = content {
            repair_call(call, tools, cut_off);
        }
    }
}

fn repair_call(call: &mut ToolCall, tools: &[ToolDefinition], cut_off: bool) {
    let Some(tool) = find_tool(&call.name, tools) else {
        return;
    };
    if call.name != tool.name {
        tracing::debug!(tool = tool.name, "a tool was called by another name");
        call.name.clone_from(&tool.name);
    }
    // In a truncated response the missing part may be everything that was meant.
    if cut_off && call.arguments.trim().is_empty() {
        return;
    }
    let schema = serde_json::from_str(&tool.input_schema).unwrap_or(Value::Null);
    if let Some(arguments) = repaired(&call.arguments, &tool.name, &schema) {
        tracing::debug!(tool = tool.name, "the arguments of a tool were mended");
        call.arguments = arguments;
    }
}

/// Finds the tool that a name means: the one of that name, or the only one it can stand for.
fn find_tool<'a>(name: &str, tools: &'a [ToolDefinition]) -> Option<&'a ToolDefinition> {
    if let Some(exact) = tools.iter().find(|tool| tool.name == name) {
        return Some(exact);
    }
    let bare = strip_decoration(name);
    let of = |name: &str| {
        let like = normalized_name(name);
        let mut fits = tools
            .iter()
            .filter(|tool| normalized_name(&tool.name) == like);
        fits.next()
            .filter(|_| !like.is_empty() && fits.next().is_none())
    };
    of(bare).or_else(|| {
        let (namespace, rest) = bare.split_once(['.', ':', '/'])?;
        NAMESPACES
            .contains(&namespace.to_ascii_lowercase().as_str())
            .then(|| of(rest))?
    })
}

/// Strips what some formats leave around a name: quotes, brackets, a channel, a call's number.
fn strip_decoration(name: &str) -> &str {
    let name = name.split("<|").next().unwrap_or_default();
    let name = name.trim().trim_matches(['`', '"', '\'', '*']);
    let name = name.strip_suffix("()").unwrap_or(name);
    match name.rsplit_once(':') {
        Some((before, number))
            if !before.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            before
        }
        _ => name,
    }
}

/// A key that is equal for two names that differ only in spelling.
fn normalized_name(name: &str) -> String {
    let name = name.chars().filter(|c| c.is_alphanumeric());
    name.flat_map(char::to_lowercase).collect()
}

/// Repairs arguments. `None` if they are fine as they are, or cannot be repaired.
fn repaired(text: &str, tool: &str, schema: &Value) -> Option<String> {
    let strict = serde_json::from_str::<Value>(text).ok();
    let read = match strict {
        Some(Value::Object(object)) => Value::Object(object),
        _ => json::object(text)?,
    };
    let fits = fit::fit(read.clone(), tool, schema);
    let is_same =
        fits == read && serde_json::from_str::<Value>(text).is_ok_and(|value| value == read);
    (!is_same).then(|| fits.to_string())
}
