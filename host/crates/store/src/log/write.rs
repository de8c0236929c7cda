//! Log writes.
//!
//! # Invariants
//! - A [`RoundRow`] is written as a whole or not at all; the caller's savepoint ensures that.
//! - Frames are stored as the JSON that clients get, so a replay is byte for byte.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::packed_round::{PackedMessage, PackedRound};
use super::{discard, retained, usage};
use crate::chat_store::sqlite::{MessageInsert, insert_chat, insert_message};
use crate::chat_store::{Chat, TITLE_LENGTH};
use crate::error::StoreError;
use crate::outbox;
use crate::sqlite::sql::{AsText, time, to_sql};
use crate::sqlite::texts::PackedValue;
use lucid_types::ids::SessionId;
use lucid_types::log::{InboxMessage, RoundRow, SessionConfig, SessionStatus, UsageTotals};
use lucid_types::text::cut;

/// Writes the session, its chat and its first round. `sent` says whether the chat is to be sent
/// to another store.
pub(super) fn insert_session(
    connection: &Connection,
    session: &SessionConfig,
    first: &PackedRound,
    sent: bool,
) -> Result<(), StoreError> {
    let began = time(session.created_at);
    let chat = Chat {
        id: session.chat_id.clone(),
        agent_session_id: Some(session.id.to_string()),
        project_id: session.project_id.clone(),
        title: title_of(&session.task).to_owned(),
        model_provider: Some(session.provider.clone()),
        is_active: true,
        totals: UsageTotals::default(),
        created_at: began,
        updated_at: began,
    };
    insert_chat(connection, &session.user, &chat)?;
    if sent {
        outbox::add(connection, &session.chat_id, &session.user)?;
    }
    let written = insert_record(connection, session.id, first)?;
    let first = &*first.round;
    let counters = &first.counters;
    connection
        .prepare_cached(
            "INSERT INTO sessions (id, user_id, project_id, task, repo_url, branch, git_user_name, git_user_email,
                 policy, provider, model, chat_id, api_key_sealed, git_token_sealed, created_at, status, step,
                 next_row, next_seq, next_entry, task_open, task_started_at, iterations, tokens, steps_alone,
                 updated_at, token_limit, cost_limit, open_change, uptime_ms, log_bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, 0, ?17, ?18, ?19,
                 ?20, ?21, 0, 0, 0, ?15, ?22, ?23, ?24, ?25, ?26)",
        )?
        .execute(params![
            AsText(session.id),
            session.user.as_str(),
            session.project_id,
            session.task,
            session.repo_url,
            session.branch,
            session.git_user_name,
            session.git_user_email,
            session.policy,
            session.provider,
            session.model,
            session.chat_id,
            session.api_key,
            session.git_token,
            to_sql(session.created_at),
            first.status.text(),
            to_sql(counters.next_row),
            to_sql(counters.next_seq),
            to_sql(counters.next_entry),
            counters.task_open,
            to_sql(counters.task_started_at),
            session.token_limit.map(to_sql),
            session.cost_limit.map(to_sql),
            session.open_change,
            to_sql(counters.uptime_ms),
            to_sql(written as u64),
        ])?;
    change_effects(connection, session.id, first)
}

/// The title of a session's chat: the beginning of its task.
fn title_of(task: &str) -> &str {
    cut(task.lines().next().unwrap_or_default(), TITLE_LENGTH)
}

/// Records that a session was started, before it has stepped: after a crash it resumes by itself.
pub(super) fn mark_started(connection: &Connection, session: SessionId) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE sessions SET status = ?2 WHERE id = ?1 AND status = ?3")?
        .execute(params![
            AsText(session),
            SessionStatus::Running.text(),
            SessionStatus::Created.text()
        ])?;
    Ok(())
}

/// Records that all open effects of a session begin, including those that an older host left.
pub(super) fn mark_begun(connection: &Connection, session: SessionId) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE effects SET begun = 1 WHERE session_id = ?1")?
        .execute([AsText(session)])?;
    Ok(())
}

/// Stores a user's message until a round processes it. Returns `None` if the session is over and no
/// round will.
pub(super) fn queue_message(
    connection: &Connection,
    session: SessionId,
    message: PackedMessage,
) -> Result<Option<InboxMessage>, StoreError> {
    let queued = connection
        .prepare_cached(
            "INSERT INTO inbox (session_id, text)
             SELECT id, ?2 FROM sessions WHERE id = ?1 AND status IN (?3, ?4)",
        )?
        .execute(params![
            AsText(session),
            PackedValue::new(&message.text, &message.parts),
            SessionStatus::Created.text(),
            SessionStatus::Running.text()
        ])?;
    if queued == 0 {
        return Ok(None);
    }
    let number = u64::try_from(connection.last_insert_rowid()).unwrap_or(0);
    // The round that processes it refers to the same text.
    let stored = message.texts.store(connection, session)?;
    if stored > 0 {
        connection
            .prepare_cached("UPDATE sessions SET log_bytes = log_bytes + ?2 WHERE id = ?1")?
            .execute(params![AsText(session), to_sql(stored as u64)])?;
    }
    let text = message.text;
    Ok(Some(InboxMessage { number, text }))
}

/// Writes the round. The caller's transaction makes it atomic. Returns whether it ended a session
/// whose chat has been deleted.
pub(super) fn insert_round(
    connection: &Connection,
    packed: &PackedRound,
) -> Result<bool, StoreError> {
    let round = &*packed.round;
    let session = round.session;
    let written = insert_record(connection, session, packed)?;
    let counters = &round.counters;
    let state = round
        .decision
        .as_ref()
        .and_then(|decision| decision.state.as_ref());
    connection
        .prepare_cached(
            "UPDATE sessions SET status = ?2, end_reason = ?3, step = ?4, next_row = ?5, next_seq = ?6,
                 next_entry = ?7, task_open = ?8, task_started_at = ?9, iterations = ?10, tokens = ?11,
                 steps_alone = ?12, updated_at = ?13, state_schema = coalesce(?14, state_schema),
                 state = coalesce(?15, state), pushed_branch = CASE WHEN ?16 THEN ?17 ELSE pushed_branch END,
                 task_used_ms = ?18, uptime_ms = ?19, log_bytes = log_bytes + ?20
             WHERE id = ?1",
        )?
        .execute(params![
            AsText(session),
            round.status.text(),
            round.end_reason,
            to_sql(counters.step),
            to_sql(counters.next_row),
            to_sql(counters.next_seq),
            to_sql(counters.next_entry),
            counters.task_open,
            to_sql(counters.task_started_at),
            counters.iterations,
            to_sql(counters.tokens),
            counters.steps_alone,
            to_sql(round.at),
            state.map(|(schema, _)| schema),
            state.map(|(_, bytes)| bytes.as_slice()),
            round.pushed.is_some(),
            round.pushed.as_ref().and_then(Option::as_ref),
            to_sql(counters.task_used_ms),
            to_sql(counters.uptime_ms),
            to_sql(written as u64),
        ])?;
    let over = matches!(round.status, SessionStatus::Stopping | SessionStatus::Ended);
    if over || !round.chat_lines.is_empty() {
        connection
            .prepare_cached(
                "UPDATE chat_sessions SET updated_at = ?2, is_active = is_active AND NOT ?3 WHERE id = ?1",
            )?
            .execute(params![&*round.chat, to_sql(round.at), over])?;
    }
    if over || !round.chat_lines.is_empty() || !round.calls.is_empty() {
        outbox::changed(connection, &round.chat)?;
    }
    if over {
        for table in ["effects", "inbox"] {
            connection
                .prepare_cached(&format!("DELETE FROM {table} WHERE session_id = ?1"))?
                .execute(params![AsText(session)])?;
        }
        // A key is kept only as long as it can be used.
        connection
            .prepare_cached(
                "UPDATE sessions SET api_key_sealed = NULL, git_token_sealed = NULL WHERE id = ?1
                 AND (api_key_sealed IS NOT NULL OR git_token_sealed IS NOT NULL)",
            )?
            .execute(params![AsText(session)])?;
    }
    if round.retains_workspace {
        retained::retain(connection, session, counters.uptime_ms)?;
    }
    change_effects(connection, session, round)?;
    Ok(round.status == SessionStatus::Ended && discard::is_discarded(connection, session)?)
}

/// Writes what the round adds to the log and to the chat. Returns its size in bytes.
fn insert_record(
    connection: &Connection,
    session: SessionId,
    packed: &PackedRound,
) -> Result<usize, StoreError> {
    let round = &*packed.round;
    let decision = round.decision.as_ref();
    let stored = packed.texts.store(connection, session)?;
    connection
        .prepare_cached(
            "INSERT INTO steps (session_id, row, first_seq, last_seq, at, step, plugin, state_digest, fuel, memory,
                 micros, error, context, inputs, commands, frames)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?
        .execute(params![
            AsText(session),
            to_sql(round.row),
            to_sql(round.first_seq),
            to_sql(round.first_seq + round.frames.len() as u64) - 1,
            to_sql(round.at),
            decision.map(|d| to_sql(d.step)),
            decision.map(|d| AsText(d.plugin)),
            decision.and_then(|d| d.state_digest.as_ref()),
            decision.map(|d| to_sql(d.fuel)),
            decision.map(|d| to_sql(d.memory)),
            decision.map(|d| to_sql(d.micros)),
            decision.and_then(|d| d.error.as_ref()),
            decision.map(|d| &d.context),
            packed.inputs(),
            packed.commands(),
            packed.frames(),
        ])?;
    if !round.entries.is_empty() {
        let mut insert = connection.prepare_cached(
            "INSERT INTO transcript (session_id, entry, message) VALUES (?1, ?2, ?3)",
        )?;
        for (entry, message) in packed.entries() {
            insert.execute(params![AsText(session), to_sql(entry), message])?;
        }
    }
    let mut buffer = Uuid::encode_buffer();
    for (line, (content, metadata)) in round.chat_lines.iter().zip(packed.lines()) {
        let id: &str = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
        insert_message(
            connection,
            &round.chat,
            &MessageInsert {
                id,
                role: line.role,
                content,
                event_type: Some(&line.event_type),
                metadata,
                at: to_sql(round.at),
            },
        )?;
    }
    usage::write(
        connection,
        (session, &round.chat),
        round.row,
        &round.calls,
        &round.counters.totals,
    )?;
    Ok(packed.len() + stored)
}

/// Removes and adds what is open after the round: users' messages and effects.
fn change_effects(
    connection: &Connection,
    session: SessionId,
    round: &RoundRow,
) -> Result<(), StoreError> {
    for number in &round.processed {
        connection
            .prepare_cached("DELETE FROM inbox WHERE n = ?1")?
            .execute([to_sql(*number)])?;
    }
    for effect in &round.closed {
        connection
            .prepare_cached("DELETE FROM effects WHERE session_id = ?1 AND effect_id = ?2")?
            .execute(params![AsText(session), effect.as_str()])?;
    }
    for effect in &round.opened {
        connection
            .prepare_cached(
                "INSERT INTO effects (session_id, effect_id, kind, due_at, delay_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                AsText(session),
                effect.id.as_str(),
                effect.kind.text(),
                effect.due_at.map(to_sql),
                effect.delay_ms.map(to_sql),
            ])?;
    }
    for effect in &round.not_begun {
        connection
            .prepare_cached(
                "UPDATE effects SET begun = 0 WHERE session_id = ?1 AND effect_id = ?2",
            )?
            .execute(params![AsText(session), effect.as_str()])?;
    }
    Ok(())
}
