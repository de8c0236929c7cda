//! The session log in SQLite.
//!
//! # Invariants
//! - The outbox hears of a chat and of its messages after they were committed.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use rusqlite::Connection;

use super::packed_round::{PackedMessage, PackedRound, is_short};
use super::{positions, read, retained, settle, sizes, write};
use crate::chat_store::sqlite::last_line;
use crate::error::StoreError;
use crate::sqlite::sql::AsText;
use crate::sqlite::{QueueKey, Store, TIMEOUT, origin};
use lucid_types::ids::SessionId;
use lucid_types::log::{
    FrameChunk, InboxMessage, LivingSession, LogError, LogHealth, Logged, LoggedCommands,
    LoggedStep, PositionRow, RetainedWorkspace, RoundRow, SessionConfig, SessionLog, SessionRow,
    SessionTask,
};
use lucid_types::user::UserId;

/// How long a session's write waits for another process's lock. The session retries by itself, and
/// tells its clients of longer waits.
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long a user's message waits for it. Its client sends nothing else meanwhile.
const MESSAGE: Duration = Duration::from_secs(2);
/// How long positions wait for it. They are written again a moment later.
const POSITIONS: Duration = Duration::from_secs(1);

impl From<StoreError> for LogError {
    fn from(error: StoreError) -> Self {
        if let Some(reason) = error.transient() {
            let source = Box::new(error);
            return Self::Transient { reason, source };
        }
        match error {
            StoreError::Content(what) => Self::Content(what),
            StoreError::Closed => Self::Closed,
            error => Self::Permanent(Box::new(error)),
        }
    }
}

impl Store {
    /// A short write of a session.
    fn session_write<T, F>(
        &self,
        session: SessionId,
        user: &UserId,
        patience: Duration,
        write: F,
    ) -> Logged<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (store, who) = (self.clone(), (user.into(), session));
        async move { Ok(store.write_at_once(who, patience, write, || {}).await?) }.boxed()
    }

    fn logged_write<T, F>(
        &self,
        key: impl Into<QueueKey>,
        patience: Duration,
        write: F,
    ) -> Logged<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (store, key) = (self.clone(), key.into());
        async move { Ok(store.write_then(key, patience, write, || {}).await?) }.boxed()
    }

    fn logged_read<T, F>(&self, key: impl Into<QueueKey>, read: F) -> Logged<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (store, key) = (self.clone(), key.into());
        async move { Ok(store.read_for(key, read).await?) }.boxed()
    }
}

impl Store {
    /// Puts in its place what is pending of all sessions.
    pub(crate) async fn settle_all(&self) -> Result<(), StoreError> {
        self.write(settle::settle_all).await
    }
}

impl SessionLog for Store {
    fn create(&self, session: Arc<SessionConfig>, first: RoundRow) -> Logged<()> {
        let store = self.clone();
        let signal = store.outbox_signal();
        let sent = signal.is_some();
        let who = (QueueKey::User(session.user.clone()), session.id);
        let first = PackedRound::new(Arc::new(first), !sent);
        let notify = move || {
            if let Some(signal) = signal {
                signal.chat();
            }
        };
        async move {
            let first = first?;
            let insert = move |connection: &Connection| {
                write::insert_session(connection, &session, &first, sent)
            };
            Ok(store.write_at_once(who, TIMEOUT, insert, notify).await?)
        }
        .boxed()
    }

    fn append_all(&self, rounds: Vec<Arc<RoundRow>>) -> Logged<()> {
        let Some(first) = rounds.first() else {
            return std::future::ready(Ok(())).boxed();
        };
        let store = self.clone();
        let signal = store.outbox_signal();
        let lines = rounds.iter().map(|round| round.chat_lines.len()).sum();
        let session = first.session;
        let key = QueueKey::User(first.user.clone());
        // What is sent to another store is read from the tables.
        let sent = signal.is_some();
        let packed = rounds
            .into_iter()
            .map(|round| PackedRound::new(round, !sent));
        let packed: Result<Vec<_>, _> = packed.collect();
        let notify = move || {
            if let Some(signal) = signal {
                signal.lines(lines);
            }
        };
        async move {
            let packed = packed?;
            let is_short = is_short(&packed);
            let insert = move |connection: &Connection| write::insert_rounds(connection, &packed);
            let who = (key.clone(), session);
            let discarded = match is_short {
                true => store.write_at_once(who, ATTEMPT, insert, notify).await?,
                false => store.write_then(who.0, ATTEMPT, insert, notify).await?,
            };
            if discarded {
                // It may take long, and nobody waits for it. A start finishes what is cut off.
                tokio::spawn(async move {
                    if let Err(cause) = store.remove_log(key, AsText(session)).await {
                        tracing::warn!(%session, %cause, "the log of a deleted chat is deleted at the next start: it could not be now");
                    }
                });
            }
            Ok(())
        }
        .boxed()
    }

    fn mark_started(&self, session: SessionId, user: &UserId) -> Logged<()> {
        self.session_write(session, user, ATTEMPT, move |connection| {
            write::mark_started(connection, session)
        })
    }

    fn mark_begun(&self, session: SessionId, user: &UserId) -> Logged<()> {
        self.session_write(session, user, ATTEMPT, move |connection| {
            write::mark_begun(connection, session)
        })
    }

    fn settle(&self, session: SessionId, user: &UserId) -> Logged<()> {
        self.session_write(session, user, ATTEMPT, move |connection| {
            settle::settle_session(connection, session)
        })
    }

    fn release(&self, session: SessionId, user: &UserId) -> Logged<()> {
        self.session_write(session, user, ATTEMPT, move |connection| {
            origin::release_sessions(connection, Some(session))
        })
    }

    fn keep_message(
        &self,
        session: SessionId,
        user: &UserId,
        text: String,
    ) -> Logged<Option<InboxMessage>> {
        let (store, key) = (self.clone(), QueueKey::User(user.clone()));
        let message = PackedMessage::new(text);
        async move {
            let message = message?;
            let queue =
                move |connection: &Connection| write::queue_message(connection, session, message);
            let who = (key, session);
            Ok(store.write_at_once(who, MESSAGE, queue, || {}).await?)
        }
        .boxed()
    }

    fn find(&self, session: SessionId, user: Option<&UserId>) -> Logged<Option<SessionRow>> {
        self.logged_read(user, move |connection| {
            read::find_session(connection, session)
        })
    }

    fn living_ids(&self) -> Logged<Vec<SessionId>> {
        self.logged_read(QueueKey::Host, read::living_ids)
    }

    fn living(
        &self,
        sessions: Vec<SessionId>,
        user: Option<&UserId>,
    ) -> Logged<Vec<LivingSession>> {
        self.logged_read(user, move |connection| read::living(connection, &sessions))
    }

    fn tasks(&self, sessions: Vec<SessionId>, user: &UserId) -> Logged<Vec<SessionTask>> {
        let of = user.clone();
        self.logged_read(user, move |connection| {
            read::tasks(connection, &sessions, &of)
        })
    }

    fn last_sessions(&self, policy: &str, most: u64) -> Logged<Vec<SessionId>> {
        let policy = policy.to_owned();
        self.logged_read(QueueKey::Host, move |connection| {
            read::last_sessions(connection, &policy, most)
        })
    }

    fn frames_after(
        &self,
        session: SessionId,
        user: &UserId,
        seq: u64,
        most_bytes: usize,
    ) -> Logged<FrameChunk> {
        self.logged_read(user, move |connection| {
            read::frames_after(connection, session, seq, most_bytes)
        })
    }

    fn steps_from(
        &self,
        session: SessionId,
        user: Option<&UserId>,
        step: u64,
    ) -> Logged<Vec<LoggedStep>> {
        self.logged_read(user, move |connection| {
            read::logged_steps(connection, session, step)
        })
    }

    fn commands_before(
        &self,
        session: SessionId,
        user: &UserId,
        row: u64,
    ) -> Logged<Vec<LoggedCommands>> {
        self.logged_read(user, move |connection| {
            read::commands_before(connection, session, row)
        })
    }

    fn transcript(
        &self,
        session: SessionId,
        user: &UserId,
        first: u64,
        last: u64,
    ) -> Logged<Vec<String>> {
        self.logged_read(user, move |connection| {
            read::transcript(connection, session, first, last)
        })
    }

    fn last_line(
        &self,
        session: SessionId,
        user: &UserId,
        chat: &str,
        since: u64,
        is_wanted: fn(&str) -> bool,
    ) -> Logged<Option<String>> {
        let chat = chat.to_owned();
        self.logged_read(user, move |connection| {
            last_line(connection, (session, &chat), since, is_wanted)
        })
    }

    fn keep_positions(&self, rows: Vec<PositionRow>) -> Logged<()> {
        self.logged_write(QueueKey::Host, POSITIONS, move |connection| {
            positions::save_positions(connection, &rows)
        })
    }

    fn kept_positions(&self) -> Logged<Vec<PositionRow>> {
        self.logged_read(QueueKey::Host, positions::saved_positions)
    }

    fn retained_before(&self, uptime_ms: u64) -> Logged<Vec<RetainedWorkspace>> {
        self.logged_read(QueueKey::Host, move |connection| {
            retained::retained_before(connection, uptime_ms)
        })
    }

    fn retained(
        &self,
        session: SessionId,
        user: Option<&UserId>,
    ) -> Logged<Option<RetainedWorkspace>> {
        self.logged_read(user, move |connection| {
            retained::retained(connection, session)
        })
    }

    fn retain_longer(&self, session: SessionId, user: &UserId, uptime_ms: u64) -> Logged<()> {
        self.logged_write(user, TIMEOUT, move |connection| {
            retained::extend_retention(connection, session, uptime_ms)
        })
    }

    fn forget_retained(&self, session: SessionId, user: &UserId) -> Logged<()> {
        self.logged_write(user, TIMEOUT, move |connection| {
            retained::forget_retained(connection, session)
        })
    }

    fn user_size(&self, user: &UserId) -> Logged<u64> {
        let whose = user.clone();
        self.logged_read(user, move |connection| sizes::of_user(connection, &whose))
    }

    fn health(&self) -> &LogHealth {
        Store::health(self)
    }

    fn uptime(&self) -> u64 {
        Store::uptime(self)
    }

    fn note_uptime(&self) -> Logged<()> {
        let store = self.clone();
        async move { Ok(Store::note_uptime(&store).await?) }.boxed()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;

    use super::*;
    use lucid_types::digest::Digest;
    use lucid_types::log::{ChatLine, PolicyDecision, SessionCounters, SessionStatus};
    use lucid_types::transient::TransientFailure;

    /// The id of the tests' one session.
    pub(crate) fn id() -> SessionId {
        "0190163d-8694-739b-aea5-966c26f8ad91".parse().unwrap()
    }

    /// A session's configuration.
    pub(crate) fn new_session() -> Arc<SessionConfig> {
        Arc::new(SessionConfig {
            id: id(),
            user: "u".into(),
            project_id: None,
            task: "The first line.\nAnd the second.".to_owned(),
            repo_url: None,
            branch: None,
            open_change: None,
            git_user_name: None,
            git_user_email: None,
            policy: String::new(),
            provider: String::new(),
            model: String::new(),
            token_limit: None,
            cost_limit: None,
            chat_id: "c".to_owned(),
            api_key: None,
            git_token: None,
            created_at: 0,
        })
    }

    /// A round of that session, with one line of its chat, and with commands if there are any.
    pub(crate) fn round(row: u64, commands: Option<String>) -> RoundRow {
        RoundRow {
            user: "u".into(),
            session: id(),
            chat: "c".into(),
            row,
            at: row,
            decision: Some(PolicyDecision {
                step: row,
                context: String::new(),
                inputs: String::new(),
                commands,
                error: None,
                state: None,
                state_digest: None,
                plugin: Digest::of(b"a build"),
                fuel: 0,
                memory: 0,
                micros: 0,
            }),
            first_seq: row + 1,
            frames: vec!["{}".into()],
            entries: Vec::new(),
            calls: Vec::new(),
            chat_lines: vec![ChatLine {
                role: "assistant",
                content: format!("line {row}"),
                event_type: "Message".to_owned(),
                metadata: None,
            }],
            opened: Vec::new(),
            not_begun: Vec::new(),
            closed: Vec::new(),
            processed: Vec::new(),
            pushed: None,
            counters: SessionCounters {
                step: row + 1,
                next_row: row + 1,
                next_seq: row + 2,
                ..SessionCounters::default()
            },
            status: SessionStatus::Running,
            end_reason: None,
            retains_workspace: false,
            may_stay_pending: false,
        }
    }

    #[tokio::test]
    async fn what_is_read_of_any_session_has_the_turn_of_the_user_who_reads() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (user, other) = (UserId::from("u"), UserId::from("other"));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let reads_of = |user: &UserId| {
            let session = SessionId::new();
            [
                store.find(session, Some(user)).map(drop).boxed(),
                store.retained(session, Some(user)).map(drop).boxed(),
                store.frames_after(session, user, 0, 1).map(drop).boxed(),
                store.steps_from(session, Some(user), 0).map(drop).boxed(),
                store.commands_before(session, user, 9).map(drop).boxed(),
                store.transcript(session, user, 0, 9).map(drop).boxed(),
                store
                    .last_line(session, user, "c", 0, |_| true)
                    .map(drop)
                    .boxed(),
                store.user_size(user).map(drop).boxed(),
            ]
        };
        // As many as the user may have at once.
        let mut held: Vec<_> = (0..2)
            .map(|_| {
                let wait = wait.clone();
                store.logged_read(&user, move |_| {
                    let _ = wait.lock().unwrap().recv();
                    Ok(())
                })
            })
            .collect();
        for read in &mut held {
            assert!(read.now_or_never().is_none());
        }
        let mut waiting: Vec<_> = reads_of(&user).into_iter().collect();
        for read in &mut waiting {
            assert!(read.now_or_never().is_none());
        }
        for read in reads_of(&other) {
            let patience = Duration::from_secs(30);
            let read = tokio::time::timeout(patience, read).await;
            read.expect("it waits for another user");
        }
        for read in &mut waiting {
            assert!(read.now_or_never().is_none(), "it had another's turn");
        }
        drop(go);
        for read in waiting {
            read.await;
        }
    }

    #[tokio::test]
    async fn commands_are_read_newest_first_and_in_pieces_until_there_are_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.create(new_session(), round(0, None)).await.unwrap();
        for row in 1..30 {
            let commands = (row % 3 > 0).then(|| format!("[{row}]"));
            store.append(Arc::new(round(row, commands))).await.unwrap();
        }
        let (mut found, mut before, mut pieces) = (Vec::new(), u64::MAX, 0);
        loop {
            let piece = store
                .commands_before(id(), &"u".into(), before)
                .await
                .unwrap();
            let Some(oldest) = piece.last() else { break };
            before = oldest.row;
            pieces += 1;
            found.extend(piece.into_iter().map(|step| step.commands));
        }
        let expected = (1..30).rev().filter(|row| row % 3 > 0);
        let expected: Vec<_> = expected.map(|row| format!("[{row}]")).collect();
        assert_eq!(found, expected);
        assert!(pieces > 1, "{pieces}");
    }

    #[tokio::test]
    async fn a_session_that_lives_is_read_with_all_that_it_needs_to_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.create(new_session(), round(0, None)).await.unwrap();
        let kept = store
            .keep_message(id(), &"u".into(), "hello".to_owned())
            .await
            .unwrap();
        assert_eq!(store.living_ids().await.unwrap(), [id()]);
        let ids = store.living_ids().await.unwrap();
        let mut living = store.living(ids, None).await.unwrap();
        let session = living.remove(0);
        assert_eq!(session.row.counters.next_row, 1);
        assert_eq!(session.unread, kept.into_iter().collect::<Vec<_>>());
        assert!(living.is_empty() && session.effects.is_empty() && session.plugin.is_none());
        assert!(store.find(SessionId::new(), None).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_row_whose_session_has_no_proper_id_stands_in_the_way_of_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.create(new_session(), round(0, None)).await.unwrap();
        let upper = id().to_string().to_uppercase();
        let bad = ["no id".to_owned(), upper].map(|bad| {
            format!(
                "CREATE TEMP TABLE other AS SELECT * FROM sessions WHERE id = '{}';
                 UPDATE other SET id = '{bad}';
                 INSERT INTO sessions SELECT * FROM other;
                 DROP TABLE other;
                 INSERT INTO retained_workspaces (session_id, user_id, uptime_ms) VALUES ('{bad}', 'u', 0);
                 INSERT INTO client_positions (session_id, features, taken) VALUES ('{bad}', '', 1);",
                id()
            )
        });
        let good = format!(
            "INSERT INTO retained_workspaces (session_id, user_id, uptime_ms) VALUES ('{id}', 'u', 1);
             INSERT INTO client_positions (session_id, features, taken) VALUES ('{id}', '', 2);",
            id = id()
        );
        // More of them than are read at once, and all of them older.
        let older: String = (0..100)
            .map(|number| {
                format!(
                    "INSERT INTO retained_workspaces (session_id, user_id, uptime_ms) VALUES ('{number}', 'u', 0);"
                )
            })
            .collect();
        let rows = bad.concat() + &older + &good;
        let insert = move |connection: &Connection| Ok(connection.execute_batch(&rows)?);
        store.write(insert).await.unwrap();
        assert_eq!(store.living_ids().await.unwrap(), [id()]);
        let retained = store.retained_before(5).await.unwrap();
        assert_eq!(retained.len(), 1);
        assert_eq!(retained[0].session, id());
        let positions = store.kept_positions().await.unwrap();
        assert_eq!(positions.len(), 1);
        assert_eq!(positions[0].session, id());
    }

    #[test]
    fn an_error_of_the_log_says_what_the_stores_says_and_whether_it_passes() {
        let io = |kind: io::ErrorKind| StoreError::Folder {
            path: "folder".into(),
            cause: kind.into(),
        };
        let transient = |error: StoreError| {
            let said = error.to_string();
            let error = LogError::from(error);
            assert_eq!(error.to_string(), said);
            error.transient()
        };
        let full = Some(TransientFailure::DiskFull);
        assert_eq!(transient(io(io::ErrorKind::StorageFull)), full);
        assert_eq!(transient(io(io::ErrorKind::NotFound)), None);
        assert_eq!(transient(StoreError::Closed), None);
        assert_eq!(transient(StoreError::Content("a row".to_owned())), None);
    }
}
