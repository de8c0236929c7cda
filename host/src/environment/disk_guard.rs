//! Watches the disk below all workspaces: none may take more than its limit. The log's reserve is
//! `log_reserve`'s.
//!
//! While the disk's free space does not fall, a look is one system call. When it fell, workspaces are counted; a
//! sandbox whose workspace takes clearly more than it may is ended with every process in it. Its files stay, and
//! its next command may remove some.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::SessionEnvironment;
use super::factory::blocking;
use lucid_sandbox::BackendKind;
use lucid_sandbox::workspace::QuotaCheck;
use lucid_types::ids::SessionId;

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How much less must be free before workspaces are counted, unless they may take less than that.
const FALL: u64 = 256 << 20;

/// The places that are open. Clones are handles of the same ones.
#[derive(Clone, Default)]
pub(crate) struct OpenEnvironments(Arc<Mutex<Vec<Weak<SessionEnvironment>>>>);

impl OpenEnvironments {
    /// One more, until it is dropped.
    pub(super) fn add(&self, environment: &Arc<SessionEnvironment>) {
        let mut environments = self.0.lock();
        environments.retain(|environment| environment.strong_count() > 0);
        environments.push(Arc::downgrade(environment));
    }

    /// The kind of sandbox that a session has now.
    pub(super) fn kind_of(&self, session: SessionId) -> Option<BackendKind> {
        let environment = self
            .all()
            .into_iter()
            .find(|environment| environment.belongs_to(session))?;
        environment.kind()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<SessionEnvironment>> {
        let environments = self.0.lock();
        environments.iter().filter_map(Weak::upgrade).collect()
    }

    /// A handle that keeps none of them.
    pub(super) fn downgrade(&self) -> WeakOpenEnvironments {
        WeakOpenEnvironments(Arc::downgrade(&self.0))
    }
}

/// The places that are open, as one sees them that lives no longer than they do.
pub(super) struct WeakOpenEnvironments(Weak<Mutex<Vec<Weak<SessionEnvironment>>>>);

impl WeakOpenEnvironments {
    /// The places, while somebody else holds them.
    pub(super) fn upgrade(&self) -> Option<OpenEnvironments> {
        self.0.upgrade().map(OpenEnvironments)
    }
}

/// Looks after the disk that `base` is on, for as long as somebody else holds `open`.
pub(crate) fn watch(base: &Path, disk_limit: u64, open: &OpenEnvironments) {
    let base = base.to_owned();
    let environments = Arc::downgrade(&open.0);
    tokio::spawn(async move {
        let mut disk = DiskState::new(disk_limit);
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(environments) = environments.upgrade() else {
                return;
            };
            if let Some(free) = free_bytes(base.clone()).await
                && disk.needs_count(free)
            {
                disk.incomplete = !end_oversized(&OpenEnvironments(environments)).await;
            }
        }
    });
}

/// What is known of the disk.
struct DiskState {
    threshold: u64,
    /// What was free when workspaces were last counted, or more since then.
    free: Option<u64>,
    /// Not every workspace could be counted then.
    incomplete: bool,
}

impl DiskState {
    fn new(disk_limit: u64) -> Self {
        Self {
            threshold: FALL.min(disk_limit / 8),
            free: None,
            incomplete: false,
        }
    }

    fn needs_count(&mut self, free: u64) -> bool {
        let known = *self.free.get_or_insert(free);
        let fell = known.saturating_sub(free) >= self.threshold;
        if fell || free > known {
            self.free = Some(free);
        }
        fell || self.incomplete
    }
}

async fn free_bytes(base: PathBuf) -> Option<u64> {
    let looked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(base));
    let disk = looked.await.ok()?.ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Whether all could be counted.
async fn end_oversized(open: &OpenEnvironments) -> bool {
    let mut sure = true;
    for environment in open.all() {
        let (workspace, quota) = environment.files();
        let counted = blocking(move || Ok(quota.check(&workspace))).await;
        match counted {
            Ok(QuotaCheck::Within) => {}
            Ok(QuotaCheck::Exceeded(sentence)) => environment.end_sandbox(&sentence).await,
            Ok(QuotaCheck::Unknown) | Err(_) => sure = false,
        }
    }
    sure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspaces_are_counted_only_when_the_free_space_fell() {
        let gib = 1 << 30;
        let mut disk = DiskState::new(10 * gib);
        assert!(!disk.needs_count(100 * gib), "nothing is known yet");
        assert!(!disk.needs_count(100 * gib - FALL + 1));
        assert!(disk.needs_count(100 * gib - FALL));
        assert!(!disk.needs_count(100 * gib - FALL), "counted just now");
        // Slow writing adds up; room that was made counts from there.
        assert!(!disk.needs_count(100 * gib - FALL - FALL / 2));
        assert!(disk.needs_count(100 * gib - 2 * FALL));
        assert!(!disk.needs_count(200 * gib));
        assert!(disk.needs_count(199 * gib));
        disk.incomplete = true;
        assert!(disk.needs_count(199 * gib));
    }

    #[test]
    fn where_workspaces_may_take_little_a_small_fall_counts() {
        let mut disk = DiskState::new(8 << 20);
        disk.needs_count(1 << 40);
        assert!(disk.needs_count((1 << 40) - (1 << 20)));
    }
}
