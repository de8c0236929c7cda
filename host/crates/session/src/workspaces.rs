//! The workspaces of sessions: which a user has, and removing what is kept of one that ended.

use super::registry::SessionEntry;
use super::retention::spec_of;
use super::sessions::Sessions;
use super::types::LookupError;
use lucid_types::ids::SessionId;
use lucid_types::log::LogError;
use lucid_types::user::UserId;

/// Why a workspace is not given.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceLookupError {
    /// There is none of that session, or not for this user.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The files stay where they are. Why is in the host's log.
    #[error("the session's files could not be removed; that is tried again in ten minutes")]
    NotRemoved,
}

impl Sessions {
    /// Returns whether a session of this user has a workspace: one that lives may have none yet, and one that
    /// ended has it as long as its files are kept.
    pub async fn has_workspace(
        &self,
        id: &SessionId,
        user: &UserId,
    ) -> Result<bool, WorkspaceLookupError> {
        let found = self
            .shared
            .registry
            .lock()
            .find(id, user)
            .map(|entry| match entry {
                SessionEntry::Live(session) => session.has_workspace(),
                SessionEntry::Asleep(sleeping) => sleeping.has_workspace,
            });
        match found {
            Ok(has_workspace) => return Ok(has_workspace),
            Err(LookupError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
        let retained = self.shared.retained(id, Some(user)).await?;
        let retained = retained.ok_or(LookupError::NotFound)?;
        if retained.user != *user {
            return Err(LookupError::NotYours.into());
        }
        if self
            .shared
            .deps
            .environments
            .has_workspace(&spec_of(retained))
        {
            Ok(true)
        } else {
            Err(LookupError::NotFound.into())
        }
    }

    /// Removes what is kept of a session of this user that ended. False where nothing is.
    pub async fn discard(
        &self,
        id: &SessionId,
        user: &UserId,
    ) -> Result<bool, WorkspaceLookupError> {
        let Some(retained) = self.shared.retained(id, Some(user)).await? else {
            return Ok(false);
        };
        if retained.user != *user {
            return Err(LookupError::NotYours.into());
        }
        if self.shared.remove_retained(retained).await? {
            Ok(true)
        } else {
            Err(WorkspaceLookupError::NotRemoved)
        }
    }

    /// The same for whoever's it is, in the course of ending it.
    pub(super) async fn discard_any(&self, id: &SessionId) {
        let removed = async {
            match self.shared.retained(id, None).await? {
                Some(retained) => self.shared.remove_retained(retained).await.map(drop),
                None => Ok(()),
            }
        };
        if let Err(cause) = removed.await {
            tracing::warn!(session = %id, %cause, "what is kept of a session was not removed; that happens when its time is up");
        }
    }
}
