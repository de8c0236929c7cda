//! Stores the positions of clients that do not count frames themselves, so that to them a restart
//! of the host is a lost connection like any other.
//!
//! # Invariants
//! - Positions are written at an orderly shutdown, and every second while they change; after a
//!   crash a client is therefore shown at most the last moments again.
//! - No session waits for this: if positions cannot be written, clients are shown more again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::handle::SessionHandle;
use crate::retry::when_possible;
use crate::sessions::Sessions;
use crate::shared::SessionsShared;
use crate::stream::frames::Features;
use lucid_types::log::PositionRow;

/// The interval between two checks for changes.
const PAUSE: Duration = Duration::from_secs(1);

/// Tracks the clients of all sessions for as long as there are sessions.
async fn follow(shared: Weak<SessionsShared>, halt: CancellationToken) {
    let mut written = Vec::new();
    while halt
        .run_until_cancelled(tokio::time::sleep(PAUSE))
        .await
        .is_some()
    {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let rows = shared.positions();
        if rows != written && shared.save_positions(rows.clone()).await {
            written = rows;
        }
    }
}

impl SessionsShared {
    /// The positions of the clients of all sessions.
    fn positions(&self) -> Vec<PositionRow> {
        let sessions: Vec<Arc<SessionHandle>> = self.registry.lock().live().cloned().collect();
        let mut rows: Vec<PositionRow> = Vec::new();
        for session in sessions {
            let known = session.positions.acknowledged().into_iter();
            rows.extend(known.map(|(features, taken)| PositionRow {
                session: *session.id(),
                features: text_of(features),
                taken,
            }));
        }
        rows.sort_by(|a, b| {
            (&a.session, &a.features, a.taken).cmp(&(&b.session, &b.features, b.taken))
        });
        rows
    }

    /// Stores the positions, and returns whether that succeeded.
    async fn save_positions(&self, rows: Vec<PositionRow>) -> bool {
        let count = rows.len();
        tracing::debug!(count, "how far clients came is written down");
        match self.deps.log.keep_positions(rows).await {
            Ok(()) => true,
            Err(cause) => {
                tracing::debug!(%cause, "how far clients came could not be written down");
                false
            }
        }
    }
}

impl Sessions {
    /// Stores the clients' positions at an orderly shutdown.
    pub async fn keep_positions(&self) {
        let rows = self.shared.positions();
        if !rows.is_empty() {
            self.shared.save_positions(rows).await;
        }
    }

    /// Loads the clients that the previous run left as lost ones, and starts tracking those of this
    /// run.
    pub(crate) async fn restore_positions(&self) {
        let log = &self.shared.deps.log;
        let rows = when_possible(|| log.kept_positions()).await;
        let rows = rows.unwrap_or_else(|cause| {
            tracing::warn!(%cause, "how far clients came is not known any more, and they are shown all again");
            Vec::new()
        });
        for row in rows {
            if let Ok(Some(session)) = self.shared.awake(row.session, None).await {
                tracing::debug!(session = %session.id(), taken = row.taken, "a client of the last run may come back");
                let known = row.taken.min(session.feed.head().seq);
                session
                    .positions
                    .record_lost(features_of(&row.features), known);
            }
        }
        tokio::spawn(follow(
            Arc::downgrade(&self.shared),
            self.shared.halt.clone(),
        ));
    }
}

/// Features as a text. A client that asks for numbers counts frames itself and is not among these.
fn text_of(features: Features) -> String {
    let Features {
        seq: _,
        deltas,
        diffs,
        usage,
    } = features;
    let named = [(deltas, "deltas"), (diffs, "diffs"), (usage, "usage")];
    let named = named.iter().filter(|(asked, _)| *asked);
    named.map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}

fn features_of(text: &str) -> Features {
    let asked = |name| text.split(' ').any(|word| word == name);
    Features {
        seq: false,
        deltas: asked("deltas"),
        diffs: asked("diffs"),
        usage: asked("usage"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_known_again() {
        for bits in 0..8 {
            let features = Features {
                seq: false,
                deltas: bits & 1 > 0,
                diffs: bits & 2 > 0,
                usage: bits & 4 > 0,
            };
            assert_eq!(features_of(&text_of(features)), features);
        }
    }
}
