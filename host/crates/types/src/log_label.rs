//! On whose behalf a task works, for the log lines of the plugins that it calls.
//!
//! # Invariants
//! - What is set for a task holds for that task alone; a task that it spawns sets its own.

use std::future::Future;

use crate::ids::SessionId;

tokio::task_local! {
    static CALLER: PluginCaller;
}

/// On whose behalf a plugin is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginCaller {
    session: Option<SessionId>,
    step: Option<u64>,
    shadow: bool,
}

impl PluginCaller {
    /// A call for a session.
    #[must_use]
    pub fn session(id: SessionId) -> Self {
        Self::default().in_session(id)
    }

    /// A call in a shadow run, whose results are only compared.
    #[must_use]
    pub fn shadow() -> Self {
        Self {
            shadow: true,
            ..Self::default()
        }
    }

    /// The same caller in this session.
    #[must_use]
    pub fn in_session(self, id: SessionId) -> Self {
        Self {
            session: Some(id),
            ..self
        }
    }

    /// The same caller at this step of the session, or in work that the step began.
    #[must_use]
    pub fn at_step(self, step: u64) -> Self {
        Self {
            step: Some(step),
            ..self
        }
    }

    /// Runs `work` with this caller for the plugin calls in it.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CALLER.scope(self, work)
    }

    /// The caller of the current task.
    pub fn current() -> Self {
        CALLER.try_with(Self::clone).unwrap_or_default()
    }
    /// The session's id, if the call is for one.
    pub fn session_id(&self) -> Option<SessionId> {
        self.session
    }

    /// The step of the session, if the call belongs to one.
    pub fn step(&self) -> Option<u64> {
        self.step
    }

    /// Whether this is a shadow run.
    pub fn is_shadow(&self) -> bool {
        self.shadow
    }
}
