//! Why a call of the log failed.

use std::error::Error;

use crate::transient::TransientFailure;

/// Why a call of the log failed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The same call may succeed later.
    #[error("{source}")]
    Transient {
        /// Why it failed now.
        reason: TransientFailure,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// What the log holds is not what this build writes.
    #[error("the log holds something that this build does not understand: {0}")]
    Content(String),
    /// The log was closed, or a write panicked.
    #[error("the store is closed, or a write in it failed badly; the log of the host says more")]
    Closed,
    /// The log can never be read or written.
    #[error(transparent)]
    Permanent(Box<dyn Error + Send + Sync>),
}

impl LogError {
    /// Returns why the call failed if the same call may succeed later, or `None` if it never will.
    pub fn transient(&self) -> Option<TransientFailure> {
        match self {
            Self::Transient { reason, .. } => Some(*reason),
            Self::Content(_) | Self::Closed | Self::Permanent(_) => None,
        }
    }
}
