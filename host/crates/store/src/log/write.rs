//! Log writes.
//!
//! # Invariants
//! - A [`RoundRow`] is written as a whole or not at all; the caller's transaction or savepoint ensures that.
//! - Frames are stored as the JSON that clients get, so a replay is byte for byte.

use rusqlite::{Connection, params};

use super::packed_round::{PackedMessage, PackedRound};
use super::settle::{self, SettledRounds};
use super::{discard, retained, usage};
use crate::chat_store::sqlite::insert_chat;
use crate::chat_store::{Chat, TITLE_LENGTH};
use crate::error::StoreError;
use crate::outbox;
use crate::sqlite::sql::{AsText, time, to_sql};
use crate::sqlite::texts::PackedValue;
use crate::sqlite::totals::set_sums;
use lucid_types::ids::SessionId;
use lucid_types::log::{
    EffectRow, InboxMessage, RoundRow, SessionConfig, SessionCounters, SessionStatus, UsageTotals,
};
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
    let written = insert_row(connection, first)?;
    let (first, is_pending) = (first, first.pending.is_some());
    if !is_pending {
        insert_changes(connection, first)?;
    }
    let round = &*first.round;
    let counters = &round.counters;
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
            round.status.text(),
            // What is pending is from there on.
            to_sql(if is_pending { round.row } else { counters.next_row }),
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
    Ok(())
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
    settle::settle_session(connection, session)?;
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
        add_bytes(connection, session, stored)?;
    }
    let text = message.text;
    Ok(Some(InboxMessage { number, text }))
}

/// Writes rounds of one session that follow one another. The caller's transaction makes them atomic. Returns whether
/// they ended a session whose chat has been deleted.
pub(super) fn insert_rounds(
    connection: &Connection,
    rounds: &[PackedRound],
) -> Result<bool, StoreError> {
    let mut discarded = false;
    for round in rounds {
        discarded = insert_round(connection, round)?;
    }
    Ok(discarded)
}

/// Writes the round. The caller's transaction makes it atomic. Returns whether it ended a session
/// whose chat has been deleted.
fn insert_round(connection: &Connection, packed: &PackedRound) -> Result<bool, StoreError> {
    let round = &*packed.round;
    let session = round.session;
    if packed.pending.is_some() {
        let texts = insert_row(connection, packed)?;
        if texts > 0 {
            add_bytes(connection, session, texts)?;
        }
        return Ok(false);
    }
    let mut settled = settle::settle(connection, (session, &round.chat))?;
    settled.size += insert_row(connection, packed)? as u64;
    if !round.chat_lines.is_empty() {
        settled.said_at = Some(round.at);
    }
    settled.has_calls |= !round.calls.is_empty();
    insert_changes(connection, packed)?;
    let decision = round.decision.as_ref();
    if let Some((schema, bytes)) = decision.and_then(|decision| decision.state.as_ref()) {
        settled.state = Some((*schema, bytes.to_vec()));
    }
    let counters = &round.counters;
    update_session(connection, session, counters, round.at, &settled)?;
    update_status(connection, round)?;
    let over = matches!(round.status, SessionStatus::Stopping | SessionStatus::Ended);
    update_chat(connection, &round.chat, counters, &settled)?;
    if over {
        connection
            .prepare_cached(
                "UPDATE chat_sessions SET updated_at = ?2, is_active = 0 WHERE id = ?1",
            )?
            .execute(params![&*round.chat, to_sql(round.at)])?;
        outbox::changed(connection, &round.chat)?;
        for table in ["effects", "inbox"] {
            connection
                .prepare_cached(&format!("DELETE FROM {table} WHERE session_id = ?1"))?
                .execute(params![AsText(session)])?;
        }
    }
    if round.retains_workspace {
        retained::retain(connection, session, counters.uptime_ms)?;
    }
    Ok(round.status == SessionStatus::Ended && discard::is_discarded(connection, session)?)
}

/// Writes a session's numbers after a round, and the policy's state if it has a new one.
pub(super) fn update_session(
    connection: &Connection,
    session: SessionId,
    counters: &SessionCounters,
    at: u64,
    settled: &SettledRounds,
) -> Result<(), StoreError> {
    let (state, totals) = (settled.state.as_ref(), &counters.totals);
    connection
        .prepare_cached(
            "UPDATE sessions SET step = ?2, next_row = ?3, next_seq = ?4, next_entry = ?5, task_open = ?6,
                 task_started_at = ?7, iterations = ?8, tokens = ?9, steps_alone = ?10, updated_at = ?11,
                 state_schema = coalesce(?12, state_schema), state = coalesce(?13, state), task_used_ms = ?14,
                 uptime_ms = ?15, log_bytes = log_bytes + ?16, model_calls = ?17, input_tokens = ?18,
                 output_tokens = ?19, cache_read_tokens = ?20, cache_write_tokens = ?21, cost = ?22
             WHERE id = ?1",
        )?
        .execute(params![
            AsText(session),
            to_sql(counters.step),
            to_sql(counters.next_row),
            to_sql(counters.next_seq),
            to_sql(counters.next_entry),
            counters.task_open,
            to_sql(counters.task_started_at),
            counters.iterations,
            to_sql(counters.tokens),
            counters.steps_alone,
            to_sql(at),
            state.map(|(schema, _)| schema),
            state.map(|(_, bytes)| bytes),
            to_sql(counters.task_used_ms),
            to_sql(counters.uptime_ms),
            to_sql(settled.size),
            to_sql(totals.calls),
            to_sql(totals.input_tokens),
            to_sql(totals.output_tokens),
            to_sql(totals.cache_read_tokens),
            to_sql(totals.cache_write_tokens),
            to_sql(totals.cost),
        ])?;
    Ok(())
}

/// Writes what a session's status became, and the branch that was pushed, where the round changes them.
fn update_status(connection: &Connection, round: &RoundRow) -> Result<(), StoreError> {
    let over = matches!(round.status, SessionStatus::Stopping | SessionStatus::Ended);
    connection
        .prepare_cached(
            // A key is kept only as long as it can be used.
            "UPDATE sessions SET status = ?2, end_reason = ?3,
                 pushed_branch = CASE WHEN ?4 THEN ?5 ELSE pushed_branch END,
                 api_key_sealed = CASE WHEN ?6 THEN NULL ELSE api_key_sealed END,
                 git_token_sealed = CASE WHEN ?6 THEN NULL ELSE git_token_sealed END
             WHERE id = ?1 AND (status <> ?2 OR ?4 OR ?6)",
        )?
        .execute(params![
            AsText(round.session),
            round.status.text(),
            round.end_reason,
            round.pushed.is_some(),
            round.pushed.as_ref().and_then(Option::as_ref),
            over,
        ])?;
    Ok(())
}

/// Writes what a chat's own row says after rounds of its session.
pub(super) fn update_chat(
    connection: &Connection,
    chat: &str,
    counters: &SessionCounters,
    settled: &SettledRounds,
) -> Result<(), StoreError> {
    if let Some(at) = settled.said_at {
        connection
            .prepare_cached(
                "UPDATE chat_sessions SET updated_at = max(updated_at, ?2) WHERE id = ?1",
            )?
            .execute(params![chat, to_sql(at)])?;
    }
    if settled.has_calls {
        set_sums(connection, "chat_sessions", chat, &counters.totals)?;
    }
    if settled.said_at.is_some() || settled.has_calls {
        outbox::changed(connection, chat)?;
    }
    Ok(())
}

fn add_bytes(connection: &Connection, session: SessionId, bytes: usize) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE sessions SET log_bytes = log_bytes + ?2 WHERE id = ?1")?
        .execute(params![AsText(session), to_sql(bytes as u64)])?;
    Ok(())
}

/// Writes the round's own row, and the large texts that it refers to. Returns what is to be added to the
/// session's size, in bytes: of a round that stays pending only the texts, except of a session's first.
fn insert_row(connection: &Connection, packed: &PackedRound) -> Result<usize, StoreError> {
    let round = &*packed.round;
    let session = round.session;
    let decision = round.decision.as_ref();
    let texts = packed.texts.store(connection, session)?;
    let is_pending = packed.pending.is_some();
    let state = decision.and_then(|decision| decision.state.as_ref());
    let state = state.filter(|_| is_pending);
    connection
        .prepare_cached(
            "INSERT INTO steps (session_id, row, first_seq, last_seq, at, step, plugin, state_digest, fuel, memory,
                 micros, error, context, inputs, commands, frames, pending, state)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
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
            packed.pending,
            state.map(|(_, bytes)| bytes.as_slice()),
        ])?;
    Ok(match is_pending && round.row > 0 {
        true => texts,
        false => texts + packed.len(),
    })
}

/// Writes what a round changes beside its own row and the session's.
fn insert_changes(connection: &Connection, packed: &PackedRound) -> Result<(), StoreError> {
    let round = &*packed.round;
    let session = round.session;
    insert_entries(connection, session, packed.entries())?;
    settle::insert_lines(connection, &round.chat, packed.chat_lines(), round.at)?;
    usage::insert(connection, session, round.row, &round.calls)?;
    change_effects(connection, session, round)
}

/// Writes entries of the transcript.
pub(super) fn insert_entries<'a>(
    connection: &Connection,
    session: SessionId,
    entries: impl Iterator<Item = (u64, PackedValue<'a>)>,
) -> Result<(), StoreError> {
    for (entry, message) in entries {
        connection
            .prepare_cached(
                "INSERT INTO transcript (session_id, entry, message) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![AsText(session), to_sql(entry), message])?;
    }
    Ok(())
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
        delete_effect(connection, session, effect.as_str())?;
    }
    for effect in &round.opened {
        insert_effect(connection, session, effect)?;
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

/// Makes the open effects of a session others than they were.
pub(super) fn replace_effects(
    connection: &Connection,
    session: SessionId,
    before: &[EffectRow],
    after: &[EffectRow],
) -> Result<(), StoreError> {
    for effect in before.iter().filter(|effect| !after.contains(effect)) {
        delete_effect(connection, session, effect.id.as_str())?;
    }
    for effect in after.iter().filter(|effect| !before.contains(effect)) {
        insert_effect(connection, session, effect)?;
    }
    Ok(())
}

fn delete_effect(
    connection: &Connection,
    session: SessionId,
    effect: &str,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("DELETE FROM effects WHERE session_id = ?1 AND effect_id = ?2")?
        .execute(params![AsText(session), effect])?;
    Ok(())
}

fn insert_effect(
    connection: &Connection,
    session: SessionId,
    effect: &EffectRow,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO effects (session_id, effect_id, kind, due_at, delay_ms, begun) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            AsText(session),
            effect.id.as_str(),
            effect.kind.text(),
            effect.due_at.map(to_sql),
            effect.delay_ms.map(to_sql),
            effect.begun,
        ])?;
    Ok(())
}
