//! How much the log holds of each user.
//!
//! # Invariants
//!
//! - A session's size changes in the transaction that writes its rows, and goes with them.
//! - A user's size is the sum over the user's sessions; triggers of the schema keep it.

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::error::StoreError;
use crate::sqlite::sql::{AsText, to_sql};
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// Begins to count a session.
pub(super) fn insert(
    connection: &Connection,
    session: SessionId,
    user: &UserId,
    bytes: usize,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO session_sizes (session_id, user_id, bytes) VALUES (?1, ?2, ?3)",
        )?
        .execute(params![
            AsText(session),
            user.as_str(),
            to_sql(bytes as u64)
        ])?;
    Ok(())
}

/// Adds what a round wrote, and replaces the size of the policy's state if there is a new one.
pub(super) fn add(
    connection: &Connection,
    session: SessionId,
    bytes: usize,
    state: Option<usize>,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE session_sizes SET bytes = bytes + ?2, state = coalesce(?3, state)
             WHERE session_id = ?1",
        )?
        .execute(params![
            AsText(session),
            to_sql(bytes as u64),
            state.map(|state| to_sql(state as u64))
        ])?;
    Ok(())
}

/// Reads the size of all that the log holds of a user, in bytes.
pub(super) fn of_user(connection: &Connection, user: &UserId) -> Result<u64, StoreError> {
    let bytes: Option<i64> = connection
        .prepare_cached("SELECT bytes FROM user_sizes WHERE user_id = ?1")?
        .query_row([user.as_str()], |row| row.get(0))
        .optional()?;
    Ok(bytes.map_or(0, |bytes| u64::try_from(bytes).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::session_log::tests::{new_session, round};
    use crate::sqlite::Store;
    use lucid_types::log::{SessionLog, SessionStatus};

    #[tokio::test]
    async fn a_users_size_follows_what_is_written_and_goes_with_the_chat() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let size = async || store.user_size(&"u".into()).await.unwrap();
        assert_eq!(size().await, 0);
        store.create(new_session(), round(0, None)).await.unwrap();
        let first = size().await;
        assert!((512..2048).contains(&first), "{first}");
        // The same text twice is stored once.
        let text = "x".repeat(100_000);
        let mut printed = round(1, Some(format!("[\"{text}\"]")));
        printed.entries.push((0, format!("\"{text}\"")));
        store.append(Arc::new(printed)).await.unwrap();
        let grown = size().await - first;
        assert!((100_000..103_000).contains(&grown), "{grown}");
        // A state takes the place of the one before.
        for (row, length) in [(2, 50_000), (3, 10)] {
            let mut stepped = round(row, None);
            let decision = stepped.decision.as_mut().unwrap();
            decision.state = Some((1, Arc::new(vec![0; length])));
            store.append(Arc::new(stepped)).await.unwrap();
        }
        assert!(size().await < first + 110_000);
        assert_eq!(store.user_size(&"v".into()).await.unwrap(), 0);

        let mut last = round(4, None);
        last.status = SessionStatus::Ended;
        store.append(Arc::new(last)).await.unwrap();
        let removed = store.discard_chat("u".into(), "c".to_owned());
        assert_eq!(removed.await.unwrap().len(), 1);
        assert_eq!(size().await, 0);
    }
}
