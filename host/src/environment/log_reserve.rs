//! Looks after the reserve of disk that is kept for the log.
//!
//! # Invariants
//!
//! - While the disk is short, a sandbox is ended with every process in it that takes more and more of it, in
//!   its workspace, its own folders or files that have no name any more, or that cannot be counted. Its files
//!   stay, and its next command may remove some.
//! - Where the log finds no room, it gets a piece of what is held for it.
//! - Whether the log can be written is known while nobody writes, too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;

use super::Room;
use super::disk_guard::Open;
use crate::disk_reserve::Reserve;
use crate::store::{Store, Transient};

/// What must have gone for workspaces to be counted, and what a workspace must have grown by to be at
/// fault, in bytes.
const NOTICEABLE: u64 = 64 << 10;
/// How often it is tried whether the log can be written again.
const PROBE: Duration = Duration::from_secs(1);
/// What is said of a sandbox that is ended.
const FILLED: &str = "The server's disk is nearly full, and what ran here went on filling it.";

/// Looks after the reserve for as long as somebody else holds `open`.
pub(crate) fn watch(reserve: Reserve, store: Store, open: &Open) {
    let open = open.downgrade();
    tokio::spawn(async move {
        let mut guard = Guard {
            reserve,
            store,
            sizes: HashMap::new(),
            counted_at: None,
            probed: Instant::now(),
        };
        let mut pause = Duration::ZERO;
        loop {
            tokio::time::sleep(pause).await;
            let Some(open) = open.upgrade() else {
                return;
            };
            pause = guard.turn(&open).await;
        }
    });
}

struct Guard {
    reserve: Reserve,
    store: Store,
    /// What each session took when it was last counted; none where that could not be counted.
    sizes: HashMap<String, Option<u64>>,
    /// What was free then.
    counted_at: Option<u64>,
    probed: Instant,
}

impl Guard {
    /// Looks once, does what is to be done, and says when to look again.
    async fn turn(&mut self, open: &Open) -> Duration {
        let failure = self.store.health().failure();
        if failure.is_some() && self.probed.elapsed() >= PROBE {
            self.probed = Instant::now();
            // What came of it is the store's to know.
            let _ = self.store.probe().await;
        }
        let reserve = self.reserve.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let free = reserve.look()?;
            reserve.hold(free);
            Some(free)
        });
        let Ok(Some(free)) = looked.await else {
            return PROBE;
        };
        if !self.reserve.is_near(free) {
            self.counted_at = None;
            return self.reserve.next_look(free);
        }
        let fell = self
            .counted_at
            .is_none_or(|counted| counted.saturating_sub(free) >= NOTICEABLE);
        if fell {
            self.counted_at = Some(free);
            self.count(open).await;
        } else if self.counted_at.is_some_and(|counted| counted < free) {
            self.counted_at = Some(free);
        }
        if failure == Some(Transient::DiskFull) {
            let reserve = self.reserve.clone();
            let _ = tokio::task::spawn_blocking(move || reserve.release()).await;
            let _ = self.store.probe().await;
            // Whoever takes the piece instead is found by the next count.
            self.counted_at = None;
        }
        self.reserve.next_look(free)
    }

    /// Counts all workspaces, and ends the sandboxes of those that grew while the disk is short.
    async fn count(&mut self, open: &Open) {
        let counted = join_all(open.all().into_iter().map(count)).await;
        let is_short = self.reserve.shortage().is_some();
        let before = std::mem::take(&mut self.sizes);
        for (room, bytes) in counted {
            let session = room.session().to_owned();
            let grew = match (before.get(&session), bytes) {
                (None, _) => false,
                (Some(Some(before)), Some(bytes)) => bytes.saturating_sub(*before) >= NOTICEABLE,
                // What cannot be counted is not taken for small.
                (Some(_), _) => true,
            };
            if is_short && grew {
                tracing::warn!(session, bytes, "a sandbox filled the disk, and is ended");
                room.end_box(FILLED).await;
            }
            self.sizes.insert(session, bytes);
        }
    }
}

/// What a session takes of the disk; none where it cannot be told.
async fn count(room: Arc<Room>) -> (Arc<Room>, Option<u64>) {
    let ((workspace, _), sandbox) = (room.files(), room.sandbox());
    let counted = tokio::task::spawn_blocking(move || {
        let beside = sandbox.map_or(0, |sandbox| sandbox.disk_usage());
        Some(workspace.disk_usage()?.saturating_add(beside))
    });
    (room, counted.await.ok().flatten())
}
