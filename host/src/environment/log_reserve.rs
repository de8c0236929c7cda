//! Looks after the reserve of disk that is kept for the log.
//!
//! # Invariants
//!
//! - While the disk is short of bytes or of files, a sandbox is ended with every process in it that takes
//!   more and more of it, in its workspace, its own folders or files that have no name any more. Its files
//!   stay, and its next command may remove some. Those that cannot be counted are ended only where none is
//!   seen to grow.
//! - Where the log finds no room, it gets a piece of what is held for it.
//! - Whether the log can be written is known while nobody writes, too.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;

use super::SessionEnvironment;
use super::disk_guard::OpenEnvironments;
use lucid_sandbox::ProcessTable;
use lucid_store::Store;
use lucid_types::disk_reserve::DiskReserve;
use lucid_types::ids::SessionId;
use lucid_types::transient::TransientFailure;

/// What must have gone for workspaces to be counted, and what a workspace must have grown by to be at
/// fault, in bytes.
const NOTICEABLE: u64 = 64 << 10;
/// How often it is tried whether the log can be written again.
const PROBE: Duration = Duration::from_secs(1);
/// What is said of a sandbox that is ended.
const FILLED: &str = "The server's disk is nearly full, and what ran here went on filling it.";

/// Looks after the reserve for as long as somebody else holds `open`.
pub(crate) fn watch(reserve: DiskReserve, store: Store, open: &OpenEnvironments) {
    let open = open.downgrade();
    tokio::spawn(async move {
        let mut guard = LogReserve {
            reserve,
            store,
            sizes: HashMap::new(),
            counted_at: None,
            last_probe: Instant::now(),
        };
        let mut pause = Duration::ZERO;
        loop {
            tokio::time::sleep(pause).await;
            let Some(open) = open.upgrade() else {
                return;
            };
            pause = guard.check(&open).await;
        }
    });
}

/// What each session takes in bytes; none where that cannot be counted.
type SessionSizes<S = SessionId> = HashMap<S, Option<u64>>;

struct LogReserve {
    reserve: DiskReserve,
    store: Store,
    /// At the last count.
    sizes: SessionSizes,
    /// What was free then.
    counted_at: Option<u64>,
    last_probe: Instant,
}

impl LogReserve {
    /// Looks once, does what is to be done, and says when to look again.
    async fn check(&mut self, open: &OpenEnvironments) -> Duration {
        let failure = self.store.health().failure();
        if failure.is_some() && self.last_probe.elapsed() >= PROBE {
            self.last_probe = Instant::now();
            // What came of it is the store's to know.
            let _ = self.store.probe().await;
        }
        let reserve = self.reserve.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let free = reserve.check()?;
            reserve.hold(free);
            Some(free)
        });
        let Ok(Some(free)) = looked.await else {
            return PROBE;
        };
        if !self.reserve.is_nearly_full(free) {
            self.counted_at = None;
            if self.reserve.lacks_files() {
                self.count(open).await;
            }
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
        if failure == Some(TransientFailure::DiskFull) {
            let reserve = self.reserve.clone();
            let _ = tokio::task::spawn_blocking(move || reserve.release()).await;
            let _ = self.store.probe().await;
            // Whoever takes the piece instead is found by the next count.
            self.counted_at = None;
        }
        self.reserve.next_look(free)
    }

    /// Counts all workspaces, and ends the sandboxes of those that grew while the disk is short.
    async fn count(&mut self, open: &OpenEnvironments) {
        let Ok(processes) = tokio::task::spawn_blocking(ProcessTable::now).await else {
            return;
        };
        let processes = Arc::new(processes);
        let environments = open.all().into_iter();
        let counted =
            join_all(environments.map(|environment| count(environment, processes.clone()))).await;
        let sizes = counted
            .iter()
            .map(|(environment, bytes)| (environment.session(), *bytes))
            .collect();
        let before = std::mem::replace(&mut self.sizes, sizes);
        if self.reserve.shortage().is_none() && !self.reserve.lacks_files() {
            return;
        }
        let guilty = growing_sessions(&before, &self.sizes);
        for (environment, bytes) in counted {
            let session = environment.session();
            if guilty.contains(&session) {
                tracing::warn!(%session, bytes, "a sandbox filled the disk, and is ended");
                environment.end_sandbox(FILLED).await;
            }
        }
    }
}

/// The sessions that filled the disk between two counts: those that were seen to grow; only where there are
/// none of them, those that cannot be counted, which are not taken for small.
fn growing_sessions<S: Copy + Eq + Hash>(
    before: &SessionSizes<S>,
    now: &SessionSizes<S>,
) -> HashSet<S> {
    let of = |is: fn(Option<u64>, Option<u64>) -> bool| -> HashSet<S> {
        let known = now.iter().filter(|(session, now)| {
            before
                .get(*session)
                .is_some_and(|before| is(*before, **now))
        });
        known.map(|(session, _)| *session).collect()
    };
    let grew = of(|before, now| match (before, now) {
        (Some(before), Some(now)) => now.saturating_sub(before) >= NOTICEABLE,
        _ => false,
    });
    if grew.is_empty() {
        of(|_, now| now.is_none())
    } else {
        grew
    }
}

/// What a session takes of the disk; none where it cannot be told.
async fn count(
    environment: Arc<SessionEnvironment>,
    processes: Arc<ProcessTable>,
) -> (Arc<SessionEnvironment>, Option<u64>) {
    let ((workspace, _), sandbox) = (environment.files(), environment.sandbox());
    let counted = tokio::task::spawn_blocking(move || {
        let sandbox_bytes = match sandbox {
            Some(sandbox) => sandbox.disk_usage(&processes)?,
            None => 0,
        };
        Some(workspace.disk_usage()?.saturating_add(sandbox_bytes))
    });
    (environment, counted.await.ok().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(of: &[(&'static str, Option<u64>)]) -> SessionSizes<&'static str> {
        of.iter().copied().collect()
    }

    #[test]
    fn what_cannot_be_counted_is_at_fault_only_where_nothing_is_seen_to_grow() {
        let before = sizes(&[
            ("grows", Some(0)),
            ("still", Some(9)),
            ("closed", Some(9)),
            ("deep", None),
            ("open again", None),
        ]);
        let mut now = sizes(&[
            ("grows", Some(NOTICEABLE)),
            ("still", Some(9)),
            ("closed", None),
            ("deep", None),
            ("open again", Some(1 << 40)),
            ("new", Some(1 << 40)),
            ("new and deep", None),
        ]);
        assert_eq!(growing_sessions(&before, &now), HashSet::from(["grows"]));
        now.insert("grows", Some(NOTICEABLE - 1));
        assert_eq!(
            growing_sessions(&before, &now),
            HashSet::from(["closed", "deep"])
        );
    }
}
