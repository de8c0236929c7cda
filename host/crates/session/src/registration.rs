//! Puts sessions into the registry, takes them out of it, and has their place there kept while they are
//! created or sleep.
//!
//! # Invariants
//! - A user has no more session slots than allowed, including those of sessions that are being
//!   created.
//! - A slot is released when its session is forgotten or was never created.
//! - A session goes to sleep only if nobody outside the engine has its handle and nothing has come for
//!   it.

use std::hash::BuildHasher;
use std::sync::Arc;

use super::error::CreateError;
use super::handle::{Session, SessionHandle};
use super::registry::{SessionEntry, SleepingSession, WorkKey};
use super::shared::SessionsShared;
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// One of a user's session slots, held during creation and released if no session results.
pub(super) struct SessionClaim {
    shared: Arc<SessionsShared>,
    user: UserId,
    id: SessionId,
}

impl Drop for SessionClaim {
    fn drop(&mut self) {
        let mut registry = self.shared.registry.lock();
        registry.unclaim(&self.user, &self.id);
    }
}

impl SessionsShared {
    /// Registers a session that is in memory from here on.
    pub(super) fn register(&self, session: &Arc<SessionHandle>) {
        let work = self.hasher.hash_one(session.work());
        let (id, user) = (session.info.id, &session.info.user);
        let entry = SessionEntry::Live(session.clone());
        self.registry.lock().insert(id, user, work, entry);
    }

    /// Registers a session that was woken, unless it was woken already or is over. Returns whether it is
    /// the one in memory now.
    pub(super) fn register_woken(&self, session: &Arc<SessionHandle>, slept: u64) -> bool {
        let id = session.info.id;
        let mut registry = self.registry.lock();
        let is_still_asleep = matches!(
            registry.get(&id),
            Some(SessionEntry::Asleep(sleeping)) if sleeping.number == slept
        );
        if is_still_asleep {
            registry.replace(id, SessionEntry::Live(session.clone()));
        }
        is_still_asleep
    }

    /// Registers a session that sleeps from the start.
    pub(super) fn register_asleep(
        &self,
        id: SessionId,
        work: WorkKey<'_>,
        sleeping: SleepingSession,
    ) {
        let (user, work) = (work.0, self.hasher.hash_one(work));
        let entry = SessionEntry::Asleep(Box::new(sleeping));
        self.registry.lock().insert(id, user, work, entry);
        self.wakes_changed.notify_one();
    }

    /// Leaves nothing in memory of a session but an entry, unless something has come for it or somebody
    /// outside the engine has its handle. Returns whether it sleeps now.
    pub(super) fn put_to_sleep(
        &self,
        session: &Session,
        has_news: impl FnOnce() -> bool,
        sleeping: SleepingSession,
    ) -> bool {
        let entry = SessionEntry::Asleep(Box::new(sleeping));
        let mut registry = self.registry.lock();
        // Handles are given out while the registry is locked, so nobody comes to have one meanwhile.
        let is_free = match registry.get(&session.info.id) {
            Some(SessionEntry::Live(handle)) => Arc::strong_count(handle) == 1,
            _ => false,
        };
        if !is_free || has_news() {
            return false;
        }
        registry.replace(session.info.id, entry);
        drop(registry);
        self.wakes_changed.notify_one();
        true
    }

    /// Forgets a session, unless another one has taken its place.
    pub(super) fn unregister(&self, session: &Session) {
        let work = self.hasher.hash_one(session.work());
        let (id, user) = (session.info.id, &session.info.user);
        let mut registry = self.registry.lock();
        if registry.has(session) {
            registry.remove(&id, user, work);
        }
    }

    /// Claims one of the user's slots for a session that is about to be created.
    pub(super) fn claim(
        self: &Arc<Self>,
        user: &UserId,
        id: SessionId,
    ) -> Result<SessionClaim, CreateError> {
        let most = self.deps.limits.sessions_per_user;
        if !self.registry.lock().claim(user, id, most) {
            return Err(CreateError::TooManySessions(most));
        }
        Ok(SessionClaim {
            shared: self.clone(),
            user: user.clone(),
            id,
        })
    }
}
