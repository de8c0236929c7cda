//! What all sessions have in common.

use std::hash::RandomState;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::handle::Session;
use super::ports::{Deployment, EnvironmentProvider, PullRequests};
use super::registry::SessionRegistry;
use super::seal::Sealer;
use super::types::{PausedSessions, SessionLimits};
use super::user_logs::{UserLogLimits, UserLogs};
use lucid_types::disk_reserve::DiskReserve;
use lucid_types::log::SessionLog;

/// The dependencies of [`Sessions`](super::Sessions).
pub struct SessionDeps {
    /// The log.
    pub log: Arc<dyn SessionLog>,
    /// Seals the secrets in the log.
    pub sealer: Sealer,
    /// The current policies and models.
    pub deployment: Deployment,
    /// The provider of execution environments.
    pub environments: Arc<dyn EnvironmentProvider>,
    /// Opens the pull requests that users request.
    pub pull_requests: Arc<dyn PullRequests>,
    /// The disk space that is reserved for the log.
    pub reserve: DiskReserve,
    /// The limits of each session.
    pub limits: SessionLimits,
    /// How much each user may write into the log.
    pub user_logs: UserLogLimits,
}

/// The number of locks for concurrent lookups and creations.
pub(super) const CREATION_LOCKS: usize = 64;

/// What all sessions have in common.
pub(crate) struct SessionsShared {
    pub(super) deps: SessionDeps,
    /// How much users have written.
    pub(super) user_logs: Arc<UserLogs>,
    /// Cancelled when no new session is taken any more, while those that there are go on.
    pub(super) draining: CancellationToken,
    pub(super) halt: CancellationToken,
    /// Cancelled when the time for what still runs at a shutdown is up.
    pub(super) deadline_passed: CancellationToken,
    /// What sessions that have come to rest left behind.
    pub(super) paused_sessions: Mutex<PausedSessions>,
    pub(super) actors: TaskTracker,
    pub(super) registry: Mutex<SessionRegistry>,
    pub(super) hasher: RandomState,
    /// Held while a session is looked up and created, one lock per hash of the work.
    pub(super) creation_locks: [tokio::sync::Mutex<()>; CREATION_LOCKS],
    /// Notified when the time at which the next sleeping session wakes may have changed.
    pub(super) wakes_changed: Arc<Notify>,
    /// Limits how many sessions move to a newer generation at a time with nothing else to do, so
    /// that those that have something to do, new ones above all, need not wait for all of them.
    pub(super) move_permits: Arc<Semaphore>,
}

impl SessionsShared {
    /// Records that a session came to rest and which command was interrupted for it, if any.
    pub(super) fn paused(&self, session: &Session, command: Option<String>) {
        let mut left = self.paused_sessions.lock();
        left.sessions += 1;
        left.commands
            .extend(command.map(|command| (session.info.id, command)));
    }
}
