//! Log reads: sessions, open effects, transcripts, frames and steps.
//!
//! # Invariants
//! - Only committed data is read.
//! - Long data is read in pieces.

use std::str::FromStr;
use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::value::RawValue;

use super::settle::apply_effects;
use crate::error::StoreError;
use crate::sqlite::pending;
use crate::sqlite::sql::{AsText, to_sql};
use crate::sqlite::{texts, totals};
use lucid_types::digest::Digest;
use lucid_types::ids::{EffectId, SessionId};
use lucid_types::log::{
    EffectKind, EffectRow, FrameChunk, InboxMessage, LivingSession, LoggedCommands, LoggedStep,
    SessionConfig, SessionCounters, SessionRow, SessionStatus, SessionTask,
};
use lucid_types::user::UserId;

/// Approximate number of bytes of steps read at once.
const PIECE: usize = 4 << 20;

fn from_sql(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

/// Reads a text that is an id.
pub(super) fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    let index = row.as_ref().column_index(column)?;
    text.parse().map_err(|cause| {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(cause))
    })
}

/// Reads the id of a session that is one of many: a row with another text is passed over, so that it stands in
/// the way of none. Only the text that this host writes for an id is one, since rows are found by it.
pub(super) fn session_id(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<SessionId>> {
    let text: String = row.get(column)?;
    let id = text.parse().ok();
    Ok(id.filter(|id: &SessionId| id.to_string() == text))
}

/// Reads a user's id.
pub(super) fn user_id(row: &Row<'_>, column: &str) -> rusqlite::Result<UserId> {
    row.get::<_, String>(column).map(UserId::from)
}

/// Reads one session, whatever its status. One whose log is being deleted is not found: a part of it
/// is of no use to anyone.
pub fn find_session(
    connection: &Connection,
    session: SessionId,
) -> Result<Option<SessionRow>, StoreError> {
    let connection = &*connection.unchecked_transaction()?;
    let mut select = connection.prepare_cached(
        "SELECT * FROM sessions WHERE id = ?1 AND NOT (discarded AND status = 'ended')",
    )?;
    let found = select
        .query_row([AsText(session)], session_row)
        .optional()?;
    let Some(mut row) = found else {
        return Ok(None);
    };
    let rounds = pending::read(connection, session, row.counters.next_row)?;
    with_pending(&mut row, rounds);
    Ok(Some(row))
}

/// Makes a session's row what it is after its pending rounds.
fn with_pending(row: &mut SessionRow, rounds: Vec<pending::PendingRow>) {
    for mut round in rounds {
        row.counters = round.counters();
        row.updated_at = round.at;
        row.state = round.take_state().or(row.state.take());
    }
}

fn session_row(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    let schema: Option<u32> = row.get("state_schema")?;
    let bytes: Option<Vec<u8>> = row.get("state")?;
    let limit = |column| -> rusqlite::Result<Option<u64>> {
        let limit: Option<i64> = row.get(column)?;
        Ok(limit.map(|limit| u64::try_from(limit).unwrap_or(0)))
    };
    Ok(SessionRow {
        updated_at: from_sql(row, "updated_at")?,
        end_reason: row.get("end_reason")?,
        held: row.get("held")?,
        pushed: row.get("pushed_branch")?,
        fixed: SessionConfig {
            id: parsed(row, "id")?,
            user: user_id(row, "user_id")?,
            project_id: row.get("project_id")?,
            task: row.get("task")?,
            repo_url: row.get("repo_url")?,
            branch: row.get("branch")?,
            open_change: row.get("open_change")?,
            git_user_name: row.get("git_user_name")?,
            git_user_email: row.get("git_user_email")?,
            policy: row.get("policy")?,
            provider: row.get("provider")?,
            model: row.get("model")?,
            token_limit: limit("token_limit")?,
            cost_limit: limit("cost_limit")?,
            chat_id: row.get("chat_id")?,
            api_key: row.get("api_key_sealed")?,
            git_token: row.get("git_token_sealed")?,
            created_at: from_sql(row, "created_at")?,
        },
        status: SessionStatus::parse(&row.get::<_, String>("status")?),
        counters: SessionCounters {
            step: from_sql(row, "step")?,
            next_row: from_sql(row, "next_row")?,
            next_seq: from_sql(row, "next_seq")?,
            next_entry: from_sql(row, "next_entry")?,
            task_open: row.get("task_open")?,
            task_started_at: from_sql(row, "task_started_at")?,
            task_used_ms: from_sql(row, "task_used_ms")?,
            uptime_ms: from_sql(row, "uptime_ms")?,
            iterations: row.get("iterations")?,
            tokens: from_sql(row, "tokens")?,
            totals: totals::read(row)?,
            steps_alone: row.get("steps_alone")?,
        },
        state: schema.zip(bytes),
    })
}

/// Reads the ids of all sessions that have not ended, oldest first.
pub(super) fn living_ids(connection: &Connection) -> Result<Vec<SessionId>, StoreError> {
    let mut select = connection
        .prepare_cached("SELECT id FROM sessions WHERE status <> 'ended' ORDER BY created_at")?;
    let mut rows = select.query([])?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        if let Some(id) = session_id(row, "id")? {
            ids.push(id);
        } else {
            let id: String = row.get("id")?;
            tracing::error!(
                session = id,
                "the log holds a session without a proper id; it is passed over"
            );
        }
    }
    Ok(ids)
}

/// Reads those of these sessions that have not ended, with what is needed to resume them.
pub(super) fn living(
    connection: &Connection,
    sessions: &[SessionId],
) -> Result<Vec<LivingSession>, StoreError> {
    let connection = &*connection.unchecked_transaction()?;
    let mut living = Vec::new();
    for &session in sessions {
        match living_session(connection, session) {
            Ok(found) => living.extend(found),
            Err(StoreError::Content(cause)) => {
                tracing::error!(%session, cause, "a session cannot go on; it stays as it is until the host is started with a build that understands its log");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(living)
}

fn living_session(
    connection: &Connection,
    id: SessionId,
) -> Result<Option<LivingSession>, StoreError> {
    let mut select =
        connection.prepare_cached("SELECT * FROM sessions WHERE id = ?1 AND status <> 'ended'")?;
    let found = select.query_row([AsText(id)], session_row).optional()?;
    let Some(mut row) = found else {
        return Ok(None);
    };
    let mut effects = open_effects(connection, id)?;
    let rounds = pending::read(connection, id, row.counters.next_row)?;
    apply_effects(&mut effects, &rounds);
    with_pending(&mut row, rounds);
    Ok(Some(LivingSession {
        effects,
        unread: unread(connection, id)?,
        plugin: last_plugin(connection, id)?,
        row,
    }))
}

/// Reads the tasks of those of these sessions that are this user's.
pub(super) fn tasks(
    connection: &Connection,
    sessions: &[SessionId],
    user: &UserId,
) -> Result<Vec<SessionTask>, StoreError> {
    let mut select = connection
        .prepare_cached("SELECT task, created_at FROM sessions WHERE id = ?1 AND user_id = ?2")?;
    let mut tasks = Vec::new();
    for &session in sessions {
        let task = select.query_row(params![AsText(session), user.as_str()], |row| {
            Ok(SessionTask {
                session,
                text: row.get("task")?,
                created_at: from_sql(row, "created_at")?,
            })
        });
        match task.optional().map_err(StoreError::from) {
            Ok(task) => tasks.extend(task),
            Err(StoreError::Content(cause)) => {
                tracing::error!(%session, cause, "the task of a session cannot be read; it is not listed");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(tasks)
}

fn unknown_kind(kind: &str) -> StoreError {
    StoreError::Content(format!("an effect of kind {kind:?}"))
}

/// Reads the effects of a session that have no result, as of the last round that is not pending.
pub(super) fn open_effects(
    connection: &Connection,
    session: SessionId,
) -> Result<Vec<EffectRow>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT effect_id, kind, due_at, begun, delay_ms FROM effects WHERE session_id = ?1",
    )?;
    let mut rows = select.query([AsText(session)])?;
    let mut effects = Vec::new();
    let number = |row: &Row<'_>, column| -> rusqlite::Result<Option<u64>> {
        let number: Option<i64> = row.get(column)?;
        Ok(number.map(|number| u64::try_from(number).unwrap_or(0)))
    };
    while let Some(row) = rows.next()? {
        let kind: String = row.get(1)?;
        effects.push(EffectRow {
            id: EffectId::from(row.get::<_, String>(0)?),
            kind: EffectKind::parse(&kind).ok_or_else(|| unknown_kind(&kind))?,
            due_at: number(row, 2)?,
            begun: row.get(3)?,
            delay_ms: number(row, 4)?,
        });
    }
    Ok(effects)
}

/// Reads the commands of some of a session's steps before a row, newest first; empty if there are no
/// more.
pub(super) fn commands_before(
    connection: &Connection,
    session: SessionId,
    row: u64,
) -> Result<Vec<LoggedCommands>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT row, commands FROM steps
         WHERE session_id = ?1 AND row < ?2 AND commands IS NOT NULL ORDER BY row DESC LIMIT 8",
    )?;
    let mut rows = select.query(params![AsText(session), to_sql(row)])?;
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        steps.push(LoggedCommands {
            row: from_sql(row, "row")?,
            commands: texts::unpack_column(connection, session, row, 1)?,
        });
    }
    Ok(steps)
}

/// Reads the user's messages that no round has processed, in order.
pub(super) fn unread(
    connection: &Connection,
    session: SessionId,
) -> Result<Vec<InboxMessage>, StoreError> {
    let mut select =
        connection.prepare_cached("SELECT n, text FROM inbox WHERE session_id = ?1 ORDER BY n")?;
    let mut rows = select.query([AsText(session)])?;
    let mut messages = Vec::new();
    while let Some(row) = rows.next()? {
        messages.push(InboxMessage {
            number: from_sql(row, "n")?,
            text: texts::unpack_column(connection, session, row, 1)?,
        });
    }
    Ok(messages)
}

/// Reads transcript entries, as JSON, from one number to another, inclusive.
pub(super) fn transcript(
    connection: &Connection,
    session: SessionId,
    first: u64,
    last: u64,
) -> Result<Vec<String>, StoreError> {
    let connection = &*connection.unchecked_transaction()?;
    let mut select = connection.prepare_cached(
        "SELECT message FROM transcript WHERE session_id = ?1 AND entry BETWEEN ?2 AND ?3 ORDER BY entry",
    )?;
    let mut rows = select.query(params![AsText(session), to_sql(first), to_sql(last)])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(texts::unpack_column(connection, session, row, 0)?);
    }
    let rounds = pending::of_session(connection, session)?;
    let pending = rounds.into_iter().flat_map(|round| round.into_entries());
    for (_, message) in pending.filter(|(entry, _)| (first..=last).contains(entry)) {
        entries.push(message.read(connection, session)?);
    }
    Ok(entries)
}

/// Reads some of the frames after a sequence number; empty if there are no more.
pub(super) fn frames_after(
    connection: &Connection,
    session: SessionId,
    seq: u64,
    most_bytes: usize,
) -> Result<FrameChunk, StoreError> {
    let mut select = connection.prepare_cached(
        // Sequence numbers rise with rows, so earlier rows need not be read: the newest row that
        // holds nothing new is found from the end.
        "SELECT first_seq, frames FROM steps
         WHERE session_id = ?1 AND last_seq > ?2 AND last_seq >= first_seq
             AND row > coalesce((SELECT row FROM steps WHERE session_id = ?1 AND last_seq <= ?2
                 ORDER BY row DESC LIMIT 1), -1)
         ORDER BY row",
    )?;
    let mut rows = select.query(params![AsText(session), to_sql(seq)])?;
    let mut chunk = FrameChunk::default();
    let mut bytes = 0;
    while bytes < most_bytes
        && let Some(row) = rows.next()?
    {
        let first = from_sql(row, "first_seq")?;
        let text = texts::unpack_column(connection, session, row, 1)?;
        let frames: Vec<&RawValue> =
            serde_json::from_str(&text).map_err(|cause| StoreError::Content(cause.to_string()))?;
        for (number, frame) in (first..).zip(frames) {
            if number > seq {
                bytes += frame.get().len();
                chunk.frames.push((number, Arc::from(frame.get())));
            }
        }
    }
    Ok(chunk)
}

/// Returns the digest of the component whose state a session has: the one that took the last
/// successful step.
pub(super) fn last_plugin(
    connection: &Connection,
    session: SessionId,
) -> Result<Option<Digest>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT plugin FROM steps WHERE session_id = ?1 AND state_digest IS NOT NULL
         ORDER BY row DESC LIMIT 1",
    )?;
    let found: Option<String> = select
        .query_row([AsText(session)], |row| row.get(0))
        .optional()?;
    // No component has any other text.
    Ok(found.and_then(|text| text.parse().ok()))
}

/// Reads policy steps from a number on: as many as fit in 4 MiB, and at least one.
pub fn logged_steps(
    connection: &Connection,
    session: SessionId,
    from: u64,
) -> Result<Vec<LoggedStep>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT step, context, inputs, commands, plugin, fuel FROM steps
         WHERE session_id = ?1 AND step >= ?2 ORDER BY row LIMIT 64",
    )?;
    let mut rows = select.query(params![AsText(session), to_sql(from)])?;
    let (mut steps, mut bytes) = (Vec::new(), 0);
    while bytes < PIECE
        && let Some(row) = rows.next()?
    {
        let step = LoggedStep {
            step: from_sql(row, "step")?,
            context: row.get(1)?,
            inputs: texts::unpack_column(connection, session, row, 2)?,
            commands: texts::optional(connection, session, row, 3)?,
            plugin: parsed(row, "plugin")?,
            fuel: from_sql(row, "fuel")?,
        };
        bytes += step.inputs.len() + step.commands.as_ref().map_or(0, String::len);
        steps.push(step);
    }
    Ok(steps)
}

/// Returns the ids of a policy's most recent sessions that have stepped, newest first.
pub(super) fn last_sessions(
    connection: &Connection,
    policy: &str,
    most: u64,
) -> Result<Vec<SessionId>, StoreError> {
    // From the end of the table, so that the cost depends on what is found and no index is needed.
    let mut select = connection.prepare_cached(
        "SELECT id FROM sessions WHERE policy = ?1 AND step > 0 AND NOT discarded ORDER BY rowid DESC LIMIT ?2",
    )?;
    let rows = select.query_map(params![policy, to_sql(most)], |row| session_id(row, "id"))?;
    let rows = rows.filter_map(|row| row.transpose());
    rows.map(|row| row.map_err(StoreError::from)).collect()
}
