//! The recovery of the last run: its sessions and its containers.

use super::error::StartError;
use super::{App, origin};
use lucid_sandbox::docker::Adopted;

/// What becomes of the sessions of the last run at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeMode {
    /// They go on, unless the database comes from elsewhere.
    Default,
    /// They go on, wherever it comes from.
    All,
    /// They wait for their users.
    None,
}

impl App {
    /// Goes on with the sessions of the last run, and with the containers that are theirs. Where that run
    /// was on another machine or in another folder, its sessions wait for their users instead, unless
    /// `resume` says otherwise. For the one process that serves, before anything is served; again only where
    /// it failed.
    pub async fn recover(&self, resume: ResumeMode) -> Result<(), StartError> {
        // Once: what it finds is not there for another attempt.
        let begin = || origin::begin(&self.store, &self.config.workspace_base_path);
        let elsewhere = self.relocation.get_or_try_init(begin).await?;
        if resume == ResumeMode::All {
            let release = |connection: &_| lucid_store::release_sessions(connection, None);
            self.store.write(release).await?;
        }
        let alive = self.sessions.in_log().await?;
        let adopted = self.sandboxes.adopt(|session| alive.contains(&session));
        match adopted.await {
            Ok(none) if none == Adopted::default() => {}
            Ok(Adopted { kept, removed }) => {
                tracing::info!(kept, removed, "containers of the last run");
            }
            // Sessions get new ones.
            Err(cause) => tracing::warn!(%cause, "the containers of the last run stay as they are"),
        }
        if resume == ResumeMode::None {
            self.sessions.recover_held().await?;
        } else {
            let count = self.sessions.recover().await?;
            if count > 0 {
                let asleep = self.sessions.count_asleep();
                tracing::info!(count, asleep, "sessions of the last run go on");
            }
        }
        let waiting = self.sessions.count_held();
        match elsewhere {
            Some(how) if waiting > 0 => {
                tracing::warn!(
                    count = waiting,
                    "the database {how}, so its sessions do not go on by themselves: each does when its user comes back, or all of them after `lucid serve --resume`"
                );
            }
            _ if waiting > 0 => {
                tracing::info!(
                    count = waiting,
                    "sessions wait for their users to come back; `lucid serve --resume` goes on with all of them"
                );
            }
            _ => {}
        }
        Ok(())
    }
}
