//! The shutdown of a server, within a limited time.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::App;
use lucid_session::PausedSessions;

/// How much of the time for a shutdown is kept for what comes behind the sessions: the last of the record of
/// chats, and the sandboxes.
const AFTER_SESSIONS: f64 = 0.35;
/// How much of what is then left the record of chats may take.
const LAST_RECORDS: f64 = 0.4;

/// How long the proxy's connections may take to end, all of whose sandboxes are gone.
const LAST_CONNECTIONS: Duration = Duration::from_millis(500);

impl App {
    /// Brings everything to rest by `end`: no session ends, and no sandbox stays. Commands that run may come
    /// to their end for most of the time. Sandboxes are removed also where a session does not come to rest
    /// in time. What is left is said in the log.
    pub async fn shutdown(&self, end: Instant) {
        let left = || end.saturating_duration_since(Instant::now());
        let patience = left().mul_f64(1.0 - AFTER_SESSIONS);
        // The last rounds are written when the time for commands is up.
        let rest = self.sessions.shut_down_within(patience.mul_f64(0.9));
        match timeout(patience, rest).await {
            Ok(paused) => report_paused(&paused),
            Err(_) => {
                tracing::warn!("some sessions did not come to rest; they go on at the next start");
                report_paused(&self.sessions.take_paused());
            }
        }
        // What does not go now goes after the next start.
        if let Some(outbox) = &self.outbox {
            outbox.flush(left().mul_f64(LAST_RECORDS)).await;
        }
        let removed = timeout(left().mul_f64(0.95), self.sandboxes.shut_down());
        if removed.await.is_err() {
            tracing::warn!("some containers were not removed; the next start removes them");
        }
        let _ = timeout(LAST_CONNECTIONS, self.proxy.ended()).await;
        self.connections.flush().await;
    }
}

fn report_paused(paused: &PausedSessions) {
    for (session, command) in &paused.commands {
        tracing::warn!(%session, command, "a command was cut off by the shutdown; its agent is told at the next start");
    }
    if paused.sessions > 0 {
        let (sessions, cut_off) = (paused.sessions, paused.commands.len());
        tracing::info!(
            sessions,
            cut_off,
            "sessions are paused, and go on at the next start"
        );
    }
}
