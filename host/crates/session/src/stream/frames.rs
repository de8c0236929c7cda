//! The frames that clients receive, and the conversion of events into frames.
//!
//! # Invariants
//! - A frame is valid JSON of the wire contract.
//! - Long values are truncated here, on a character boundary, and nowhere else, so the chat keeps
//!   the full text.
//! - The stored frame holds everything that any client may ask for; [`render`] removes what this
//!   client did not ask for.

use std::borrow::Cow;
use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::delta::DeltaKind;
use lucid_types::ids::{EffectId, SessionId};
use lucid_types::log::{ChatLine, ModelCallRow, SessionCounters};
use lucid_types::text::cut;
use lucid_types::wit::policy::Event;

/// The type of events that say that a model is unavailable or available again. Clients that do not
/// know the type show it in the chat because its name contains `Message`, and none of them mistakes
/// a state for a failure.
pub(crate) const MODEL_NOTICE: &str = "ModelStateMessage";

/// Maximum length of `content` in a frame, in characters.
pub const CONTENT_LENGTH: usize = 2000;
/// Maximum length of `thought` in a frame, in characters.
pub const THOUGHT_LENGTH: usize = 1000;

/// An event for the user, in full.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventDraft {
    /// The event type of the wire contract, such as `CmdRunAction`.
    pub event_type: String,
    /// The text.
    pub content: String,
    /// The agent's reason for it.
    pub thought: Option<String>,
    /// The command that runs.
    pub command: Option<String>,
    /// The command's exit code.
    pub exit_code: Option<i32>,
    /// The file's path.
    pub path: Option<String>,
    /// A unified diff, for clients that asked for `diffs`.
    pub diff: Option<String>,
    /// The URL of a related web page.
    pub url: Option<String>,
}

/// What a policy may set in an event's `fields`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Fields {
    thought: Option<Value>,
    command: Option<Value>,
    exit_code: Option<i32>,
    path: Option<Value>,
    diff: Option<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentEvent<'a> {
    r#type: &'static str,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_type: Option<&'a str>,
    content: &'a str,
    timestamp: String,
    #[serde(flatten)]
    details: Details<'a>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    thought: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
}

impl EventDraft {
    /// Converts a policy's event. Fields of the wrong type are ignored.
    pub fn from_policy(event: &Event) -> Self {
        let fields: Fields = serde_json::from_str(&event.fields).unwrap_or_default();
        let text = |value: Option<Value>| match value {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        Self {
            event_type: event.event_type.clone(),
            content: event.content.clone(),
            thought: text(fields.thought),
            command: text(fields.command),
            exit_code: fields.exit_code,
            path: text(fields.path),
            diff: text(fields.diff),
            // Only the host decides what is opened in a browser.
            url: None,
        }
    }

    /// Creates an event with a type and a plain text.
    pub fn text(event_type: &str, content: impl Into<String>) -> Self {
        Self {
            event_type: event_type.to_owned(),
            content: content.into(),
            ..Self::default()
        }
    }

    /// Returns whether the event is a message from the agent.
    pub(crate) fn is_message(&self) -> bool {
        Self::says_type(&self.event_type)
    }

    /// Returns whether events of this type are messages from the agent.
    pub(crate) fn says_type(event_type: &str) -> bool {
        event_type.contains("Message") && event_type != MODEL_NOTICE
    }

    fn details(&self) -> Details<'_> {
        Details {
            thought: self.thought.as_deref(),
            command: self.command.as_deref(),
            exit_code: self.exit_code,
            path: self.path.as_deref(),
            diff: self.diff.as_deref(),
            url: self.url.as_deref(),
        }
    }

    /// The event's frame, truncated.
    pub fn frame(&self, at: u64) -> String {
        let mut details = self.details();
        details.thought = details.thought.map(|text| cut(text, THOUGHT_LENGTH));
        details.command = details.command.map(|text| cut(text, CONTENT_LENGTH));
        json(&AgentEvent {
            r#type: "agent_event",
            event: kind_of(&self.event_type),
            event_type: Some(&self.event_type),
            content: cut(&self.content, CONTENT_LENGTH),
            timestamp: timestamp(at),
            details,
        })
    }

    /// The event's line in the chat, in full, or `None` if it has no text.
    pub(crate) fn into_line(self) -> Option<ChatLine> {
        if self.content.is_empty() {
            return None;
        }
        let metadata = Some(json(&self.details())).filter(|text| text != "{}");
        Some(ChatLine {
            role: "assistant",
            content: self.content,
            event_type: self.event_type,
            metadata,
        })
    }
}

/// The kind of event that a type's name indicates.
pub fn kind_of(event_type: &str) -> &'static str {
    if event_type.contains("Error") {
        "error"
    } else if event_type.ends_with("Action") {
        "action"
    } else if event_type.contains("State") {
        "state"
    } else {
        "observation"
    }
}

/// Formats a time in RFC 3339, UTC, with a numeric offset as older clients expect.
pub fn timestamp(at: u64) -> String {
    let at = i64::try_from(at)
        .ok()
        .and_then(DateTime::<Utc>::from_timestamp_millis)
        .unwrap_or_default();
    at.to_rfc3339_opts(SecondsFormat::Millis, false)
}

fn json(value: &impl Serialize) -> String {
    // Plain structs of texts and numbers: serialization cannot fail.
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}

/// A frame with the session's status.
pub fn status(status: &str, message: &str, session: Option<SessionId>) -> String {
    #[derive(Serialize)]
    struct Frame<'a> {
        r#type: &'static str,
        status: &'a str,
        #[serde(rename = "sessionId", skip_serializing_if = "Option::is_none")]
        session: Option<SessionId>,
        message: &'a str,
    }
    json(&Frame {
        r#type: "status",
        status,
        session,
        message: cut(message, CONTENT_LENGTH),
    })
}

/// A frame that reports a real failure.
pub fn error(message: &str) -> String {
    #[derive(Serialize)]
    struct Frame<'a> {
        r#type: &'static str,
        message: &'a str,
    }
    json(&Frame {
        r#type: "error",
        message: cut(message, CONTENT_LENGTH),
    })
}

/// A frame that announces the start of a task.
pub(crate) fn task_start(task: &str, at: u64) -> String {
    json(&AgentEvent {
        r#type: "agent_event",
        event: "task_start",
        event_type: None,
        content: cut(task, CONTENT_LENGTH),
        timestamp: timestamp(at),
        details: Details::default(),
    })
}

/// A frame with the workspace's file tree; `tree` is a JSON list of nodes.
pub(crate) fn file_tree(tree: &str, at: u64) -> String {
    format!(
        r#"{{"type":"file_tree","tree":{tree},"timestamp":"{}"}}"#,
        timestamp(at)
    )
}

/// Converts millionths of a dollar to dollars.
pub fn dollars(micros: u64) -> f64 {
    // Exact to the last digit up to several billion dollars.
    micros as f64 / 1_000_000.0
}

/// A frame with the usage of a model call and of the session so far.
pub fn usage(call: &ModelCallRow, counters: &SessionCounters) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Frame<'a> {
        r#type: &'static str,
        effect: &'a EffectId,
        provider: &'a str,
        model: &'a str,
        input_tokens: u64,
        output_tokens: u64,
        cache_read_tokens: u64,
        cache_write_tokens: u64,
        /// Null if the price is unknown.
        cost_usd: Option<f64>,
        task_tokens: u64,
        session_tokens: u64,
        session_cost_usd: f64,
    }
    json(&Frame {
        r#type: "usage",
        effect: &call.effect,
        provider: &call.provider,
        model: &call.model,
        input_tokens: call.used.input_tokens,
        output_tokens: call.used.output_tokens,
        cache_read_tokens: call.used.cache_read_tokens,
        cache_write_tokens: call.used.cache_write_tokens,
        cost_usd: call.priced.then(|| dollars(call.used.cost)),
        task_tokens: counters.tokens,
        session_tokens: counters.totals.tokens(),
        session_cost_usd: dollars(counters.totals.cost),
    })
}

/// A frame with a delta, or one that voids an effect's deltas so far. Not in the log.
pub fn delta(kind: DeltaKind, effect: &EffectId, text: &str) -> String {
    #[derive(Serialize)]
    struct Frame<'a> {
        r#type: &'static str,
        kind: &'static str,
        effect: &'a EffectId,
        content: &'a str,
    }
    #[derive(Serialize)]
    struct Reset<'a> {
        r#type: &'static str,
        effect: &'a EffectId,
        reset: bool,
    }
    let kind = match kind {
        DeltaKind::Text => "text",
        DeltaKind::Thinking => "thinking",
        DeltaKind::Terminal => "terminal",
        DeltaKind::Reset => {
            return json(&Reset {
                r#type: "delta",
                effect,
                reset: true,
            });
        }
    };
    json(&Frame {
        r#type: "delta",
        kind,
        effect,
        content: text,
    })
}

/// The features that a client requested beyond the base contract.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Include the sequence number in every frame.
    pub seq: bool,
    /// Stream text as it is generated.
    pub deltas: bool,
    /// Include a unified diff in file edits.
    pub diffs: bool,
    /// Report token usage after each model call.
    pub usage: bool,
}

/// Renders a logged frame for a client, or returns `None` if it is not for this client.
pub fn render<'a>(seq: u64, frame: &'a str, features: Features) -> Option<Cow<'a, str>> {
    if !features.usage && frame.starts_with(r#"{"type":"usage""#) {
        return None;
    }
    let mut frame = Cow::Borrowed(frame);
    let unwanted = unwanted(&frame, features);
    if !unwanted.is_empty() {
        frame = Cow::Owned(without(&frame, &unwanted).unwrap_or_else(|| frame.into_owned()));
    }
    if features.seq && frame.ends_with('}') {
        let mut text = frame.into_owned();
        text.pop();
        // Writing to a string cannot fail.
        let _ = write!(text, r#","seq":{seq}}}"#);
        frame = Cow::Owned(text);
    }
    Some(frame)
}

/// Returns the members that this client did not ask for. The name may also occur inside a text;
/// only then is the frame parsed unnecessarily.
fn unwanted(frame: &str, features: Features) -> Vec<&'static str> {
    let mut names = Vec::new();
    if !frame.starts_with(r#"{"type":"agent_event""#) {
        return names;
    }
    if !features.diffs && frame.contains(r#""diff":"#) {
        names.push("diff");
    }
    // An old client prints a command for every frame that has one.
    let is_action = frame.starts_with(r#"{"type":"agent_event","event":"action""#);
    if features == Features::default() && !is_action && frame.contains(r#""command":"#) {
        names.push("command");
    }
    names
}

/// Removes members and keeps the order of the others.
fn without(frame: &str, unwanted: &[&str]) -> Option<String> {
    struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);
    impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(
                    self,
                    mut map: A,
                ) -> Result<Self::Value, A::Error> {
                    let mut members = Vec::new();
                    while let Some((name, value)) = map.next_entry()? {
                        members.push((name, value));
                    }
                    Ok(members)
                }
            }
            from.deserialize_map(Visitor).map(Members)
        }
    }
    let members: Members<'_> = serde_json::from_str(frame).ok()?;
    let mut text = String::with_capacity(frame.len());
    let wanted = members
        .0
        .iter()
        .filter(|(name, _)| !unwanted.contains(&&**name));
    for (name, value) in wanted {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(&serde_json::to_string(name).ok()?);
        text.push(':');
        text.push_str(value.get());
    }
    text.push('}');
    Some(text)
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_host_says_of_a_model_is_no_word_of_the_agents() {
        for (event_type, said) in [
            ("AgentMessageAction", true),
            ("MessageAction", true),
            (MODEL_NOTICE, false),
            ("CmdRunAction", false),
        ] {
            let builder = EventDraft::text(event_type, "The model answers again.");
            assert_eq!(builder.is_message(), said, "{event_type}");
        }
    }

    proptest! {
        #[test]
        fn any_fields_of_an_event_are_read_as_far_as_they_fit(
            fields in mutated_text([r#"{"thought":"t","command":"ls","exitCode":-1,"path":"a","diff":"+x","url":"https://x"}"#, "[]"]),
        ) {
            let event = Event {
                event_type: "CmdRunAction".to_owned(),
                content: String::new(),
                fields,
            };
            prop_assert_eq!(EventDraft::from_policy(&event).url, None);
        }
    }
}
