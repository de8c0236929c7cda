//! The connections that the programs of sessions made through the proxy.
//!
//! # Invariants
//! - A session has at most [`MAX_DESTINATIONS`] rows for servers: a program can ask for any number of
//!   names. What comes after is counted under the empty host.
//! - Nothing is written for a session whose log was deleted.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::error::StoreError;
use crate::sqlite::sql::{AsText, to_sql};
use crate::sqlite::{QueueKey, Store};
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// The most servers of a session that are kept apart.
const MAX_DESTINATIONS: i64 = 1000;

/// Connections of a session to one server, with one outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionTotals {
    /// The server's name or address. Empty for several servers.
    pub host: String,
    /// Its port. 0 for several servers.
    pub port: u16,
    /// `connected`, `refused` or `failed`.
    pub outcome: String,
    /// How many there were.
    pub count: u64,
    /// Bytes that programs sent.
    pub sent: u64,
    /// Bytes that programs received.
    pub received: u64,
    /// When the first one ended.
    pub first_at: DateTime<Utc>,
    /// When the last one ended.
    pub last_at: DateTime<Utc>,
}

impl Store {
    /// Adds connections to what is recorded of their sessions.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub async fn add_connections(
        &self,
        ended: Vec<(SessionId, ConnectionTotals)>,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            ended
                .iter()
                .try_for_each(|(session, totals)| add(connection, *session, totals))
        })
        .await
    }

    /// Reads a session's connections, the server that was asked last first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn connections(
        &self,
        session: SessionId,
        user: &UserId,
    ) -> Result<Vec<ConnectionTotals>, StoreError> {
        let read = move |connection: &Connection| {
            let mut select = connection.prepare_cached(
                "SELECT host, port, outcome, count, sent, received, first_at, last_at
                 FROM connections WHERE session_id = ?1 ORDER BY last_at DESC, host, port, outcome",
            )?;
            let rows = select.query_map([AsText(session)], |row| {
                let number =
                    |name| Ok::<_, rusqlite::Error>(row.get::<_, i64>(name)?.cast_unsigned());
                let time = |name| {
                    let at: i64 = row.get(name)?;
                    Ok::<_, rusqlite::Error>(
                        DateTime::from_timestamp_millis(at).unwrap_or_default(),
                    )
                };
                Ok(ConnectionTotals {
                    host: row.get("host")?,
                    port: row.get("port")?,
                    outcome: row.get("outcome")?,
                    count: number("count")?,
                    sent: number("sent")?,
                    received: number("received")?,
                    first_at: time("first_at")?,
                    last_at: time("last_at")?,
                })
            })?;
            rows.map(|row| row.map_err(StoreError::from)).collect()
        };
        self.read_for(QueueKey::from(user), read).await
    }
}

fn add(
    connection: &Connection,
    session: SessionId,
    totals: &ConnectionTotals,
) -> Result<(), StoreError> {
    let id = AsText(session);
    let exists = connection
        .prepare_cached("SELECT 1 FROM sessions WHERE id = ?1")?
        .query_row([id], |_| Ok(()))
        .optional()?;
    if exists.is_none() {
        return Ok(());
    }
    let (host, port) = if has_room(connection, session, totals)? {
        (totals.host.as_str(), totals.port)
    } else {
        ("", 0)
    };
    connection
        .prepare_cached(
            "INSERT INTO connections (session_id, host, port, outcome, count, sent, received, first_at, last_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT DO UPDATE SET count = count + excluded.count, sent = sent + excluded.sent,
                 received = received + excluded.received, last_at = max(last_at, excluded.last_at)",
        )?
        .execute(params![
            id,
            host,
            port,
            totals.outcome,
            to_sql(totals.count),
            to_sql(totals.sent),
            to_sql(totals.received),
            totals.first_at.timestamp_millis(),
            totals.last_at.timestamp_millis(),
        ])?;
    Ok(())
}

/// Whether a server has a row already, or may get one.
fn has_room(
    connection: &Connection,
    session: SessionId,
    totals: &ConnectionTotals,
) -> Result<bool, StoreError> {
    let (known, rows): (bool, i64) = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM connections
                 WHERE session_id = ?1 AND host = ?2 AND port = ?3 AND outcome = ?4),
             (SELECT count(*) FROM connections WHERE session_id = ?1)",
        )?
        .query_row(
            params![AsText(session), totals.host, totals.port, totals.outcome],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
    Ok(known || rows < MAX_DESTINATIONS)
}
