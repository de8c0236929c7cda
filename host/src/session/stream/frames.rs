//! Owns what a client's frames look like, and how an event becomes one.
//!
//! What always holds: a frame is valid JSON of the wire contract; what is too long is cut here, on a
//! character's boundary, and nowhere else, so the record keeps all of it. The stored frame holds what
//! any client may ask for; [`render`] takes out what this one did not.

use std::borrow::Cow;
use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::store::{CallRow, ChatLine, Counters, cut};
use crate::types::wit::policy::Event;

use crate::session::ports::DeltaKind;
use crate::session::round::inputs::MODEL_NOTICE;

/// Characters of `content` in a frame.
pub const CONTENT_LENGTH: usize = 2000;
/// Characters of `thought` in a frame.
pub const THOUGHT_LENGTH: usize = 1000;

/// Something that a person is shown, in full.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventDraft {
    /// As in the wire contract, such as `CmdRunAction`.
    pub event_type: String,
    /// The text of it.
    pub content: String,
    /// Why the agent does it.
    pub thought: Option<String>,
    /// The command that runs.
    pub command: Option<String>,
    /// How it ended.
    pub exit_code: Option<i32>,
    /// Which file.
    pub path: Option<String>,
    /// A unified diff, for a client that asked for `diffs`.
    pub diff: Option<String>,
    /// A page of the web that it is about.
    pub url: Option<String>,
}

/// What a policy may say in an event's `fields`.
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
    /// What a policy wants to be shown. Fields that are not what they should be are left out.
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
            // What is opened in a browser is the host's to say.
            url: None,
        }
    }

    /// A plain text under a type.
    pub fn text(event_type: &str, content: impl Into<String>) -> Self {
        Self {
            event_type: event_type.to_owned(),
            content: content.into(),
            ..Self::default()
        }
    }

    /// Whether it is something that the agent says.
    pub(crate) fn is_message(&self) -> bool {
        Self::says_type(&self.event_type)
    }

    /// Whether events of a type are.
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

    /// The frame, cut.
    pub(crate) fn frame(&self, at: u64) -> String {
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

    /// The line of the record, in full; none where there is nothing to read.
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

/// What kind of event a type is, by its name.
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

/// RFC 3339, UTC, with an offset in digits as older clients expect.
pub(crate) fn timestamp(at: u64) -> String {
    let at = i64::try_from(at)
        .ok()
        .and_then(DateTime::<Utc>::from_timestamp_millis)
        .unwrap_or_default();
    at.to_rfc3339_opts(SecondsFormat::Millis, false)
}

fn json(value: &impl Serialize) -> String {
    // Plain structs of texts and numbers: there is nothing in them that cannot be written.
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}

/// A status of the session.
pub(crate) fn status(status: &str, message: &str, session: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Frame<'a> {
        r#type: &'static str,
        status: &'a str,
        #[serde(rename = "sessionId", skip_serializing_if = "Option::is_none")]
        session: Option<&'a str>,
        message: &'a str,
    }
    json(&Frame {
        r#type: "status",
        status,
        session,
        message: cut(message, CONTENT_LENGTH),
    })
}

/// Something really failed.
pub(crate) fn error(message: &str) -> String {
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

/// A task begins.
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

/// The workspace's tree; `tree` is the JSON of a list of nodes.
pub(crate) fn file_tree(tree: &str, at: u64) -> String {
    format!(
        r#"{{"type":"file_tree","tree":{tree},"timestamp":"{}"}}"#,
        timestamp(at)
    )
}

/// Millionths of a dollar as dollars.
pub fn dollars(micros: u64) -> f64 {
    // Exact to the last digit up to some thousand million dollars.
    micros as f64 / 1_000_000.0
}

/// What a model call cost, and all of the session so far.
pub(crate) fn usage(call: &CallRow, counters: &Counters) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Frame<'a> {
        r#type: &'static str,
        effect: &'a str,
        provider: &'a str,
        model: &'a str,
        input_tokens: u64,
        output_tokens: u64,
        cache_read_tokens: u64,
        cache_write_tokens: u64,
        /// Null where nobody knows.
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

/// A piece of what is going on, or that the pieces of an effect so far are void. Not in the log.
pub(crate) fn delta(kind: DeltaKind, effect: &str, text: &str) -> String {
    #[derive(Serialize)]
    struct Frame<'a> {
        r#type: &'static str,
        kind: &'static str,
        effect: &'a str,
        content: &'a str,
    }
    #[derive(Serialize)]
    struct Reset<'a> {
        r#type: &'static str,
        effect: &'a str,
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

/// What a client asked for beyond the contract.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Every frame says its number.
    pub seq: bool,
    /// Text as it is generated.
    pub deltas: bool,
    /// File edits carry a unified diff.
    pub diffs: bool,
    /// Tokens after each model call.
    pub usage: bool,
}

/// A frame of the log as this client gets it; none where it is not for this client.
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
        // Writing into a string cannot fail.
        let _ = write!(text, r#","seq":{seq}}}"#);
        frame = Cow::Owned(text);
    }
    Some(frame)
}

/// The members that this client did not ask for. The word may be in a text as well; only then is the frame
/// parsed for nothing.
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

/// Takes members out and leaves the order of the others.
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
    use super::*;

    #[test]
    fn what_the_host_says_of_a_model_is_no_word_of_the_agents() {
        for (event_type, said) in [
            ("AgentMessageAction", true),
            ("MessageAction", true),
            (MODEL_NOTICE, false),
            ("CmdRunAction", false),
        ] {
            let draft = EventDraft::text(event_type, "The model answers again.");
            assert_eq!(draft.is_message(), said, "{event_type}");
        }
    }
}
