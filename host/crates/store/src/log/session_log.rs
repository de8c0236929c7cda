//! The session log in SQLite.
//!
//! # Invariants
//! - The outbox hears of a chat and of its messages after they were committed.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use rusqlite::Connection;

use super::{positions, read, retained, write};
use crate::chats::sqlite;
use crate::sqlite::origin;
use crate::{Store, StoreError, TIMEOUT};
use lucid_types::log::{
    FrameChunk, InboxMessage, LivingSession, LogError, LogHealth, Logged, LoggedCommands,
    LoggedStep, PositionRow, RetainedWorkspace, RoundRow, SessionConfig, SessionLog, SessionRow,
};

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
    fn logged_write<T, F>(&self, patience: Duration, write: F) -> Logged<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let store = self.clone();
        async move { Ok(store.write_within(patience, write).await?) }.boxed()
    }

    fn logged_read<T, F>(&self, read: F) -> Logged<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let store = self.clone();
        async move { Ok(store.read(read).await?) }.boxed()
    }
}

impl SessionLog for Store {
    fn create(&self, session: Arc<SessionConfig>, first: RoundRow) -> Logged<()> {
        let store = self.clone();
        let sent = store.sends_chats();
        let insert = move |connection: &Connection| {
            write::insert_session(connection, &session, &first, sent)
        };
        async move {
            store.write(insert).await?;
            store.notify_chat_written();
            Ok(())
        }
        .boxed()
    }

    fn append(&self, round: Arc<RoundRow>) -> Logged<()> {
        let store = self.clone();
        async move {
            let lines = round.chat_lines.len();
            let insert = move |connection: &Connection| write::insert_round(connection, &round);
            store.write_within(ATTEMPT, insert).await?;
            store.notify_messages_written(lines);
            Ok(())
        }
        .boxed()
    }

    fn mark_started(&self, session: &str) -> Logged<()> {
        let session = session.to_owned();
        self.logged_write(ATTEMPT, move |connection| {
            write::mark_started(connection, &session)
        })
    }

    fn mark_begun(&self, session: &str) -> Logged<()> {
        let session = session.to_owned();
        self.logged_write(ATTEMPT, move |connection| {
            write::mark_begun(connection, &session)
        })
    }

    fn release(&self, session: &str) -> Logged<()> {
        let session = session.to_owned();
        self.logged_write(ATTEMPT, move |connection| {
            origin::release_sessions(connection, Some(&session))
        })
    }

    fn keep_message(&self, session: &str, text: String) -> Logged<Option<InboxMessage>> {
        let session = session.to_owned();
        self.logged_write(MESSAGE, move |connection| {
            write::queue_message(connection, &session, text)
        })
    }

    fn find(&self, session: &str) -> Logged<Option<SessionRow>> {
        let session = session.to_owned();
        self.logged_read(move |connection| read::find_session(connection, &session))
    }

    fn living(&self) -> Logged<Vec<LivingSession>> {
        self.logged_read(read::living)
    }

    fn living_ids(&self) -> Logged<Vec<String>> {
        self.logged_read(read::living_ids)
    }

    fn last_sessions(&self, policy: &str, most: u64) -> Logged<Vec<String>> {
        let policy = policy.to_owned();
        self.logged_read(move |connection| read::last_sessions(connection, &policy, most))
    }

    fn frames_after(&self, session: &str, seq: u64, most_bytes: usize) -> Logged<FrameChunk> {
        let session = session.to_owned();
        self.logged_read(move |connection| {
            read::frames_after(connection, &session, seq, most_bytes)
        })
    }

    fn steps_from(&self, session: &str, step: u64) -> Logged<Vec<LoggedStep>> {
        let session = session.to_owned();
        self.logged_read(move |connection| read::logged_steps(connection, &session, step))
    }

    fn commands_before(&self, session: &str, row: u64) -> Logged<Vec<LoggedCommands>> {
        let session = session.to_owned();
        self.logged_read(move |connection| read::commands_before(connection, &session, row))
    }

    fn transcript(&self, session: &str, first: u64, last: u64) -> Logged<Vec<String>> {
        let session = session.to_owned();
        self.logged_read(move |connection| read::transcript(connection, &session, first, last))
    }

    fn last_line(
        &self,
        session: &str,
        chat: &str,
        since: u64,
        is_wanted: fn(&str) -> bool,
    ) -> Logged<Option<String>> {
        let (session, chat) = (session.to_owned(), chat.to_owned());
        self.logged_read(move |connection| {
            sqlite::last_line(connection, (&session, &chat), since, is_wanted)
        })
    }

    fn keep_positions(&self, rows: Vec<PositionRow>) -> Logged<()> {
        self.logged_write(POSITIONS, move |connection| {
            positions::save_positions(connection, &rows)
        })
    }

    fn kept_positions(&self) -> Logged<Vec<PositionRow>> {
        self.logged_read(positions::saved_positions)
    }

    fn retained_before(&self, uptime_ms: u64) -> Logged<Vec<RetainedWorkspace>> {
        self.logged_read(move |connection| retained::retained_before(connection, uptime_ms))
    }

    fn retained(&self, session: &str) -> Logged<Option<RetainedWorkspace>> {
        let session = session.to_owned();
        self.logged_read(move |connection| retained::retained(connection, &session))
    }

    fn retain_longer(&self, session: &str, uptime_ms: u64) -> Logged<()> {
        let session = session.to_owned();
        self.logged_write(TIMEOUT, move |connection| {
            retained::extend_retention(connection, &session, uptime_ms)
        })
    }

    fn forget_retained(&self, session: &str) -> Logged<()> {
        let session = session.to_owned();
        self.logged_write(TIMEOUT, move |connection| {
            retained::forget_retained(connection, &session)
        })
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
