//! The label of a plugin's log lines: which plugin wrote the line, and for whom it was called.
//!
//! # Invariants
//! - Every line of a plugin, and of a failed call of it, names the plugin, its digest, and the
//!   session and the step it was called for, where there are any.
//! - A line from a replay of recorded calls says so.

use std::sync::Arc;

use super::limits::CallError;
use lucid_types::digest::Digest;
pub(crate) use lucid_types::log_label::PluginCaller;
use lucid_types::wit::log::Level;

/// The log target of plugins' own lines, for filtering.
pub const LOG_TARGET: &str = "plugin";

/// The label of an instance's log lines.
#[derive(Debug)]
pub(super) struct LogLabel {
    pub(super) plugin: Arc<str>,
    pub(super) digest: Digest,
    pub(super) caller: PluginCaller,
}

impl LogLabel {
    /// The session as a text field.
    fn session(&self) -> Option<String> {
        self.caller.session_id().map(|id| id.to_string())
    }

    /// Logs a line that the plugin wrote.
    pub(super) fn line(&self, level: Level, text: &str) {
        let (session, digest) = (self.session(), self.digest.to_string());
        macro_rules! write {
            ($level:ident) => {
                tracing::$level!(
                    target: LOG_TARGET,
                    plugin = &*self.plugin,
                    digest,
                    session = session.as_deref(),
                    step = self.caller.step(),
                    shadow = self.caller.is_shadow().then_some(true),
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
        let (session, digest) = (self.session(), self.digest.to_string());
        tracing::warn!(
            plugin = &*self.plugin,
            digest,
            session = session.as_deref(),
            step = self.caller.step(),
            shadow = self.caller.is_shadow().then_some(true),
            call,
            "{error}"
        );
    }
}

#[cfg(test)]
pub(super) fn label() -> Arc<LogLabel> {
    Arc::new(LogLabel {
        plugin: "test".into(),
        digest: Digest::of("test"),
        caller: PluginCaller::default(),
    })
}
