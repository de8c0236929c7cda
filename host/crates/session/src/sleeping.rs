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

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::actor::resume::ResumeState;
use super::actor::task_clock;
use super::error::WakeError;
use super::handle::{IdleState, SessionHandle};
use super::ports::EnvironmentSpec;
use super::registry::{SessionEntry, SleepingClocks, SleepingSession};
use super::shared::SessionsShared;
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// How many sessions are woken at once by time alone.
const AT_ONCE: usize = 8;
/// How many sessions are in memory at once to move to another generation.
const MOVING: usize = 1024;
/// How often it is looked whether they sleep again.
const LOOK: Duration = Duration::from_millis(50);
/// After what time a session is tried again whose log could not be read when its time had come.
const AGAIN: Duration = Duration::from_secs(1);

impl SleepingSession {
    /// What the log does not know of its clocks. The time of one that is held does not run.
    fn clocks_when_woken(&self) -> SleepingClocks {
        match self.idle_state {
            IdleState::Held => SleepingClocks {
                task: self
                    .clocks
                    .task
                    .map(|(_, used)| (task_clock::counted_now(), used)),
                next_timer: None,
            },
            _ => self.clocks,
        }
    }
}

impl SessionsShared {
    /// Returns a session, and wakes it in its user's turn if it sleeps. `None` if there is none that has not
    /// ended.
    pub(super) async fn awake(
        self: &Arc<Self>,
        id: SessionId,
        user: Option<&UserId>,
    ) -> Result<Option<Arc<SessionHandle>>, WakeError> {
        loop {
            let slept = match self.registry.lock().get(&id) {
                None => return Ok(None),
                Some(SessionEntry::Live(handle)) => return Ok(Some(handle.clone())),
                Some(SessionEntry::Asleep(sleeping)) => (**sleeping).clone(),
            };
            if self.halt.is_cancelled() {
                return Err(WakeError::ShuttingDown);
            }
            let found = self.deps.log.living(vec![id], user).await?.pop();
            let found = found.ok_or_else(|| "its log cannot be understood".to_owned());
            let resumed = found.and_then(|found| {
                let resumed = self.resume_state(found, slept.generation.clone());
                resumed.map_err(|reason| reason.to_string())
            });
            let found = resumed.map_err(|reason| {
                tracing::error!(session = %id, reason, "a session cannot be woken; it stays as it is");
                WakeError::Resume(reason)
            })?;
            let clocks = slept.clocks_when_woken();
            let handle = self.assemble(id, ResumeState { clocks, ..found });
            handle.wake(slept.idle_state, slept.unattended_since);
            // Its files may be gone meanwhile, which its actor must see.
            let spec = EnvironmentSpec::of(id, handle.user().clone());
            if slept.has_workspace && self.deps.environments.has_workspace(&spec) {
                handle.show_workspace();
            }
            // Another caller may have been first, and it may have worked and slept again meanwhile.
            if !self.register_woken(&handle, slept.number) {
                continue;
            }
            tracing::debug!(session = %id, "a session that slept is awake");
            if slept.idle_state != IdleState::Held {
                handle.launch();
            }
            return Ok(Some(handle));
        }
    }

    /// Wakes the sessions that have another generation of the deployment than the current one, so that they
    /// move. Not many more are in memory for that at once than [`MOVING`].
    pub(super) async fn wake_outdated(self: &Arc<Self>) {
        let current = self.deps.deployment.borrow().number;
        let outdated = self.registry.lock().outdated(current);
        let mut pieces = outdated.chunks(MOVING).peekable();
        while let Some(some) = pieces.next() {
            for id in some {
                if self.halt.is_cancelled() {
                    return;
                }
                self.wake_by_itself(*id).await;
            }
            // Those that cannot move stay awake, and are not waited for longer than others need.
            let deadline = Instant::now() + self.deps.limits.sleep_after * 2 + AGAIN;
            while pieces.peek().is_some() && Instant::now() < deadline {
                tokio::time::sleep(LOOK).await;
                let registry = self.registry.lock();
                let is_awake =
                    |id: &SessionId| matches!(registry.get(id), Some(SessionEntry::Live(_)));
                if !some.iter().any(is_awake) {
                    break;
                }
            }
        }
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
            self.registry.lock().wake_at(id, again);
            self.wakes_changed.notify_one();
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
        deployment.mark_unchanged();
        shared.wake_outdated().await;
    }
}
