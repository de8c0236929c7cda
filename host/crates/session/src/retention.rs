//! What a session leaves that ended without its user's wish: because nobody came back, or its time was up.
//!
//! # Invariants
//! Its workspace stays for the retention time, counted in the host's uptime, and can be read by its user
//! meanwhile. Then it is removed, by whichever host runs; one that cannot be removed is tried again. Where
//! the disk is short the oldest go first, before their time. A user who stops or deletes the session has it
//! removed at once.

use std::sync::Weak;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ports::EnvironmentSpec;
use super::shared::SessionsShared;
use lucid_types::ids::SessionId;
use lucid_types::log::{LogError, RetainedWorkspace};
use lucid_types::user::UserId;

/// After how long one that could not be removed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Between two looks at what is kept.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) fn spec_of(retained: RetainedWorkspace) -> EnvironmentSpec {
    EnvironmentSpec::of(retained.session, retained.user)
}

/// Removes what was kept long enough, for as long as there are sessions.
pub(super) async fn sweep(
    shared: Weak<SessionsShared>,
    halt: CancellationToken,
    retention: Duration,
) {
    let pause = match retention {
        // Nothing is kept, but what could not be removed.
        Duration::ZERO => LONGEST_PAUSE,
        some => (some / 10).clamp(Duration::from_millis(50), LONGEST_PAUSE),
    };
    while halt
        .run_until_cancelled(tokio::time::sleep(pause))
        .await
        .is_some()
    {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Err(cause) = shared.remove_overdue(retention).await {
            tracing::debug!(%cause, "kept workspaces were not looked after");
        }
    }
}

impl SessionsShared {
    async fn remove_overdue(&self, retention: Duration) -> Result<(), LogError> {
        let retention = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        let uptime = self.deps.log.uptime();
        // Also those of uptime 0, which are of no use any more.
        let before = uptime.saturating_sub(retention);
        for retained in self.retained_before(before).await? {
            self.remove_retained(retained).await?;
        }
        // Those of now count as well: the log comes before what nobody asked for.
        while self.deps.environments.is_disk_short().await {
            let Some(oldest) = self.retained_before(uptime).await?.into_iter().next() else {
                break;
            };
            tracing::warn!(
                session = %oldest.session,
                "the disk is short, so the workspace of a session that ended is removed before its time"
            );
            if !self.remove_retained(oldest).await? {
                break;
            }
        }
        Ok(())
    }

    async fn retained_before(&self, uptime: u64) -> Result<Vec<RetainedWorkspace>, LogError> {
        self.deps.log.retained_before(uptime).await
    }

    /// True where nothing of it is left.
    pub(super) async fn remove_retained(
        &self,
        retained: RetainedWorkspace,
    ) -> Result<bool, LogError> {
        let (session, user) = (retained.session, retained.user.clone());
        let removed = self.deps.environments.remove(spec_of(retained)).await;
        if let Err(cause) = &removed {
            tracing::error!(
                %session,
                %cause,
                "a workspace could not be removed; it is tried again later"
            );
        }
        let gone = removed.is_ok();
        let time = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let begun = self.deps.log.uptime().saturating_add(time(RETRY_INTERVAL));
        let begun = begun.saturating_sub(time(self.deps.limits.retention));
        if gone {
            self.deps.log.forget_retained(session, &user).await?;
        } else {
            // Its time is up again in a while, whatever it was kept for.
            let begun = begun.max(1);
            self.deps.log.retain_longer(session, &user, begun).await?;
        }
        Ok(gone)
    }

    pub(super) async fn retained(
        &self,
        id: &SessionId,
        user: Option<&UserId>,
    ) -> Result<Option<RetainedWorkspace>, LogError> {
        self.deps.log.retained(*id, user).await
    }
}
