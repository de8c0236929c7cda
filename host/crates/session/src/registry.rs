//! The registry of live sessions: by id, by user, and by the work they do.
//!
//! # Invariants
//! - A user has no more session slots than allowed, including those of sessions that are being
//!   created.
//! - A slot is released when its session is forgotten or was never created.

use std::hash::BuildHasher;
use std::sync::Arc;

use super::error::CreateError;
use super::handle::SessionHandle;
use super::shared::{SessionRegistry, SessionsShared};
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// User, project, task and repository.
pub(super) type WorkKey<'a> = (&'a UserId, Option<&'a str>, &'a str, Option<&'a str>);

impl SessionHandle {
    pub(super) fn work(&self) -> WorkKey<'_> {
        (
            &self.info.user,
            self.info.project_id.as_deref(),
            &self.info.task,
            self.info.repo_url.as_deref(),
        )
    }
}

/// One of a user's session slots, held during creation and released if no session results.
pub(super) struct SessionClaim {
    shared: Arc<SessionsShared>,
    user: UserId,
    id: SessionId,
}

impl Drop for SessionClaim {
    fn drop(&mut self) {
        let mut registry = self.shared.registry.lock();
        if !registry.by_id.contains_key(&self.id) {
            registry.release(&self.user, &self.id);
        }
    }
}

impl SessionRegistry {
    fn release(&mut self, user: &UserId, id: &SessionId) {
        if let Some(of_user) = self.by_user.get_mut(user) {
            of_user.remove(id);
            if of_user.is_empty() {
                self.by_user.remove(user);
            }
        }
    }
}

impl SessionsShared {
    pub(super) fn register(&self, session: &Arc<SessionHandle>) {
        let work = self.hasher.hash_one(session.work());
        let mut registry = self.registry.lock();
        registry
            .by_user
            .entry(session.info.user.clone())
            .or_default()
            .insert(session.info.id);
        registry.by_work.insert(work, session.info.id);
        registry.by_id.insert(session.info.id, session.clone());
    }

    pub(super) fn unregister(&self, session: &SessionHandle) {
        let work = self.hasher.hash_one(session.work());
        let mut registry = self.registry.lock();
        registry.by_id.remove(&session.info.id);
        if registry.by_work.get(&work) == Some(&session.info.id) {
            registry.by_work.remove(&work);
        }
        registry.release(&session.info.user, &session.info.id);
    }

    /// Claims one of the user's slots for a session that is about to be created.
    pub(super) fn claim(
        self: &Arc<Self>,
        user: &UserId,
        id: SessionId,
    ) -> Result<SessionClaim, CreateError> {
        let most = self.deps.limits.sessions_per_user;
        let mut registry = self.registry.lock();
        let of_user = registry.by_user.entry(user.clone()).or_default();
        if of_user.len() >= most {
            return Err(CreateError::TooManySessions(most));
        }
        of_user.insert(id);
        Ok(SessionClaim {
            shared: self.clone(),
            user: user.clone(),
            id,
        })
    }
}
