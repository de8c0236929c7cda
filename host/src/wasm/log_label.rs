//! The label of a plugin's log lines: which plugin wrote the line, and for whom it was called.
//!
//! # Invariants
//! - Every line of a plugin, and of a failed call of it, names the plugin, its digest, and the
//!   session and the step it was called for, where there are any.
//! - A line from a replay of recorded calls says so.

use std::future::Future;
use std::sync::Arc;

use super::limits::CallError;
use lucid_types::wit::log::Level;

/// The log target of plugins' own lines, for filtering.
pub const LOG_TARGET: &str = "plugin";

tokio::task_local! {
    static CALLER: Caller;
}

/// On whose behalf a plugin is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    session: Option<Arc<str>>,
    step: Option<u64>,
    shadow: bool,
}

impl Caller {
    /// A call for a session.
    #[must_use]
    pub fn session(id: &str) -> Self {
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
    pub fn in_session(self, id: &str) -> Self {
        Self {
            session: Some(id.into()),
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
    pub(super) fn current() -> Self {
        CALLER.try_with(Self::clone).unwrap_or_default()
    }
}

/// The label of an instance's log lines.
#[derive(Debug)]
pub(super) struct Label {
    pub(super) plugin: Arc<str>,
    pub(super) digest: Arc<str>,
    pub(super) caller: Caller,
}

impl Label {
    /// Logs a line that the plugin wrote.
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

    /// Logs that a call trapped or hit a limit.
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
