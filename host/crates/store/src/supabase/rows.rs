//! The row types of the REST API, and their conversion to and from the host's types.
//!
//! # Invariants
//! - What is written is valid for PostgreSQL (no NUL in texts, times with microseconds).
//! - What is read is accepted as it comes, since users write to these tables too.

use std::borrow::Cow;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::chat_store::{Chat, ChatMessage, ChatProgress, TITLE_LENGTH};
use lucid_types::log::UsageTotals;
use lucid_types::text::cut;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ChatRow {
    /// A UUID if this host created it. A project may use texts as ids, and have rows of its own.
    id: String,
    agent_session_id: Option<String>,
    project_id: Option<String>,
    title: String,
    model_provider: Option<String>,
    is_active: bool,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    model_calls: i64,
    input_tokens: i64,
    output_tokens: i64,
    cache_read_tokens: i64,
    cache_write_tokens: i64,
    cost: i64,
}

/// A session's update of its chat.
#[derive(Debug, Serialize)]
pub(super) struct ProgressRow {
    is_active: bool,
    model_calls: i64,
    input_tokens: i64,
    output_tokens: i64,
    cache_read_tokens: i64,
    cache_write_tokens: i64,
    cost: i64,
}

/// A change of a chat's title.
#[derive(Debug, Serialize)]
pub(super) struct TitleRow {
    pub(super) title: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MessageRow {
    pub(super) id: String,
    /// The id of its chat; not requested when reading.
    #[serde(default)]
    session_id: Option<Uuid>,
    role: String,
    content: String,
    event_type: Option<String>,
    metadata_json: Option<Box<RawValue>>,
    /// As sent to the project, with all its digits.
    pub(super) created_at: String,
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Removes NUL, the only character that PostgreSQL's texts cannot hold; programs do print it.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{FFFD}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Truncates and cleans a title for its column.
pub(super) fn title(text: &str) -> String {
    clean(cut(text, TITLE_LENGTH)).into_owned()
}

/// Applies [`clean`] to every text in a JSON value.
fn clean_json(value: &mut Value) {
    match value {
        Value::String(text) => *text = clean(text).into_owned(),
        Value::Array(list) => list.iter_mut().for_each(clean_json),
        Value::Object(object) => {
            let members = std::mem::take(object).into_iter();
            *object = members
                .map(|(name, mut value)| {
                    clean_json(&mut value);
                    (clean(&name).into_owned(), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Metadata as it is sent; text that is not JSON is omitted, as it is when shown.
fn metadata(text: &str) -> Option<Box<RawValue>> {
    // An escape may be a NUL or half of a surrogate pair; without one there is nothing to check.
    if !text.contains("\\u") {
        return RawValue::from_string(text.to_owned()).ok();
    }
    let mut value: Value = serde_json::from_str(text).ok()?;
    clean_json(&mut value);
    serde_json::value::to_raw_value(&value).ok()
}

/// Metadata as it was written: a project whose column has a text type returns JSON within a string.
fn written_metadata(value: &RawValue) -> String {
    let within: Option<String> = serde_json::from_str(value.get()).ok();
    within
        .filter(|text| serde_json::from_str::<&RawValue>(text).is_ok())
        .unwrap_or_else(|| value.get().to_owned())
}

impl ChatRow {
    pub(super) fn new(id: Uuid, chat: &Chat) -> Self {
        let text = |text: &Option<String>| text.as_deref().map(|text| clean(text).into_owned());
        let sums = ProgressRow::from(ChatProgress {
            is_active: chat.is_active,
            totals: chat.totals,
        });
        Self {
            id: id.to_string(),
            agent_session_id: text(&chat.agent_session_id),
            project_id: text(&chat.project_id),
            title: title(&chat.title),
            model_provider: text(&chat.model_provider),
            is_active: sums.is_active,
            created_at: chat.created_at,
            updated_at: chat.updated_at,
            model_calls: sums.model_calls,
            input_tokens: sums.input_tokens,
            output_tokens: sums.output_tokens,
            cache_read_tokens: sums.cache_read_tokens,
            cache_write_tokens: sums.cache_write_tokens,
            cost: sums.cost,
        }
    }
}

impl From<ChatRow> for Chat {
    fn from(row: ChatRow) -> Self {
        Self {
            id: row.id,
            agent_session_id: row.agent_session_id,
            project_id: row.project_id,
            title: row.title,
            model_provider: row.model_provider,
            is_active: row.is_active,
            totals: UsageTotals {
                calls: count(row.model_calls),
                input_tokens: count(row.input_tokens),
                output_tokens: count(row.output_tokens),
                cache_read_tokens: count(row.cache_read_tokens),
                cache_write_tokens: count(row.cache_write_tokens),
                cost: count(row.cost),
            },
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

impl From<ChatProgress> for ProgressRow {
    fn from(progress: ChatProgress) -> Self {
        let totals = &progress.totals;
        Self {
            is_active: progress.is_active,
            model_calls: number(totals.calls),
            input_tokens: number(totals.input_tokens),
            output_tokens: number(totals.output_tokens),
            cache_read_tokens: number(totals.cache_read_tokens),
            cache_write_tokens: number(totals.cache_write_tokens),
            cost: number(totals.cost),
        }
    }
}

impl MessageRow {
    /// Returns `None` if the message's id is not a UUID.
    pub(super) fn new(chat: Uuid, message: &ChatMessage) -> Option<Self> {
        Some(Self {
            id: Uuid::parse_str(&message.id).ok()?.to_string(),
            session_id: Some(chat),
            role: clean(&message.role).into_owned(),
            content: clean(&message.content).into_owned(),
            event_type: message
                .event_type
                .as_deref()
                .map(|text| clean(text).into_owned()),
            metadata_json: message.metadata_json.as_deref().and_then(metadata),
            created_at: message
                .created_at
                .to_rfc3339_opts(SecondsFormat::Micros, true),
        })
    }
}

impl From<MessageRow> for ChatMessage {
    fn from(row: MessageRow) -> Self {
        let at = DateTime::parse_from_rfc3339(&row.created_at);
        Self {
            id: row.id,
            role: row.role,
            content: row.content,
            event_type: row.event_type,
            metadata_json: row.metadata_json.as_deref().map(written_metadata),
            created_at: at.map(|at| at.with_timezone(&Utc)).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_mutations::mutated;
    use proptest::prelude::*;

    fn message(content: &str, metadata: Option<&str>) -> ChatMessage {
        ChatMessage {
            id: Uuid::now_v7().to_string(),
            role: "assistant".to_owned(),
            content: content.to_owned(),
            event_type: None,
            metadata_json: metadata.map(str::to_owned),
            created_at: DateTime::from_timestamp_micros(1_771_410_600_123_456).unwrap(),
        }
    }

    #[test]
    fn what_postgresql_cannot_hold_is_replaced_also_deep_in_the_metadata() {
        let sent = message("a\0b", Some(r#"{"a\u0000":[{"b":"\u0000"}],"c":1}"#));
        let row = MessageRow::new(Uuid::nil(), &sent).unwrap();
        let text = serde_json::to_string(&row).unwrap();
        assert!(!text.contains("u0000"), "{text}");
        assert!(
            text.contains("a\u{FFFD}b") && text.contains(r#""c":1"#),
            "{text}"
        );
        assert!(text.contains("2026-02-18T10:30:00.123456Z"), "{text}");
        for none in ["", "{", "nonsense \\u0000", r#"{"a":"\ud800"}"#] {
            let row = MessageRow::new(Uuid::nil(), &message("", Some(none))).unwrap();
            assert!(row.metadata_json.is_none(), "{none}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_sent_with_a_nul(text in any::<String>(), name in any::<String>()) {
            let metadata = serde_json::json!({ name: [&text, "\0"] }).to_string();
            let row = MessageRow::new(Uuid::nil(), &message(&text, Some(&metadata))).unwrap();
            let sent: Value = serde_json::to_value(&row).unwrap();
            let mut clean = sent.clone();
            clean_json(&mut clean);
            prop_assert_eq!(sent, clean);
        }
    }

    proptest! {
        #[test]
        fn rows_that_another_application_wrote_are_read_or_refused_and_can_be_written_back(
            json in mutated([
                r#"[{"id":"0190a8e0-0000-7000-8000-000000000001","role":"user","content":"Hi","event_type":null,"metadata_json":{"a":[1,"\u0000"]},"created_at":"2026-02-18T10:30:00.123456+00:00"}]"#,
                r#"[{"id":"7","role":"assistant","content":"","event_type":"CmdRunAction","metadata_json":"{\"exitCode\":0}","created_at":"yesterday"}]"#,
            ]),
        ) {
            if let Ok(rows) = serde_json::from_slice::<Vec<MessageRow>>(&json) {
                for message in rows.into_iter().map(ChatMessage::from) {
                    if let Some(row) = MessageRow::new(Uuid::nil(), &message) {
                        let text = serde_json::to_string(&row).unwrap();
                        prop_assert!(!text.contains('\0') && text.len() <= 8 * json.len() + 500);
                    }
                }
            }
        }

        #[test]
        fn chats_that_another_application_wrote_are_read_or_refused_and_can_be_written_back(
            json in mutated([
                r#"[{"id":"a","agent_session_id":null,"project_id":"p","title":"T","model_provider":null,"is_active":true,"created_at":"2026-02-18T10:30:00+00:00","updated_at":"2026-02-18T10:30:00Z","model_calls":1,"input_tokens":-5,"output_tokens":9223372036854775807,"cache_read_tokens":0,"cache_write_tokens":0,"cost":3}]"#,
            ]),
        ) {
            if let Ok(rows) = serde_json::from_slice::<Vec<ChatRow>>(&json) {
                for chat in rows.into_iter().map(Chat::from) {
                    let row = ChatRow::new(Uuid::nil(), &chat);
                    prop_assert!(serde_json::to_string(&row).is_ok_and(|text| !text.contains('\0')));
                }
            }
        }
    }
}
