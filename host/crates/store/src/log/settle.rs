//! Puts in its place what rounds changed beside their own rows.
//!
//! A session at work writes one row for each round, which touches as few pages as it has bytes. Entries of the
//! transcript, lines of the chat, model calls, open effects and the session's own numbers wait in that row,
//! until a round settles all of them at once.
//!
//! # Invariants
//! - What is [pending](crate::sqlite::pending) is read as if it were in its place.
//! - A round that settles leaves nothing pending, and fewer than [`SETTLE_EVERY`] rows of a session are.

use rusqlite::{Connection, OptionalExtension as _};
use uuid::Uuid;

use super::packed_round::PackedRound;
use super::read::{living_ids, open_effects};
use super::{usage, write};
use crate::chat_store::sqlite::{MessageInsert, insert_message};
use crate::error::StoreError;
use crate::sqlite::pending::{self, PendingLine, PendingRound, PendingRow, PendingValue, to_json};
use crate::sqlite::sql::{AsText, to_sql};
use lucid_types::ids::SessionId;
use lucid_types::log::{EffectRow, SessionCounters};

/// The rounds whose rows are a multiple of this settle, so that fewer of a session are pending.
pub(super) const SETTLE_EVERY: u64 = 32;

/// What a round changes beside its own row.
pub(super) fn pending_round(packed: &PackedRound) -> PendingRound<'_> {
    let round = &*packed.round;
    let decision = round.decision.as_ref();
    let state = decision.and_then(|decision| decision.state.as_ref());
    let entries = packed.entries();
    PendingRound {
        counters: to_json(&round.counters),
        schema: state.map(|(schema, _)| *schema),
        // The first round's is written with its session, which may never go on.
        size: match round.row {
            0 => 0,
            _ => {
                (packed.len() + packed.changes_len() + state.map_or(0, |(_, bytes)| bytes.len()))
                    as u64
            }
        },
        opened: (&round.opened).into(),
        closed: (&round.closed).into(),
        not_begun: (&round.not_begun).into(),
        calls: (&round.calls).into(),
        entries: entries.map(|(entry, json)| (entry, json.into())).collect(),
        lines: packed.chat_lines().collect(),
    }
}

/// Applies to a list of open effects what pending rounds changed.
pub(super) fn apply_effects(open: &mut Vec<EffectRow>, rounds: &[PendingRow]) {
    for PendingRow { round, .. } in rounds {
        open.retain(|effect| !round.closed.contains(&effect.id));
        open.extend(round.opened.iter().cloned());
        for effect in open.iter_mut() {
            effect.begun &= !round.not_begun.contains(&effect.id);
        }
    }
}

/// What a session's pending rounds left for its own row.
#[derive(Default)]
pub(super) struct SettledRounds {
    /// The last state among them.
    pub(super) state: Option<(u32, Vec<u8>)>,
    /// What they take in the log, in bytes.
    pub(super) size: u64,
    /// The time of the last line that the chat has of them.
    pub(super) said_at: Option<u64>,
    /// Whether models were called.
    pub(super) has_calls: bool,
    /// The last one's counters and time.
    pub(super) last: Option<(SessionCounters, u64)>,
}

/// Puts what is pending of a session in its place, except for the session's own row.
pub(super) fn settle(
    connection: &Connection,
    (session, chat): (SessionId, &str),
) -> Result<SettledRounds, StoreError> {
    let mut settled = SettledRounds::default();
    let rounds = pending::of_chat(connection, session, chat)?;
    let Some(last) = rounds.last() else {
        return Ok(settled);
    };
    settled.last = Some((last.counters(), last.at));
    let before = open_effects(connection, session)?;
    let mut open = before.clone();
    apply_effects(&mut open, &rounds);
    write::replace_effects(connection, session, &before, &open)?;
    for mut pending in rounds {
        settled.state = pending.take_state().or(settled.state);
        let PendingRow { row, at, round, .. } = pending;
        settled.size += round.size;
        if !round.lines.is_empty() {
            settled.said_at = Some(at);
        }
        settled.has_calls |= !round.calls.is_empty();
        let entries = round.entries.iter();
        let entries = entries.map(|(entry, message)| (*entry, message.packed()));
        write::insert_entries(connection, session, entries)?;
        insert_lines(connection, chat, round.lines, at)?;
        usage::insert(connection, session, row, &round.calls)?;
    }
    Ok(settled)
}

/// Writes lines of a chat.
pub(super) fn insert_lines<'a>(
    connection: &Connection,
    chat: &str,
    lines: impl IntoIterator<Item = PendingLine<'a>>,
    at: u64,
) -> Result<(), StoreError> {
    let mut buffer = Uuid::encode_buffer();
    for line in lines {
        let message = MessageInsert {
            id: line.id.hyphenated().encode_lower(&mut buffer),
            role: &line.role,
            content: line.content.packed(),
            event_type: Some(&line.event_type),
            metadata: line.metadata.as_ref().map(PendingValue::packed),
            at: to_sql(at),
        };
        insert_message(connection, chat, &message)?;
    }
    Ok(())
}

/// Puts what is pending of all sessions in its place: their chats are going to be read from the tables
/// alone.
pub(super) fn settle_all(connection: &Connection) -> Result<(), StoreError> {
    for session in living_ids(connection)? {
        match settle_session(connection, session) {
            // What is pending is read before anything is written.
            Err(StoreError::Content(cause)) => {
                tracing::error!(%session, cause, "what a session left pending cannot be understood; it stays as it is");
            }
            settled => settled?,
        }
    }
    Ok(())
}

/// Puts what is pending of a session in its place.
pub(super) fn settle_session(
    connection: &Connection,
    session: SessionId,
) -> Result<(), StoreError> {
    let chat: Option<String> = connection
        .prepare_cached("SELECT chat_id FROM sessions WHERE id = ?1")?
        .query_row([AsText(session)], |row| row.get(0))
        .optional()?;
    let Some(chat) = chat else { return Ok(()) };
    let settled = settle(connection, (session, &chat))?;
    if let Some((counters, at)) = settled.last {
        write::update_session(connection, session, &counters, at, &settled)?;
        write::update_chat(connection, &chat, &counters, &settled)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::session_log::tests::{id, new_session, round};
    use crate::chat_store::sqlite::SqliteChatStore;
    use crate::chat_store::{ChatStore as _, Principal};
    use crate::error::StoreError;
    use crate::sqlite::Store;
    use lucid_types::log::{
        ChatLine, EffectKind, EffectRow, LivingSession, ModelCallRow, RoundRow, SessionLog as _,
        SessionStatus, UsageTotals,
    };

    /// What a round of a session does.
    #[derive(Debug, Clone)]
    struct Deed {
        waits: bool,
        lines: Vec<String>,
        entries: Vec<String>,
        calls: u64,
        opens: bool,
        closes: bool,
        holds: bool,
        state: Option<Vec<u8>>,
        pushes: bool,
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z\"\\\\\n\u{e9}]{0,20}",
            Just("a large text ".repeat(200))
        ]
    }

    fn deed() -> impl Strategy<Value = Deed> {
        let texts = || prop::collection::vec(text(), 0..3);
        let state = prop::option::of(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            Just(vec![7; 5000])
        ]);
        let flags = (any::<[bool; 3]>(), prop::bool::weighted(0.1));
        (
            prop::bool::weighted(0.8),
            texts(),
            texts(),
            0..3_u64,
            flags,
            state,
        )
            .prop_map(|(waits, lines, entries, calls, flags, state)| {
                let ([opens, closes, holds], pushes) = flags;
                Deed {
                    waits,
                    lines,
                    entries,
                    calls,
                    opens,
                    closes,
                    holds,
                    state,
                    pushes,
                }
            })
    }

    /// The rounds of a session that does this.
    fn rounds(deeds: &[Deed]) -> Vec<RoundRow> {
        let (mut next_entry, mut open, mut totals) = (0, Vec::new(), UsageTotals::default());
        let all = deeds.iter().zip(0..).map(|(deed, row)| {
            let mut round = round(row, (row > 0).then(|| "[]".to_owned()));
            round.may_stay_pending = deed.waits;
            let line = |content: &String| ChatLine {
                role: "assistant",
                content: content.clone(),
                event_type: "Message".to_owned(),
                metadata: Some(serde_json::json!({ "text": content }).to_string()),
            };
            round.chat_lines = deed.lines.iter().map(line).collect();
            for entry in &deed.entries {
                let json = serde_json::json!({ "text": entry }).to_string();
                round.entries.push((next_entry, json));
                next_entry += 1;
            }
            // A session's first round has no part of a policy.
            let calls = if row > 0 { deed.calls } else { 0 };
            for call in 0..calls {
                let used = UsageTotals {
                    calls: 1,
                    input_tokens: call + row,
                    ..UsageTotals::default()
                };
                totals.add(&used);
                round.calls.push(ModelCallRow {
                    effect: format!("m{row}").as_str().into(),
                    provider: "p".to_owned(),
                    model: "m".to_owned(),
                    used,
                    priced: false,
                    tries: 1,
                });
            }
            if deed.closes && !open.is_empty() {
                round.closed.push(open.remove(0));
            }
            if deed.opens {
                let effect = EffectRow {
                    id: format!("e{row}").as_str().into(),
                    kind: EffectKind::Timer,
                    due_at: Some(row),
                    delay_ms: None,
                    begun: true,
                };
                open.push(effect.id.clone());
                round.opened.push(effect);
            }
            if deed.holds {
                round.not_begun.extend(open.last().cloned());
            }
            if let Some(decision) = &mut round.decision {
                let state = deed.state.clone();
                decision.state = state.map(|bytes| (u32::try_from(row).unwrap(), Arc::new(bytes)));
            }
            round.pushed = (deed.pushes && row > 0).then(|| Some(format!("branch {row}")));
            if row == 0 {
                (round.decision, round.counters.step) = (None, 0);
            }
            round.counters.next_entry = next_entry;
            round.counters.totals = totals;
            round.counters.task_open = row % 2 == 0;
            round
        });
        all.collect()
    }

    async fn living(store: &Store) -> Vec<LivingSession> {
        let ids = store.living_ids().await.unwrap();
        store.living(ids, None).await.unwrap()
    }

    /// All that is read of the session and of its chat.
    async fn seen(store: &Store) -> String {
        let (user, caller) = ("u".into(), Principal::service("u"));
        let chats = SqliteChatStore::new(store.clone());
        let messages = chats.messages(&caller, "c").await.unwrap();
        let messages = messages.iter().map(|message| {
            let content = (&message.content, &message.metadata_json);
            (content, &message.event_type, message.created_at)
        });
        let messages = format!("{:?}", messages.collect::<Vec<_>>());
        let mut living = living(store).await;
        for session in &mut living {
            session
                .effects
                .sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
        }
        format!(
            "{living:#?}\n{:#?}\n{:#?}\n{:#?}\n{messages}\n{:?}\n{:?}\n{:?}\n{:?}",
            store.find(id(), None).await.unwrap(),
            chats.list(&caller, 10, 0).await.unwrap(),
            chats.find(&caller, "c").await.unwrap(),
            store
                .last_line(id(), &user, "c", 3, |_| true)
                .await
                .unwrap(),
            store.transcript(id(), &user, 1, 5).await.unwrap(),
            store.transcript(id(), &user, 0, u64::MAX).await.unwrap(),
            store.frames_after(id(), &user, 2, 1 << 20).await.unwrap(),
        )
    }

    /// What the tables have of the session, in the end.
    async fn tables(store: &Store) -> String {
        let read = |connection: &rusqlite::Connection| {
            let queries = [
                "SELECT quote(row) || quote(input_tokens) FROM model_calls ORDER BY rowid",
                "SELECT quote(entry) || quote(message) FROM transcript ORDER BY entry",
                "SELECT quote(content) || quote(metadata_json) || created_at FROM chat_messages ORDER BY n",
                "SELECT quote(state) || next_row || model_calls || coalesce(pushed_branch, '') FROM sessions",
                "SELECT is_active || model_calls || input_tokens || updated_at FROM chat_sessions",
                "SELECT count(*) FROM effects",
            ];
            let mut all = String::new();
            for sql in queries {
                let mut select = connection.prepare(sql)?;
                let rows = select.query_map([], |row| row.get::<_, rusqlite::types::Value>(0))?;
                let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
                all += &format!("{rows:?}\n");
            }
            Ok::<_, StoreError>(all)
        };
        store.read(read).await.unwrap()
    }

    /// The first lines that differ.
    fn difference(one: &str, other: &str) -> Option<String> {
        if one == other {
            return None;
        }
        let mut lines = one.lines().zip(other.lines());
        let different = lines.find(|(one, other)| one != other);
        Some(different.map_or_else(
            || "one has more than the other".to_owned(),
            |(one, other)| format!("{one}, but without waiting {other}"),
        ))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_pending_is_read_as_if_it_were_in_its_place(deeds in prop::collection::vec(deed(), 1..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
                let mut stores = folders.each_ref().map(|folder| Store::open(folder.path()).unwrap());
                for round in rounds(&deeds) {
                    for (store, waits) in stores.iter().zip([true, false]) {
                        let mut round = round.clone();
                        round.may_stay_pending &= waits;
                        if round.row == 0 {
                            round.status = SessionStatus::Created;
                            store.create(new_session(), round).await.unwrap();
                        } else {
                            store.append(Arc::new(round)).await.unwrap();
                        }
                    }
                    let different = difference(&seen(&stores[0]).await, &seen(&stores[1]).await);
                    prop_assert!(different.is_none(), "after row {}: {different:?}", round.row);
                }
                // A crash loses nothing of it.
                stores[0].crash_after(0);
                let [crashed, other] = stores;
                drop(crashed);
                stores = [Store::open(folders[0].path()).unwrap(), other];
                let different = difference(&seen(&stores[0]).await, &seen(&stores[1]).await);
                prop_assert!(different.is_none(), "after a crash: {different:?}");
                for store in &stores {
                    let mut last = round(deeds.len() as u64, None);
                    last.status = SessionStatus::Ended;
                    last.counters.totals = rounds(&deeds).pop().unwrap().counters.totals;
                    store.append(Arc::new(last)).await.unwrap();
                }
                let different = difference(&tables(&stores[0]).await, &tables(&stores[1]).await);
                prop_assert!(different.is_none(), "in the end: {different:?}");
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn a_round_of_a_session_at_work_is_one_row_and_few_of_them_stay_pending() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.create(new_session(), round(0, None)).await.unwrap();
        let pending = async || {
            let rows = crate::sqlite::pending::of_session;
            let rows = store.read(move |connection| rows(connection, id()));
            rows.await.unwrap().len() as u64
        };
        let mut most = 0;
        for row in 1..100 {
            let mut round = round(row, None);
            round.may_stay_pending = true;
            store.append(Arc::new(round)).await.unwrap();
            most = pending().await.max(most);
        }
        assert_eq!(most, super::SETTLE_EVERY - 1);
        let settling = round(100, None);
        store.append(Arc::new(settling)).await.unwrap();
        assert_eq!(pending().await, 0);
    }

    #[tokio::test]
    async fn a_session_that_has_begun_is_known_to_have_begun_after_its_first_round() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut first = round(0, None);
        (first.may_stay_pending, first.status) = (true, SessionStatus::Created);
        store.create(new_session(), first).await.unwrap();
        let status = async || store.find(id(), None).await.unwrap().unwrap().status;
        assert_eq!(status().await, SessionStatus::Created);
        let mut begun = round(1, None);
        begun.may_stay_pending = true;
        store.append(Arc::new(begun)).await.unwrap();
        assert_eq!(status().await, SessionStatus::Running);
    }

    #[tokio::test]
    async fn a_chat_that_was_renamed_meanwhile_keeps_its_later_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.create(new_session(), round(0, None)).await.unwrap();
        store.append(Arc::new(round(1, None))).await.unwrap();
        let mut said = round(2, None);
        said.may_stay_pending = true;
        store.append(Arc::new(said)).await.unwrap();
        let (chats, caller) = (SqliteChatStore::new(store.clone()), Principal::service("u"));
        chats.rename(&caller, "c", "another").await.unwrap();
        let renamed = chats.find(&caller, "c").await.unwrap().unwrap();
        store.settle(id(), &"u".into()).await.unwrap();
        let settled = chats.find(&caller, "c").await.unwrap().unwrap();
        assert_eq!(settled, renamed);
        assert_eq!(chats.messages(&caller, "c").await.unwrap().len(), 3);
    }

    /// Writes a second session of the same user.
    async fn another_session(store: &Store) -> lucid_types::ids::SessionId {
        let mut other = (*new_session()).clone();
        (other.id, other.chat_id) = (lucid_types::ids::SessionId::new(), "other".to_owned());
        let mut first = round(0, None);
        (first.session, first.chat) = (other.id, "other".into());
        let id = other.id;
        store.create(Arc::new(other), first).await.unwrap();
        id
    }

    #[tokio::test]
    async fn a_session_whose_row_is_no_text_keeps_no_other_from_going_on_and_being_listed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.create(new_session(), round(0, None)).await.unwrap();
        let good = another_session(&store).await;
        let ids = vec![id(), good];
        let user = "u".into();
        assert_eq!(store.tasks(ids.clone(), &user).await.unwrap().len(), 2);
        for spoil in ["x'ff'", "CAST(x'ff' AS TEXT)"] {
            let spoil = format!("UPDATE sessions SET task = {spoil} WHERE id = '{}'", id());
            let spoilt = store.write(move |connection| Ok(connection.execute(&spoil, [])?));
            assert_eq!(spoilt.await.unwrap(), 1);
            let tasks = store.tasks(ids.clone(), &user).await.unwrap();
            assert_eq!(
                tasks.iter().map(|task| task.session).collect::<Vec<_>>(),
                [good]
            );
            let living = living(&store).await.into_iter();
            let living: Vec<_> = living.map(|session| session.row.fixed.id).collect();
            assert_eq!(living, [good]);
        }
        let others = store.tasks(ids, &"v".into()).await.unwrap();
        assert_eq!(others, [], "they are another user's");
    }

    #[tokio::test]
    async fn a_session_whose_log_cannot_be_understood_keeps_no_other_from_going_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.create(new_session(), round(0, None)).await.unwrap();
        let good = another_session(&store).await;
        let spoilt = store.write(|connection| {
            let spoil =
                "INSERT INTO steps (session_id, row, first_seq, last_seq, at, frames, pending)
                VALUES (?1, 1, 2, 1, 0, '[]', '{\"what\":1}')";
            Ok(connection.execute(spoil, [id().to_string()])?)
        });
        spoilt.await.unwrap();
        // Nor from the start of an outbox, nor its user from the list of chats.
        store.settle_all().await.unwrap();
        let chats = SqliteChatStore::new(store.clone());
        let listed = chats.list(&Principal::service("u"), 10, 0).await.unwrap();
        assert_eq!(listed.len(), 2);
        let living = living(&store).await;
        assert_eq!(
            living
                .iter()
                .map(|session| session.row.fixed.id)
                .collect::<Vec<_>>(),
            [good]
        );
    }
}
