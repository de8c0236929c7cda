//! Sessions that sleep: that wait for their user's answer, for a timer or for nothing, with nobody there.
//! What is kept of one in memory is an entry in the registry; everything else is in the log, as for a host
//! that was restarted.
//!
//! # Invariants
//! - A session is woken by whatever concerns it: being looked up, its next timer, the end of its task's
//!   time or of its wait, and a new generation of the deployment, which it moves to as if it had not slept.
//! - It goes on from its last committed round, by the build that it had, and no time is lost or counted
//!   twice.
//! - One that cannot be woken stays asleep, and is tried again when it is next asked for.

use std::hash::BuildHasher;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::actor::resume::ResumeState;
use super::error::WakeError;
use super::handle::{IdleState, SessionHandle};
use super::registry::SessionEntry;
use super::shared::SessionsShared;
use lucid_types::ids::SessionId;
use lucid_types::log::LogError;
use lucid_types::user::UserId;

/// How many sessions are woken at once by time alone.
const AT_ONCE: usize = 8;
/// After what time a session is tried again whose log could not be read when its time had come.
const AGAIN: Duration = Duration::from_secs(1);

impl SessionsShared {
    /// Returns a session, and wakes it in its user's turn if it sleeps. `None` if there is none that has not
    /// ended.
    pub(super) async fn awake(
        self: &Arc<Self>,
        id: SessionId,
        user: Option<&UserId>,
    ) -> Result<Option<Arc<SessionHandle>>, WakeError> {
        if let Some(SessionEntry::Live(handle)) = self.registry.lock().get(&id) {
            return Ok(Some(handle.clone()));
        }
        let hash = usize::try_from(self.hasher.hash_one(id)).unwrap_or_default();
        let _turn = self.wake_locks[hash % self.wake_locks.len()].lock().await;
        let slept = match self.registry.lock().get(&id) {
            None => return Ok(None),
            Some(SessionEntry::Live(handle)) => return Ok(Some(handle.clone())),
            Some(SessionEntry::Asleep(sleeping)) => (**sleeping).clone(),
        };
        if self.halt.is_cancelled() {
            return Err(WakeError::ShuttingDown);
        }
        let Some(found) = self.deps.log.living(vec![id], user).await?.pop() else {
            return Err(LogError::Content("a session that sleeps is not in it".to_owned()).into());
        };
        let found = self.resume_state(found, slept.generation.clone()).map_err(|reason| {
            tracing::error!(session = %id, %reason, "a session cannot be woken; it stays as it is");
            WakeError::Resume(reason.to_string())
        })?;
        let clocks = slept.clocks;
        let handle = self.assemble(id, ResumeState { clocks, ..found });
        handle.wake(slept.idle_state, slept.unattended_since);
        if slept.has_workspace {
            handle.show_workspace();
        }
        if slept.idle_state != IdleState::Held {
            handle.launch();
        }
        Ok(Some(handle))
    }

    /// Wakes a session for its own sake.
    async fn wake_by_itself(self: &Arc<Self>, id: SessionId) {
        let Err(error) = self.awake(id, None).await else {
            return;
        };
        if let WakeError::Log(cause) = &error
            && cause.transient().is_some()
        {
            let again = Instant::now() + AGAIN;
            self.registry.lock().wake_at(id, Some(again));
        } else {
            tracing::error!(session = %id, %error, "a session was to wake by itself, and sleeps on until it is asked for");
        }
    }
}

/// Wakes sessions when their time has come, until the host halts or drops its sessions.
pub(super) async fn watch_time(shared: Weak<SessionsShared>, halt: CancellationToken) {
    loop {
        let Some(held) = shared.upgrade() else {
            return;
        };
        let due = held.registry.lock().take_due(Instant::now());
        if !due.is_empty() {
            let wakes = due.into_iter().map(|id| {
                let held = held.clone();
                async move { held.wake_by_itself(id).await }
            });
            futures::stream::iter(wakes)
                .buffer_unordered(AT_ONCE)
                .for_each(|()| std::future::ready(()))
                .await;
            continue;
        }
        let next = held.registry.lock().next_wake();
        let changed = held.wakes_changed.clone();
        drop(held);
        tokio::select! {
            () = halt.cancelled() => return,
            () = changed.notified() => {}
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
        }
    }
}

/// Has sleeping sessions move to each new generation of the deployment.
pub(super) async fn watch_deployment(shared: Weak<SessionsShared>, halt: CancellationToken) {
    let Some(mut deployment) = shared
        .upgrade()
        .map(|shared| shared.deps.deployment.clone())
    else {
        return;
    };
    deployment.mark_unchanged();
    while let Some(Ok(())) = halt.run_until_cancelled(deployment.changed()).await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let current = deployment.borrow_and_update().clone();
        let others = shared.registry.lock().outdated(&current);
        for id in others {
            if halt.is_cancelled() {
                return;
            }
            shared.wake_by_itself(id).await;
        }
    }
}
