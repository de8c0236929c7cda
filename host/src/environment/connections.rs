//! Records the connections that programs make through the proxy, in batches.
//!
//! # Invariants
//! - Recording never waits for the database, and what waits to be written is bounded: connections to
//!   one server are counted together, and those of a session to more than a number of servers too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use parking_lot::Mutex;
use tokio::sync::Notify;

use lucid_sandbox::proxy::{ConnectionOutcome, ConnectionRecorder, ProxiedConnection};
use lucid_store::{ConnectionTotals, Store, StoreError};
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// How long connections are collected before they are written.
const COLLECT: Duration = Duration::from_millis(500);
/// The most servers of a session that wait to be written.
const MAX_WAITING: usize = 256;

/// One server, and how a connection to it ended.
type Server = (String, u16, String);

/// Collects connections, and writes them to the store.
#[derive(Clone)]
pub(crate) struct ConnectionLog(Arc<Shared>);

struct Shared {
    waiting: Mutex<HashMap<SessionId, HashMap<Server, ConnectionTotals>>>,
    /// Held by who writes.
    turn: tokio::sync::Mutex<()>,
    added: Notify,
    store: Store,
}

impl ConnectionLog {
    /// Starts the task that writes. It ends with the last clone and the last recorder.
    pub(crate) fn start(store: Store) -> Self {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            added: Notify::new(),
            store,
        });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Some(shared) = weak.upgrade() {
                let added = shared.added.notified();
                tokio::select! {
                    () = added => {}
                    // Looks whether anybody is left who could add something.
                    () = tokio::time::sleep(Duration::from_secs(60)) => continue,
                }
                tokio::time::sleep(COLLECT).await;
                shared.flush().await;
            }
        });
        Self(shared)
    }

    /// The recorder for a session's proxy.
    pub(crate) fn of(&self, session: SessionId) -> Arc<dyn ConnectionRecorder> {
        Arc::new(SessionRecorder {
            session,
            log: self.clone(),
        })
    }

    /// What a session's programs connected to so far.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) async fn read(
        &self,
        session: SessionId,
        user: &UserId,
    ) -> Result<Vec<ConnectionTotals>, StoreError> {
        self.flush().await;
        self.0.store.connections(session, user).await
    }

    /// Writes what waits. For a shutdown, after the last proxy was closed.
    pub(crate) async fn flush(&self) {
        self.0.flush().await;
    }
}

impl Shared {
    async fn flush(&self) {
        // Whoever reads after this reads what another flush is writing, too.
        let _turn = self.turn.lock().await;
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let rows: Vec<_> = waiting
            .into_iter()
            .flat_map(|(session, servers)| servers.into_values().map(move |row| (session, row)))
            .collect();
        if rows.is_empty() {
            return;
        }
        if let Err(error) = self.store.add_connections(rows.clone()).await {
            tracing::warn!(%error, "connections of sandboxes could not be recorded yet");
            for (session, row) in rows {
                self.merge(session, &row);
            }
        }
    }

    /// Counts connections together with those that wait.
    fn merge(&self, session: SessionId, new: &ConnectionTotals) {
        let mut waiting = self.waiting.lock();
        let servers = waiting.entry(session).or_default();
        let mut server = (new.host.clone(), new.port, new.outcome.clone());
        if servers.len() >= MAX_WAITING && !servers.contains_key(&server) {
            (server.0, server.1) = (String::new(), 0);
        }
        let totals = servers
            .entry(server.clone())
            .or_insert_with(|| ConnectionTotals {
                host: server.0,
                port: server.1,
                count: 0,
                sent: 0,
                received: 0,
                ..new.clone()
            });
        totals.count += new.count;
        totals.sent += new.sent;
        totals.received += new.received;
        totals.first_at = totals.first_at.min(new.first_at);
        totals.last_at = totals.last_at.max(new.last_at);
    }

    fn add(&self, session: SessionId, connection: ProxiedConnection) {
        let outcome = match connection.outcome {
            ConnectionOutcome::Connected => "connected",
            ConnectionOutcome::Refused => "refused",
            ConnectionOutcome::Failed => "failed",
        };
        let now = Utc::now();
        let totals = ConnectionTotals {
            host: connection.destination.host,
            port: connection.destination.port,
            outcome: outcome.to_owned(),
            count: 1,
            sent: connection.sent,
            received: connection.received,
            first_at: now,
            last_at: now,
        };
        self.merge(session, &totals);
        self.added.notify_one();
    }
}

struct SessionRecorder {
    session: SessionId,
    log: ConnectionLog,
}

impl ConnectionRecorder for SessionRecorder {
    fn record(&self, connection: ProxiedConnection) {
        self.log.0.add(self.session, connection);
    }
}
