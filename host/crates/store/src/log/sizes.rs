//! How much the log holds of each user.
//!
//! # Invariants
//!
//! - A session's size changes in the transaction that writes its rows, and goes with them.

use rusqlite::Connection;

use crate::error::StoreError;
use lucid_types::user::UserId;

/// Reads the size of all that the log holds of a user, in bytes. The policy's last state replaces the
/// one before, so it is measured here. The sizes come after it in a row, so this follows the pages of
/// large ones: it is asked seldom.
pub(super) fn of_user(connection: &Connection, user: &UserId) -> Result<u64, StoreError> {
    let bytes: i64 = connection
        .prepare_cached(
            "SELECT coalesce(sum(log_bytes + octet_length(task) + coalesce(octet_length(state), 0)), 0)
             FROM sessions WHERE user_id = ?1",
        )?
        .query_row([user.as_str()], |row| row.get(0))?;
    Ok(u64::try_from(bytes).unwrap_or(0))
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
