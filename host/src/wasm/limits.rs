//! The limits of one plugin call, its usage, and the errors for exceeding a limit.
//!
//! # Invariants
//! - Every limit has a figure, and every call has every limit.
//! - Exceeding a limit is a [`CallError`] that names the plugin, the call, the figure and what to
//!   do about it.

use std::sync::Arc;
use std::time::Duration;

use crate::types::sanitize::clean;
use crate::types::wit::types;

/// What one call may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Instructions, roughly.
    pub fuel: u64,
    /// Linear memory, all of the component's together.
    pub memory_bytes: usize,
    /// What is copied out of the guest: its result, and each of its log lines.
    pub output_bytes: usize,
    /// The wall clock: the last resort, since how much a call computes is limited by fuel.
    pub wall: Duration,
}

impl Default for Limits {
    /// A step takes microseconds and little memory, so these are far away from honest work.
    fn default() -> Self {
        Self {
            fuel: 2_000_000_000,
            memory_bytes: 128 << 20,
            output_bytes: 8 << 20,
            wall: Duration::from_secs(10),
        }
    }
}

/// What one call used, or several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Figures {
    /// Instructions, roughly; the same arguments use the same.
    pub fuel: u64,
    /// Linear memory at the end, which never shrinks. Of several calls, the most.
    pub memory_bytes: u64,
    /// Wall clock, without waiting for a free slot.
    pub micros: u64,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.fuel = self.fuel.saturating_add(other.fuel);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.micros = self.micros.saturating_add(other.micros);
    }
}

/// What a call gave, and what it used to get there.
#[derive(Debug, Clone, PartialEq)]
pub struct Called<T> {
    /// What it gave.
    pub result: Result<T, CallError>,
    /// What it used, whether it went well or not.
    pub figures: Figures,
}

impl<T> Called<T> {
    /// Turns the result into another.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Called<U> {
        Called {
            result: self.result.map(f),
            figures: self.figures,
        }
    }
}

/// Which plugin, and which of its functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// The function.
    pub call: &'static str,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` of the plugin `{}`", self.call, self.plugin)
    }
}

/// Why a call gave nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CallError {
    /// It computed too much.
    #[error(
        "{at} used up its {limit} units of fuel; it may be in an endless loop: report it to the plugin's author, or raise the fuel limit"
    )]
    OutOfFuel {
        /// Where.
        at: Place,
        /// The limit.
        limit: u64,
    },
    /// It wanted too much memory.
    #[error(
        "{at} wanted more than its {limit} bytes of memory; report it to the plugin's author, or raise the memory limit"
    )]
    OutOfMemory {
        /// Where.
        at: Place,
        /// The limit.
        limit: usize,
    },
    /// It gave too much.
    #[error(
        "{at} gave more than the {limit} bytes that one call may; report it to the plugin's author, or raise the output limit"
    )]
    TooMuchOutput {
        /// Where.
        at: Place,
        /// The limit.
        limit: usize,
    },
    /// It took too long.
    #[error(
        "{at} took longer than its {} ms; try again when the machine is less busy, or raise the time limit",
        .limit.as_millis()
    )]
    Deadline {
        /// Where.
        at: Place,
        /// The limit.
        limit: Duration,
    },
    /// It broke down.
    #[error("{at} broke down ({detail}); this is a fault of the plugin: report it to its author")]
    Trap {
        /// Where.
        at: Place,
        /// Cleaned and cut.
        detail: String,
    },
    /// It said no, in its own words.
    #[error("{at} refused: {}", .error.message)]
    Plugin {
        /// Where.
        at: Place,
        /// What it said, cleaned and cut.
        error: types::Error,
    },
    /// The host could not make the call.
    #[error("{at} could not be called ({detail}); this is a fault of the host: report it")]
    Internal {
        /// Where.
        at: Place,
        /// Cleaned and cut.
        detail: String,
    },
}

impl From<CallError> for types::Error {
    /// In the vocabulary that policies and clients know. A plugin's own error is passed on as it is.
    fn from(error: CallError) -> Self {
        let (kind, code) = match &error {
            CallError::Plugin { error, .. } => return error.clone(),
            CallError::OutOfFuel { .. } => (types::ErrorKind::Deadline, "plugin-out-of-fuel"),
            CallError::Deadline { .. } => (types::ErrorKind::Deadline, "plugin-too-slow"),
            CallError::OutOfMemory { .. } => (types::ErrorKind::Internal, "plugin-out-of-memory"),
            CallError::TooMuchOutput { .. } => {
                (types::ErrorKind::Internal, "plugin-too-much-output")
            }
            CallError::Trap { .. } => (types::ErrorKind::Internal, "plugin-trap"),
            CallError::Internal { .. } => (types::ErrorKind::Internal, "plugin-call"),
        };
        types::Error {
            kind,
            code: Some(code.to_owned()),
            message: error.to_string(),
            retry_after_ms: None,
        }
    }
}

/// A guest's error, fit to be shown.
pub(super) fn cleaned(mut error: types::Error) -> types::Error {
    error.message = clean(&error.message, 2_000);
    error.code = error.code.map(|code| clean(&code, 100));
    error
}
