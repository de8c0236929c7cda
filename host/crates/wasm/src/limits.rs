//! The limits of one plugin call, its usage, and the errors for exceeding a limit.
//!
//! # Invariants
//! - Every limit has a figure, and every call has every limit.
//! - Exceeding a limit is a [`CallError`] that names the plugin, the call, the figure and what to
//!   do about it.

use std::sync::Arc;
use std::time::Duration;

use lucid_types::sanitize::sanitize;
use lucid_types::wit::types;

/// Core instances in one component: a module, shims, and what a toolchain adds. A Python guest with
/// stubs for WASI has 38. This is a maximum and reserves nothing, so small guests pay nothing for
/// it.
pub(super) const MOST_CORE_INSTANCES: u32 = 64;
/// Linear memories in one component.
pub(super) const MOST_MEMORIES: u32 = 2;
/// Tables in one component.
pub(super) const MOST_TABLES: u32 = 8;

/// The limits of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginLimits {
    /// Fuel; roughly, instructions.
    pub fuel: u64,
    /// Linear memory in bytes, all of the component's memories together.
    pub memory_bytes: usize,
    /// Bytes copied out of the guest: its result, and each of its log lines.
    pub output_bytes: usize,
    /// Wall-clock time. A last resort, since computation is limited by fuel.
    pub wall: Duration,
}

impl Default for PluginLimits {
    /// A step takes microseconds and little memory, so honest work stays far below these.
    fn default() -> Self {
        Self {
            fuel: 2_000_000_000,
            memory_bytes: 128 << 20,
            output_bytes: 8 << 20,
            wall: Duration::from_secs(10),
        }
    }
}

/// The usage of one call, or of several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CallUsage {
    /// Fuel; roughly, instructions. The same arguments use the same amount.
    pub fuel: u64,
    /// Linear memory in bytes at the end of the call, which never shrinks. Of several calls, the
    /// largest.
    pub memory_bytes: u64,
    /// Wall-clock time in microseconds, without waiting for a free slot.
    pub micros: u64,
}

impl std::ops::AddAssign for CallUsage {
    fn add_assign(&mut self, other: Self) {
        self.fuel = self.fuel.saturating_add(other.fuel);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.micros = self.micros.saturating_add(other.micros);
    }
}

/// The result of a call, and its usage.
#[derive(Debug, Clone, PartialEq)]
pub struct CallOutcome<T> {
    /// The result.
    pub result: Result<T, CallError>,
    /// The usage, whether the call succeeded or not.
    pub usage: CallUsage,
}

impl<T> CallOutcome<T> {
    /// Maps a successful result.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> CallOutcome<U> {
        CallOutcome {
            result: self.result.map(f),
            usage: self.usage,
        }
    }
}

/// A plugin and one of its functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallSite {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// The function's name.
    pub call: &'static str,
}

impl std::fmt::Display for CallSite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` of the plugin `{}`", self.call, self.plugin)
    }
}

/// The failure of a call.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CallError {
    /// The call used up its fuel.
    #[error(
        "{at} used up its {limit} units of fuel; it may be in an endless loop: report it to the plugin's author, or raise the fuel limit"
    )]
    OutOfFuel {
        /// The call.
        at: CallSite,
        /// The limit in units of fuel.
        limit: u64,
    },
    /// The call wanted too much memory.
    #[error(
        "{at} wanted more than its {limit} bytes of memory; report it to the plugin's author, or raise the memory limit"
    )]
    OutOfMemory {
        /// The call.
        at: CallSite,
        /// The limit in bytes.
        limit: usize,
    },
    /// The call returned or logged too much.
    #[error(
        "{at} gave more than the {limit} bytes that one call may; report it to the plugin's author, or raise the output limit"
    )]
    TooMuchOutput {
        /// The call.
        at: CallSite,
        /// The limit in bytes.
        limit: usize,
    },
    /// The call took too long.
    #[error(
        "{at} took longer than its {} ms; try again when the machine is less busy, or raise the time limit",
        .limit.as_millis()
    )]
    Deadline {
        /// The call.
        at: CallSite,
        /// The time limit.
        limit: Duration,
    },
    /// The guest trapped.
    #[error("{at} broke down ({detail}); this is a fault of the plugin: report it to its author")]
    Trap {
        /// The call.
        at: CallSite,
        /// The trap, sanitized and truncated.
        detail: String,
    },
    /// The plugin returned an error of its own.
    #[error("{at} refused: {}", .error.message)]
    Plugin {
        /// The call.
        at: CallSite,
        /// The plugin's error, sanitized and truncated.
        error: types::Error,
    },
    /// The host could not make the call.
    #[error("{at} could not be called ({detail}); this is a fault of the host: report it")]
    Internal {
        /// The call.
        at: CallSite,
        /// The cause, sanitized and truncated.
        detail: String,
    },
}

impl From<CallError> for types::Error {
    /// Converts to the error type that policies and clients know. A plugin's own error is passed on
    /// unchanged.
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
        types::Error::new(kind, error.to_string()).with_code(code)
    }
}

/// Sanitizes a guest's error for display.
pub(super) fn sanitize_error(mut error: types::Error) -> types::Error {
    error.message = sanitize(&error.message, 2_000);
    error.code = error.code.map(|code| sanitize(&code, 100));
    error
}
