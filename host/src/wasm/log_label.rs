//! The label of a plugin's log lines: which plugin wrote the line, and for whom it was called.
//!
//! # Invariants
//! - Every line of a plugin, and of a failed call of it, names the plugin, its digest, and the
//!   session and the step it was called for, where there are any.
//! - A line from a replay of recorded calls says so.

use std::future::Future;
use std::sync::Arc;

use super::limits::CallError;
use crate::types::wit::log::Level;

/// What plugins' own lines are filtered by.
pub const LOG_TARGET: &str = "plugin";

tokio::task_local! {
    static CALLER: Caller;
}

/// For whom a plugin is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    session: Option<Arc<str>>,
    step: Option<u64>,
    shadow: bool,
}

impl Caller {
    /// A session.
    #[must_use]
    pub fn session(id: &str) -> Self {
        Self::default().in_session(id)
    }

    /// A shadow run, from which nothing comes but a comparison.
    #[must_use]
    pub fn shadow() -> Self {
        Self {
            shadow: true,
            ..Self::default()
        }
    }

    /// The same in this session.
    #[must_use]
    pub fn in_session(self, id: &str) -> Self {
        Self {
            session: Some(id.into()),
            ..self
        }
    }

    /// The same at this step of the session, or with what that step began.
    #[must_use]
    pub fn at_step(self, step: u64) -> Self {
        Self {
            step: Some(step),
            ..self
        }
    }

    /// Work in which plugins are called for it.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CALLER.scope(self, work)
    }

    /// For whom this task works.
    pub(super) fn current() -> Self {
        CALLER.try_with(Self::clone).unwrap_or_default()
    }
}

/// What stands beside each line of an instance.
#[derive(Debug)]
pub(super) struct Label {
    pub(super) plugin: Arc<str>,
    pub(super) digest: Arc<str>,
    pub(super) caller: Caller,
}

impl Label {
    /// Writes a line of the plugin's own.
    pub(super) fn line(&self, level: Level, text: &str) {
        macro_rules! write {
            ($level:ident) => {
                tracing::$level!(
                    target: LOG_TARGET,
                    plugin = &*self.plugin,
                    digest = &*self.digest,
                    session = self.caller.session.as_deref(),
                    step = self.caller.step,
                    shadow = self.caller.shadow.then_some(true),
                    "{text}"
                )
            };
        }
        match level {
            Level::Debug => write!(debug),
            Level::Info => write!(info),
            Level::Warn => write!(warn),
            Level::Error => write!(error),
        }
    }

    /// Writes that a call of it broke down, or met a limit.
    pub(super) fn failed(&self, call: &'static str, error: &CallError) {
        tracing::warn!(
            plugin = &*self.plugin,
            digest = &*self.digest,
            session = self.caller.session.as_deref(),
            step = self.caller.step,
            shadow = self.caller.shadow.then_some(true),
            call,
            "{error}"
        );
    }
}

#[cfg(test)]
pub(super) fn label() -> Arc<Label> {
    Arc::new(Label {
        plugin: "test".into(),
        digest: "00".into(),
        caller: Caller::default(),
    })
}
