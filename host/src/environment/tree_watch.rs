//! Tracks a workspace's file tree, its changes and its disk quota.
//!
//! # Invariants
//!
//! - The file system is accessed off the async threads.
//! - Unrequested trees are at least half a second apart, and more if a tree is large or takes long
//!   to build: trees are kept in the log, and a workspace that changes all the time must not fill
//!   it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::factory::SessionWork;
use lucid_sandbox::tools::ToolOutcome;
use lucid_sandbox::workspace::{Quota, WatchedWorkspace, Watcher, Workspace};

/// The minimum pause between two trees.
const PAUSE: Duration = Duration::from_millis(500);
/// The pause before the next tree, as a multiple of the time the last one took to build.
const REST: u32 = 9;
/// The rate at which a workspace's trees may fill the log, in bytes per second.
const LOG_RATE: usize = 64 * 1024;

/// The files of one session.
pub(crate) struct TreeTracker {
    workspace: Arc<Workspace>,
    quota: Arc<Quota>,
    /// `None` if this machine does not let the host watch folders.
    watched: Option<WatchedWorkspace>,
    pace: Mutex<CountPacing>,
    work: SessionWork,
}

#[derive(Default)]
struct CountPacing {
    /// The digest of the last tree.
    digest: Option<[u8; 32]>,
    /// When the tree last changed. At first never.
    changed_at: Option<Instant>,
    /// The earliest time of the next unrequested tree.
    next: Option<Instant>,
}

impl TreeTracker {
    /// The files of a workspace with a disk quota.
    pub(super) fn new(
        workspace: Arc<Workspace>,
        watcher: Option<&Watcher>,
        quota: Quota,
        work: SessionWork,
    ) -> Self {
        Self {
            workspace,
            quota: Arc::new(quota),
            watched: watcher.map(Watcher::workspace),
            pace: Mutex::default(),
            work,
        }
    }

    /// Their disk quota.
    pub(super) fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }

    /// The tree, as a JSON list of nodes.
    pub(super) async fn tree(self: Arc<Self>) -> Option<String> {
        let work = self.work.clone();
        let made = work.run(move || {
            let begun = Instant::now();
            let tree = match &self.watched {
                Some(watched) => self.workspace.watched_tree(watched)?,
                None => self.workspace.tree()?,
            };
            let json = serde_json::to_string(&tree).ok();
            let size = json.as_ref().map_or(0, String::len);
            self.record(json.as_deref(), begun.elapsed(), size);
            Ok(json)
        });
        made.await.ok()?
    }

    fn record(&self, json: Option<&str>, duration: Duration, size: usize) {
        let now = Instant::now();
        let logged = Duration::from_millis(1000 * size as u64 / LOG_RATE as u64);
        let mut pace = self.pace.lock();
        pace.next = Some(now + PAUSE.max(duration * REST).max(logged));
        let digest = json.map(|json| Sha256::digest(json).into());
        if pace.digest.is_some() && digest != pace.digest {
            pace.changed_at = Some(now);
        }
        pace.digest = digest;
    }

    /// Waits until the tree may have changed and may be built again. Returns false if changes
    /// cannot be detected.
    pub(super) async fn changed(self: Arc<Self>) -> bool {
        let Some(watched) = &self.watched else {
            return false;
        };
        watched.changed().await;
        loop {
            // A tool call may postpone it meanwhile.
            let next = self.pace.lock().next;
            match next.and_then(|next| next.checked_duration_since(Instant::now())) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return true,
            }
        }
    }

    /// Whether a tree was shown just now, and the next change will be noticed anyway.
    pub(super) fn tree_can_wait(&self) -> bool {
        let noticed = self
            .watched
            .as_ref()
            .is_some_and(WatchedWorkspace::is_complete);
        let pace = self.pace.lock();
        noticed
            && pace.changed_at.is_some()
            && pace.next.is_some_and(|next| Instant::now() < next)
            && pace.changed_at.is_some_and(|at| at.elapsed() < PAUSE)
    }

    /// Checks the quota after a tool call: the model is told for as long as the workspace is full,
    /// and the user once, with the returned sentence.
    pub(super) async fn after_tool(&self, outcome: &mut ToolOutcome) -> Option<String> {
        let (workspace, quota) = (self.workspace.clone(), self.quota.clone());
        let command = outcome.exit_code.is_some();
        let counted = self.work.clone().run(move || {
            if command {
                quota.changed();
            }
            let full = quota.full_message(&workspace);
            let notice = full
                .as_ref()
                .and_then(|_| quota.take_full_notice(&workspace));
            Ok((full, notice))
        });
        let (full, notice) = counted.await.ok()?;
        if let Some(full) = full
            && command
        {
            let text = &mut outcome.text;
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&format!("[{full}]"));
        }
        notice
    }
}

#[cfg(test)]
mod tests {
    use lucid_types::user_work::UserWork;

    use super::*;
    use lucid_types::ids::SessionId;

    const MIB: u64 = 1 << 20;

    fn files(watcher: Option<&Watcher>, limit: u64) -> (tempfile::TempDir, Arc<TreeTracker>) {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), &"user".into(), SessionId::new()).unwrap();
        let work = SessionWork {
            slots: UserWork::start().unwrap(),
            user: "user".into(),
        };
        let files = TreeTracker::new(Arc::new(workspace), watcher, Quota::new(limit), work);
        (base, Arc::new(files))
    }

    #[tokio::test]
    async fn trees_that_nobody_asks_for_are_half_a_second_apart_and_the_last_change_is_seen() {
        let base = tempfile::tempdir().unwrap();
        let watcher = Watcher::start(base.path()).unwrap();
        let (_base, files) = files(Some(&watcher), MIB);
        assert_eq!(files.clone().tree().await.unwrap(), "[]");
        let root = files.workspace.host_path().to_owned();
        let begun = Instant::now();
        let writer = tokio::task::spawn_blocking(move || {
            for number in 0..100 {
                std::fs::write(root.join(format!("f{number:03}")), "").unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
            std::fs::write(root.join("last"), "").unwrap();
        });
        let mut trees = 0;
        let see_all = async {
            while files.clone().changed().await {
                trees += 1;
                let tree = files.clone().tree().await.unwrap();
                if tree.contains("\"last\"") {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), see_all)
            .await
            .expect("the last change was never noticed");
        writer.await.unwrap();
        let most = begun.elapsed().as_millis() / PAUSE.as_millis();
        assert!(trees <= most, "{trees} trees in {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn large_trees_come_seldom() {
        let (_base, files) = files(None, MIB);
        files.record(Some("[]"), Duration::ZERO, 2);
        let small = files.pace.lock().next.unwrap();
        files.record(Some("[1]"), Duration::ZERO, 20 * LOG_RATE);
        assert!(files.pace.lock().next.unwrap() > small + Duration::from_secs(15));
    }

    #[tokio::test]
    async fn without_a_watcher_nothing_is_said_and_no_tree_is_put_off() {
        let (_base, files) = files(None, MIB);
        assert!(!files.clone().changed().await);
        files.clone().tree().await.unwrap();
        std::fs::write(files.workspace.host_path().join("a"), "").unwrap();
        files.clone().tree().await.unwrap();
        assert!(!files.tree_can_wait());
    }

    #[tokio::test]
    async fn the_model_is_told_while_it_is_full_and_the_user_once() {
        let (_base, files) = files(None, MIB);
        let root = files.workspace.host_path().to_owned();
        let ran = || ToolOutcome {
            text: "done".to_owned(),
            exit_code: Some(0),
            ..ToolOutcome::default()
        };
        let mut outcome = ran();
        assert_eq!(files.after_tool(&mut outcome).await, None);
        assert_eq!(outcome, ran());
        std::fs::write(root.join("big"), vec![b'x'; 2 << 20]).unwrap();
        let notice = files.after_tool(&mut outcome).await.unwrap();
        assert!(notice.starts_with("The workspace takes 2"), "{notice}");
        assert_eq!(outcome.text, format!("done\n[{notice}]"));
        let mut outcome = ran();
        assert_eq!(files.after_tool(&mut outcome).await, None);
        assert!(outcome.text.contains("may take 1 MiB"), "{outcome:?}");
        std::fs::remove_file(root.join("big")).unwrap();
        let mut outcome = ran();
        assert_eq!(files.after_tool(&mut outcome).await, None);
        assert_eq!(outcome, ran());
    }
}
