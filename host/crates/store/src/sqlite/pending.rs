//! What rounds changed beside their own rows, and that is not in its place yet: its form, and how it is read.
//! The log's `settle` puts it there.
//!
//! # Invariants
//! - The pending rows of a session are those from its `next_row` on.

use std::borrow::Cow;

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::sql::{AsText, to_sql};
use super::texts::{self, PackedValue};
use crate::error::StoreError;
use lucid_types::ids::{EffectId, SessionId};
use lucid_types::log::{EffectRow, ModelCallRow, SessionCounters, UsageTotals};

/// What a round changes beside its own row.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PendingRound<'a> {
    pub(crate) counters: CountersJson,
    /// The schema of the state, if the round has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) schema: Option<u32>,
    /// The bytes that the round takes in the log.
    pub(crate) size: u64,
    #[serde(skip_serializing_if = "<[_]>::is_empty", default)]
    pub(crate) opened: Cow<'a, [EffectRow]>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", default)]
    pub(crate) closed: Cow<'a, [EffectId]>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", default)]
    pub(crate) not_begun: Cow<'a, [EffectId]>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", default)]
    pub(crate) calls: Cow<'a, [ModelCallRow]>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) entries: Vec<(u64, PendingValue<'a>)>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) lines: Vec<PendingLine<'a>>,
}

/// A value with or without large texts. Its parts are JSON, so both are texts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum PendingValue<'a> {
    /// The value itself.
    #[serde(rename = "w")]
    Whole(Cow<'a, str>),
    /// Its parts.
    #[serde(rename = "p")]
    Parts(Cow<'a, str>),
}

/// A line of the chat.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PendingLine<'a> {
    pub(crate) id: Uuid,
    pub(crate) role: Cow<'a, str>,
    pub(crate) event_type: Cow<'a, str>,
    pub(crate) content: PendingValue<'a>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) metadata: Option<PendingValue<'a>>,
}

/// The counters as a list, since each row has them. One that a later build adds goes to the end: a row without it
/// has 0.
pub(crate) type CountersJson = Vec<u64>;

pub(crate) fn to_json(counters: &SessionCounters) -> CountersJson {
    let totals = &counters.totals;
    vec![
        counters.step,
        counters.next_row,
        counters.next_seq,
        counters.next_entry,
        u64::from(counters.task_open),
        counters.task_started_at,
        counters.task_used_ms,
        counters.uptime_ms,
        u64::from(counters.iterations),
        counters.tokens,
        u64::from(counters.steps_alone),
        totals.calls,
        totals.input_tokens,
        totals.output_tokens,
        totals.cache_read_tokens,
        totals.cache_write_tokens,
        totals.cost,
    ]
}

fn from_json(json: &[u64]) -> SessionCounters {
    let mut numbers = json.iter().copied();
    // In the order of the fields here, which is that of `to_json`.
    let mut next = || numbers.next().unwrap_or(0);
    let small = |number| u32::try_from(number).unwrap_or(u32::MAX);
    SessionCounters {
        step: next(),
        next_row: next(),
        next_seq: next(),
        next_entry: next(),
        task_open: next() > 0,
        task_started_at: next(),
        task_used_ms: next(),
        uptime_ms: next(),
        iterations: small(next()),
        tokens: next(),
        steps_alone: small(next()),
        totals: UsageTotals {
            calls: next(),
            input_tokens: next(),
            output_tokens: next(),
            cache_read_tokens: next(),
            cache_write_tokens: next(),
            cost: next(),
        },
    }
}

impl<'a> From<PackedValue<'a>> for PendingValue<'a> {
    fn from(value: PackedValue<'a>) -> Self {
        match value {
            PackedValue::Whole(text) => Self::Whole(text.into()),
            PackedValue::Parts(parts) => Self::Parts(String::from_utf8_lossy(parts)),
        }
    }
}

impl PendingValue<'_> {
    /// The value as a column has it.
    pub(crate) fn packed(&self) -> PackedValue<'_> {
        match self {
            Self::Whole(text) => PackedValue::Whole(text),
            Self::Parts(parts) => PackedValue::Parts(parts.as_bytes()),
        }
    }

    /// The value itself.
    pub(crate) fn read(
        self,
        connection: &Connection,
        session: SessionId,
    ) -> Result<String, StoreError> {
        match self {
            Self::Whole(text) => Ok(text.into_owned()),
            Self::Parts(parts) => texts::unpack(connection, Some(session), parts.as_bytes()),
        }
    }
}

/// A round that is pending.
pub(crate) struct PendingRow {
    pub(crate) row: u64,
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) round: PendingRound<'static>,
    state: Option<Vec<u8>>,
}

impl PendingRow {
    /// The session's counters after the round.
    pub(crate) fn counters(&self) -> SessionCounters {
        from_json(&self.round.counters)
    }

    /// The transcript's entries, with their numbers.
    pub(crate) fn into_entries(self) -> Vec<(u64, PendingValue<'static>)> {
        self.round.entries
    }

    /// The chat's lines.
    pub(crate) fn into_lines(self) -> Vec<PendingLine<'static>> {
        self.round.lines
    }

    /// Schema and bytes of the policy's state after it, if it has one.
    pub(crate) fn take_state(&mut self) -> Option<(u32, Vec<u8>)> {
        self.round.schema.zip(self.state.take())
    }
}

/// Reads the pending rounds of a session from a row on, oldest first.
pub(crate) fn read(
    connection: &Connection,
    session: SessionId,
    next_row: u64,
) -> Result<Vec<PendingRow>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT row, at, pending, state FROM steps
         WHERE session_id = ?1 AND row >= ?2 AND pending IS NOT NULL ORDER BY row",
    )?;
    let mut rows = select.query(params![AsText(session), to_sql(next_row)])?;
    let mut pending = Vec::new();
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    while let Some(row) = rows.next()? {
        let json: String = row.get(2)?;
        let round =
            serde_json::from_str(&json).map_err(|cause| StoreError::Content(cause.to_string()))?;
        pending.push(PendingRow {
            row: number(row.get(0)?),
            at: number(row.get(1)?),
            round,
            state: row.get(3)?,
        });
    }
    Ok(pending)
}

/// Reads the pending rounds of a session, oldest first.
pub(crate) fn of_session(
    connection: &Connection,
    session: SessionId,
) -> Result<Vec<PendingRow>, StoreError> {
    let next_row = connection
        .prepare_cached("SELECT next_row FROM sessions WHERE id = ?1")?
        .query_row([AsText(session)], |row| row.get::<_, i64>(0))
        .optional()?;
    match next_row {
        Some(next_row) => read(connection, session, u64::try_from(next_row).unwrap_or(0)),
        None => Ok(Vec::new()),
    }
}

/// Reads the pending rounds of a session, oldest first, if this is its chat.
pub(crate) fn of_chat(
    connection: &Connection,
    session: SessionId,
    chat: &str,
) -> Result<Vec<PendingRow>, StoreError> {
    match next_row_of_chat(connection, session, chat)? {
        Some(next_row) => read(connection, session, next_row),
        None => Ok(Vec::new()),
    }
}

/// From which row on rounds of a session are pending, if this is its chat.
fn next_row_of_chat(
    connection: &Connection,
    session: SessionId,
    chat: &str,
) -> Result<Option<u64>, StoreError> {
    let next_row = connection
        .prepare_cached("SELECT next_row FROM sessions WHERE id = ?1 AND chat_id = ?2")?
        .query_row(params![AsText(session), chat], |row| row.get::<_, i64>(0))
        .optional()?;
    Ok(next_row.map(|next_row| u64::try_from(next_row).unwrap_or(0)))
}

/// What pending rounds changed of a chat's own row.
pub(crate) struct PendingChat {
    pub(crate) totals: UsageTotals,
    /// Milliseconds since 1970 of its last line among them.
    pub(crate) said_at: Option<u64>,
}

/// Reads what pending rounds of a session changed of its chat's own row, if this is its chat. Many chats are asked
/// for at once, so only as much is read as is needed.
pub(crate) fn chat_row(
    connection: &Connection,
    session: SessionId,
    chat: &str,
) -> Result<Option<PendingChat>, StoreError> {
    #[derive(Deserialize)]
    struct Head {
        counters: CountersJson,
        #[serde(default)]
        lines: Vec<IgnoredAny>,
    }
    let Some(next_row) = next_row_of_chat(connection, session, chat)? else {
        return Ok(None);
    };
    let mut select = connection.prepare_cached(
        "SELECT at, pending FROM steps
         WHERE session_id = ?1 AND row >= ?2 AND pending IS NOT NULL ORDER BY row DESC",
    )?;
    let mut rows = select.query(params![AsText(session), to_sql(next_row)])?;
    let mut found: Option<PendingChat> = None;
    while let Some(row) = rows.next()? {
        let (at, json): (i64, String) = (row.get(0)?, row.get(1)?);
        let head: Head =
            serde_json::from_str(&json).map_err(|cause| StoreError::Content(cause.to_string()))?;
        let found = found.get_or_insert_with(|| PendingChat {
            totals: from_json(&head.counters).totals,
            said_at: None,
        });
        if !head.lines.is_empty() {
            found.said_at = u64::try_from(at).ok();
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::log::EffectKind;

    #[test]
    fn what_an_earlier_build_left_pending_is_read_and_written_as_it_was() {
        let row = r#"{"counters":[3,4,12,5,1,1700000000000,250,1700000000900,2,340,3,2,300,40,5,6,700],"schema":1,"size":900,"opened":[{"id":"t3","kind":"timer","due_at":1700000001000,"delay_ms":100,"begun":true}],"closed":["m2"],"not_begun":["t3"],"calls":[{"effect":"m2","provider":"p","model":"m","used":{"calls":1,"input_tokens":300,"output_tokens":40,"cache_read_tokens":5,"cache_write_tokens":6,"cost":700},"priced":true,"tries":1}],"entries":[[4,{"w":"{}"}]],"lines":[{"id":"0190163d-8694-739b-aea5-966c26f8ad91","role":"assistant","event_type":"Message","content":{"p":"[]"},"metadata":{"w":"{}"}}]}"#;
        let round: PendingRound<'_> = serde_json::from_str(row).unwrap();
        assert_eq!(serde_json::to_string(&round).unwrap(), row);
        assert_eq!(round.opened[0].kind, EffectKind::Timer);
        let counters = from_json(&round.counters);
        assert_eq!(
            (counters.step, counters.next_row, counters.next_seq),
            (3, 4, 12)
        );
        assert!(counters.task_open && counters.steps_alone == 3 && counters.totals.cost == 700);
        assert_eq!(to_json(&counters), round.counters);
        // One that knew fewer counters.
        let fewer = from_json(&round.counters[..11]);
        assert_eq!(
            (fewer.steps_alone, fewer.totals),
            (3, UsageTotals::default())
        );
        let least: PendingRound<'_> = serde_json::from_str(r#"{"counters":[],"size":0}"#).unwrap();
        assert!(least.lines.is_empty() && least.schema.is_none());
    }
}
